"""StepData: what the data modules have in common, and what a run asks of one."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, IterableDataset

from research_stack.data.batches import Rows, StepBatches, ValidationBatches, rank_and_world_size
from research_stack.data.cache import FolderCache
from research_stack.data.sources.base import Described
from research_stack.require import require


class StepData(lightning.LightningDataModule):
    """Base: training batches counted by optimizer steps, and validation rows in a fixed order. Works without a trainer.

    - batch_size: B, rows per optimizer step over all devices.
    - validation_fraction: share of the data kept for validation, in (0, 1).
    - validation_rows: at most so many validation rows, spread evenly over all; None for all.
    - num_workers: loader processes; 0 reads in the training process.
    - seed: of the order of the rows. The split does not depend on it.
    - path: what the source reads, a label; the source takes it by interpolation, so that `data.path=FILE` works.
    - max_dropped: refuse data of which more than this share is dropped or left out, in [0, 1].
    - cache_dir: root of the caches; None for $RESEARCH_STACK_CACHE or ~/.cache/research_stack.

    A subclass fills `train` and `validation` in `load`. `start_step` is set by a run that resumes; `repeat`, the number
    of successive steps that see the same batch, by the method.
    """

    train: Any
    validation: Any

    def __init__(
        self,
        batch_size: int,
        validation_fraction: float,
        validation_rows: int | None,
        num_workers: int,
        seed: int,
        path: str | list[str] | None,
        max_dropped: float,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        require(batch_size >= 1, f"batch_size={batch_size} must be at least 1")
        require(0 < validation_fraction < 1, f"validation_fraction={validation_fraction} must lie between 0 and 1")
        require(
            validation_rows is None or validation_rows >= 1,
            f"validation_rows={validation_rows} must be at least 1, or null for all",
        )
        require(num_workers >= 0, f"num_workers={num_workers} must not be negative")
        require(num_workers <= 1_024, f"num_workers={num_workers} must be at most 1,024")
        require(0 <= max_dropped <= 1, f"max_dropped={max_dropped} must lie in [0, 1]")
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.validation_fraction, self.validation_rows = validation_fraction, validation_rows
        self.path, self.max_dropped, self.cache_dir = path, max_dropped, cache_dir
        self.start_step = 0
        self.repeat = 1
        self._fingerprint: str | None = None
        self._meta: dict[str, Any] | None = None
        self._prepared = False

    # What a subclass says --------------------------------------------------------------------------------------------

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError or OSError with one line when the data cannot be had; reads little."""

    @abstractmethod
    def load(self) -> None:
        """Fill `train` and `validation`, after `set_fingerprint`; called once, after `check`."""

    @abstractmethod
    def train_batches(self, rank: int, world: int) -> StepBatches:
        """The endless batches of this rank, from `start_step` on."""

    def validation_table(self) -> Rows:
        """The validation rows, in the form that batches are made of."""
        return self.validation

    @abstractmethod
    def for_model(self) -> dict[str, Any]:
        """Constructor arguments that a model may take from the data."""

    @abstractmethod
    def for_method(self) -> dict[str, Any]:
        """Constructor arguments that a method may take from the data."""

    @abstractmethod
    def check_fit(self, model: Any, method: type) -> None:
        """Raise ValueError in one line when the model or the method does not go with the data."""

    def serve(self, method: Any) -> None:
        """Lay the rows out for a method of this class; by default every method gets the same rows."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Fingerprint and sizes, by name."""

    # Building and reading --------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Check and load the data; idempotent. Raises ValueError or OSError in one line."""
        if not self._prepared:
            self.check()
            self.load()
            self._prepared = True

    def set_fingerprint(self, parts: list[Any]) -> None:
        """Make the fingerprint from everything that the rows depend on: 20 digits of the SHA-256 of its JSON."""
        self._fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]

    @property
    def fingerprint(self) -> str:
        """Names the data, and its cache. Raises RuntimeError before `prepare()`."""
        if self._fingerprint is None:
            raise RuntimeError("call prepare() first")
        return self._fingerprint

    def open_cache(self) -> Path:
        """The cache folder of the fingerprint, built by `build` where absent; fills `meta`."""
        folder, self._meta = FolderCache(self.cache_dir, self.fingerprint).folder(self.build)
        return folder

    def build(self, folder: Path) -> dict[str, Any]:
        """Write what `load` reads into an empty folder; returns what is to be known of it, as JSON."""
        raise TypeError(f"{type(self).__name__} has no cache")

    @property
    def meta(self) -> dict[str, Any]:
        """What the cache says of itself. Raises RuntimeError before `prepare()`."""
        if self._meta is None:
            raise RuntimeError("call prepare() first")
        return self._meta

    def of_sides(self) -> dict[str, Any]:
        """What `meta` says of both sides, as train_... and validation_...."""
        return {f"{side}_{name}": value for side in ("train", "validation") for name, value in self.meta[side].items()}

    # Lightning's hooks -----------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Lightning's hook on one process per node."""
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Lightning's hook on every process."""
        self.prepare()

    def train_dataloader(self) -> DataLoader:
        """Endless; item i is the batch of step `start_step + i`: this rank's B/world rows. Raises ValueError where the
        devices cannot share a batch evenly.
        """
        rank, world = rank_and_world_size()
        if self.batch_size % world:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of the {world} devices it is shared by")
        return _loader(self.train_batches(rank, world), self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """Finite, in a fixed order; with w devices the last len(validation) % w rows are left out."""
        rank, world = rank_and_world_size()
        return _loader(ValidationBatches(self.validation_table(), max(1, self.batch_size // world), rank, world), 0)


def source_facts(source: object) -> dict[str, Any]:
    """What a source says of itself beside its fingerprint, as source_...."""
    facts = source.describe() if isinstance(source, Described) else {}
    return {f"source_{name}": fact for name, fact in facts.items()}


def _loader(dataset: IterableDataset, workers: int) -> DataLoader:
    return DataLoader(dataset, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available())

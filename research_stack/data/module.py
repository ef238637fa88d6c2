"""TokenData: the batches of a corpus, as a LightningDataModule that works without a trainer too.

The training loader is endless and one item of it is one optimizer step: this device's rows of the global batch.
Which rows a step sees is a function of (seed, step) alone: the rows of each epoch in an order drawn from the stream
(seed, "order", epoch), laid end to end and cut into batches. So a run resumed at a step goes on exactly where it was,
with any number of loader workers and any number of devices.

Shapes: N rows, B sequences of a global batch, L tokens of a sequence.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from research_stack.data.cache import Cache
from research_stack.data.packing import DUPLICATE, Rows, pack, split, train_texts
from research_stack.data.sources import Source
from research_stack.data.tokenizers import Codec, Tokenizer
from research_stack.data.vocabulary import Vocabulary
from research_stack.require import require
from research_stack.streams import generator

PACKING = 1  # raise it when split, packing or file format change: it is part of the fingerprint
Batch = dict[str, Tensor]


def place() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) when nothing is distributed."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def batch_of(rows: Rows) -> Batch:
    """The rows as tensors: tokens int64 (B, L); eligible, attend and prompt bool (B, L)."""
    return {name: torch.from_numpy(array) for name, array in rows.arrays().items()}


class TrainBatches(IterableDataset):
    """Endless steps' batches of one rank, from `start_step` on.

    - rows: the N training rows.
    - batch_size: B, over all devices.
    - rank, world: this device's share is rows rank*B/world : (rank+1)*B/world of each batch.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int, start_step: int, rank: int, world: int) -> None:
        self.rows, self.batch_size, self.seed, self.start_step = rows, batch_size, seed, start_step
        share = batch_size // world
        self.share = slice(rank * share, (rank + 1) * share)
        self._orders: dict[int, np.ndarray] = {}

    def order(self, epoch: int) -> np.ndarray:
        """(N,) the order of the rows in an epoch; the last one or two asked for are kept."""
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = torch.randperm(len(self.rows), generator=generator(self.seed, "order", epoch)).numpy()
        return self._orders[epoch]

    def indices(self, step: int) -> np.ndarray:
        """(B/world,) the rows of this rank at a step."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.share]
        epochs, places = np.divmod(positions, len(self.rows))
        return np.concatenate([self.order(int(e))[places[epochs == e]] for e in np.unique(epochs)])

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()  # workers take turns, and DataLoader collects them in that order
        step, stride = (self.start_step + worker.id, worker.num_workers) if worker else (self.start_step, 1)
        while True:
            yield batch_of(self.rows.take(self.indices(step)))
            step += stride


class ValidationBatches(IterableDataset):
    """The validation rows once, in order; rank r of w has rows r, r+w, r+2w, ... and all ranks have the same number."""

    def __init__(self, rows: Rows, batch_rows: int, rank: int, world: int) -> None:
        self.rows, self.batch_rows = rows, batch_rows
        self.mine = np.arange(len(rows) // world) * world + rank

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_rows)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.mine), self.batch_rows):
            yield batch_of(self.rows.take(self.mine[start : start + self.batch_rows]))


class TokenData(lightning.LightningDataModule):
    """A corpus, tokenized, packed, cached and served in batches.

    - source: the corpus. tokenizer: fitted to the training documents only.
    - sequence_length: L, tokens per row.
    - batch_size: B, sequences per optimizer step over all devices.
    - validation_fraction: share of the documents kept for validation, in (0, 1).
    - validation_rows: at most so many validation rows, spread evenly over all; None for all.
    - cache_dir: root of the caches; None for $RESEARCH_STACK_CACHE or ~/.cache/research_stack.
    - num_workers: loader processes; 0 reads in the training process, which is fast enough for a memory map.
    - seed: of the order of the rows. The split and the tokenizer do not depend on it.
    - path: what the source reads, a label; the source takes it by interpolation, so that `data.path=FILE` works.

    `prepare()` must be called before the other attributes are used; it is idempotent, and Lightning calls it too.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        sequence_length: int = 128,
        batch_size: int = 64,
        validation_fraction: float = 0.05,
        validation_rows: int | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        path: str | list[str] | None = None,
    ) -> None:
        super().__init__()
        require(sequence_length >= 2, f"sequence_length={sequence_length} must be at least 2")
        require(batch_size >= 1, f"batch_size={batch_size} must be at least 1")
        require(0 < validation_fraction < 1, f"validation_fraction={validation_fraction} must lie between 0 and 1")
        require(validation_rows is None or validation_rows >= 1, f"validation_rows={validation_rows} must be at least 1, or null for all")
        require(num_workers >= 0, f"num_workers={num_workers} must not be negative")
        self.source, self.tokenizer, self.path = source, tokenizer, path
        self.sequence_length, self.batch_size = sequence_length, batch_size
        self.validation_fraction, self.validation_rows = validation_fraction, validation_rows
        self.cache_dir, self.num_workers, self.seed = cache_dir, num_workers, seed
        self.start_step = 0
        self.codec: Codec
        self.train: Rows
        self.validation: Rows
        self.fingerprint: str
        self._meta: dict[str, Any] | None = None

    def check(self) -> None:
        """Raise ValueError or OSError with one line when corpus or tokenizer cannot be had; reads little."""
        self.source.check()
        self.tokenizer.check()

    def prepare(self) -> None:
        """Build or open the cache. Raises ValueError (no row, no validation document) or OSError in one line."""
        if self._meta is not None:
            return
        self.check()
        parts = [PACKING, self.source.fingerprint(), self.tokenizer.fingerprint(), self.sequence_length, self.validation_fraction]
        self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
        folder, self._meta = Cache(self.cache_dir, self.fingerprint).folder(self._build)
        self.codec = self.tokenizer.load(folder)
        self.train = Rows.load(folder, "train", self.vocab, self.sequence_length)
        validation = Rows.load(folder, "validation", self.vocab, self.sequence_length)
        taken = validation.spread_indices(self.validation_rows or len(validation))
        self.validation, self.validation_document = validation.take(taken), validation.document[taken]

    def _build(self, folder: Path) -> dict[str, Any]:
        sides = split(self.source, self.validation_fraction)
        codec = self.tokenizer.fit(train_texts(self.source, sides))
        counts = pack(self.source, sides, codec, self.sequence_length, folder)
        codec.save(folder)
        for name, count in counts.items():
            if not count["rows"]:
                raise ValueError(
                    f"sequence_length={self.sequence_length} is too long: the {count['documents']} {name} documents have "
                    f"{count['tokens']} tokens, which fill no row; shorten it, or use a larger corpus or validation_fraction"
                )
        return {"duplicates": int((sides == DUPLICATE).sum()), **counts}

    @property
    def meta(self) -> dict[str, Any]:
        """What the cache says of itself. Raises RuntimeError before `prepare()`."""
        if self._meta is None:
            raise RuntimeError("call prepare() first")
        return self._meta

    @property
    def vocab(self) -> Vocabulary:
        """Sizes and special ids of the codec."""
        return self.codec.vocab

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 per real token of the validation texts: nats per token / (ln 2 * this) = bits per byte."""
        return self.meta["validation"]["bytes"] / self.meta["validation"]["tokens"]

    def train_tokens(self, limit: int | None = None) -> np.ndarray:
        """(n,) int64: the training rows' tokens one after another, end tokens included, padding left out; n <= limit."""
        rows = len(self.train) if limit is None else -(-limit // self.sequence_length)
        return self.train.take(slice(0, rows)).stream()[:limit]

    def validation_documents(self) -> list[str]:
        """The texts between the end tokens of the validation rows; the first and last of a row may be cut."""
        stream = self.validation.stream()
        ends = np.flatnonzero(stream == self.vocab.end)
        texts = (self.codec.decode(part[part != self.vocab.end]) for part in np.split(stream, ends))
        return [text for text in texts if text.strip()]

    def describe(self) -> dict[str, Any]:
        """Fingerprint and sizes: documents, bytes, tokens, rows of both sides; what was removed, cut and dropped."""
        sides = {f"{side}_{name}": n for side in ("train", "validation") for name, n in self.meta[side].items()}
        return {
            "fingerprint": self.fingerprint,
            "path": self.path,
            "vocab_size": self.vocab.size,
            "sequence_length": self.sequence_length,
            "duplicates": self.meta["duplicates"],
            **sides,
            "bytes_per_token": round(self.bytes_per_token, 4),
            "validation_rows_used": len(self.validation),
        }

    def prepare_data(self) -> None:
        """Lightning's hook on one process per node."""
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Lightning's hook on every process."""
        self.prepare()

    def train_dataloader(self) -> DataLoader:
        """Endless; item i is the batch of step `start_step + i`: this rank's B/world rows."""
        rank, world = place()
        if self.batch_size % world:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of the {world} devices it is shared by")
        return self._loader(TrainBatches(self.train, self.batch_size, self.seed, self.start_step, rank, world))

    def val_dataloader(self) -> DataLoader:
        """Finite, in a fixed order; with w devices the last len(validation) % w rows are left out."""
        rank, world = place()
        return self._loader(ValidationBatches(self.validation, max(1, self.batch_size // world), rank, world), workers=0)

    def _loader(self, dataset: IterableDataset, workers: int | None = None) -> DataLoader:
        workers = self.num_workers if workers is None else workers
        return DataLoader(dataset, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available())

"""Checkpoints: written whole or not at all, and loaded without running code."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from research_stack.records.files import atomic_path
from research_stack.require import require
from research_stack.training.checksum import HashingFile, damage, seal

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file beside the target, with its checksum, then renames; loads with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises OSError that names the path when the disk is full; the previous checkpoint then stays."""
        path = Path(path)
        try:
            # Given a name, torch would keep the file open, and its space taken, for as long as the error is handled.
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                summed = HashingFile(file)
                torch.save(checkpoint, summed)  # pyright: ignore[reportArgumentType]  write and flush are enough
                seal(file, summed.digest.hexdigest())
        except RuntimeError as error:  # torch's zip writer reports a full disk as RuntimeError
            raise OSError(
                f"{path} cannot be written whole (is the disk full?); the previous checkpoint is untouched"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """The checkpoint on CPU. Raises ValueError when the file is damaged."""
        return load_checkpoint(path)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain values, on CPU; nothing in the file can run code.

    Raises ValueError that names the file when it is truncated or damaged, be it in a single bit, FileNotFoundError when
    there is none.
    """
    loaded: dict[str, Any] = {}
    try:
        broken = damage(Path(path))
        if broken is None:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such checkpoint") from error
    except Exception as error:  # torch raises many types on a damaged file
        broken = next(iter(str(error).splitlines()), "") or type(error).__name__
    if broken is not None:
        raise ValueError(f"{path}: the checkpoint is damaged or not a checkpoint ({broken[:120]})")
    return loaded


class Checkpoints(Checkpoint):  # Lightning runs subclasses of Checkpoint after all other callbacks
    """Keeps `last.ckpt` (every `every` steps and at the end) and `best.ckpt` (lowest `monitor`).

    - every: steps between two writes of `last.ckpt`: what a kill -9 can cost.
    - monitor: a logged validation metric, lower is better.

    They lie in `checkpoints/` below the trainer's `default_root_dir`.
    """

    def __init__(self, every: int = 50, monitor: str = "val/loss") -> None:
        require(every >= 1, f"every={every} must be at least 1")
        self.every, self.monitor = every, monitor
        self.best: float | None = None
        self._saved_at = -1

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value so far."""
        self.best = state_dict["best"]

    @staticmethod
    def path(trainer: Trainer, name: str) -> Path:
        """Where the checkpoint of that name lies."""
        return Path(trainer.default_root_dir) / "checkpoints" / f"{name}.ckpt"

    def save_last(self, trainer: Trainer) -> None:
        """Write `last.ckpt` on all ranks, unless this step's is there already."""
        if self._saved_at != trainer.global_step:
            trainer.save_checkpoint(self.path(trainer, "last"))
            self._saved_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` where it is due."""
        if self._due(trainer) and not validation_follows(trainer):
            self.save_last(trainer)

    def _due(self, trainer: Trainer) -> bool:
        return trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps or trainer.should_stop

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `best.ckpt` when the monitored value improved, then `last.ckpt` where it is due."""
        if trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and (self.best is None or float(value) < self.best):
            self.best = float(value)
            trainer.save_checkpoint(self.path(trainer, "best"))
        if self._due(trainer):
            self.save_last(trainer)


class ConfigInside(Callback):
    """Puts the run's config, as plain Python, into every checkpoint under `config`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add it."""
        checkpoint["config"] = self.config


def validation_follows(trainer: Trainer) -> bool:
    """Whether this step's validation comes next. A checkpoint before it would lose it: a resumed run starts behind
    it.
    """
    if not trainer.enable_validation:
        return False
    assert trainer.val_check_batch is not None  # validation goes by steps, not by time
    return trainer.global_step % trainer.val_check_batch == 0

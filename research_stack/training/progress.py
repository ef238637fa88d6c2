"""Progress: a bar on a terminal, a line every so often in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

log = logging.getLogger(__name__)


@runtime_checkable
class Counting(Protocol):
    """A method that says how much it has worked on, and what that counts."""

    counted: str

    def tokens_of(self, batch: Any) -> int:
        """How much this device has worked on in the last step."""
        ...


class Progress(Callback):
    """Shows step, loss, gradient norm, tokens per second and the time left.

    - every_seconds: time between two lines in the log; the bar on a terminal refreshes by itself.
    """

    def __init__(self, every_seconds: float = 10.0) -> None:
        self.every_seconds = every_seconds
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and the bar where standard error is a terminal."""
        self._first, self._start, self._said, self._tokens = trainer.global_step, time.monotonic(), time.monotonic(), 0
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(
                total=trainer.max_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True, leave=False
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar, or write a line where one is due."""
        assert isinstance(pl_module, Counting)
        self._tokens += pl_module.tokens_of(batch) * trainer.world_size
        self._counted = pl_module.counted
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix(self._figures(trainer), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)
        elif trainer.is_global_zero and (
            now - self._said >= self.every_seconds or trainer.global_step == trainer.max_steps
        ):
            self._said = now
            self._line(trainer, now)

    def _line(self, trainer: Trainer, now: float) -> None:
        done, spent = trainer.global_step - self._first, now - self._start
        left = spent / max(1, done) * (trainer.max_steps - trainer.global_step)
        figures = "  ".join(f"{name} {value}" for name, value in self._figures(trainer).items())
        log.info(
            "step %d/%d  %s  %.0f %s/s  %.0f s left",
            trainer.global_step,
            trainer.max_steps,
            figures,
            self._tokens / max(spent, 1e-9),
            self._counted,
            left,
        )

    def _figures(self, trainer: Trainer) -> dict[str, str]:
        shown = {"train/loss": "loss", "train/grad_norm": "grad", "val/loss": "val"}
        return {
            short: f"{float(trainer.callback_metrics[name]):.3f}"
            for name, short in shown.items()
            if name in trainer.callback_metrics
        }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

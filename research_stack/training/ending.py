"""How training ends: an end is told apart from a stop, and what has learnt nothing is named."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from research_stack.records.files import read_jsonl
from research_stack.records.run_folder import RunFolder, Stopped
from research_stack.training.checkpoint import validation_follows
from research_stack.training.sharding import local

log = logging.getLogger(__name__)

#: How `torch.Tensor.view` shows the bits of a value of so many bytes.
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def stopped_early(trainer: Trainer) -> bool:
    """Whether an early-stopping callback has ended the training."""
    return any(
        stopper.stopping_reason != EarlyStoppingReason.NOT_STOPPED for stopper in trainer.early_stopping_callbacks
    )


def _timers(trainer: Trainer) -> list[Timer]:
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  set by a part of the trainer
    return [callback for callback in callbacks if isinstance(callback, Timer)]


def has_ended(checkpoint: Mapping[str, Any], max_steps: int) -> bool:
    """Whether the training that left this checkpoint has no step left to make."""
    return bool(checkpoint) and (checkpoint["global_step"] >= max_steps or bool(checkpoint.get("stopped_early")))


class EndOfTraining(Checkpoint):  # after all other callbacks
    """Saves `last.ckpt` and raises Stopped when something else than early stopping stops the trainer below `max_steps`.

    It acts behind the step and its validation, where one is due, so that a run that goes on has the rows of one that
    was not stopped.
    Time that `trainer.max_time` gives is that of one start, not of all.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say in each checkpoint whether the training has ended there before `max_steps`."""
        checkpoint["stopped_early"] = stopped_early(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Forget the time of earlier parts: else a run whose time was used up could not go on."""
        timers = {timer.state_key for timer in _timers(trainer)}
        states = checkpoint.get("callbacks", {})
        checkpoint["callbacks"] = {key: state for key, state in states.items() if key not in timers}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, unless the step's validation is still to come."""
        if not validation_follows(trainer):
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop behind a validation."""
        if not trainer.sanity_checking:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        step, last = trainer.global_step, trainer.max_steps
        if not trainer.should_stop or stopped_early(trainer) or not max(1, trainer.min_steps or 0) <= step < last:
            return
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
        left = [timer.time_remaining() for timer in _timers(trainer)]
        timed = any(seconds is not None and seconds <= 0 for seconds in left)
        why = "its time (trainer.max_time) is used up" if timed else "a callback asked for it"
        raise Stopped(f"training was stopped at step {step} of {last}: {why}")

    @staticmethod
    def require(trainer: Trainer, first: int) -> None:
        """Raise ValueError when training came back without a step, or below `max_steps` without having been stopped."""
        done, wanted = trainer.global_step, trainer.max_steps
        if done == first:
            raise ValueError(
                f"no step was trained (step {done} of trainer.max_steps={wanted}): "
                f"look at the trainer's other keys, trainer.max_epochs={trainer.max_epochs} for one"
            )
        if done < wanted and not stopped_early(trainer):
            raise ValueError(
                f"training ended at step {done} of trainer.max_steps={wanted}, unasked: "
                f"trainer.max_epochs={trainer.max_epochs} allows no more"
            )


class MonitorCheck(Callback):
    """Raises ValueError behind the first validation when a callback monitors a number that never comes: put it first.

    - callbacks: by the names of their config nodes.
    """

    def __init__(self, callbacks: Mapping[str, Callback]) -> None:
        found = {name: getattr(callback, "monitor", None) for name, callback in callbacks.items()}
        self.monitored = {name: monitor for name, monitor in found.items() if monitor is not None}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once."""
        if trainer.sanity_checking or not self.monitored:
            return
        monitored, self.monitored = self.monitored, {}
        if set(monitored.values()) <= set(trainer.callback_metrics):
            return
        rows = read_jsonl(RunFolder(trainer.default_root_dir).metrics_jsonl)  # earlier parts of a resumed run
        known = {*trainer.callback_metrics, *(key for row in rows for key in row)} - {"step", "time", "epoch"}
        for name, wanted in monitored.items():
            if wanted not in known:
                raise ValueError(
                    f"callbacks.{name}.monitor={wanted} is a number that never comes; "
                    f"there are {', '.join(sorted(known))}"
                )


class Learning(Callback):
    """Says in the log, when training ends, that no weight has changed since it began."""

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the weights."""
        self._before, self._first = digest(pl_module), trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare."""
        steps = trainer.global_step - self._first
        assert self._before is not None  # training has begun
        if trainer.is_global_zero and steps and torch.equal(digest(pl_module), self._before):
            found = trainer.callback_metrics
            norm, rate = (float(found.get(f"train/{name}", torch.nan)) for name in ("grad_norm", "lr"))
            log.warning(
                "nothing was learnt: no weight has changed in %d steps (gradient norm %g and learning rate %g "
                "at the last one)",
                steps,
                norm,
                rate,
            )


def digest(module: LightningModule) -> Tensor:
    """(P,) int64: of each trained parameter, or this device's part of it, the sum of its bits read as whole numbers."""
    parts = [local(p.detach()) for p in module.parameters() if p.requires_grad]
    sums = [p.view(BITS[p.element_size()]).sum(dtype=torch.int64) for p in parts]
    return torch.stack(sums) if sums else torch.zeros(0)


class Longer(Callback):
    """Puts a run that was made longer on the schedule of its new length, from the step on at which it goes on.

    - before, now: `trainer.max_steps`.

    The learning rate of a step is a function of the step and of the length, so that after a decay it rises again to
    where a run of the new length would be; warmup does not come again. The optimizer's state is kept.
    """

    def __init__(self, before: int, now: int) -> None:
        self.before, self.now = before, now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the rates of the next step, which the checkpoint has by the old schedule, and say so."""
        (config,) = trainer.lr_scheduler_configs
        scheduler, step = config.scheduler, trainer.global_step
        assert isinstance(scheduler, LambdaLR)
        old = scheduler.get_last_lr()[0]
        scheduler.last_epoch = step - 1
        scheduler.step()
        if trainer.is_global_zero:
            new = scheduler.get_last_lr()[0]
            log.info(
                "made longer, %d steps instead of %d: from step %d on the schedule, and all that is a share of "
                "trainer.max_steps, is that of %d steps; the learning rate goes from %.3g to %.3g",
                self.now,
                self.before,
                step,
                self.now,
                old,
                new,
            )

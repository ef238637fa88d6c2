"""Stopping without losing steps: Ctrl-C, SIGTERM, and the signal by which SLURM announces preemption or the end of
time.

Handlers only set a flag, since Python may run them in the middle of anything. After the step, and its validation
where one is due, the flag is reduced over all ranks by max, so that all of them save the same step even when the
signal reached some only. What follows depends on who sent it:

    SIGUSR2 in a submitit job   save, then submitit's own handler requeues the job (rank 0); the others wait to be ended
    otherwise in a SLURM job    save and train on: SLURM ends the job when it means it, and requeues by its own rules;
                                leaving now would count as the job's own end, and nothing would requeue it
    elsewhere, and Ctrl-C       save, and leave with exit code 128 + signal. A second Ctrl-C leaves at once
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from research_stack.training.checkpoint import validation_follows

log = logging.getLogger(__name__)

REQUEUE = signal.SIGUSR2  # what submitit asks SLURM to send
SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    REQUEUE,
)  # the strongest last: it wins when several arrive before a batch ends
END_SECONDS = 120  # how long other ranks wait for the requeue to end them; submitit gives scontrol 60 s


class Preemption(Checkpoint):  # after all other callbacks, and given last after the one that keeps best.ckpt
    """Saves `last.ckpt` on every rank when the run is asked to stop, then lets it be requeued or leaves.

    - folder: the run's folder; the trainer's root folder must be the same, or a job would resume from another's
      checkpoint.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._before: dict[int, Any] = {}  # signal -> handler that was there
        self._received: int | None = None

    # Handlers ------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember who handles the signals before Lightning adds its own SIGTERM handler."""
        if Path(trainer.default_root_dir).resolve() != self.folder.resolve():
            raise ValueError(
                f"trainer.default_root_dir={trainer.default_root_dir} must be the run's folder {self.folder}"
            )
        self._received = None
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; only a process's main thread can. Until here there was nothing to save."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Set the flag; nothing else is safe here."""
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is None or SIGNALS.index(number) > SIGNALS.index(self._received):
            self._received = number

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    # After a step --------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Act on a signal that reached any rank, unless the step's validation is still to come."""
        if not validation_follows(trainer):
            self._act(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on a signal that reached any rank during the step or its validation, which is logged by now."""
        if not trainer.sanity_checking:
            self._act(trainer)

    def _act(self, trainer: Trainer) -> None:
        number = self._agreed(trainer)
        if number is None:
            return
        self._received = None
        trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")
        trainer.strategy.barrier("preemption")
        log.info(
            "%s at step %d: %s is saved", number.name, trainer.global_step, self.folder / "checkpoints" / "last.ckpt"
        )
        requeue = self._before.get(REQUEUE)
        if number == REQUEUE and callable(requeue):
            self._requeue(trainer, requeue)
        elif number != signal.SIGINT and "SLURM_JOB_ID" in os.environ:
            return
        self._leave(trainer, number)

    def _agreed(self, trainer: Trainer) -> signal.Signals | None:
        """The strongest signal that any rank has received."""
        level = 0 if self._received is None else SIGNALS.index(self._received) + 1
        if trainer.world_size > 1:
            flag = torch.tensor(level, device=trainer.strategy.root_device)
            level = int(trainer.strategy.reduce(flag, reduce_op="max"))
        return signal.Signals(SIGNALS[level - 1]) if level else None

    def _requeue(self, trainer: Trainer, submitit: Callable[[int, FrameType | None], Any]) -> None:
        """Let submitit requeue the job; it leaves this process by SystemExit, or raises when the job may not go on."""
        if trainer.is_global_zero:
            submitit(REQUEUE, None)
        # SLURM now ends the job. submitit shields it from SIGTERM; without that the others go at once.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(END_SECONDS)

    def _leave(self, trainer: Trainer, number: signal.Signals) -> None:
        if trainer.is_global_zero:
            # On Ctrl-C the command line says so itself.
            again = f"; the same command goes on, or: research-stack run={shlex.quote(str(self.folder))}"
            how = "" if number == signal.SIGINT else again
            log.warning("interrupted at step %d of %d%s", trainer.global_step, trainer.max_steps, how)
        raise SystemExit(128 + number)

"""The training of a run in this process: on its device, from the last checkpoint of its folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from research_stack.config.build import build, plain, target
from research_stack.config.first_phase import first_phase_folder
from research_stack.records import provenance
from research_stack.records.redaction import masked
from research_stack.records.run_folder import RunFolder
from research_stack.running.assemble import Parts, assemble, model_facts
from research_stack.running.logs import silence_lightning
from research_stack.running.preemption import Preemption
from research_stack.running.ranks import is_rank_zero
from research_stack.running.recording import keep_codec, refuse_other_codec, refuse_other_data
from research_stack.training.checkpoint import AtomicCheckpointIO, ConfigInside, load_checkpoint
from research_stack.training.ema import Ema
from research_stack.training.ending import EndOfTraining, Learning, Longer, MonitorCheck, has_ended
from research_stack.training.loggers import JsonlLogger, RowBeforeCheckpoint
from research_stack.training.outside import GuardedLogger

log = logging.getLogger(__name__)


def refuse_idle(trainer: Mapping[str, Any], chosen_callbacks: Mapping[str, Any]) -> None:
    """Raise ValueError for a trainer that trains nothing or the same few batches, or callbacks without a checkpoint."""
    if trainer.get("fast_dev_run"):
        raise ValueError(
            f"trainer.fast_dev_run={trainer['fast_dev_run']} keeps no checkpoint and no number; "
            "for a run of seconds use trainer=smoke"
        )
    limit = trainer.get("limit_train_batches")
    if limit not in (None, 1.0) or isinstance(limit, int):
        comes = f"see the same {limit} batches over and over" if limit else "train nothing"
        raise ValueError(
            f"trainer.limit_train_batches={limit} would {comes}: batches are endless here, and "
            "trainer.max_steps says how many are seen"
        )
    if not any(issubclass(target(node), Checkpoint) for node in chosen_callbacks.values()):
        raise ValueError(
            "callbacks: none of them keeps a checkpoint, so that nothing of the training would be left; "
            "use callbacks=default, or keep callbacks.checkpoints"
        )


def chosen_loggers(cfg: DictConfig, run_folder: RunFolder, refuse: bool = True) -> list[Logger]:
    """The loggers of `cfg.logger`, beside the files that are always written; what goes wrong in them is a warning.

    - refuse: raise ValueError for one that its config node makes impossible.
    """
    makers = {
        f"logger.{name}": partial(build, node, f"logger.{name}", folder=run_folder.path)
        for name, node in (plain(cfg.logger) or {}).items()
    }
    return [GuardedLogger(where, make, refuse) for where, make in makers.items()]


def fit(cfg: DictConfig, folder: Path) -> None:
    """Train on this process's device, from the last checkpoint in the folder if there is one; none is trained again.

    Raises Stopped when a callback or `trainer.max_time` ended it below `trainer.max_steps`.
    """
    silence_lightning()
    run_folder = RunFolder(folder)
    last = run_folder.checkpoints / "last.ckpt"
    saved = load_checkpoint(last) if last.is_file() else {}
    first_step = saved.get("global_step", 0)
    saved_length = saved["config"]["trainer"]["max_steps"] if saved else cfg.trainer.max_steps
    if has_ended(saved, cfg.trainer.max_steps):
        _note_trained(run_folder, first_step)
        return
    del saved  # its weights
    loggers = chosen_loggers(cfg, run_folder) if is_rank_zero() else []
    parts = assemble(cfg)
    parts.method.check_devices(parts.data, parts.hardware.processes)
    _start_from(cfg, run_folder, parts, first_step)
    rows = JsonlLogger(run_folder.path, start_step=first_step)
    rows.open()
    trainer = build(
        cfg.trainer,
        "trainer",
        default_root_dir=str(run_folder.path),
        logger=[rows, *loggers],
        callbacks=callbacks(cfg, run_folder, rows, saved_length),
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO(), *parts.hardware.plugins()],
        **parts.hardware.trainer_arguments(),
    )
    if first_step:
        log.info("resuming %s at step %d", run_folder.path, first_step)
    started = time.monotonic()
    trainer.fit(
        parts.hardware.compiled(parts.method),
        datamodule=parts.data,
        ckpt_path=str(last) if first_step else None,
        weights_only=True,
    )
    seconds = time.monotonic() - started
    EndOfTraining.require(trainer, first_step)
    if trainer.is_global_zero:
        log.info("trained %d steps in %.0f s", trainer.global_step - first_step, seconds)
        run_folder.trained(trainer.global_step)


def _note_trained(run_folder: RunFolder, steps: int) -> None:
    """All steps are made: close the rows that a killed process left open, and say so in result.json."""
    log.info("%s is trained, %d steps: evaluations and report are left to do", run_folder.path, steps)
    if is_rank_zero():
        rows = JsonlLogger(run_folder.path, start_step=steps)
        rows.open()
        rows.finalize("success")
        run_folder.trained(steps)


def _start_from(cfg: DictConfig, run_folder: RunFolder, parts: Parts, first_step: int) -> None:
    """Load the weights of the first phase into a run that begins, check the data of one that goes on; note both."""
    if cfg.init_from and not first_step:
        first_phase = first_phase_folder(cfg)
        parts.method.load_initial_weights(load_checkpoint(first_phase.checkpoints / "last.ckpt")["state_dict"])
        refuse_other_codec(first_phase, parts.data)
        log.info("beginning with the weights of %s", first_phase.path)
    parts.data.start_step = first_step
    if first_step:
        refuse_other_data(run_folder, parts.data)
    if is_rank_zero():
        keep_codec(parts.data, run_folder, anew=not first_step)
        facts = {"data": parts.data.describe(), "model": model_facts(parts), "method": parts.method.describe()}
        provenance.add(run_folder.path, facts)


def callbacks(cfg: DictConfig, run_folder: RunFolder, rows: JsonlLogger, saved_length: int) -> list[Callback]:
    """The callbacks of `cfg.callbacks` between our own, in the order in which they act.

    - saved_length: `trainer.max_steps` of the part that the run goes on from.
    """
    chosen = {name: build(node, f"callbacks.{name}") for name, node in plain(cfg.callbacks).items()}
    longer = [Longer(saved_length, cfg.trainer.max_steps)] if saved_length != cfg.trainer.max_steps else []
    ema = [Ema(cfg.optimization.ema)] if cfg.optimization.ema else []
    own = [RowBeforeCheckpoint(rows), MonitorCheck(chosen), Learning(), *longer, ConfigInside(masked(plain(cfg))), *ema]
    return [*own, *chosen.values(), EndOfTraining(), Preemption(run_folder.path)]

"""task=train: its first phase, training, evaluations and report, each handing over through the folder alone."""

from __future__ import annotations

import logging
import time

from omegaconf import DictConfig

from research_stack.config.build import build, plain
from research_stack.config.first_phase import check_init_from, first_phase_config, first_phase_folder
from research_stack.records import paths, provenance
from research_stack.records.redaction import hand_over
from research_stack.records.run_folder import InUse, Result, RunFolder
from research_stack.running import launcher
from research_stack.running.evaluate import evaluate, measurements
from research_stack.running.fit import chosen_loggers, fit, refuse_idle
from research_stack.running.logs import log_file
from research_stack.running.ranks import is_helper_rank
from research_stack.running.recording import finished, is_finished, recorded

log = logging.getLogger(__name__)

WAIT = 5.0  # seconds between two looks at a first phase that another process trains


def train(cfg: DictConfig, run_folder: RunFolder) -> Result:
    """Fit, evaluate, report."""
    hardware = build(cfg.hardware, "hardware")
    launcher.guard(hardware)
    measurements(cfg)  # a mistake in them shows before training, not after
    refuse_idle(plain(cfg.trainer), plain(cfg.callbacks) or {})
    if is_helper_rank():  # another rank of the same SLURM job keeps the folder
        fit(cfg, run_folder.path)
        return Result(run_folder.path, "running")
    if is_finished(cfg, run_folder):
        log.info("%s is finished; run=new trains it again, task=eval measures it", run_folder.path)
        return finished(run_folder)
    begun_from = first_phase(cfg) if cfg.init_from and not (run_folder.checkpoints / "last.ckpt").is_file() else None
    with run_folder.lock(), log_file(run_folder.path / "run.log"):
        if not is_finished(cfg, run_folder):  # another process may have ended it while this one came here
            with recorded(cfg, run_folder) as metrics:
                if begun_from is not None:
                    provenance.add(run_folder.path, {"init_from": str(begun_from.path)})
                if launcher.needs_launch(hardware):
                    launcher.launch(run_folder.path, hardware, hand_over(plain(cfg)))
                else:
                    fit(cfg, run_folder.path)
                metrics |= evaluate(cfg, run_folder)
            for logger in chosen_loggers(cfg, run_folder, refuse=False):  # the run is ok, whatever they do
                logger.log_metrics(dict(metrics), step=run_folder.load_result().steps)
                logger.finalize("success")
    return finished(run_folder)


def first_phase(cfg: DictConfig) -> RunFolder:
    """The finished run that this one begins from, trained now where it has not been; a process that trains it already
    is waited for.
    """
    check_init_from(cfg)
    run_folder = first_phase_folder(cfg)
    if paths.names_folder(cfg.init_from):
        return run_folder
    while not run_folder.result_json.is_file() or run_folder.load_result().status != "ok":
        try:
            log.info("first phase: init_from=%s, in %s", cfg.init_from, run_folder.path)
            with paths.removed_if_empty(run_folder.path):
                train(first_phase_config(cfg), run_folder)
            break
        except InUse:
            log.info("waiting for %s, which another process trains", run_folder.path)
            time.sleep(WAIT)
    return run_folder

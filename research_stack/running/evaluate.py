"""What is measured on a trained run: its evaluations, at the end of training or later (task=eval)."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from research_stack.config.build import build, plain, target
from research_stack.config.hints import one_line
from research_stack.records import provenance
from research_stack.records.run_folder import Result, RunFolder
from research_stack.reporting import write_report
from research_stack.running.logs import log_file
from research_stack.running.open_run import open_run
from research_stack.running.recording import finished, measuring

if TYPE_CHECKING:
    from research_stack.evaluation.context import Evaluation
    from research_stack.sampling.sampler import Sampler

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig, run_folder: RunFolder, again: bool = False) -> dict[str, float]:
    """Every evaluation of `cfg.eval` on the last checkpoint: {"<name>/<key>": value}, each kept when it is made.

    - again: whether the run has ended: result.json then says which evaluations, of which config, were made since.

    One that fails does not keep the others from being made; the first error is raised when all have been tried.
    """
    evaluations, _ = measurements(cfg)
    if not evaluations:
        return {}
    context, metrics, errors = open_run(cfg, run_folder), {}, []
    for name, evaluation in evaluations.items():
        started = time.monotonic()
        try:
            with context.inference():
                found = evaluation(context)
        except Exception as error:
            log.error("eval %s failed: %s", name, one_line(error) or type(error).__name__)
            errors.append(error)
            continue
        own = {f"{name}/{key}": float(value) for key, value in found.items()}
        run_folder.merge_metrics(own, measured={name: plain(cfg.eval[name])} if again else None)
        metrics |= own
        log.info("eval %s: %.1f s", name, time.monotonic() - started)
    if errors:
        raise errors[0]
    return metrics


def measurements(cfg: DictConfig) -> tuple[dict[str, Evaluation], Sampler]:
    """The evaluations of `cfg.eval` by name, and the sampler, built.

    Raises ValueError for an evaluation that cannot measure the method.
    """
    nodes, method = plain(cfg.eval) or {}, target(cfg.method)
    evaluations: dict[str, Evaluation] = {name: build(node, f"eval.{name}") for name, node in nodes.items()}
    for name, evaluation in evaluations.items():
        if reason := evaluation.unsuited(method):
            raise ValueError(f"eval.{name} does not fit method={method.__name__}: {reason}")
    return evaluations, build(cfg.sampler, "sampler")


def evaluate_run(cfg: DictConfig, run_folder: RunFolder) -> Result:
    """task=eval: measure a finished run; result.json and report gain the new numbers. Several at once take turns."""
    with run_folder.lock(measuring(run_folder)), log_file(run_folder.path / "run.log"):
        provenance.tell_changes(run_folder)
        try:
            evaluate(cfg, run_folder, again=True)
        finally:  # what was measured before an error is kept, and shown
            write_report(run_folder.path)
            provenance.history(run_folder.path, cfg, task="eval")
    return finished(run_folder)

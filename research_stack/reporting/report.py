"""report.html of a run: one page that stands alone, made from the folder's files and nothing else."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from research_stack.records.files import atomic_write
from research_stack.records.run_folder import RunFolder
from research_stack.reporting import latentwire, latentwire_losses, loss_parts, passk, policy_training, sections
from research_stack.reporting.calibration import predictors
from research_stack.reporting.figures import write_figures
from research_stack.reporting.html import Html, el, page
from research_stack.reporting.next_token import decoders, next_token
from research_stack.reporting.reading import RunFiles, read
from research_stack.reporting.reward import reward_model
from research_stack.reporting.selective import abstention, risk_coverage
from research_stack.reporting.trajectory import dynamics

log = logging.getLogger(__name__)

HERE = Path(__file__).parent


def training(run: RunFiles) -> list[Html] | None:
    """The two losses apart where there are two, the rewards of a policy, the parts of a wire's loss, the one loss
    otherwise.
    """
    return (
        loss_parts.training(run)
        or policy_training.training(run)
        or latentwire_losses.training(run)
        or sections.training(run)
    )


SECTIONS: Sequence[Callable[[RunFiles], list[Html] | None]] = (
    sections.likelihood,
    next_token,
    predictors,
    risk_coverage,
    abstention,
    passk.answers,
    dynamics,
    reward_model,
    latentwire.answers,
    training,
    decoders,
    sections.samples,
    sections.refinement,
    sections.provenance,
)


@functools.cache
def asset(name: str) -> str:
    """A file that lies beside this module: the page's style or script."""
    return (HERE / name).read_text(encoding="utf-8")


def write_report(folder: str | os.PathLike[str], status: str | None = None) -> Path:
    """Write report.html and figures/*.png of a run folder; returns the page's path.

    - status: what the page says of the run where its files do not say it yet: it is ok only when its report is there.

    Works from the files alone and for runs that failed or were interrupted: it shows what there is. OSError if the
    folder cannot be written.
    """
    place, run = RunFolder(folder), read(Path(folder), status)
    atomic_write(place.report_html, render(run))
    write_figures(place, run)
    return place.report_html


def render(run: RunFiles) -> str:
    """The page."""
    parts = [section(run) for section in SECTIONS]
    body = [
        *sections.header(run),
        [part for part in parts if part is not None],
        el("footer", "Made from the files of the run folder; loads nothing from anywhere."),
    ]
    return page(f"{run.name}: {run.status}", body, asset("style.css"), asset("player.js"))

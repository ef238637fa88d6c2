"""report.html of a run: one page that needs no other file, made from the folder's files and nothing else."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

from research_stack.records.files import atomic_write
from research_stack.records.run_folder import RunFolder
from research_stack.reporting.contract import Report, reports_of
from research_stack.reporting.curves import number
from research_stack.reporting.elements import duration, moment
from research_stack.reporting.html import Node, el, page, walk
from research_stack.reporting.provenance_section import provenance
from research_stack.reporting.run_files import RunFiles, read
from research_stack.reporting.training_curves import last_loss, training

log = logging.getLogger(__name__)


@functools.cache
def asset(name: str) -> str:
    """A file that lies beside this module: the page's style or script."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def write_report(folder: str | os.PathLike[str], status: str | None = None) -> Path:
    """Write report.html of a run folder, and its charts as figures/*.png and *.pdf; returns the page's path.

    - status: what the page says of the run where its files do not say it yet: it is ok only when its report is there.

    Works from the files alone and for runs that failed or were interrupted: it shows what there is. OSError if the
    folder cannot be written.
    """
    run_folder, run = RunFolder(folder), read(Path(folder), status)
    write_page(run_folder.report_html, f"{run.name}: {run.status}", contents(run))
    return run_folder.report_html


def render(run: RunFiles) -> str:
    """The page of a run as text."""
    return page(f"{run.name}: {run.status}", contents(run), asset("style.css"), asset("player.js"))


def write_page(path: Path, title: str, body: Node) -> None:
    """Write a page, and beside it the files of each chart in it."""
    atomic_write(path, page(title, body, asset("style.css"), asset("player.js")))
    for node in walk(body):
        if hasattr(node, "write"):
            node.write(path.parent)


def contents(run: RunFiles) -> Node:
    """What the page of a run shows."""
    reports = reports_of(run)
    own_training = (report.training(run) for report in reports if report.training is not None)
    sections = [
        *(section(run) for report in reports for section in report.results),
        next((part for part in own_training if part is not None), None) or training(run),
        *(section(run) for report in reports for section in report.details),
        provenance(run, measured_by(run, reports), samples=all(report.samples for report in reports)),
    ]
    footer = el("footer", "Made from the files of the run folder; loads nothing from anywhere.")
    return [header(run, reports), [part for part in sections if part is not None], footer]


def header(run: RunFiles, reports: list[Report]) -> Node:
    """Name, status, verdict, the numbers at a glance, what went wrong."""
    facts = [el("div", el("dt", key), el("dd", value)) for key, value in numbers(run, reports).items()]
    return [
        el(
            "h1",
            el("b", run.name),
            el("span", run.status, class_=f"pill {run.status}"),
            el("time", moment(run.result.get("finished") or run.result.get("started"))),
        ),
        el("p", verdict(run, reports), class_="verdict"),
        el("dl", facts, class_="facts"),
        el("p", run.error, class_="error") if run.error else None,
        [el("p", problem, class_="error") for problem in run.problems],
    ]


def verdict(run: RunFiles, reports: list[Report]) -> str:
    """What the run came to, in a sentence: the first that a report has, else how far training came."""
    prefix = {
        "failed": f"The run failed at step {run.steps:,}. ",
        "interrupted": f"The run was interrupted at step {run.steps:,}. ",
        "running": f"The run is under way, at step {run.steps:,}. ",
        "unknown": "The folder has no result. ",
    }.get(run.status, "")
    return (prefix + (measured(run, reports) or progress(run, reports))) or "The run ended; nothing was measured."


def measured(run: RunFiles, reports: list[Report]) -> str:
    """The first verdict that a report has; empty where nothing was measured."""
    sentences = (report.verdict(run) for report in reports if report.verdict is not None)
    return next(filter(None, sentences), "")


def progress(run: RunFiles, reports: list[Report]) -> str:
    """How far training came, in a sentence."""
    sentences = (report.progress(run) for report in reports if report.progress is not None)
    return next(filter(None, sentences), "") or last_loss(run)


def measured_by(run: RunFiles, reports: list[Report]) -> str:
    """The option of `eval` that measures the run, where nothing has measured it."""
    if measured(run, reports):
        return ""
    return next((report.measured_by for report in reports if report.measured_by), "")


def numbers(run: RunFiles, reports: list[Report]) -> dict[str, str]:
    """The few numbers on top: those of the reports, then size, corpus, steps and time."""
    found: dict[str, str] = {}
    for report in reports:
        found |= report.numbers(run) if report.numbers is not None else {}
    model, data = run.run.get("model") or {}, run.run.get("data") or {}
    if isinstance(model.get("parameters"), int):
        found["parameters"] = number(float(f"{model['parameters']:.3g}"))
    if isinstance(data.get("train_tokens"), int):
        found["corpus tokens"] = number(float(f"{data['train_tokens']:.3g}"))
    if run.steps:
        found["optimizer steps"] = f"{run.steps:,}"
    if run.seconds:
        found["time"] = duration(run.seconds)
    return found

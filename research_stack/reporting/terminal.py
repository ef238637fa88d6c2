"""The few lines that stand in the terminal when a run has ended."""

from __future__ import annotations

import os
from pathlib import Path

from research_stack.reporting.contract import reports_of
from research_stack.reporting.elements import aligned, duration
from research_stack.reporting.page import measured, progress, verdict
from research_stack.reporting.run_files import read


def summary(folder: str | os.PathLike[str]) -> str:
    """What the run came to, as aligned text that ends with the report's path (relative where it lies below here)."""
    run = read(Path(folder))
    reports = reports_of(run)
    took = f", {run.steps:,} steps, {duration(run.seconds)}" if run.steps else ""
    blocks = [f"{run.name}: {run.status}{took}", run.error or ""]
    for part in (part for report in reports if report.terminal is not None for part in report.terminal(run)):
        if isinstance(part, str):  # a remark on the table above it
            blocks[-1] += f"\n{part}"
        else:
            blocks.append(aligned(part))
    blocks.append(verdict(run, reports) if measured(run, reports) else progress(run, reports))
    report = run.folder / "report.html"
    if report.is_file():
        blocks.append(str(_shown(report)))
    return "\n\n".join(block for block in blocks if block)


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path

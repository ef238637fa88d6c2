"""One table and one page of several runs: the points of a sweep when it ends, and any runs by task=compare."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from research_stack.config.hints import UserError
from research_stack.records import paths, sweep_table, terminal
from research_stack.records.files import atomic_write
from research_stack.records.run_folder import Result
from research_stack.running.errors import message_of


def compare(runs: Sequence[str]) -> Result:
    """task=compare: one table and one report of finished runs.

    - runs: run folders, or a sweep's folder for its points.
    """
    if not runs:
        raise UserError("task=compare needs runs=[FOLDER,FOLDER]: run folders, or a sweep's folder for its points")
    try:
        folders = sweep_table.expand(list(runs))
    except (ValueError, OSError) as error:
        raise UserError(message_of(error)) from error
    parents = {folder.parent for folder in folders}
    together = parents.pop() if len(parents) == 1 and len(runs) == 1 else paths.new_run_folder("compare")
    with paths.removed_if_empty(together):
        collect(together, folders)
    return Result(together, "ok")


def collect(folder: Path, runs: Sequence[Path]) -> list[str]:
    """Write the table and the report of the runs that exist; returns the failed ones, as `point: error`."""
    from research_stack.evaluation.seed_differences import seed_differences
    from research_stack.reporting.differences import csv
    from research_stack.reporting.sweep_names import named
    from research_stack.reporting.sweep_page import as_markdown, as_text, write_sweep_report

    if not any((run / "result.json").is_file() for run in runs):
        return []
    table = named(sweep_table.collect(list(dict.fromkeys(runs))))
    differences = seed_differences(table)
    sweep_table.write_table(folder, table, as_markdown(table, differences))
    if differences:
        atomic_write(folder / "tables" / "differences.csv", csv(differences))
    report = write_sweep_report(folder, table, differences)
    terminal.write(f"{as_text(table, shutil.get_terminal_size().columns).rstrip()}\n\n{paths.shown(report)}\n")
    return [f"{f.folder.name}: {f.error or f.status}" for f in table.failures]

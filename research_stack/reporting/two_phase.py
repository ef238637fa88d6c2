"""A sweep of policies as a table: quality and diversity of every setting beside those of the phases it began with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from research_stack.records.sweep_table import Row, SweepTable, aligned, failure_line, show, show_mean
from research_stack.reporting import measured
from research_stack.reporting.reading import RunFiles, begun_from, read_phase
from research_stack.reporting.sweep_axes import label_of
from research_stack.reporting.sweep_names import INIT
from research_stack.reporting.trajectory import name_of


@dataclass(frozen=True)
class Line:
    """A row of the table: a setting, or a phase that settings began with.

    - first: the name of the phase it began with; then: its own setting, "" for a phase. row: its seeds and values.
    - runs: of each seed, with the phases before them.
    """

    first: str
    then: str
    row: Row
    runs: Sequence[RunFiles]

    @property
    def label(self) -> str:
        """sft → group; sft."""
        return " → ".join(part for part in (self.first, self.then) if part)


def lines(table: SweepTable) -> list[Line]:
    """Each first phase, followed by the settings that began with it; [] where no run answered prompts
    (`eval=passk`).
    """
    if not any(name.startswith(measured.NAME) for row in table.rows for name in row.values):
        return []
    settings = [_setting(table, row) for row in table.rows]
    found: list[Line] = []
    for first in dict.fromkeys(line.first for line in settings):
        own = [line for line in settings if line.first == first]
        found += [*_phases(first, own), *own]
    return found


def _setting(table: SweepTable, row: Row) -> Line:
    runs = [_with_earlier(folder) for folder in row.points]
    before = [run.earlier[-1] for run in runs if run.earlier]
    rest = {axis: value for axis, value in row.settings.items() if axis != INIT}
    words = ", ".join(
        show(value) if isinstance(value, str) else f"{table.labels[axis]}={show(value)}" for axis, value in rest.items()
    )
    first = show(row.settings[INIT]) if INIT in row.settings else before[0].name if before else ""
    return Line(first, words or (runs[0].name if before else label_of(row, table)), row, runs)


def _with_earlier(folder: Path) -> RunFiles:
    """A run and the phases before it, the first one first; a phase that is gone ends the search."""
    run, at = read_phase(folder), begun_from(read_phase(folder).run, folder)
    seen = {folder.resolve()}
    while at is not None and at.is_dir() and at.resolve() not in seen:
        seen.add(at.resolve())
        run.earlier.insert(0, read_phase(at))
        at = begun_from(run.earlier[0].run, at)
    return run


def _phases(first: str, settings: Sequence[Line]) -> list[Line]:
    """The phases before these settings as lines of their own, each run once, the earliest first."""
    depth = max((len(run.earlier) for line in settings for run in line.runs), default=0)
    found = []
    for back in range(depth, 0, -1):
        runs = {
            run.earlier[-back].folder.resolve(): run.earlier[-back]
            for line in settings
            for run in line.runs
            if len(run.earlier) >= back
        }
        ok = [run for run in runs.values() if run.status == "ok"]
        names = list(dict.fromkeys(name for run in ok for name in run.metrics))
        values = {name: [run.metrics[name] for run in ok if name in run.metrics] for name in names}
        row = Row({}, values, [run.folder for run in ok], [run.setting("seed") for run in ok])
        if ok:
            found.append(Line(first if back == 1 else name_of(ok[0]), "", row, ok))
    return found


def is_phase(line: Line, found: Sequence[Line]) -> bool:
    """Whether other lines began with it."""
    return not line.then and any(other.then and other.first == line.first for other in found)


# The table -----------------------------------------------------------------------------------------------------------


def columns(found: Sequence[Line]) -> list[str]:
    """The metrics that are shown, by their names in `measured`."""
    return measured.main(
        dict.fromkeys(
            name.removeprefix(measured.NAME)
            for line in found
            for name in line.row.values
            if name.startswith(measured.NAME)
        )
    )


def head(found: Sequence[Line]) -> list[str]:
    """The header of the table."""
    return ["first phase", "then", "seeds", *map(measured.short, columns(found))]


def cells(line: Line, names: Sequence[str]) -> list[str]:
    """A line of the table."""
    numbers = []
    for name in names:
        factor, key = 100.0 if measured.is_share(name) else 1.0, measured.NAME + name
        mean, error = line.row.mean(key), line.row.standard_error(key)
        numbers.append(brief(None if mean is None else factor * mean, None if error is None else factor * error))
    return [line.first or "-", line.then or "-", str(line.row.n), *numbers]


def brief(mean: float | None, error: float | None) -> str:
    """As `show_mean`, with two decimals at most where the number is large enough for them: few seeds may agree by
    chance.
    """
    if mean is None or error is None or not math.isfinite(error) or error == 0 or error >= 0.1 or abs(mean) < 1:
        return show_mean(mean, error)
    return f"{mean:.2f} ± {error:.2f}"


def note(found: Sequence[Line]) -> str:
    """What the numbers are, and which do not compare."""
    text = (
        "Mean ± standard error over seeds (none for one seed), of the prompts that were trained on. Lines without a"
        " second entry are the first phases themselves."
    )
    evals = {repr(run.setting("eval")) for line in found for run in line.runs}
    return text + (
        " Not all runs were measured by the same evaluation: their numbers may not compare." if len(evals) > 1 else ""
    )


def as_markdown(table: SweepTable) -> str:
    """The table for results.md; empty where no run answered prompts."""
    found = lines(table)
    if not found:
        return ""
    rows = [
        head(found),
        ["---", "---", *["---:"] * (len(columns(found)) + 1)],
        *(cells(line, columns(found)) for line in found),
    ]
    body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    return f"## Quality and diversity\n\n{body}\n\n{note(found)}\n"


def as_text(table: SweepTable) -> str:
    """The table for a terminal, then the failures; empty where no run answered prompts."""
    found = lines(table)
    if not found:
        return ""
    return "\n".join(
        [*aligned(head(found), [cells(line, columns(found)) for line in found]), *map(failure_line, table.failures)]
    )

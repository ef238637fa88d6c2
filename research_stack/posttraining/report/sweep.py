"""A sweep of policies as a table: quality and diversity of every setting beside those of the phases it began with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from research_stack.posttraining.report.names import PREFIX, is_share, main, short
from research_stack.posttraining.report.verdict import method_name
from research_stack.records.sweep_table import Row, SweepTable, show, show_mean
from research_stack.reporting.run_files import RunFiles, read
from research_stack.reporting.sweep_axes import label_of
from research_stack.reporting.sweep_names import INIT


@dataclass(frozen=True)
class PolicySetting:
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


def lines(table: SweepTable) -> list[PolicySetting]:
    """Each first phase, followed by the settings that began with it; [] where no run answered prompts
    (`eval=passk`).
    """
    if not any(name.startswith(PREFIX) for row in table.rows for name in row.values):
        return []
    settings = [_setting(table, row) for row in table.rows]
    found: list[PolicySetting] = []
    for first in dict.fromkeys(line.first for line in settings):
        own = [line for line in settings if line.first == first]
        found += [*_phases(first, own), *own]
    return found


def _setting(table: SweepTable, row: Row) -> PolicySetting:
    runs = [read(folder) for folder in row.points]
    before = [run.earlier[-1] for run in runs if run.earlier]
    rest = {axis: value for axis, value in row.settings.items() if axis != INIT}
    words = ", ".join(
        show(value) if isinstance(value, str) else f"{table.labels[axis]}={show(value)}" for axis, value in rest.items()
    )
    first = show(row.settings[INIT]) if INIT in row.settings else before[0].name if before else ""
    return PolicySetting(first, words or (runs[0].name if before else label_of(row, table)), row, runs)


def _phases(first: str, settings: Sequence[PolicySetting]) -> list[PolicySetting]:
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
            found.append(PolicySetting(first if back == 1 else method_name(ok[0]), "", row, ok))
    return found


def is_phase(line: PolicySetting, found: Sequence[PolicySetting]) -> bool:
    """Whether other lines began with it."""
    return not line.then and any(other.then and other.first == line.first for other in found)


# The table -----------------------------------------------------------------------------------------------------------


def columns(found: Sequence[PolicySetting]) -> list[str]:
    """The metrics that are shown, by their names in `measured`."""
    return main(
        dict.fromkeys(
            name.removeprefix(PREFIX) for line in found for name in line.row.values if name.startswith(PREFIX)
        )
    )


def head(found: Sequence[PolicySetting]) -> list[str]:
    """The header of the table."""
    return ["first phase", "then", "seeds", *map(short, columns(found))]


def cells(line: PolicySetting, names: Sequence[str]) -> list[str]:
    """A line of the table."""
    numbers = []
    for name in names:
        factor, key = 100.0 if is_share(name) else 1.0, PREFIX + name
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


def note(found: Sequence[PolicySetting]) -> str:
    """What the numbers are, and which do not compare."""
    text = (
        "Mean ± standard error over seeds (none for one seed), of the prompts that were trained on. Lines without a"
        " second entry are the first phases themselves."
    )
    evals = {repr(run.setting("eval")) for line in found for run in line.runs}
    return text + (
        " Not all runs were measured by the same evaluation: their numbers may not compare." if len(evals) > 1 else ""
    )

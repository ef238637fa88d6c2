"""Short names for the axes of a sweep over choices within a group and over first phases: advantage=polychromic,
init_from=sft.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from research_stack.records.axes import partition_of
from research_stack.records.paths import expanded
from research_stack.records.sweep_table import Failure, Row, SweepTable
from research_stack.reporting.budgets import run_facts
from research_stack.reporting.run_files import read

INIT = "init_from"
Settings = Mapping[str, Any]


def named(table: SweepTable) -> SweepTable:
    """The table with short settings; what would no longer tell runs apart stays as it is.

    - `method/advantage=polychromic` on the command line: one axis `method.advantage` in place of all keys below it.
    - `init_from`: the experiment's name in place of its overrides, or of its folder.
    """
    known = {folder: dict(settings) for folder, settings in table.settings.items()}
    if not known:
        return table
    axes, collapsed = list(table.axes), dict(table.collapsed)
    for group, choices in _choices(known).items():
        below = [axis for axis in axes if all(key.startswith(f"{group}.") for key in (axis, *collapsed.get(axis, [])))]
        folders = list(known)
        values = [[repr(known[folder][axis]) for axis in below] for folder in folders]
        if below and partition_of(values) == partition_of([choices[folder] for folder in folders]):
            index = axes.index(below[0])
            hidden = [key for axis in below for key in (axis, *collapsed.pop(axis, []))]
            axes = [group if i == index else axis for i, axis in enumerate(axes) if axis not in below or i == index]
            collapsed[group] = hidden
            known = {
                folder: {axis: choices[folder] if axis == group else known[folder][axis] for axis in axes}
                for folder in folders
            }
    if INIT in axes:
        names = _first_phases({known[folder][INIT]: folder for folder in known})
        known = {folder: settings | {INIT: names[settings[INIT]]} for folder, settings in known.items()}
    return _with(table, axes, collapsed, known)


def _with(
    table: SweepTable, axes: list[str], collapsed: dict[str, list[str]], known: Mapping[Path, Settings]
) -> SweepTable:
    rows = [replace(row, settings=known[row.points[0]]) if row.points else row for row in table.rows]
    failures = [replace(failure, settings=known.get(failure.folder, failure.settings)) for failure in table.failures]
    return replace(
        table, rows=sorted(rows, key=_order), axes=axes, collapsed=collapsed, failures=failures, settings=dict(known)
    )


def _order(row: Row | Failure) -> list[tuple[int, Any]]:
    """Numbers by size, then names."""
    return [(0, value) if isinstance(value, int | float) else (1, str(value)) for value in row.settings.values()]


def _choices(known: Mapping[Path, Settings]) -> dict[str, dict[Path, str]]:
    """{method.advantage: {run: choice}} of the choices within groups that every run's command line has."""
    found: dict[str, dict[Path, str]] = {}
    for folder in known:
        overrides = run_facts(folder).get("overrides")
        for override in overrides if isinstance(overrides, list) else []:
            key, _, choice = str(override).lstrip("+").partition("=")
            if "/" in key and "@" not in key:
                found.setdefault(key.replace("/", "."), {})[folder] = choice
    return {group: choices for group, choices in found.items() if len(choices) == len(known)}


def _first_phases(values: Mapping[Hashable, Path]) -> dict[Hashable, str]:
    """{value of init_from: short name}: the experiment alone where that is enough."""
    short = {value: _experiment(str(value)) if value else "scratch" for value in values}
    return {value: name if list(short.values()).count(name) == 1 else str(value) for value, name in short.items()}


def _experiment(value: str) -> str:
    """`sft` of `sft trainer.max_steps=200`; the name in the config of a folder."""
    first = value.split(" ")[0]
    folder = expanded(value)
    return read(folder).name if folder.is_dir() else first.rpartition("/")[2] or value

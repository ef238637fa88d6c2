"""How the settings of a sweep lie on paper: which axis goes where, which metrics are worth a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from research_stack.records.sweep_table import Row, SweepTable, show
from research_stack.reporting.charts import COLORS, Axis, axis_of, ramp
from research_stack.reporting.contract import Metrics

LINE_GAP = 0.12  # between the lines of a column of names, of the distance of two columns


def plotted(table: SweepTable, metrics: Metrics) -> list[str]:
    """The metrics that say something of their own: headlines first, in the order of their declaration; seconds last."""
    names = [name for name in table.metrics if metrics.of(name).plot and not metrics.is_interval_end(name)]
    order = {name: index for index, name in enumerate(table.metrics)}
    return sorted(names, key=lambda name: (name == "seconds", metrics.rank(name), order[name])) or list(table.metrics)


def label_of(row: Row, table: SweepTable) -> str:
    """A setting in words: the bare value for one axis of names, key=value otherwise; `sft → group` where it begins with
    another run.
    """
    if "init_from" in row.settings:
        rest = [
            show(value) if isinstance(value, str) else f"{table.labels[axis]}={show(value)}"
            for axis, value in row.settings.items()
            if axis != "init_from"
        ]
        return " → ".join([show(row.settings["init_from"]), *([", ".join(rest)] if rest else [])])
    if len(table.axes) == 1 and isinstance(row.settings[table.axes[0]], str):
        return show(row.settings[table.axes[0]])
    return (
        ", ".join(f"{table.labels[axis]}={show(value)}" for axis, value in row.settings.items()) or "the only setting"
    )


def color_of(index: int, count: int) -> str:
    """A colour of its own for each of a few, a shade of a ramp for each of many."""
    if count <= len(COLORS):
        return COLORS[index]
    return ramp(index / (count - 1))


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether all values are finite numbers (True and False are names)."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


@dataclass
class Grid:
    """Settings in columns (x) and lines.

    - cells: {(column number, line number): row}. numeric: whether columns are numbers on a scale.
    """

    columns: list[Any]
    lines: list[Any]
    cells: dict[tuple[int, int], Row]
    column_label: str
    line_label: str = ""
    numeric: bool = True

    @property
    def is_heat_map(self) -> bool:
        """Two axes with at least three values each."""
        return min(len(self.columns), len(self.lines)) >= 3

    @property
    def log(self) -> bool:
        """Whether the columns span more than a factor of twenty, as learning rates do."""
        return self.numeric and min(self.columns) > 0 and max(self.columns) > 20 * min(self.columns)

    def at(self, column: Any, line: Any) -> Row | None:
        """The row of a setting; None if it has no result."""
        return self.cells.get((self.columns.index(column), self.lines.index(line)))

    def position(self, column: Any, line: Any = None) -> float:
        """Where a column lies on the x axis; the lines of a column of names lie beside each other."""
        if self.numeric:
            return float(column)
        aside = (
            LINE_GAP * (self.lines.index(line) - (len(self.lines) - 1) / 2)
            if line in self.lines and len(self.lines) > 1
            else 0.0
        )
        return self.columns.index(column) + aside

    def axis(self) -> Axis:
        """The x axis."""
        if self.numeric:
            return axis_of([float(v) for v in self.columns], self.column_label, log=self.log, margin=0.07)
        return Axis(-0.5, len(self.columns) - 0.5, self.column_label, names=[show(v) for v in self.columns])


def grid_of(table: SweepTable) -> Grid:
    """One axis: columns. Two, mostly crossed: the longer one that is numeric in columns, the other in lines. Else:
    every setting a column.
    """
    values = {
        axis: list({repr(row.settings[axis]): row.settings[axis] for row in table.rows}.values()) for axis in table.axes
    }
    if len(table.axes) == 2 and len(table.rows) > 0.6 * math.prod(map(len, values.values())):
        x, y = sorted(table.axes, key=lambda axis: (is_numeric(values[axis]), len(values[axis])), reverse=True)
        cells = {(values[x].index(row.settings[x]), values[y].index(row.settings[y])): row for row in table.rows}
        return Grid(values[x], values[y], cells, table.labels[x], table.labels[y], is_numeric(values[x]))
    if len(table.axes) == 1:
        axis = table.axes[0]
        return Grid(
            values[axis],
            [None],
            {(i, 0): row for i, row in enumerate(table.rows)},
            table.labels[axis],
            numeric=is_numeric(values[axis]),
        )
    names = [" / ".join(show(value) for value in row.settings.values()) for row in table.rows]
    return Grid(
        names,
        [None],
        {(i, 0): row for i, row in enumerate(table.rows)},
        " / ".join(table.labels.values()),
        numeric=False,
    )

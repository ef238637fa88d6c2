"""Reliability diagrams: mean prediction beside the mean of what came, in bins; on the diagonal they agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from research_stack.reporting.charts import Axis, Chart, Series, axis_of, line_chart
from research_stack.reporting.run_files import Table, reals


@dataclass(frozen=True)
class DiagramBin:
    """One of the bins of equal mass: mean prediction and mean of what came, with its interval."""

    predicted: float
    actual: float
    low: float
    high: float

    @property
    def error(self) -> tuple[float, float] | None:
        """Lower and upper part of the interval; None without one."""
        below, above = self.actual - self.low, self.high - self.actual
        return (max(0.0, below), max(0.0, above)) if math.isfinite(below) and math.isfinite(above) else None


@dataclass(frozen=True)
class ReliabilityLine:
    """The bins of one predictor and how they are drawn; dashed lines are thin and without intervals."""

    name: str
    color: str
    bins: Sequence[DiagramBin]
    dashed: bool = False


def bins_of(rows: Table, name: str) -> list[DiagramBin]:
    """The bins of the predictor of this name in a table (name, predicted, actual, low, high), by prediction."""
    found = [DiagramBin(*reals(row, "predicted", "actual", "low", "high")) for row in rows if row.get("name") == name]
    return sorted(
        (b for b in found if math.isfinite(b.predicted) and math.isfinite(b.actual)), key=lambda b: b.predicted
    )


def reliability_chart(
    lines: Sequence[ReliabilityLine], *, name: str, title: str, unit: str, table: str = ""
) -> Chart | None:
    """Predicted against actual with the diagonal; None without a bin.

    - unit: of both axes. name, title, table: as of `charts.line_chart`.
    """
    lines = [line for line in lines if line.bins]
    if not lines:
        return None
    axis = diagonal_axis([b for line in lines for b in line.bins])
    drawn = [Series([(axis.low, axis.low), (axis.high, axis.high)], color="var(--faint)", width=1.2, dashed=True)]
    drawn += [
        Series(
            [(b.predicted, b.actual) for b in line.bins],
            color=line.color,
            dots=2.6 if line.dashed else 3.4,
            width=1.3 if line.dashed else 1.8,
            dashed=line.dashed,
            errors=[] if line.dashed else [b.error for b in line.bins],
            title=line.name,
        )
        for line in lines
    ]
    legend = [(line.color, line.name + (", dashed" if line.dashed else ""), True) for line in lines]
    return line_chart(
        drawn,
        Axis(axis.low, axis.high, f"predicted, {unit}"),
        Axis(axis.low, axis.high),
        f"{title}: {', '.join(line.name for line in lines)}",
        name=name,
        title=title,
        note=f"actual {unit}, upwards",
        legend=[*legend, ("var(--faint)", "calibrated", False)],
        table=table,
    )


def diagonal_axis(found: Sequence[DiagramBin]) -> Axis:
    """One range for both axes: every bin with its interval, and zero where nothing is negative."""
    values = [v for b in found for v in (b.predicted, b.actual, b.low, b.high)]
    positive = min(v for v in values if math.isfinite(v)) >= 0
    return axis_of([*values, 0.0] if positive else values, margin=0.06, floor=0.0 if positive else None)

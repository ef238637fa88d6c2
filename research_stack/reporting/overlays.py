"""The settings of a sweep over each other: calibration of what predicts the future loss, risk over coverage."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from research_stack.records.run_folder import RunFolder
from research_stack.records.sweep_table import Row, SweepTable
from research_stack.reporting.calibration import CONTROL, HEAD, Bin, bins, calibration_chart
from research_stack.reporting.curves import averaged
from research_stack.reporting.html import Html, el
from research_stack.reporting.reading import table_of
from research_stack.reporting.sections import keys
from research_stack.reporting.selective import RiskCurve, area, coverage_axis, risk_curves
from research_stack.reporting.svg_charts import Series, axis_of, line_chart
from research_stack.reporting.sweep_axes import color_of, label_of

MOST = 8  # settings in one chart


def section(table: SweepTable) -> list[Html] | None:
    """Both kinds of charts; None if no run has the tables."""
    rows = table.rows[:MOST]
    charts = [chart for chart in (_reliability(table, rows), *_risks(table, rows)) if chart is not None]
    if not charts:
        return None
    more = f" The first {MOST} settings are drawn." if len(table.rows) > MOST else ""
    return [
        el("h2", "Calibration, risk and coverage"),
        el("div", charts, class_="charts"),
        el(
            "p",
            "Means over seeds, bars and shades from the lowest to the highest (95 % intervals for one seed). A setting"
            f" is shown by its confidence head, or by the entropy of its next token where it has none.{more}",
            class_="note",
        ),
    ]


def _reliability(table: SweepTable, rows: Sequence[Row]) -> Html | None:
    lines = []
    for index, row in enumerate(rows):
        tables = [table_of(RunFolder(folder), "reliability") for folder in row.points]
        name = next((name for name in (HEAD, CONTROL) if any(bins(one, name) for one in tables)), None)
        if name is not None:
            found = mean_bins([bins(one, name) for one in tables])
            lines.append((f"{label_of(row, table)}: {name}", color_of(index, len(rows)), found, name != HEAD))
    return calibration_chart(lines, "Predicted and actual future loss")


def mean_bins(seeds: Sequence[Sequence[Bin]]) -> list[Bin]:
    """The mean over seeds of each bin, and from the lowest to the highest seed; of seeds with equally many bins as the
    first.
    """
    seeds = [found for found in seeds if found]
    seeds = [found for found in seeds if len(found) == len(seeds[0])]
    if len(seeds) == 1:
        return list(seeds[0])
    groups = [([b.predicted for b in group], [b.actual for b in group]) for group in zip(*seeds, strict=True)]
    return [
        Bin(statistics.fmean(predicted), statistics.fmean(actual), min(actual), max(actual))
        for predicted, actual in groups
    ]


def _risks(table: SweepTable, rows: Sequence[Row]) -> list[Html]:
    """A chart for each loss."""
    found: dict[str, list[tuple[str, str, list[RiskCurve]]]] = {}
    for index, row in enumerate(rows):
        seeds = [risk_curves(table_of(RunFolder(folder), "risk_coverage")) for folder in row.points]
        for loss in dict.fromkeys(loss for seed in seeds for loss in seed):
            curves = [curve for seed in seeds for curve in seed.get(loss, [])]
            score = next(
                (name for name in ("confidence head", "entropy") if any(curve.score == name for curve in curves)), None
            )
            if score is not None:
                chosen = [curve for curve in curves if curve.score == score]
                found.setdefault(loss, []).append((label_of(row, table), color_of(index, len(rows)), chosen))
    return [_risk_chart(loss, lines) for loss, lines in found.items()]


def _risk_chart(loss: str, lines: Sequence[tuple[str, str, list[RiskCurve]]]) -> Html:
    drawn, entries, heights = [], [], []
    for label, color, curves in lines:
        mean, band = averaged(curve.points for curve in curves)
        whole = RiskCurve(
            curves[0].score, loss, mean, _mean([c.aurc for c in curves]), _mean([c.excess for c in curves])
        )
        drawn.append(Series(mean, color=color, band=band, title=label))
        entries.append((color, f"{label}: {whole.score}{area(whole).replace(':', ',', 1)}", False))
        heights += [y for edge in band or (mean,) for _, y in edge]
    return el(
        "figure",
        el("figcaption", f"{loss[:1].upper()}{loss[1:]} ", el("small", "mean nats of the tokens kept")),
        line_chart(drawn, coverage_axis(), axis_of(heights), f"{loss} over coverage, {len(drawn)} settings"),
        keys(entries),
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return statistics.fmean(known) if known else math.nan

"""The settings of a sweep over each other: calibration of what predicts the future loss, risk over coverage."""

from __future__ import annotations

from collections.abc import Sequence

from research_stack.lookahead.report.future_loss import CONTROL, HEAD
from research_stack.lookahead.report.selective import RiskCurve, area, chart_name, coverage_axis, risk_curves
from research_stack.records.run_folder import RunFolder
from research_stack.records.seeds import mean_and_range, mean_of_finite
from research_stack.records.sweep_table import Row, SweepTable
from research_stack.reporting.charts import Chart, Series, axis_of, line_chart
from research_stack.reporting.curves import averaged
from research_stack.reporting.elements import note
from research_stack.reporting.html import Node, el
from research_stack.reporting.reliability import DiagramBin, ReliabilityLine, bins_of, reliability_chart
from research_stack.reporting.run_files import table_of
from research_stack.reporting.sweep_axes import color_of, label_of

MAX_SETTINGS = 8  # in one chart


def section(table: SweepTable) -> Node:
    """Both kinds of charts; None if no run has the tables."""
    rows = table.rows[:MAX_SETTINGS]
    charts = [chart for chart in (_reliability(table, rows), *_risks(table, rows)) if chart is not None]
    if not charts:
        return None
    more = f" The first {MAX_SETTINGS} settings are drawn." if len(table.rows) > MAX_SETTINGS else ""
    return [
        el("h2", "Calibration, risk and coverage"),
        el("div", charts, class_="charts"),
        note(
            "Means over seeds, bars and shades from the lowest to the highest (95 % intervals for one seed). A setting"
            f" is shown by its confidence head, or by the entropy of its next token where it has none.{more}"
        ),
    ]


def _reliability(table: SweepTable, rows: Sequence[Row]) -> Chart | None:
    lines = []
    for index, row in enumerate(rows):
        tables = [table_of(RunFolder(folder), "reliability") for folder in row.points]
        name = next((name for name in (HEAD, CONTROL) if any(bins_of(one, name) for one in tables)), None)
        if name is not None:
            found = mean_bins([bins_of(one, name) for one in tables])
            words, color = f"{label_of(row, table)}: {name}", color_of(index, len(rows))
            lines.append(ReliabilityLine(words, color, found, dashed=name != HEAD))
    return reliability_chart(lines, name="reliability", title="Predicted and actual future loss", unit="nats")


def mean_bins(seeds: Sequence[Sequence[DiagramBin]]) -> list[DiagramBin]:
    """The mean over seeds of each bin, and from the lowest to the highest seed; of seeds with equally many bins as the
    first.
    """
    seeds = [found for found in seeds if found]
    seeds = [found for found in seeds if len(found) == len(seeds[0])]
    if len(seeds) == 1:
        return list(seeds[0])
    groups = [([b.predicted for b in group], [b.actual for b in group]) for group in zip(*seeds, strict=True)]
    return [DiagramBin(mean_and_range(predicted)[0], *mean_and_range(actual)) for predicted, actual in groups]


def _risks(table: SweepTable, rows: Sequence[Row]) -> list[Chart]:
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


def _risk_chart(loss: str, lines: Sequence[tuple[str, str, list[RiskCurve]]]) -> Chart:
    drawn, entries, heights = [], [], []
    for label, color, curves in lines:
        mean, band = averaged(curve.points for curve in curves)
        whole = RiskCurve(
            curves[0].score,
            loss,
            mean,
            mean_of_finite(c.aurc for c in curves),
            mean_of_finite(c.excess for c in curves),
        )
        drawn.append(Series(mean, color=color, band=band, title=label))
        entries.append((color, f"{label}: {whole.score}{area(whole).replace(':', ',', 1)}", False))
        heights += [y for edge in band or (mean,) for _, y in edge]
    return line_chart(
        drawn,
        coverage_axis(),
        axis_of(heights),
        f"{loss} over coverage, {len(drawn)} settings",
        name=chart_name(loss),
        title=f"{loss[:1].upper()}{loss[1:]}",
        note="mean nats of the tokens kept",
        legend=entries,
    )

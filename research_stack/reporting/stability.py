"""Whether the runs of a sweep trained steadily: all their loss and gradient curves over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from research_stack.records.files import read_jsonl
from research_stack.records.run_folder import RunFolder
from research_stack.records.sweep_table import SweepTable
from research_stack.reporting.charts import Chart, Series, axis_of, keys, line_chart
from research_stack.reporting.contract import TrainingCurve, reports_of_sweep
from research_stack.reporting.curves import Point, even, quantile, series, smooth
from research_stack.reporting.elements import note
from research_stack.reporting.html import Node, el
from research_stack.reporting.sweep_axes import color_of, label_of

NORM_NOTE = "before clipping, smoothed, log scale"
MAX_SETTINGS = 24  # whose curves are drawn
GENERIC = TrainingCurve("train/loss", "val/loss", note="smoothed")  # of whatever is trained


def training_curves(table: SweepTable) -> list[TrainingCurve]:
    """The curves that the reports of the runs declare."""
    return [report.sweep.curve for report in reports_of_sweep(table) if report.sweep.curve is not None]


def training_curve(table: SweepTable) -> TrainingCurve:
    """The first declared curve that every run logs; the training loss where there is none."""
    folders = [folder for row in table.rows[:MAX_SETTINGS] for folder in row.points]
    logged = (one for one in training_curves(table) if folders and all(curve(folder, one.key) for folder in folders))
    return next(logged, GENERIC)


def curve(folder: Path, key: str, log: bool = False) -> list[Point]:
    """A run's smoothed curve, at most 200 points; on a log scale the logarithm is what is averaged."""
    points = series(read_jsonl(RunFolder(folder).metrics_jsonl), key)
    if not log:
        return even(smooth(points))
    return [(x, math.exp(y)) for x, y in even(smooth([(x, math.log(y)) for x, y in points if y > 0]))]


def mean_and_band(curves: Sequence[Sequence[Point]]) -> tuple[list[Point], tuple[list[Point], list[Point]] | None]:
    """The mean of the seeds' curves, and (lowest, highest) of them where there are several, over the steps all have."""
    curves = [c for c in curves if c]
    if not curves:
        return [], None
    tables = [dict(c) for c in curves]
    steps = sorted(set.intersection(*(set(t) for t in tables)))
    mean = [(s, sum(t[s] for t in tables) / len(tables)) for s in steps]
    if len(curves) < 2:
        return mean, None
    return mean, ([(s, min(t[s] for t in tables)) for s in steps], [(s, max(t[s] for t in tables)) for s in steps])


def stability(table: SweepTable, validation: bool = True) -> Node:
    """The panel; None if no run has a loss curve.

    - validation: whether the validation loss is drawn too.
    """
    rows = table.rows[:MAX_SETTINGS]
    shown = training_curve(table)
    panels = [
        _panel(table, shown.key, shown.title, shown.note, "training_curve"),
        _panel(table, shown.validation, shown.validation_title, shown.validation_note, "validation_curve")
        if validation
        else None,
        _panel(
            table, "train/grad_norm", "Gradient norm", "before clipping, smoothed, log scale", "gradient_norm", True
        ),
    ]
    charts = [panel for panel in panels if panel is not None]
    if not charts:
        return None
    entries = [(color_of(i, len(rows)), label_of(row, table), False) for i, row in enumerate(rows)]
    legend = keys([*entries, *([("var(--bad)", "runs without a result, dashed", False)] if table.failures else [])])
    losses = (
        ""
        if shown.surrogate
        else (
            " Losses of different corruptions or loss settings are different quantities: compare their shapes, not"
            " their heights."
        )
    )
    more = f" The first {MAX_SETTINGS} settings are drawn." if len(table.rows) > MAX_SETTINGS else ""
    return [
        el("h2", "Stability"),
        legend,
        el("div", charts, class_="charts"),
        note(f"Lines are means over seeds, shades reach from the lowest to the highest seed.{losses}{more}"),
    ]


def _panel(table: SweepTable, key: str, title: str, note: str, name: str, log: bool = False) -> Chart | None:
    lines, legend, shown = [], [], []
    for index, row in enumerate(table.rows[:MAX_SETTINGS]):
        curves = [curve(folder, key, log) for folder in row.points]
        mean, band = mean_and_band(curves)
        if mean:
            lines.append(
                Series(
                    mean,
                    color=color_of(index, min(len(table.rows), MAX_SETTINGS)),
                    band=band,
                    title=label_of(row, table),
                )
            )
            shown += [y for _, y in (mean if band is None else band[0] + band[1])]
    for failure in table.failures[:MAX_SETTINGS]:
        points = curve(failure.folder, key, log)
        if points:
            lines.append(
                Series(
                    points, color="var(--bad)", width=1.3, dashed=True, title=f"{failure.status}: {failure.folder.name}"
                )
            )
            shown += [y for _, y in points]
    if not lines:
        return None
    last = max(line.points[-1][0] for line in lines)
    return line_chart(
        lines,
        axis_of([0.0, last], "optimizer step", margin=0),
        axis_of([quantile(shown, 0.001), quantile(shown, 0.997)], log=log),
        f"{title}, {len(lines)} curves",
        name=name,
        title=title,
        note=note,
        file_legend=legend,
    )

"""figures/*.png of a sweep: each metric over the axes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from research_stack.records.sweep_table import SweepTable, show
from research_stack.reporting import sweep_declared, two_phase_figures
from research_stack.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, new_figure, save
from research_stack.reporting.sweep_axes import grid_of, with_unit, worth_plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = (BLUE, ORANGE, GREEN, "#7a4a9e", "#a17a00", GREY)
COLUMNS = 3


def write_sweep_figures(folder: Path, table: SweepTable) -> list[Path]:
    """figures/*.png, as far as there is something to draw; returns the paths."""
    drawn = {"sweep.png": metrics_figure(table), "dynamics.png": two_phase_figures.figure(table)}
    return [save(figure, folder / "figures" / name) for name, figure in drawn.items() if figure is not None]


def metrics_figure(table: SweepTable) -> Figure | None:
    """The three most important metrics with standard errors."""
    metrics = worth_plotting(table)[:COLUMNS]
    if len(table.rows) < 2 or not metrics or not sweep_declared.comparable(table):
        return None
    figure, plots = new_figure(3.6 * len(metrics), 3.3, len(metrics))
    for plot, metric in zip(plots, metrics, strict=True):
        _metric(plot, table, metric)
    return figure


def _metric(plot: Axes, table: SweepTable, metric: str) -> None:
    grid = grid_of(table)
    for index, line in enumerate(grid.lines):
        rows = [
            (grid.place(x, line), row)
            for x in grid.columns
            if (row := grid.at(x, line)) is not None and row.mean(metric) is not None
        ]
        errors = [row.standard_error(metric) for _, row in rows]
        plot.errorbar(
            [x for x, _ in rows],
            [row.mean(metric) for _, row in rows],
            yerr=[e if e and math.isfinite(e) else 0.0 for e in errors],
            fmt="o-" if grid.numeric else "o",
            color=PALETTE[index % len(PALETTE)],
            markersize=5,
            capsize=3,
            linewidth=1.4,
            label=f"{grid.line_label} {show(line)}" if len(grid.lines) > 1 else None,
        )
    if not grid.numeric:
        plot.set_xticks(
            range(len(grid.columns)),
            [show(c) for c in grid.columns],
            rotation=20,
            ha="right",
            fontsize=7,
            parse_math=False,
        )
        plot.set_xlim(-0.5, len(grid.columns) - 0.5)
    elif grid.log:
        plot.set_xscale("log")
    plot.set_xlabel(grid.column_label, fontsize=8, color=GREY)
    plot.set_title(with_unit(metric), loc="left", fontsize=9, color=INK, parse_math=False)
    if len(grid.lines) > 1:
        for text in plot.legend(frameon=False, fontsize=7, labelcolor=GREY).get_texts():
            text.set_parse_math(False)

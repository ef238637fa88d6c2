"""figures/*.png of a sweep: each metric over the axes, and the training curves of all settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from research_stack.records.sweep_table import SweepTable, show
from research_stack.reporting import latentwire_figures, latentwire_sizes, latentwire_sweep, two_phase_figures
from research_stack.reporting.budgets import OWN, panels
from research_stack.reporting.curves import number
from research_stack.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, new_figure, save
from research_stack.reporting.stability import MOST, WORDS, curve, mean_and_band, training_key
from research_stack.reporting.sweep_axes import grid_of, label_of, with_unit, worth_plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = (BLUE, ORANGE, GREEN, "#7a4a9e", "#a17a00", GREY)
COLUMNS = 3


def write_sweep_figures(folder: Path, table: SweepTable) -> list[Path]:
    """figures/*.png, as far as there is something to draw; returns the paths."""
    drawn = {
        "sweep.png": metrics_figure(table),
        "stability.png": stability_figure(table),
        "budgets.png": budgets_figure(table),
        "dynamics.png": two_phase_figures.figure(table),
    }
    if (wire := latentwire_sizes.sizes(table)) is not None:
        drawn |= {
            "latentwire.png": latentwire_figures.rate_figure(wire),
            "latentwire_slots.png": latentwire_figures.num_latents_figure(wire),
        }
    return [save(figure, folder / "figures" / name) for name, figure in drawn.items() if figure is not None]


def metrics_figure(table: SweepTable) -> Figure | None:
    """The three most important metrics with standard errors."""
    metrics = worth_plotting(table)[:COLUMNS]
    if len(table.rows) < 2 or not metrics or not latentwire_sweep.comparable(table):
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


def stability_figure(table: SweepTable) -> Figure | None:
    """Loss and gradient norm of every setting, the seeds as bands."""
    loss = training_key(table)
    found = {
        key: [(row, *mean_and_band([curve(f, key, log) for f in row.points])) for row in table.rows[:MOST]]
        for key, log in ((loss, False), ("train/grad_norm", True))
    }
    if not any(mean for _, mean, _ in found[loss]):
        return None
    figure, plots = new_figure(9, 3.4, 2)
    for plot, (key, lines), title in zip(
        plots, found.items(), (f"{WORDS[loss][0].lower()}, smoothed", "gradient norm before clipping"), strict=True
    ):
        for index, (row, mean, band) in enumerate(lines):
            if mean:
                color = PALETTE[index % len(PALETTE)]
                plot.plot(*zip(*mean, strict=True), color=color, linewidth=1.5, label=label_of(row, table))
                if band:
                    plot.fill_between(
                        [x for x, _ in mean],
                        [y for _, y in band[0]],
                        [y for _, y in band[1]],
                        color=color,
                        alpha=0.15,
                        linewidth=0,
                    )
        plot.set_title(title, loc="left", fontsize=9, color=INK)
        plot.set_xlabel("optimizer step", fontsize=8, color=GREY)
        if key == "train/grad_norm":
            plot.set_yscale("log")
    for text in plots[0].legend(frameon=False, fontsize=7, labelcolor=GREY).get_texts():
        text.set_parse_math(False)
    return figure


def budgets_figure(table: SweepTable) -> Figure | None:
    """Validation loss over steps, FLOPs and seconds, the seeds as bands."""
    found = panels(table)
    if not found:
        return None
    figure, plots = new_figure(4.2 * len(found), 3.4, len(found))
    for plot, panel in zip(plots, found, strict=True):
        for one in panel.curves:
            color = PALETTE[table.rows.index(one.row) % len(PALETTE)]
            plot.plot(*zip(*one.mean, strict=True), color=color, linewidth=1.5, label=label_of(one.row, table))
            if one.band:
                low, high = ([y for _, y in edge] for edge in one.band)
                plot.fill_between([x for x, _ in one.mean], low, high, color=color, alpha=0.15, linewidth=0)
        x, y = panel.x(), panel.y
        if x.log:
            plot.set_xscale("log")
        else:
            plot.set_xlim(0, x.high)
            plot.xaxis.set_major_formatter(lambda value, _: number(value))
        plot.set_ylim(y.low, y.high)
        plot.set_xlabel(x.label, fontsize=8, color=GREY)
    plots[0].set_title(
        f"validation loss{' of the language model, nats per token' if found[0].key == OWN else ''}",
        loc="left",
        fontsize=9,
        color=INK,
    )
    for text in plots[0].legend(frameon=False, fontsize=7, labelcolor=GREY).get_texts():
        text.set_parse_math(False)
    return figure

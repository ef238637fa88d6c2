"""figures/*.png of a model with a confidence head: its losses, its calibration, risk over coverage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from research_stack.reporting.calibration import CONTROL, HEAD, RIGHT, WRONG, bins, diagonal_axis, predictor_rows
from research_stack.reporting.curves import Point, series, smooth
from research_stack.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, new_figure
from research_stack.reporting.loss_parts import NORMS, SPREADS, log_smooth, spread
from research_stack.reporting.reading import RunFiles, Table, reals
from research_stack.reporting.selective import ORACLE, area, risk_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VIOLET, OCHRE = "#7a4a9e", "#a17a00"
KIND_COLORS = {"head": BLUE, "control": GREY, "ceiling": GREEN}
SCORE_COLORS = {"confidence head": BLUE, "entropy": ORANGE, "max probability": GREEN, "margin": VIOLET, "oracle": GREY}


def training(run: RunFiles) -> Figure | None:
    """The two losses, their gradients, the spread of what is predicted and of what comes; None without a confidence
    loss.
    """
    confidence = series(run.history, "train/loss_confidence")
    if not confidence:
        return None
    figure, plots = new_figure(13, 3.3, 4)
    _loss(plots[0], run, "loss_lm", "loss of the language model, nats per token")
    _loss(plots[1], run, "loss_confidence", "loss of the confidence head")
    if all(y > 0 for _, y in confidence):
        plots[1].set_yscale("log")
    for (key, words, _), color in zip(NORMS, (BLUE, ORANGE), strict=True):
        if points := [p for p in series(run.history, key) if p[1] > 0]:
            plots[2].plot(*zip(*log_smooth(points), strict=True), color=color, linewidth=1.6, label=words)
            plots[2].set_yscale("log")
    plots[2].set_title("gradient norm at the last hidden states", loc="left", fontsize=9, color=INK)
    for (key, words, _), color in zip(SPREADS, (BLUE, ORANGE), strict=True):
        mean, band = spread(run.history, key)
        if mean:
            plots[3].plot(*zip(*mean, strict=True), color=color, linewidth=1.6, label=words)
        if band:
            plots[3].fill_between(
                [x for x, _ in band[0]],
                [y for _, y in band[0]],
                [y for _, y in band[1]],
                color=color,
                alpha=0.15,
                linewidth=0,
            )
    plots[3].set_title("future loss, mean ± sd, nats", loc="left", fontsize=9, color=INK)
    for plot in plots:
        plot.set_xlabel("optimizer step", fontsize=8, color=GREY)
        if plot.get_legend_handles_labels()[0]:
            plot.legend(frameon=False, fontsize=7, labelcolor=GREY)
    return figure


def _loss(plot: Axes, run: RunFiles, name: str, title: str) -> None:
    points, validation = series(run.history, f"train/{name}"), series(run.history, f"val/{name}")
    if points:
        plot.plot(*zip(*points, strict=True), color=BLUE, alpha=0.25, linewidth=0.7)
        plot.plot(*zip(*smooth(points), strict=True), color=BLUE, linewidth=1.8, label="training, smoothed")
    if validation:
        plot.plot(*zip(*validation, strict=True), "o-", color=ORANGE, markersize=3.5, linewidth=1.2, label="validation")
    plot.set_title(title, loc="left", fontsize=9, color=INK)


def calibration(run: RunFiles) -> Figure | None:
    """Reliability on the left, R² on the right, as far as there are tables."""
    rows, reliability = predictor_rows(run), run.tables.get("reliability", [])
    parts = [
        part
        for part, there in (
            (_reliability, any(bins(reliability, name) for name, *_ in LINES)),
            (_explained, bool(rows)),
        )
        if there
    ]
    if not parts:
        return None
    figure, plots = new_figure(4.9 * len(parts), 3.9, len(parts))
    for plot, part in zip(plots, parts, strict=True):
        part(plot, rows if part is _explained else reliability)
    return figure


LINES = (
    (HEAD, HEAD, BLUE, "o-"),
    (RIGHT, "own token correct", GREEN, "^:"),
    (WRONG, "own token wrong", ORANGE, "v:"),
    (CONTROL, CONTROL, GREY, "s--"),
)


def _reliability(plot: Axes, rows: Table) -> None:
    every = [b for name, *_ in LINES for b in bins(rows, name)]
    axis = diagonal_axis(every)
    plot.plot([axis.low, axis.high], [axis.low, axis.high], color="#98a1aa", linewidth=1)
    for name, label, color, style in LINES:
        if found := bins(rows, name):
            halves = list(zip(*(b.error or (0.0, 0.0) for b in found), strict=True))
            plot.errorbar(
                [b.predicted for b in found],
                [b.actual for b in found],
                yerr=halves if name == HEAD else None,
                fmt=style,
                color=color,
                markersize=4,
                linewidth=1.5 if name == HEAD else 1.0,
                capsize=2,
                label=label,
            )
    plot.set_xlim(axis.low, axis.high)
    plot.set_ylim(axis.low, axis.high)
    plot.grid(axis="x", color="#ebe8e1", linewidth=0.8)
    plot.set_xlabel("predicted future loss, nats", fontsize=8, color=GREY)
    plot.set_title("actual future loss, nats", loc="left", fontsize=9, color=INK)
    plot.legend(frameon=False, fontsize=7.5, labelcolor=GREY, loc="upper left")


def _explained(plot: Axes, rows: Table) -> None:
    rows = rows[::-1]
    for place, row in enumerate(rows):
        value, low, high = reals(row, "r2", "low", "high")
        half = (
            [[max(0.0, value - low)], [max(0.0, high - value)]] if math.isfinite(low) and math.isfinite(high) else None
        )
        color = KIND_COLORS.get(row.get("kind", ""), GREY)
        plot.barh([place], [value], height=0.55, color=color, alpha=0.85, linewidth=0)
        plot.errorbar([value], [place], xerr=half, fmt="none", ecolor=INK, capsize=3, linewidth=1.2)
        reach = high if math.isfinite(high) and value >= 0 else max(value, 0.0)
        plot.annotate(
            f"{value:.3f}",
            (reach, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    plot.set_yticks(range(len(rows)), [row.get("name", "") for row in rows], fontsize=8, parse_math=False)
    plot.grid(axis="y", visible=False)
    plot.grid(axis="x", color="#ebe8e1", linewidth=0.8)
    plot.margins(x=0.14)
    plot.axvline(0, color="#98a1aa", linewidth=0.8)
    plot.set_title("variance of the future loss explained (R²), 95 % intervals", loc="left", fontsize=9, color=INK)


def risk_coverage(run: RunFiles) -> Figure | None:
    """Mean loss over the share of tokens kept, a plot for each loss."""
    found = risk_curves(run.tables.get("risk_coverage", []))
    if not found:
        return None
    figure, plots = new_figure(4.9 * len(found), 3.6, len(found))
    for plot, (loss, curves) in zip(plots, found.items(), strict=True):
        for index, curve in enumerate(curves):
            color = SCORE_COLORS.get(curve.score, (BLUE, ORANGE, GREEN, VIOLET, OCHRE, GREY)[index % 6])
            _line(plot, curve.points, color, f"{curve.score}{area(curve)}", dashed=curve.score == ORACLE)
        plot.set_title(f"{loss}, mean nats of the tokens kept", loc="left", fontsize=9, color=INK, parse_math=False)
        plot.set_xlabel("coverage: share of tokens kept", fontsize=8, color=GREY)
        plot.set_xlim(0, 1)
        for text in plot.legend(frameon=False, fontsize=7.5, labelcolor=GREY).get_texts():
            text.set_parse_math(False)
    return figure


def _line(plot: Axes, points: list[Point], color: str, label: str, dashed: bool) -> None:
    plot.plot(*zip(*points, strict=True), "--" if dashed else "-", color=color, linewidth=1.6, label=label)

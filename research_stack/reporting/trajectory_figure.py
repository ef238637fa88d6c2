"""figures/dynamics.png: quality and diversity of a policy's answers over its phases, and its path in the plane of
both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from research_stack.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, dress
from research_stack.reporting.measured import parts, words
from research_stack.reporting.reading import RunFiles
from research_stack.reporting.trajectory import (
    Panel,
    Phase,
    color_index,
    note,
    panels,
    path_in_plane,
    plane_of,
    scaled,
    trajectory,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = (BLUE, ORANGE, GREEN, "#7a4a9e")  # of the last phase, of the one before it, and so on
STYLES = ("-", "--", ":")  # of pass@1, pass@k for the next k, and so on


def figure(run: RunFiles) -> Figure | None:
    """The figure; None for a run whose answers were not measured while it was trained."""
    phases = trajectory(run)
    return drawing(phases) if phases else None


def drawing(phases: Sequence[Phase]) -> Figure:
    """Small plots over steps on the left, the plane on the right."""
    plots = panels(phases)
    plane = plane_of(phases)
    whole, left, right = frame(len(plots), plane is not None)
    for plot, panel in zip(left, plots, strict=True):
        _panel(plot, phases, panel)
    if plane is not None and right is not None:
        _plane(right, phases, *plane)
    name = " and ".join(dict.fromkeys(phase.name for phase in phases))
    whole.suptitle(
        f"Answers of the policy over {name}. {note(phases)}",
        x=0.008,
        ha="left",
        fontsize=8.5,
        color=GREY,
        wrap=True,
        parse_math=False,
    )
    return whole


def frame(count: int, plane: bool) -> tuple[Figure, list[Axes], Axes | None]:
    """A figure with `count` small plots, two or three in a row, and a large one beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3 if count > 4 else 2
    rows = max(1, math.ceil(count / columns))
    whole = Figure(figsize=(3.1 * columns + (5.2 if plane else 0), max(4.6, 2.5 * rows) + 0.5), layout="constrained")
    FigureCanvasAgg(whole)
    grid = whole.add_gridspec(rows, columns + (2 if plane else 0))
    left = [whole.add_subplot(grid[i // columns, i % columns]) for i in range(count)]
    right = whole.add_subplot(grid[:, columns:]) if plane else None
    for plot in (*left, *([right] if right else [])):
        dress(plot)
    return whole, left, right


def _panel(plot: Axes, phases: Sequence[Phase], panel: Panel) -> None:
    for index, phase in enumerate(phases):
        color = PALETTE[color_index(phases, index)]
        for line, metric in enumerate(panel.metrics):
            mean, band = scaled(phase.curves.get(metric, []), panel.factor)
            if mean:
                label = f"pass@{parts(metric)[1]}" if len(panel.metrics) > 1 and index == len(phases) - 1 else None
                plot.plot(
                    *zip(*mean, strict=True),
                    STYLES[min(line, 2)],
                    color=color,
                    marker="o",
                    markersize=2.2,
                    linewidth=1.5,
                    label=label,
                )
                shade(plot, band, color)
        if phase.begins > 0:
            plot.axvline(phase.begins, color="#98a1aa", linewidth=1, linestyle=(0, (4, 3)))
    plot.set_title(panel.title, loc="left", fontsize=9, color=INK, pad=14, parse_math=False)
    plot.set_ylabel(panel.small.partition(";")[0], fontsize=7.5, color=GREY, parse_math=False)
    if len(panel.metrics) > 1:
        plot.legend(fontsize=7, labelcolor=GREY, loc="best", handlelength=3.5, edgecolor="none", framealpha=0.85)
    for index, phase in enumerate(phases):  # above the plot, between its boundaries
        plot.annotate(
            phase.name,
            ((phase.begins + phase.ends) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=PALETTE[color_index(phases, index)],
            parse_math=False,
        )
    plot.set_xlabel("optimizer step", fontsize=7.5, color=GREY)
    plot.set_xlim(phases[0].begins, phases[-1].ends * 1.01)


def shade(
    plot: Axes, band: tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float]]] | None, color: str
) -> None:
    """A band, if there is one."""
    if band is not None:
        plot.fill_between(
            [x for x, _ in band[0]],
            [y for _, y in band[0]],
            [y for _, y in band[1]],
            color=color,
            alpha=0.15,
            linewidth=0,
        )


def _plane(plot: Axes, phases: Sequence[Phase], across: str, up: str) -> None:
    for index, phase in enumerate(phases):
        path = path_in_plane(phase, across, up)
        if path:
            color = PALETTE[color_index(phases, index)]
            points = [(d.value, 100 * q.value) for d, q in path]
            plot.plot(*zip(*points, strict=True), color=color, linewidth=1.8, marker="o", markersize=3)
            arrows(plot, points, color)
            wide, good = path[-1]
            cross(
                plot,
                points[-1],
                [
                    (wide.value - wide.low, wide.high - wide.value),
                    (100 * (good.value - good.low), 100 * (good.high - good.value)),
                ],
                color,
            )
            plot.annotate(
                f"{phase.name}, step {good.step - phase.begins:.0f}",
                points[-1],
                xytext=(9, 9),
                textcoords="offset points",
                fontsize=8.5,
                color=color,
                weight="bold",
                parse_math=False,
            )
    plot.set_title(
        "Quality against diversity, arrows go with time", loc="left", fontsize=9, color=INK, parse_math=False
    )
    plot.grid(axis="x", color="#ebe8e1", linewidth=0.8)
    plot.set_xlabel(f"{words(across)}: more diverse →", fontsize=8, color=GREY)
    plot.set_ylabel("% right at the first try: better →", fontsize=8, color=GREY)
    plot.margins(x=0.2, y=0.1)


def arrows(plot: Axes, points: Sequence[tuple[float, float]], color: str) -> None:
    """Heads half way along the segments that are long enough to carry one."""
    spread = [max(p[axis] for p in points) - min(p[axis] for p in points) or 1.0 for axis in (0, 1)]
    for (a, b), (c, d) in zip(points, points[1:], strict=False):
        if math.hypot((c - a) / spread[0], (d - b) / spread[1]) > 0.08:
            plot.annotate(
                "",
                ((a + c) / 2 + 0.02 * (c - a), (b + d) / 2 + 0.02 * (d - b)),
                xytext=((a + c) / 2, (b + d) / 2),
                arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.2, "mutation_scale": 13},
            )


def cross(
    plot: Axes,
    point: tuple[float, float],
    halves: Sequence[tuple[float, float]],
    color: str,
    label: str | None = None,
    marker: str = "o",
    hollow: bool = False,
) -> None:
    """A point with its error bars along both axes; ends that are not known are left out."""
    known = [[[max(0.0, half) if math.isfinite(half) else 0.0] for half in pair] for pair in halves]
    plot.errorbar(
        [point[0]],
        [point[1]],
        xerr=known[0],
        yerr=known[1],
        fmt=marker,
        color=color,
        markersize=7,
        capsize=3,
        linewidth=1.3,
        label=label,
        markerfacecolor="white" if hollow else color,
        zorder=3,
    )

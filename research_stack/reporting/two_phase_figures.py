"""figures/dynamics.png of a sweep of policies: trajectories of all settings over each other, and their places in the
plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from research_stack.records.sweep_table import SweepTable
from research_stack.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE
from research_stack.reporting.measured import words
from research_stack.reporting.trajectory import Panel, panels, scaled
from research_stack.reporting.trajectory_figure import cross, frame, shade
from research_stack.reporting.two_phase import lines
from research_stack.reporting.two_phase_page import (
    Spot,
    Stretch,
    drawing_note,
    label_sides,
    origins,
    single,
    spots,
    stretches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VIOLET, OCHRE = "#7a4a9e", "#a17a00"
PALETTE = (BLUE, ORANGE, GREEN, VIOLET, OCHRE, GREY)
FAINT = "#98a1aa"


def color_of(color: int | None) -> str:
    """The colour in a figure."""
    return FAINT if color is None else PALETTE[color % len(PALETTE)]


def figure(table: SweepTable) -> Figure | None:
    """The figure; None where no run answered prompts."""
    found = lines(table)
    drawn = stretches(found)
    placed, across = spots(found)
    if not drawn and len(placed) < 2:
        return None
    plots = [one for panel in panels([stretch.phase for stretch in drawn]) for one in single(panel)]
    whole, left, right = frame(len(plots), len(placed) > 1)
    for plot, panel in zip(left, plots, strict=True):
        _panel(plot, drawn, panel)
    if right is not None and len(placed) > 1:
        _plane(right, placed, across)
    elif left:
        for text in left[0].legend(frameon=False, fontsize=7, labelcolor=GREY).get_texts():
            text.set_parse_math(False)
    whole.suptitle(drawing_note(found), x=0.008, ha="left", fontsize=8.5, color=GREY, wrap=True)
    return whole


def _panel(plot: Axes, drawn: Sequence[Stretch], panel: Panel) -> None:
    for look, phase in drawn:
        mean, band = scaled(phase.curves.get(panel.metrics[0], []), panel.factor)
        if mean:
            plot.plot(
                *zip(*mean, strict=True),
                "--" if look.dashed else "-",
                color=color_of(look.color),
                linewidth=1.5,
                label=look.label,
            )
            shade(plot, band, color_of(look.color))
    if any(phase.begins < 0 for _, phase in drawn):
        plot.axvline(0, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    plot.set_title(panel.title, loc="left", fontsize=9, color=INK, parse_math=False)
    plot.set_ylabel(panel.small.partition(";")[0], fontsize=7.5, color=GREY, parse_math=False)
    plot.set_xlabel("optimizer step", fontsize=7.5, color=GREY)


def _plane(plot: Axes, placed: Sequence[Spot], across: str) -> None:
    for start, end in origins(placed):
        plot.annotate(
            "",
            end.place,
            xytext=start.place,
            arrowprops={
                "arrowstyle": "-|>",
                "color": color_of(end.look.color),
                "linewidth": 1.1,
                "alpha": 0.7,
                "linestyle": "--" if end.look.dashed else "-",
                "shrinkB": 6,
                "mutation_scale": 13,
            },
        )
    xs, ys = (
        [
            value
            for spot in placed
            for value in (spot.place[axis] - spot.errors[axis], spot.place[axis] + spot.errors[axis])
        ]
        for axis in (0, 1)
    )
    wide, high = max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0
    plot.set_xlim(min(xs) - 0.12 * wide, max(xs) + 0.35 * wide)
    plot.set_ylim(min(ys) - 0.12 * high, max(ys) + 0.12 * high)
    fractions = [tuple(plot.transAxes.inverted().transform(plot.transData.transform(spot.place))) for spot in placed]
    sides = label_sides(fractions, [spot.line.label for spot in placed], letter=0.014, line=0.045)
    for spot, side in zip(placed, sides, strict=True):
        halves = [(error, error) for error in spot.errors]
        phase = spot.look.color is None
        cross(
            plot, spot.place, halves, color_of(spot.look.color), marker="s" if phase else "o", hollow=spot.look.dashed
        )
        plot.annotate(
            spot.line.label,
            spot.place,
            xytext=(-9 if side.left else 9, 11 * side.rise + (7 if side.rise >= 0 else -2)),
            ha="right" if side.left else "left",
            textcoords="offset points",
            fontsize=8.5,
            color=GREY if phase else color_of(spot.look.color),
            parse_math=False,
        )
    plot.set_title(
        "Quality against diversity after training, standard errors over seeds", loc="left", fontsize=9, color=INK
    )
    plot.grid(axis="x", color="#ebe8e1", linewidth=0.8)
    plot.set_xlabel(f"{words(across)}: more diverse →", fontsize=8, color=GREY)
    plot.set_ylabel("% right at the first try: better →", fontsize=8, color=GREY)

"""Training curves of a policy: reward and what happens to its answers. The loss of a policy gradient is a surrogate
whose height says nothing, so it is not drawn; that of replies (SFT) is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from research_stack.reporting.curves import Point, even, log_ticks, number, quantile, series, smooth, thin
from research_stack.reporting.html import Html, el
from research_stack.reporting.reading import RunFiles
from research_stack.reporting.sections import keys, loss_chart, norm_chart
from research_stack.reporting.svg_charts import Series, axis_of, line_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPLY, POLICY = "train/loss_reply", "train/loss_policy"
NATS = "nats per reply token"


@dataclass(frozen=True)
class Curve:
    """A logged number.

    - key: in metrics.jsonl; held_out: its like on held-out prompts, or "". factor: 100 for shares, which are drawn in
      percent.
    """

    key: str
    title: str
    small: str
    held_out: str = ""
    factor: float = 1.0


CURVES = (
    Curve("train/reward", "Reward", "mean of the answers drawn", "val/reward"),
    Curve("train/entropy", "Entropy", "nats per token"),
    Curve("train/kl", "KL from the reference", "nats per token"),
    Curve("train/clip_ratio", "Clipped", "% of tokens", factor=100.0),
    Curve("train/completion_length", "Length", "tokens per answer"),
    Curve("train/truncated", "Cut off", "% of answers", factor=100.0),
    Curve("train/frac_reward_zero_std", "Groups of equal reward", "% of groups: nothing to learn from", factor=100.0),
    Curve("train/unique_fraction", "Different answers", "% of a group", factor=100.0),
    Curve("train/different_pairs", "Answers that differ", "% of the pairs of a group", factor=100.0),
)


def is_policy(run: RunFiles) -> bool:
    """Whether the run trained a policy on replies or on rewards."""
    return any(series(run.history, key) for key in (REPLY, POLICY))


def values(run: RunFiles, curve: Curve) -> tuple[list[Point], list[Point]]:
    """(training, held out), in the curve's units."""
    own, other = (series(run.history, key) if key else [] for key in (curve.key, curve.held_out))
    return [(x, curve.factor * y) for x, y in own], [(x, curve.factor * y) for x, y in other]


def moving(run: RunFiles) -> tuple[list[Curve], list[tuple[Curve, float]]]:
    """(the curves that move, those that stood still with their value)."""
    logged = [(curve, [y for _, y in values(run, curve)[0]]) for curve in CURVES]
    logged = [(curve, ys) for curve, ys in logged if ys]
    moved = [curve for curve, ys in logged if max(ys) - min(ys) > 1e-9]
    return moved, [(curve, ys[0]) for curve, ys in logged if curve not in moved]


# The page ------------------------------------------------------------------------------------------------------------


def training(run: RunFiles) -> list[Html] | None:
    """The section; None for a run that trained no policy."""
    if not is_policy(run):
        return None
    reply, norm = series(run.history, REPLY), series(run.history, "train/grad_norm")
    moved, _ = moving(run)
    charts = [loss_chart(reply, series(run.history, "val/loss_reply"), NATS, "Loss of the replies")] if reply else []
    charts += [_chart(run, curve) for curve in moved]
    charts += [norm_chart(norm, run.setting("optimization.clip"))] if norm else []
    return [el("h2", "Training"), el("div", charts, class_="charts"), el("p", note(run), class_="note")]


def note(run: RunFiles) -> str:
    """What is drawn, what is not, and what never moved."""
    found = []
    if series(run.history, POLICY):
        found.append("The loss of a policy gradient is a surrogate: its height says nothing, and it is not drawn.")
    if series(run.history, REPLY):
        found.append("The loss is the cross entropy of the reply's tokens behind the prompt, its end included.")
    if any(series(run.history, curve.held_out) for curve in CURVES if curve.held_out):
        found.append("Dots are held-out prompts.")
    still = [f"{curve.title.lower()} {value:g} ({curve.small})" for curve, value in moving(run)[1]]
    return " ".join([*found, *([f"The same at every step: {', '.join(still)}."] if still else [])])


def _chart(run: RunFiles, curve: Curve) -> Html:
    own, other = values(run, curve)
    mean = smooth(own)
    ys = [y for _, y in own]
    y = axis_of(
        [quantile(ys, 0.01), quantile(ys, 0.99), *(v for _, v in mean), *(v for _, v in other)],
        margin=0.08,
        floor=0.0 if min(ys) >= 0 else None,
    )
    lines = [Series(thin(own), opacity=0.22, width=1), Series(even(mean), width=2)]
    lines += [Series(other, color="var(--c1)", dots=3.2, width=1.4)] if other else []
    chart = line_chart(
        lines,
        axis_of([0.0, own[-1][0]], "optimizer step", margin=0),
        y,
        f"{curve.title} over {own[-1][0]:.0f} steps, ending at {mean[-1][1]:.3g}",
    )
    entries = [("var(--c0)", "training, smoothed", False), ("var(--c1)", "held-out prompts", True)] if other else []
    return el(
        "figure",
        el("figcaption", f"{curve.title} ", el("small", curve.small)),
        chart,
        keys(entries) if entries else None,
    )


# The figure ----------------------------------------------------------------------------------------------------------

COLUMNS = 4


def figure(run: RunFiles) -> Figure | None:
    """figures/training.png of a policy; None for a run that trained none."""
    from research_stack.reporting.figures import GREEN, GREY, new_figure

    if not is_policy(run):
        return None
    parts = [Curve(REPLY, "Loss of the replies", NATS, "val/loss_reply")] if series(run.history, REPLY) else []
    parts += moving(run)[0]
    norm = [p for p in series(run.history, "train/grad_norm") if p[1] > 0]
    count = len(parts) + bool(norm)
    columns = min(COLUMNS, count) if count != 5 else 3
    rows = math.ceil(count / columns)
    drawn, plots = new_figure(3.3 * columns, 2.5 * rows + 0.2, columns, rows)
    for plot, curve in zip(plots, parts, strict=False):
        _plot(plot, run, curve)
    if norm:
        _lines(
            plots[len(parts)],
            norm,
            GREEN,
            "Gradient norm",
            "before clipping",
            [math.exp(v) for _, v in smooth([(x, math.log(v)) for x, v in norm])],
        )
        plots[len(parts)].set_yscale("log")
        marks = log_ticks(min(y for _, y in norm), max(y for _, y in norm))
        plots[len(parts)].set_yticks(marks, [number(mark) for mark in marks])
        plots[len(parts)].minorticks_off()
    for plot in plots[:count]:
        plot.set_xlabel("optimizer step", fontsize=8, color=GREY)
    for plot in plots[count:]:
        plot.set_axis_off()
    return drawn


def _plot(plot: Axes, run: RunFiles, curve: Curve) -> None:
    from research_stack.reporting.figures import BLUE, GREY, ORANGE

    own, other = values(run, curve)
    _lines(plot, own, BLUE, curve.title, curve.small.partition(":")[0], [y for _, y in smooth(own)])
    ys = [y for _, y in own]
    shown = [quantile(ys, 0.005), quantile(ys, 0.995), *(y for _, y in other)]
    margin = 0.06 * (max(shown) - min(shown) or 1.0)
    plot.set_ylim(min(shown) - margin, max(shown) + margin)
    if other:
        plot.plot(
            *zip(*other, strict=True),
            "o-",
            color=ORANGE,
            markersize=3.5,
            linewidth=1.2,
            label="held-out prompts" if curve.key != REPLY else "validation",
        )
        plot.legend(frameon=False, fontsize=7.5, labelcolor=GREY)


def _lines(plot: Axes, points: list[Point], color: str, title: str, unit: str, mean: list[float]) -> None:
    from research_stack.reporting.figures import GREY, INK

    plot.plot(*zip(*points, strict=True), color=color, alpha=0.25, linewidth=0.7)
    plot.plot([x for x, _ in points], mean, color=color, linewidth=1.8, label="training, smoothed")
    plot.set_title(title, loc="left", fontsize=9, color=INK, parse_math=False)
    plot.set_ylabel(unit, fontsize=7.5, color=GREY, parse_math=False)

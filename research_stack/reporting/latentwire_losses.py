"""Training curves of a wire of latents: each part of the loss, how often the first token was right, and the alarm for
collapse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from research_stack.reporting.curves import Point, even, quantile, series, smooth, thin
from research_stack.reporting.html import Html, el
from research_stack.reporting.latentwire_words import FIRST, is_wire
from research_stack.reporting.reading import RunFiles
from research_stack.reporting.sections import COLORS, keys, loss_chart, norm_chart
from research_stack.reporting.svg_charts import Series, axis_of, line_chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PART, COLLAPSE = "train/loss_", "train/collapse"
TITLES = {
    "first": ("Loss of the first token", "cross entropy, nats"),
    "answer": ("Loss of the answer", "cross entropy, nats per token"),
    "kd": ("Distillation", "from the reader that sees the text"),
    "align": ("Alignment", "of the readers' latents"),
    "manifold": ("Manifold", "statistics of real embeddings"),
    "scale": ("Scale", "penalty"),
    "rms": ("Raw RMS", "penalty"),
}


@dataclass(frozen=True)
class Lines:
    """Curves on one axis: {name: points}, of training and of validation."""

    title: str
    small: str
    train: dict[str, list[Point]]
    held_out: dict[str, list[Point]]


def parts(run: RunFiles) -> list[str]:
    """The parts of the loss that were logged, the known ones first: first, answer, kd and so on."""
    names = dict.fromkeys(key.removeprefix(PART) for row in run.history for key in row if key.startswith(PART))
    known = [name for name in (*TITLES, *(name for name in names if name not in TITLES)) if name in names]
    return [name for name in known if series(run.history, PART + name)]


def first_right(run: RunFiles) -> Lines:
    """How often the first token was right for each reader, in percent."""
    names = dict.fromkeys(key.removeprefix(FIRST) for row in run.history for key in row if key.startswith(FIRST))
    train, held_out = (
        {
            name: points
            for name in names
            if (points := [(x, 100 * y) for x, y in series(run.history, key.replace("train/", side, 1) + name)])
        }
        for side, key in (("train/", FIRST), ("val/", FIRST))
    )
    return Lines("First token right", "% of the batch", train, held_out)


def collapse(run: RunFiles) -> list[Point]:
    """By how much latents do better than those of another example."""
    return series(run.history, COLLAPSE)


def training(run: RunFiles) -> list[Html] | None:
    """The section; None for a run of another kind."""
    if not (is_wire(run) or first_right(run).train) or not (series(run.history, "train/loss") or parts(run)):
        return None
    loss, norm = series(run.history, "train/loss"), series(run.history, "train/grad_norm")
    charts = [loss_chart(loss, series(run.history, "val/loss"), "weighted sum of its parts", "Loss")] if loss else []
    charts += [_part(run, name) for name in parts(run)] if parts(run) != ["first"] or not loss else []
    charts += [chart for chart in (_first_chart(first_right(run)), _collapse_chart(collapse(run))) if chart is not None]
    charts += [norm_chart(norm, run.setting("optimization.clip"))] if norm else []
    return [el("h2", "Training"), el("div", charts, class_="charts"), el("p", note(run), class_="note")]


def note(run: RunFiles) -> str:
    """What is drawn."""
    found = ["The optimizer sees the weighted sum of the parts; a part whose weight is 0 is not logged."]
    if points := collapse(run):
        found.append(
            "The collapse alarm is the score with latents less that with those of another example of the batch: at 0"
            f" the latents say nothing. It ended at {smooth(points)[-1][1]:.3f}."
        )
    return " ".join(found)


def _part(run: RunFiles, name: str) -> Html:
    title, unit = TITLES.get(name, (name.replace("_", " ").capitalize(), "as it is trained"))
    weight = run.setting(f"method.losses.{name}.weight")
    said = f", weight {weight:g}" if isinstance(weight, int | float) and not isinstance(weight, bool) else ""
    return loss_chart(series(run.history, PART + name), series(run.history, f"val/loss_{name}"), f"{unit}{said}", title)


def _first_chart(lines: Lines) -> Html | None:
    """Training smoothed, validation as dots, a colour for each reader."""
    if not lines.train:
        return None
    drawn, entries, values = [], [], [0.0]
    for color, (name, points) in zip(COLORS * len(lines.train), lines.train.items(), strict=False):
        other = lines.held_out.get(name, [])
        drawn += [
            Series(thin(points), color=color, opacity=0.2, width=1),
            Series(even(smooth(points)), color=color, width=2, title=name),
        ]
        drawn += [Series(other, color=color, dots=3.4, line=False, title=f"{name}, validation")] if other else []
        entries.append((color, f"{name}{', dots: validation' if other else ''}", False))
        values += [quantile([y for _, y in points], 0.998), *(y for _, y in other)]
    last = max(points[-1][0] for points in lines.train.values())
    chart = line_chart(
        drawn,
        axis_of([0.0, last], "optimizer step", margin=0),
        axis_of(values, margin=0.06, floor=0.0),
        f"first token right over {last:.0f} steps",
    )
    return el("figure", el("figcaption", f"{lines.title} ", el("small", lines.small)), chart, keys(entries))


def _collapse_chart(points: Sequence[Point]) -> Html | None:
    if not points:
        return None
    mean, values = smooth(points), [y for _, y in points]
    x = axis_of([0.0, points[-1][0]], "optimizer step", margin=0)
    y = axis_of([0.0, quantile(values, 0.005), quantile(values, 0.995), *(v for _, v in mean)], margin=0.06)
    zero = Series(
        [(x.low, 0.0), (x.high, 0.0)], color="var(--bad)", width=1.3, dashed=True, title="the latents say nothing"
    )
    chart = line_chart(
        [
            zero,
            Series(thin(points), color="var(--c2)", opacity=0.25, width=1),
            Series(even(mean), color="var(--c2)", width=2),
        ],
        x,
        y,
        f"latents less those of another example over {points[-1][0]:.0f} steps, ending at {mean[-1][1]:.3f}",
    )
    return el(
        "figure",
        el("figcaption", "Collapse alarm ", el("small", "latents less those of another example")),
        chart,
        keys([("var(--c2)", "smoothed", False), ("var(--bad)", "the latents say nothing", False)]),
    )


# The figure ----------------------------------------------------------------------------------------------------------

COLUMNS = 4  # at most


def figure(run: RunFiles) -> Figure | None:
    """figures/training.png of a wire of latents; None for a run of another kind."""
    from research_stack.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, new_figure
    from research_stack.reporting.latentwire_figures import VIOLET, plain_legend

    if training(run) is None:
        return None
    loss, first = series(run.history, "train/loss"), first_right(run)
    panels = (
        [Lines("Loss", "weighted sum of its parts", {"training": loss}, {"training": series(run.history, "val/loss")})]
        if loss
        else []
    )
    panels += [
        Lines(
            *TITLES.get(name, (name, "")),
            {"training": series(run.history, PART + name)},
            {"training": series(run.history, f"val/loss_{name}")},
        )
        for name in parts(run)
    ]
    panels += [first] if first.train else []
    panels += [
        Lines("Collapse alarm", "latents less those of another example", {"training": points}, {})
        for points in [collapse(run)]
        if points
    ]
    rows = math.ceil(len(panels) / COLUMNS)
    columns = math.ceil(len(panels) / rows)
    drawn, plots = new_figure(3.3 * columns, 2.6 * rows, columns, rows)
    for plot, panel in zip(plots, panels, strict=False):
        several = len(panel.train) > 1 or panel is first
        for color, (name, points) in zip(
            (BLUE, ORANGE, GREEN, VIOLET) * len(panel.train), panel.train.items(), strict=False
        ):
            plot.plot(*zip(*points, strict=True), color=color, alpha=0.2, linewidth=0.7)
            plot.plot(*zip(*smooth(points), strict=True), color=color, linewidth=1.8, label=name if several else None)
            if held_out := panel.held_out.get(name):
                plot.plot(
                    *zip(*held_out, strict=True),
                    "o" if several else "o-",
                    color=color if several else ORANGE,
                    markersize=3.5,
                    linewidth=1.2,
                    label=None if several else "validation",
                )
        plot.set_title(panel.title, loc="left", fontsize=9, color=INK, parse_math=False)
        plot.set_ylabel(panel.small, fontsize=7.5, color=GREY, parse_math=False)
        plot.set_xlabel("optimizer step", fontsize=8, color=GREY)
        plain_legend(plot)
    for plot in plots[len(panels) :]:
        plot.set_axis_off()
    return drawn

"""Training curves of a next-token model: its loss; with a confidence head both losses apart, their gradients, and what
was predicted beside what came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from research_stack.reporting.curves import Band, Point, even, quantile, series, smooth, thin
from research_stack.reporting.html import Html, el
from research_stack.reporting.reading import RunFiles
from research_stack.reporting.sections import keys, loss_chart, norm_chart
from research_stack.reporting.svg_charts import Series, axis_of, line_chart

NORMS = (
    ("train/grad_lm", "of the language model's loss", "var(--c0)"),
    ("train/grad_confidence", "of the confidence loss", "var(--c1)"),
)
SPREADS = (("train/confidence", "predicted", "var(--c0)"), ("train/future", "actual", "var(--c1)"))


def has_parts(run: RunFiles) -> bool:
    """Whether the run logged the loss of a language model or of a confidence head by itself."""
    return any(series(run.history, key) for key in ("train/loss_lm", "train/loss_confidence"))


def training(run: RunFiles) -> list[Html] | None:
    """The section in place of the mixed loss; None for a run without losses of these names."""
    if not has_parts(run):
        return None
    lm, confidence, norm = (
        series(run.history, key) for key in ("train/loss_lm", "train/loss_confidence", "train/grad_norm")
    )
    charts = (
        [loss_chart(lm, series(run.history, "val/loss_lm"), "nats per token", "Loss of the language model")]
        if lm
        else []
    )
    if confidence:
        charts.append(
            loss_chart(
                confidence,
                series(run.history, "val/loss_confidence"),
                "as it is trained",
                "Loss of the confidence head",
                log=True,
            )
        )
    charts += [chart for chart in (norms_chart(run), spread_chart(run)) if chart is not None]
    charts += [norm_chart(norm, run.setting("optimization.clip"))] if norm else []
    words = (
        "The optimizer sees a mixture of the two losses; each is shown by itself. The norms of their gradients are"
        " those at the last hidden states, where the two meet. The spread of the future loss is one standard deviation"
        " over the tokens of a batch: a head whose band is much narrower than the actual one predicts little beyond the"
        " mean."
        if confidence
        else "The loss is the cross entropy of the next token, in nats per token."
    )
    return [el("h2", "Training"), el("div", charts, class_="charts"), el("p", words, class_="note")]


def norms_chart(run: RunFiles) -> Html | None:
    """The norms of the gradients of both losses at the last hidden states, on a log scale."""
    lines, entries, shown = [], [], []
    for key, words, color in NORMS:
        points = [p for p in series(run.history, key) if p[1] > 0]
        if points:
            lines += [
                Series(thin(points), color=color, opacity=0.2, width=1),
                Series(even(log_smooth(points)), color=color, width=2, title=words),
            ]
            entries.append((color, words, False))
            shown += [quantile([y for _, y in points], share) for share in (0.002, 0.998)]
    if not lines:
        return None
    last = max(line.points[-1][0] for line in lines)
    x = axis_of([0.0, last], "optimizer step", margin=0)
    chart = line_chart(lines, x, axis_of(shown, log=True), f"gradient norms of both losses over {last:.0f} steps")
    return el(
        "figure",
        el("figcaption", "Gradients of both losses ", el("small", "at the last hidden states, log scale")),
        chart,
        keys(entries),
    )


def log_smooth(points: Sequence[Point]) -> list[Point]:
    """The moving average of the logarithms of positive values."""
    return [(step, math.exp(v)) for step, v in smooth([(step, math.log(v)) for step, v in points])]


def spread_chart(run: RunFiles) -> Html | None:
    """Mean and one standard deviation of what the head predicts and of what comes."""
    lines, entries, shown = [], [], []
    for key, words, color in SPREADS:
        mean, band = spread(run.history, key)
        if mean:
            lines.append(Series(mean, color=color, width=2, band=band, title=words))
            entries.append((color, words, False))
            shown += [y for edge in band or (mean,) for _, y in edge]
    if not lines:
        return None
    x = axis_of([0.0, max(line.points[-1][0] for line in lines)], "optimizer step", margin=0)
    chart = line_chart(
        lines, x, axis_of(shown), "mean and standard deviation of the predicted and of the actual future loss"
    )
    return el(
        "figure", el("figcaption", "Future loss ", el("small", "mean ± standard deviation, nats")), chart, keys(entries)
    )


def spread(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[Point], Band | None]:
    """The smoothed `key`_mean, and it less and plus the smoothed `key`_std where there is one."""
    mean, width = (even(smooth(series(history, f"{key}_{part}"))) for part in ("mean", "std"))
    widths = dict(width)
    known = [(x, y, widths[x]) for x, y in mean if x in widths]
    return mean, ([(x, y - s) for x, y, s in known], [(x, y + s) for x, y, s in known]) if known else None

"""The training curves of a run: loss, gradient norm, and any other metric that is logged over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from research_stack.reporting.charts import Chart, Series, axis_of, line_chart
from research_stack.reporting.contract import Metric, Report
from research_stack.reporting.curves import Point, even, quantile, series, smooth, thin
from research_stack.reporting.elements import note
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles


def loss_report(
    unit: Callable[[RunFiles], str], words: Callable[[RunFiles], str], measured_by: str, samples: bool = True
) -> Report:
    """The report of a method whose training is one loss: its curves, its last value, and what measures the result.

    - unit, words: of a run, as for `training`. measured_by, samples: as in `Report`.
    """
    return Report(
        metrics={
            "train/loss": Metric("training loss", better="lower"),
            "val/loss": Metric("validation loss", better="lower"),
        },
        training=lambda run: training(run, unit(run), words(run)),
        progress=lambda run: last_loss(run, unit(run)),
        measured_by=measured_by,
        samples=samples,
    )


def training(run: RunFiles, unit: str = "", words: str = "") -> Node:
    """The section: loss with validation, and the gradient norm; None for a run without a loss.

    - unit: of the loss. words: what it is, below the charts.
    """
    loss, validation = series(run.history, "train/loss"), series(run.history, "val/loss")
    if not loss:
        return None
    charts = [loss_chart(loss, validation, unit, table_name="training_loss")]
    norm = series(run.history, "train/grad_norm")
    if norm:
        charts.append(norm_chart(norm, run.setting("optimization.clip")))
    return [el("h2", "Training"), el("div", charts, class_="charts"), note(words) if words else None]


def last_loss(run: RunFiles, unit: str = "") -> str:
    """The last logged training loss as a sentence; empty without one."""
    points = series(run.history, "train/loss")
    return f"The last training loss was {points[-1][1]:.3f} {unit}".rstrip() + "." if points else ""


def loss_chart(
    loss: Sequence[Point],
    validation: Sequence[Point],
    unit: str,
    title: str = "Loss",
    log: bool | None = None,
    *,
    table_name: str,
    validation_words: str = "validation, same loss",
) -> Chart:
    """Raw and smoothed training values, validation points; on a log scale if wanted or, by default, if they span a
    factor of thirty.

    - table_name: of the chart's files.
    """
    mean = smooth(loss)
    values = [y for _, y in loss]
    shown = [
        quantile(values, 0.002),
        quantile(values, 0.995),
        *(y for _, y in mean[len(mean) // 50 :]),
        *(y for _, y in validation),
    ]
    y = axis_of(shown, log=min(shown) > 0 and (max(shown) > 30 * min(shown) if log is None else log))
    x = axis_of([0.0, loss[-1][0]], "optimizer step", margin=0)
    lines = [
        Series(thin(loss), opacity=0.28, width=1, title="training"),
        Series(even(mean), width=2, title="training, smoothed"),
        Series(validation, color="var(--c1)", dots=3.2, width=1.4, opacity=0.95, title="validation"),
    ]
    ending = f"ending at {mean[-1][1]:.3f} {unit}".rstrip()
    legend = [
        ("var(--c0)", "training, smoothed over a fortieth of the run", False),
        *([("var(--c1)", validation_words, True)] if validation else []),
    ]
    return line_chart(
        lines,
        x,
        y,
        f"training {title.lower()} over {loss[-1][0]:.0f} steps, {ending}",
        name=table_name,
        title=title,
        note=f"{unit}{', log scale' if y.log else ''}".lstrip(", "),
        legend=legend,
    )


def norm_chart(norm: Sequence[Point], clip: Any) -> Chart:
    """The global gradient norm before clipping, on a log scale, with the clipping threshold."""
    positive = [p for p in norm if p[1] > 0] or [(norm[-1][0], 1.0)]
    limit = float(clip) if isinstance(clip, int | float) and clip > 0 else None
    mean = log_smooth(positive)
    y = axis_of([*(v for _, v in positive), *([limit] if limit else [])], log=True)
    x = axis_of([0.0, norm[-1][0]], "optimizer step", margin=0)
    lines = [
        Series(thin(positive), color="var(--c2)", opacity=0.28, width=1, title="gradient norm"),
        Series(even(mean), color="var(--c2)", width=2, title="gradient norm, smoothed"),
    ]
    legend = [("var(--c2)", "smoothed", False)]
    if limit:
        lines.append(Series([(0.0, limit), (norm[-1][0], limit)], color="var(--faint)", width=1.2, title="clipping"))
        legend.append(("var(--faint)", f"clipped above {limit:g}", False))
    return line_chart(
        lines,
        x,
        y,
        f"gradient norm over {norm[-1][0]:.0f} steps, ending at {mean[-1][1]:.3g}",
        name="gradient_norm",
        title="Gradient norm",
        note="before clipping, log scale",
        legend=legend,
    )


def log_smooth(points: Sequence[Point]) -> list[Point]:
    """The smoothed curve of positive values, averaged on a logarithmic scale."""
    return [(step, math.exp(v)) for step, v in smooth([(step, math.log(v)) for step, v in points if v > 0])]

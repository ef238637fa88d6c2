"""Training curves of a next-token model: its loss; with a confidence head each of the two losses, their gradients, and
what was predicted beside what came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research_stack.reporting.charts import Chart, Series, axis_of, line_chart
from research_stack.reporting.contract import Metric, Report, SweepReport, TrainingCurve
from research_stack.reporting.curves import Band, Point, even, quantile, series, smooth, thin
from research_stack.reporting.elements import note
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles
from research_stack.reporting.training_curves import log_smooth, loss_chart, norm_chart

NORMS = (
    ("train/grad_lm", "of the language model's loss", "var(--c0)"),
    ("train/grad_confidence", "of the confidence loss", "var(--c1)"),
)
FUTURES = (("train/confidence", "predicted", "var(--c0)"), ("train/future", "actual", "var(--c1)"))


def training(run: RunFiles) -> Node:
    """The section in place of the mixed loss; None for a run that logged neither loss."""
    lm, confidence, norm = (
        series(run.history, key) for key in ("train/loss_lm", "train/loss_confidence", "train/grad_norm")
    )
    if not lm and not confidence:
        return None
    charts = [
        loss_chart(
            lm, series(run.history, "val/loss_lm"), "nats per token", "Loss of the language model", table_name="loss_lm"
        )
        if lm
        else None,
        loss_chart(
            confidence,
            series(run.history, "val/loss_confidence"),
            "as it is trained",
            "Loss of the confidence head",
            log=True,
            table_name="loss_confidence",
        )
        if confidence
        else None,
        norms_chart(run),
        future_chart(run),
        norm_chart(norm, run.setting("optimization.clip")) if norm else None,
    ]
    words = (
        "The optimizer sees a mixture of the two losses; each is shown by itself. The norms of their gradients are"
        " those at the last hidden states, where the two meet. The spread of the future loss is one standard deviation"
        " over the tokens of a batch: a head whose band is much narrower than the actual one predicts little beyond the"
        " mean."
        if confidence
        else "The loss is the cross entropy of the next token, in nats per token."
    )
    return [el("h2", "Training"), el("div", [chart for chart in charts if chart], class_="charts"), note(words)]


def progress(run: RunFiles) -> str:
    """The last logged loss of the language model as a sentence; empty without one."""
    points = series(run.history, "train/loss_lm") or series(run.history, "train/loss")
    return f"The last training loss was {points[-1][1]:.3f} nats per token." if points else ""


def norms_chart(run: RunFiles) -> Chart | None:
    """The norms of the gradients of both losses at the last hidden states, on a log scale."""
    lines, legend, shown = [], [], []
    for key, words, color in NORMS:
        points = [p for p in series(run.history, key) if p[1] > 0]
        if points:
            lines += [
                Series(thin(points), color=color, opacity=0.2, width=1),
                Series(even(log_smooth(points)), color=color, width=2, title=words),
            ]
            legend.append((color, words, False))
            shown += [quantile([y for _, y in points], share) for share in (0.002, 0.998)]
    if not lines:
        return None
    last = max(line.points[-1][0] for line in lines)
    return line_chart(
        lines,
        axis_of([0.0, last], "optimizer step", margin=0),
        axis_of(shown, log=True),
        f"gradient norms of both losses over {last:.0f} steps",
        name="gradient_norms_of_losses",
        title="Gradients of both losses",
        note="at the last hidden states, log scale",
        legend=legend,
    )


def future_chart(run: RunFiles) -> Chart | None:
    """Mean and one standard deviation of what the head predicts and of what comes."""
    lines, legend, shown = [], [], []
    for key, words, color in FUTURES:
        mean, band = mean_and_deviation(run.history, key)
        if mean:
            lines.append(Series(mean, color=color, width=2, band=band, title=words))
            legend.append((color, words, False))
            shown += [y for edge in band or (mean,) for _, y in edge]
    if not lines:
        return None
    return line_chart(
        lines,
        axis_of([0.0, max(line.points[-1][0] for line in lines)], "optimizer step", margin=0),
        axis_of(shown),
        "mean and standard deviation of the predicted and of the actual future loss",
        name="future_loss",
        title="Future loss",
        note="mean ± standard deviation, nats",
        legend=legend,
    )


def mean_and_deviation(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[Point], Band | None]:
    """The smoothed `key`_mean, and it less and plus the smoothed `key`_std where there is one."""
    mean, width = (even(smooth(series(history, f"{key}_{part}"))) for part in ("mean", "std"))
    widths = dict(width)
    known = [(x, y, widths[x]) for x, y in mean if x in widths]
    return mean, ([(x, y - s) for x, y, s in known], [(x, y + s) for x, y, s in known]) if known else None


REPORT = Report(
    metrics={
        "train/loss_lm": Metric("loss of the language model", "nats per token", "lower", form="{:.3f}"),
        "val/loss_lm": Metric("held-out loss of the language model", "nats per token", "lower", form="{:.3f}"),
        "train/loss_confidence": Metric("loss of the confidence head", better="lower"),
        "val/loss_confidence": Metric("held-out loss of the confidence head", better="lower"),
        "train/confidence_mean": Metric("mean predicted future loss", "nats"),
        "train/confidence_std": Metric("standard deviation of the predicted future loss", "nats"),
        "train/future_mean": Metric("mean future loss", "nats"),
        "train/future_std": Metric("standard deviation of the future loss", "nats"),
        "train/fixed_point": Metric("change of the confidences in one more pass", "nats"),
        "train/grad_lm": Metric("gradient norm of the language model's loss"),
        "train/grad_confidence": Metric("gradient norm of the confidence loss"),
    },
    training=training,
    progress=progress,
    measured_by="lookahead_calibration",
    sweep=SweepReport(
        curve=TrainingCurve(
            "train/loss_lm",
            "val/loss_lm",
            note="of the language model, smoothed",
            validation_note="loss of the language model, nats per token",
        )
    ),
)

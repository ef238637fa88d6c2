"""The parts of a run's report, each from the run's files; a part without files is None."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from research_stack.metrics.interval import FEW, few_groups_note
from research_stack.reporting.curves import Point, even, number, quantile, series, smooth, thin, ticks
from research_stack.reporting.html import Html, el
from research_stack.reporting.policy_words import answers, last_reward
from research_stack.reporting.reading import RunFiles, real
from research_stack.reporting.reward_words import correlation
from research_stack.reporting.svg_charts import Series, axis_of, line_chart

INTERVALS = f"The interval, over documents by Student's t and meant for {FEW} of them or more,"
NOT_BOUNDED = (
    "The bound above is not one of these texts' probability: a decoder of few steps draws the tokens of a step "
    "independently, greedily or from a cut law, so it writes by a law of its own. Only a sampler that follows the "
    "process in many small steps comes near the bounded one."
)
TEXT_LIMIT = 4000  # characters of a sample
SAMPLE_LIMIT = 6  # samples of a decoder
COLORS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)")


# Words ---------------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """43 s, 2 min 58 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def moment(time: Any) -> str:
    """2026-11-21 00:43 UTC of an ISO 8601 time; empty without one."""
    return str(time)[:16].replace("T", " ") + " UTC" if time else ""


def count(value: Any) -> str:
    """1,234,567; whatever is no number as it is."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def verdict(run: RunFiles) -> str:
    """What the run came to, in a sentence."""
    prefix = {
        "failed": f"The run failed at step {run.steps:,}. ",
        "interrupted": f"The run was interrupted at step {run.steps:,}. ",
        "running": f"The run is under way, at step {run.steps:,}. ",
        "unknown": "The folder has no result. ",
    }.get(run.status, "")
    found = headline(run)
    if found is None:
        rest = answers(run) or correlation(run.metrics) or last_loss(run)
        return (prefix + rest) or "The run ended; nothing was measured."
    value, _, _ = found
    sentence = f"{prefix}At most {value:.2f} nats per held-out token, a perplexity of {math.exp(value):,.4g} or less"
    gain = tuple(
        run.metrics.get(f"likelihood/{key}", math.nan) for key in ("gain_over_trigram", "gain_low", "gain_high")
    )
    return sentence + comparison(gain) + "."


def comparison(gain: tuple[float, float, float]) -> str:
    """How the bound stands to the trigram, from the difference and its interval."""
    value, low, high = gain
    if not math.isfinite(value):
        return ""
    if not low <= 0 <= high:
        side = f"{value:.2f} below a trigram model" if value > 0 else f"still {-value:.2f} above a trigram model"
        return f": {side} of the same tokens"
    return f": level with a trigram model of the same tokens (difference {value:+.2f}, within its interval)"


def headline(run: RunFiles) -> tuple[float, float, float] | None:
    """(bound, low, high) in nats per token; None if none was measured."""
    value, low, high = (run.metrics.get(f"likelihood/{key}", math.nan) for key in ("bound", "bound_low", "bound_high"))
    return (value, low, high) if math.isfinite(value) else None


def last_loss(run: RunFiles) -> str:
    """The last logged training loss, or the reward where the loss is a mere surrogate, as a sentence; empty without
    one.
    """
    if words := last_reward(run):
        return words
    of_model, of_replies = series(run.history, "train/loss_lm"), series(run.history, "train/loss_reply")
    points, unit = (
        (of_model, "nats per token")
        if of_model
        else (of_replies, "nats per reply token")
        if of_replies
        else (series(run.history, "train/loss"), loss_unit(run))
    )
    return f"The last training loss was {points[-1][1]:.3f} {unit}." if points else ""


def loss_unit(run: RunFiles) -> str:
    """What the training loss is measured in."""
    method = str(run.setting("method._target_")).rpartition(".")[2]
    if _is_reward_model(run):
        return (
            "Huber's loss, standardised target"
            if run.setting("method.loss") == "huber"
            else "squared standard deviations of the target"
        )
    if method == "SFT":
        return "nats per reply token"
    return {"tokens": "nats per token", "answer": "nats per answer token"}.get(
        str(run.setting("method.loss.normalize")), "nats per position"
    )


def _is_reward_model(run: RunFiles) -> bool:
    return str(run.setting("method._target_")).endswith(".RewardModel")


def loss_note(run: RunFiles) -> str:
    """What is drawn as the loss, and what it is not."""
    if _is_reward_model(run):
        mean = ": always predicting the mean gives about 1" if run.setting("method.loss") == "mse" else ""
        return f"The loss is {loss_words(run)}, in {loss_unit(run)}{mean}. Dots are held-out pairs."
    return (
        f"The loss is {loss_words(run)}, in {loss_unit(run)}. It is what the optimizer sees, averaged over noise"
        " levels: no likelihood, and not comparable between losses or corruptions."
    )


def loss_words(run: RunFiles) -> str:
    """Which loss was trained, from its config."""
    if _is_reward_model(run):
        return "the error of the predicted engagement"
    positions, weight = run.setting("method.loss.positions"), run.setting("method.loss.weight")
    if positions is None and weight is None:
        return "training loss"
    where = {"masked": "masked positions", "corrupted": "corrupted positions", "all": "all eligible positions"}.get(
        str(positions), str(positions)
    )
    how = {"none": "unweighted", "inv_t": "weighted by 1/p"}.get(str(weight), f"weight {weight}")
    kind = "bound terms" if weight in ("elbo", "clip", "dynamic") else "cross entropy"
    return f"{kind} at {where}, {how}"


def few_documents(rows: Sequence[Mapping[str, str]]) -> str:
    """What is to be said, after a blank, of intervals over few documents; empty where there are enough, or nobody
    counted them.
    """
    count = real(rows[0].get("documents")) if rows else math.nan
    words = few_groups_note(int(count), "documents") if math.isfinite(count) else ""
    return f" {words}" if words else ""


def listing(header: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]], text: Sequence[int] = (0,)) -> Html:
    """Rows of (cells, whether they stand out); the columns in `text` are words, the others numbers."""
    kinds = [None if i in text else "num" for i in range(len(header))]
    head = el("tr", [el("th", text, class_=kind) for text, kind in zip(header, kinds, strict=True)])
    lines = [
        el(
            "tr",
            [el("td", text, class_=kind) for text, kind in zip(cells, kinds, strict=True)],
            class_="head" if strong else None,
        )
        for cells, strong in rows
    ]
    return el("table", el("thead", head), el("tbody", lines))


# Training ------------------------------------------------------------------------------------------------------------


def training(run: RunFiles) -> list[Html] | None:
    """Curves of the loss, the gradient norm and the learning rate."""
    loss, validation = series(run.history, "train/loss"), series(run.history, "val/loss")
    if not loss:
        return None
    norm = series(run.history, "train/grad_norm")
    charts = [loss_chart(loss, validation, loss_unit(run))]
    if norm:
        charts.append(norm_chart(norm, run.setting("optimization.clip")))
    return [el("h2", "Training"), el("div", charts, class_="charts"), el("p", loss_note(run), class_="note")]


def loss_chart(
    loss: Sequence[Point], validation: Sequence[Point], unit: str, title: str = "Loss", log: bool | None = None
) -> Html:
    """Raw and smoothed training loss, validation points; on a log scale if wanted or, by default, if it spans a factor
    of thirty.
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
        Series(thin(loss), opacity=0.28, width=1),
        Series(even(mean), width=2),
        Series(validation, color="var(--c1)", dots=3.2, width=1.4, opacity=0.95),
    ]
    chart = line_chart(
        lines, x, y, f"training {title.lower()} over {loss[-1][0]:.0f} steps, ending at {mean[-1][1]:.3f} {unit}"
    )
    entries = [
        ("var(--c0)", "training, smoothed over a fortieth of the run", False),
        *([("var(--c1)", "validation, same loss", True)] if validation else []),
    ]
    return el(
        "figure",
        el("figcaption", f"{title} ", el("small", f"{unit}{', log scale' if y.log else ''}")),
        chart,
        keys(entries),
    )


def norm_chart(norm: Sequence[Point], clip: Any) -> Html:
    """The global gradient norm before clipping, on a log scale, with the clipping threshold."""
    positive = [p for p in norm if p[1] > 0] or [(norm[-1][0], 1.0)]
    limit = float(clip) if isinstance(clip, int | float) and clip > 0 else None
    log_mean = [(step, math.exp(v)) for step, v in smooth([(step, math.log(v)) for step, v in positive])]
    y = axis_of([*(v for _, v in positive), *([limit] if limit else [])], log=True)
    x = axis_of([0.0, norm[-1][0]], "optimizer step", margin=0)
    lines = [
        Series(thin(positive), color="var(--c2)", opacity=0.28, width=1),
        Series(even(log_mean), color="var(--c2)", width=2),
    ]
    entries = [("var(--c2)", "smoothed", False)]
    if limit:
        lines.append(Series([(0.0, limit), (norm[-1][0], limit)], color="var(--faint)", width=1.2))
        entries.append(("var(--faint)", f"clipped above {limit:g}", False))
    chart = line_chart(lines, x, y, f"gradient norm over {norm[-1][0]:.0f} steps, ending at {log_mean[-1][1]:.3g}")
    return el(
        "figure", el("figcaption", "Gradient norm ", el("small", "before clipping, log scale")), chart, keys(entries)
    )


def keys(entries: Sequence[tuple[str, str, bool]]) -> Html:
    """A legend of (colour, text, whether it is a dot)."""
    return el(
        "ul",
        [
            el("li", el("i", class_="dot" if dot else None, style=f"color:{color}"), text)
            for color, text, dot in entries
        ],
        class_="legend",
    )


def intervals(bars: Sequence[Mapping[str, Any]]) -> Html:
    """Values with their intervals on one axis, as HTML, which takes any width."""
    ends = [v for bar in bars for v in (bar["low"], bar["value"], bar["high"]) if math.isfinite(v)]
    axis = axis_of(ends, margin=0.12)

    def share(value: float) -> float:
        return 100 * axis.place(value)

    cells: list[Html] = []
    for bar in bars:
        low, high = (v if math.isfinite(v) else bar["value"] for v in (bar["low"], bar["high"]))
        head = " head" if bar["head"] else ""
        spread = f"± {(high - low) / 2:.3f}" if math.isfinite(bar["low"]) else ""
        cells += [
            el("div", bar["name"], el("small", bar["small"]), class_=f"name{head}"),
            el(
                "div",
                el("span", class_="whisk", style=f"left:{share(low):.2f}%;width:{share(high) - share(low):.2f}%"),
                el("span", class_="dot", style=f"left:{share(bar['value']):.2f}%"),
                class_="track",
                style=f"color:{bar['color']}",
            ),
            el("div", f"{bar['limit']}{bar['value']:.3f}", el("small", spread), class_=f"value{head}"),
        ]
    marks = [el("span", number(v), style=f"left:{share(v):.2f}%") for v in ticks(axis.low, axis.high, 6)]
    cells += [el("div", class_="blank"), el("div", marks, class_="ticks"), el("div", class_="blank")]
    return el("div", cells, class_="bars")


def glance(run: RunFiles) -> dict[str, str]:
    """The numbers on top of the page."""
    from research_stack.reporting.contract import reports_of
    from research_stack.reporting.page import numbers
    from research_stack.reporting.run_files import read

    new = read(run.folder)
    return numbers(new, reports_of(new))

"""Training curves of LatentWire: each term of the loss, how often the first token is correct, the collapse alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from research_stack.latentwire.report.words import each, file_name
from research_stack.reporting.charts import COLORS, Chart, Series, axis_of, line_chart
from research_stack.reporting.curves import Point, even, quantile, series, smooth, thin
from research_stack.reporting.elements import note
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles
from research_stack.reporting.training_curves import last_loss, loss_chart, norm_chart

FIRST = "first1_"  # before the reader's name: how often the first token was correct on the batch
TERM, COLLAPSE = "train/loss_", "train/collapse"
TITLES = {
    "first": ("Loss of the first token", "cross entropy, nats"),
    "answer": ("Loss of the answer", "cross entropy, nats per token"),
    "kd": ("Distillation", "from the reader that sees the text"),
    "align": ("Alignment", "of the readers' latents"),
    "manifold": ("Manifold", "statistics of real embeddings"),
    "scale": ("Scale", "penalty"),
    "rms": ("Raw RMS", "penalty"),
}


def loss_terms(run: RunFiles) -> list[str]:
    """The terms of the loss that were logged, the known ones first: first, answer, kd and so on."""
    names = dict.fromkeys(key.removeprefix(TERM) for row in run.history for key in row if key.startswith(TERM))
    known = [name for name in (*TITLES, *(name for name in names if name not in TITLES)) if name in names]
    return [name for name in known if series(run.history, TERM + name)]


def first_correct(run: RunFiles, side: str = "train") -> dict[str, list[Point]]:
    """{reader: how often its first token was correct, a share}, of training or of validation ("val")."""
    before = f"{side}/{FIRST}"
    names = dict.fromkeys(key.removeprefix(before) for row in run.history for key in row if key.startswith(before))
    return {name: points for name in names if (points := series(run.history, before + name))}


def training(run: RunFiles) -> Node:
    """The section; None without a loss."""
    loss, norm, terms = series(run.history, "train/loss"), series(run.history, "train/grad_norm"), loss_terms(run)
    if not loss and not terms:
        return None
    found: list[Chart | None] = []
    if loss:
        sides = loss, series(run.history, "val/loss")
        found.append(loss_chart(*sides, "weighted sum of its terms", "Loss", table_name="training_loss"))
    found += [_term(run, name) for name in terms] if terms != ["first"] or not loss else []
    found += [_first_chart(first_correct(run), first_correct(run, "val")), _collapse_chart(collapse(run))]
    found += [norm_chart(norm, run.setting("optimization.clip"))] if norm else []
    charts = [chart for chart in found if chart is not None]
    return [el("h2", "Training"), el("div", charts, class_="charts"), note(explanation(run))]


def explanation(run: RunFiles) -> str:
    """What is drawn."""
    found = ["The optimizer sees the weighted sum of the terms; a term whose weight is 0 is not logged."]
    if points := collapse(run):
        found.append(
            "The collapse alarm is the score with latents less that with those of another example of the batch: at 0"
            f" the latents say nothing. It ended at {smooth(points)[-1][1]:.3f}."
        )
    return " ".join(found)


def collapse(run: RunFiles) -> list[Point]:
    """By how much latents do better than those of another example."""
    return series(run.history, COLLAPSE)


def progress(run: RunFiles) -> str:
    """How often the first token was correct on the last batch, in a sentence; without that, the loss."""
    last = {name: points[-1] for name, points in first_correct(run).items()}
    if not last:
        return last_loss(run, "in all, the weighted sum of its terms")
    step = max(step for step, _ in last.values())
    shares = each(list(last), lambda reader: f"{100 * last[reader][1]:.0f} %", len(last) > 1)
    return f"At step {step:,.0f} the first token is correct {shares} of the time on its own batch."


def _term(run: RunFiles, name: str) -> Chart:
    title, unit = TITLES.get(name, (name.replace("_", " ").capitalize(), "as it is trained"))
    weight = run.setting(f"method.losses.{name}.weight")
    weighted = f", weight {weight:g}" if isinstance(weight, int | float) and not isinstance(weight, bool) else ""
    sides = series(run.history, TERM + name), series(run.history, f"val/loss_{name}")
    return loss_chart(*sides, f"{unit}{weighted}", title, table_name=file_name("training_loss", name))


def _first_chart(train: Mapping[str, Sequence[Point]], validation: Mapping[str, Sequence[Point]]) -> Chart | None:
    """Training smoothed, validation as dots, a colour for each reader; in percent."""
    if not train:
        return None
    drawn, entries, values = [], [], [0.0]
    for color, (name, shares) in zip(COLORS * len(train), train.items(), strict=False):
        points, other = ([(x, 100 * y) for x, y in side] for side in (shares, validation.get(name, [])))
        drawn += [
            Series(thin(points), color=color, opacity=0.2, width=1, title=name),
            Series(even(smooth(points)), color=color, width=2, title=f"{name}, smoothed"),
        ]
        drawn += [Series(other, color=color, dots=3.4, line=False, title=f"{name}, validation")] if other else []
        entries.append((color, f"{name}{', dots: validation' if other else ''}", False))
        values += [quantile([y for _, y in points], 0.998), *(y for _, y in other)]
    last = max(points[-1][0] for points in train.values())
    return line_chart(
        drawn,
        axis_of([0.0, last], "optimizer step", margin=0),
        axis_of(values, margin=0.06, floor=0.0),
        f"first token correct over {last:.0f} steps",
        name="training_first_token",
        title="First token correct",
        note="% of the batch",
        legend=entries,
    )


def _collapse_chart(points: Sequence[Point]) -> Chart | None:
    if not points:
        return None
    mean, values = smooth(points), [y for _, y in points]
    x = axis_of([0.0, points[-1][0]], "optimizer step", margin=0)
    y = axis_of([0.0, quantile(values, 0.005), quantile(values, 0.995), *(v for _, v in mean)], margin=0.06)
    zero = [(x.low, 0.0), (x.high, 0.0)]
    return line_chart(
        [
            Series(zero, color="var(--bad)", width=1.3, dashed=True, title="the latents say nothing"),
            Series(thin(points), color="var(--c2)", opacity=0.25, width=1, title="latents less others"),
            Series(even(mean), color="var(--c2)", width=2, title="smoothed"),
        ],
        x,
        y,
        f"latents less those of another example over {points[-1][0]:.0f} steps, ending at {mean[-1][1]:.3f}",
        name="training_collapse",
        title="Collapse alarm",
        note="latents less those of another example",
        legend=[("var(--c2)", "smoothed", False), ("var(--bad)", "the latents say nothing", False)],
    )

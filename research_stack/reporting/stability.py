"""Whether the runs of a sweep trained steadily: all their loss and gradient curves over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from research_stack.records.files import read_jsonl
from research_stack.records.run_folder import RunFolder
from research_stack.records.sweep_table import SweepTable
from research_stack.reporting.curves import Point, even, quantile, series, smooth
from research_stack.reporting.html import Html, el
from research_stack.reporting.sections import keys
from research_stack.reporting.svg_charts import Series, axis_of, line_chart
from research_stack.reporting.sweep_axes import color_of, label_of

MOST = 24  # settings whose curves are drawn
OWN, REPLY, REWARD, MIXED = "train/loss_lm", "train/loss_reply", "train/reward", "train/loss"
POLICY = "train/loss_policy"  # a surrogate whose height says nothing
WORDS = {
    OWN: ("Training loss", "of the language model, smoothed"),
    REPLY: ("Training loss", "of the replies, nats per token, smoothed"),
    REWARD: ("Training reward", "mean of the answers drawn, smoothed"),
    MIXED: ("Training loss", "smoothed"),
}


def curve(folder: Path, key: str, log: bool = False) -> list[Point]:
    """A run's smoothed curve, at most 200 points; on a log scale the logarithm is what is averaged."""
    points = series(read_jsonl(RunFolder(folder).metrics_jsonl), key)
    if not log:
        return even(smooth(points))
    return [(x, math.exp(y)) for x, y in even(smooth([(x, math.log(y)) for x, y in points if y > 0]))]


def mean_and_band(curves: Sequence[Sequence[Point]]) -> tuple[list[Point], tuple[list[Point], list[Point]] | None]:
    """The mean of the seeds' curves, and (lowest, highest) of them where there are several, over the steps all have."""
    curves = [c for c in curves if c]
    if not curves:
        return [], None
    tables = [dict(c) for c in curves]
    steps = sorted(set.intersection(*(set(t) for t in tables)))
    mean = [(s, sum(t[s] for t in tables) / len(tables)) for s in steps]
    if len(curves) < 2:
        return mean, None
    return mean, ([(s, min(t[s] for t in tables)) for s in steps], [(s, max(t[s] for t in tables)) for s in steps])


def training_key(table: SweepTable) -> str:
    """The metric of the training loss: that of the language model or of the replies alone, or the reward of policy
    gradients, where every run logs it.
    """
    folders = [folder for row in table.rows[:MOST] for folder in row.points]
    logged = [
        key
        for key, sign in ((OWN, OWN), (REPLY, REPLY), (REWARD, POLICY))
        if folders and all(curve(folder, sign) and curve(folder, key) for folder in folders)
    ]
    return logged[0] if logged else MIXED


def stability(table: SweepTable, validation: bool = True) -> list[Html] | None:
    """The panel; None if no run has a loss curve.

    - validation: whether the validation loss is drawn too.
    """
    rows = table.rows[:MOST]
    loss = training_key(table)
    held_out = (
        ("val/reward", "Held-out reward", "mean of the answers drawn")
        if loss == REWARD
        else ("val/loss", "Validation loss", "the training loss on held-out rows")
    )
    panels = [
        _panel(table, loss, *WORDS[loss], log=False),
        _panel(table, *held_out, log=False) if validation else None,
        _panel(table, "train/grad_norm", "Gradient norm", "before clipping, smoothed, log scale", log=True),
    ]
    charts = [panel for panel in panels if panel is not None]
    if not charts:
        return None
    entries = [(color_of(i, len(rows)), label_of(row, table), False) for i, row in enumerate(rows)]
    legend = keys([*entries, *([("var(--bad)", "runs without a result, dashed", False)] if table.failures else [])])
    losses = (
        ""
        if loss == REWARD
        else (
            " Losses of different corruptions or loss settings are different quantities: compare their shapes, not"
            " their heights."
        )
    )
    more = f" The first {MOST} settings are drawn." if len(table.rows) > MOST else ""
    return [
        el("h2", "Stability"),
        legend,
        el("div", charts, class_="charts"),
        el(
            "p",
            "Lines are means over seeds, shades reach from the lowest to the highest seed." + losses + more,
            class_="note",
        ),
    ]


def _panel(table: SweepTable, key: str, title: str, small: str, log: bool) -> Html | None:
    lines, shown = [], []
    for index, row in enumerate(table.rows[:MOST]):
        curves = [curve(folder, key, log) for folder in row.points]
        mean, band = mean_and_band(curves)
        if mean:
            lines.append(
                Series(mean, color=color_of(index, min(len(table.rows), MOST)), band=band, title=label_of(row, table))
            )
            shown += [y for _, y in (mean if band is None else band[0] + band[1])]
    for failure in table.failures[:MOST]:
        points = curve(failure.folder, key, log)
        if points:
            lines.append(
                Series(
                    points, color="var(--bad)", width=1.3, dashed=True, title=f"{failure.status}: {failure.folder.name}"
                )
            )
            shown += [y for _, y in points]
    if not lines:
        return None
    last = max(line.points[-1][0] for line in lines)
    y = axis_of([quantile(shown, 0.001), quantile(shown, 0.997)], log=log)
    chart = line_chart(lines, axis_of([0.0, last], "optimizer step", margin=0), y, f"{title}, {len(lines)} curves")
    return el("figure", el("figcaption", f"{title} ", el("small", small)), chart)

"""Validation loss of a sweep's settings over each budget: optimizer steps, training FLOPs, seconds.

Which setting wins depends on what is held equal; a model with a head more does more work in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research_stack.records.files import read_json, read_jsonl
from research_stack.records.run_folder import RunFolder
from research_stack.records.sweep_table import Row, SweepTable
from research_stack.reporting.curves import Band, Point, averaged, is_number
from research_stack.reporting.html import Html, el
from research_stack.reporting.sections import keys
from research_stack.reporting.stability import MOST, POLICY
from research_stack.reporting.svg_charts import Axis, Series, axis_of, line_chart
from research_stack.reporting.sweep_axes import color_of, label_of

OWN, MIXED = "val/loss_lm", "val/loss"
STEEP = 0.2  # share of a run in which the loss falls too fast to be shown in full


@dataclass(frozen=True)
class Curve:
    """A setting's validation loss over one budget: the mean over seeds, from the lowest to the highest of them."""

    row: Row
    mean: list[Point]
    band: Band | None


@dataclass(frozen=True)
class Panel:
    """All settings over one budget; key is the metric, y the axis that all budgets share."""

    title: str
    label: str
    key: str
    curves: list[Curve]
    y: Axis

    def x(self) -> Axis:
        """From zero, or logarithmic where the settings' budgets differ more than twentyfold."""
        ends = [curve.mean[-1][0] for curve in self.curves]
        starts = [curve.mean[0][0] for curve in self.curves]
        log = max(ends) > 20 * min(ends) and min(starts) > 0
        return axis_of([min(starts) if log else 0.0, max(ends)], self.label, log=log, margin=0)


def loss_axis(curves: Sequence[Curve]) -> Axis:
    """The heights of the curves and bands, but for the first steep fall, which would hide the rest."""
    late = [y for curve in curves for edge in curve.band or (curve.mean,) for x, y in edge if x >= STEEP * edge[-1][0]]
    return axis_of(late)


def panels(table: SweepTable) -> list[Panel]:
    """One for each budget that the runs know; none where no run logs a language model's loss or knows its FLOPs.

    The loss of the language model is compared where all runs have it, the validation loss otherwise.
    """
    rows = table.rows[:MOST]
    runs = {
        folder: (read_jsonl(RunFolder(folder).metrics_jsonl), run_facts(folder))
        for row in rows
        for folder in row.points
    }
    logged = [any(is_number(one.get(OWN)) for one in history) for history, _ in runs.values()]
    surrogate = any(
        is_number(one.get(POLICY)) for history, _ in runs.values() for one in history
    )  # of a policy gradient: no loss to compare
    if not runs or surrogate or not (any(logged) or any(flops_of(facts) for _, facts in runs.values())):
        return []
    key = OWN if all(logged) else MIXED
    found: list[Panel] = []
    for title, label, place in BUDGETS:
        curves = [Curve(row, *averaged(_curve(*runs[folder], key, place) for folder in row.points)) for row in rows]
        if curves := [curve for curve in curves if len(curve.mean) > 1]:  # a single validation is no line
            found.append(Panel(title, label, key, curves, found[0].y if found else loss_axis(curves)))
    return found


def _curve(history: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], key: str, place: Place) -> list[Point]:
    pairs = [(place(one, facts), one[key]) for one in history if is_number(one.get(key))]
    return [(float(x), float(y)) for x, y in pairs if is_number(x)]


def _compute(row: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
    flops = flops_of(facts)
    return row["step"] * flops if flops and is_number(row.get("step")) else None


Place = Callable[
    [Mapping[str, Any], Mapping[str, Any]], Any
]  # where a row of metrics.jsonl lies, given run.json; None where it is not known
BUDGETS: Sequence[tuple[str, str, Place]] = (
    ("Over steps", "optimizer step", lambda row, facts: row.get("step")),
    ("Over compute", "training FLOPs", _compute),
    ("Over time", "seconds since the start", lambda row, facts: row.get("time")),
)


def run_facts(folder: Path) -> dict[str, Any]:
    """run.json of a run; {} if it is missing or torn."""
    path = RunFolder(folder).run_json
    try:
        value = read_json(path) if path.is_file() else {}
    except (ValueError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def flops_of(facts: Mapping[str, Any]) -> float | None:
    """Training FLOPs of one optimizer step, from run.json; None if it does not say."""
    model = facts.get("model")
    value = model.get("flops_per_step") if isinstance(model, Mapping) else None
    return float(value) if value is not None and is_number(value) and value > 0 else None


def section(table: SweepTable, found: Sequence[Panel]) -> list[Html] | None:
    """The panels on the page."""
    if not found:
        return None
    rows = table.rows[:MOST]
    legend = keys([(color_of(i, len(rows)), label_of(row, table), False) for i, row in enumerate(rows)])
    mixed = "the training loss on held-out rows, which is one quantity only where all settings train the same loss"
    words = "loss of the language model, nats per token" if found[0].key == OWN else mixed
    return [
        el("h2", "Validation loss over each budget"),
        legend,
        el("div", [_chart(table, panel, words) for panel in found], class_="charts three"),
        el(
            "p",
            f"{words[:1].upper()}{words[1:]}. Lines are means over seeds, shades reach from the lowest to the highest;"
            " between validations lines are straight, and the first steep fall is cut off. Seconds count validation"
            " too, and are those of the machine of the run.",
            class_="note",
        ),
    ]


def _chart(table: SweepTable, panel: Panel, words: str) -> Html:
    rows = table.rows[:MOST]
    lines = [
        Series(
            curve.mean,
            color=color_of(rows.index(curve.row), len(rows)),
            band=curve.band,
            title=label_of(curve.row, table),
        )
        for curve in panel.curves
    ]
    chart = line_chart(lines, panel.x(), panel.y, f"{words}, {panel.title.lower()}, {len(lines)} settings")
    return el("figure", el("figcaption", panel.title), chart)

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
from research_stack.reporting.charts import Axis, Chart, Series, axis_of, keys, line_chart
from research_stack.reporting.curves import Band, Point, averaged, is_number
from research_stack.reporting.elements import note
from research_stack.reporting.html import Node, el
from research_stack.reporting.stability import GENERIC, MAX_SETTINGS, training_curves
from research_stack.reporting.sweep_axes import color_of, label_of

THIRD = 290.0  # width of a chart of which three stand side by side, points
STEEP = 0.2  # share of a run in which the loss falls too fast to be shown in full


@dataclass(frozen=True)
class BudgetCurve:
    """A setting's validation loss over one budget: the mean over seeds, from the lowest to the highest of them."""

    row: Row
    mean: list[Point]
    band: Band | None


@dataclass(frozen=True)
class BudgetPanel:
    """All settings over one budget; key is the metric, words what it is, y the axis that all budgets share."""

    title: str
    label: str
    key: str
    words: str
    curves: list[BudgetCurve]
    y: Axis

    def x(self) -> Axis:
        """From zero, or logarithmic where the settings' budgets differ more than twentyfold."""
        ends = [curve.mean[-1][0] for curve in self.curves]
        starts = [curve.mean[0][0] for curve in self.curves]
        log = max(ends) > 20 * min(ends) and min(starts) > 0
        return axis_of([min(starts) if log else 0.0, max(ends)], self.label, log=log, margin=0)


def loss_axis(curves: Sequence[BudgetCurve]) -> Axis:
    """The heights of the curves and bands, but for the first steep fall, which would hide the rest."""
    late = [y for curve in curves for edge in curve.band or (curve.mean,) for x, y in edge if x >= STEEP * edge[-1][0]]
    return axis_of(late)


def panels(table: SweepTable) -> list[BudgetPanel]:
    """One for each budget that the runs know; none where no run logs a declared validation loss or knows its FLOPs.

    The first declared curve whose validation all runs have is compared, the validation loss otherwise; nothing where a
    run's curve is a surrogate, whose height says nothing.
    """
    rows = table.rows[:MAX_SETTINGS]
    runs = {
        folder: (read_jsonl(RunFolder(folder).metrics_jsonl), run_facts(folder))
        for row in rows
        for folder in row.points
    }
    histories = [history for history, _ in runs.values()]
    curves = training_curves(table)
    own = [one for one in curves if not one.surrogate and one.validation != GENERIC.validation]
    known = any(_logs(history, one.validation) for history in histories for one in own) or any(
        flops_of(facts) for _, facts in runs.values()
    )
    if not known or any(_logs(history, one.key) for history in histories for one in curves if one.surrogate):
        return []
    one = next((one for one in own if all(_logs(history, one.validation) for history in histories)), GENERIC)
    found: list[BudgetPanel] = []
    for title, label, budget in BUDGETS:
        lines = [
            BudgetCurve(row, *averaged(_curve(*runs[folder], one.validation, budget) for folder in row.points))
            for row in rows
        ]
        if lines := [line for line in lines if len(line.mean) > 1]:  # a single validation is no line
            y = found[0].y if found else loss_axis(lines)
            found.append(BudgetPanel(title, label, one.validation, one.validation_note, lines, y))
    return found


def _logs(history: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(is_number(row.get(key)) for row in history)


def _curve(history: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], key: str, budget: Budget) -> list[Point]:
    pairs = [(budget(one, facts), one[key]) for one in history if is_number(one.get(key))]
    return [(float(x), float(y)) for x, y in pairs if is_number(x)]


def _compute(row: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
    flops = flops_of(facts)
    return row["step"] * flops if flops and is_number(row.get("step")) else None


Budget = Callable[
    [Mapping[str, Any], Mapping[str, Any]], Any
]  # where a row of metrics.jsonl lies, given run.json; None where it is not known
BUDGETS: Sequence[tuple[str, str, Budget]] = (
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


def section(table: SweepTable, found: Sequence[BudgetPanel]) -> Node:
    """The panels on the page."""
    if not found:
        return None
    rows = table.rows[:MAX_SETTINGS]
    legend = keys([(color_of(i, len(rows)), label_of(row, table), False) for i, row in enumerate(rows)])
    words = found[0].words + (
        ", which is one quantity only where all settings train the same loss"
        if found[0].key == GENERIC.validation
        else ""
    )
    return [
        el("h2", "Validation loss over each budget"),
        legend,
        el("div", [_chart(table, panel) for panel in found], class_="charts three"),
        note(
            f"{words[:1].upper()}{words[1:]}. Lines are means over seeds, shades reach from the lowest to the highest;"
            " between validations lines are straight, and the first steep fall is cut off. Seconds count validation"
            " too, and are those of the machine of the run."
        ),
    ]


def _chart(table: SweepTable, panel: BudgetPanel) -> Chart:
    rows = table.rows[:MAX_SETTINGS]
    lines = [
        Series(
            curve.mean,
            color=color_of(rows.index(curve.row), len(rows)),
            band=curve.band,
            title=label_of(curve.row, table),
        )
        for curve in panel.curves
    ]
    return line_chart(
        lines,
        panel.x(),
        panel.y,
        f"{panel.words}, {panel.title.lower()}, {len(lines)} settings",
        name=f"loss_{panel.title.lower().replace(' ', '_')}",
        title=f"{panel.key} {panel.title.lower()}",
        width=THIRD,
        file_legend=[(line.color, line.title, False) for line in lines],
    )

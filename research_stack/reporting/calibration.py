"""How well the future loss is predicted, by the confidence head and by what needs none: R² and calibration.

The future loss at i is the cross entropy, in nats, that the model will have at token i + 2 once it has drawn token
i + 1 itself. From tables/future_loss.csv and tables/reliability.csv.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from research_stack.reporting.html import Html, el
from research_stack.reporting.next_token import cell, span
from research_stack.reporting.reading import RunFiles, Table, reals
from research_stack.reporting.sections import intervals, keys, listing
from research_stack.reporting.svg_charts import Axis, Series, axis_of, line_chart

HEAD, CONTROL = "confidence head", "entropy fit"
RIGHT, WRONG = "confidence head, own token correct", "confidence head, own token wrong"
COLORS = {"head": "var(--c0)", "control": "var(--c5)", "ceiling": "var(--c2)"}
KINDS = {
    "head": "trained with the model",
    "control": "control, fitted afterwards",
    "ceiling": "of who knows the real text to come",
}


@dataclass(frozen=True)
class Bin:
    """One of the bins of equal mass: mean prediction and mean future loss in it, with its interval."""

    predicted: float
    actual: float
    low: float
    high: float

    @property
    def error(self) -> tuple[float, float] | None:
        """Lower and upper part of the interval; None without one."""
        below, above = self.actual - self.low, self.high - self.actual
        return (max(0.0, below), max(0.0, above)) if math.isfinite(below) and math.isfinite(above) else None


def bins(rows: Table, name: str) -> list[Bin]:
    """The bins of one predictor in tables/reliability.csv, by prediction."""
    found = [Bin(*reals(row, "predicted", "actual", "low", "high")) for row in rows if row.get("name") == name]
    return sorted(
        (b for b in found if math.isfinite(b.predicted) and math.isfinite(b.actual)), key=lambda b: b.predicted
    )


def predictor_rows(run: RunFiles) -> Table:
    """The rows of tables/future_loss.csv that have an R², head first, ceiling last, the best control before the
    next.
    """
    rows = [row for row in run.tables.get("future_loss", []) if math.isfinite(*reals(row, "r2"))]
    order = list(KINDS)
    return sorted(
        rows,
        key=lambda row: (
            order.index(kind) if (kind := row.get("kind", "")) in order else len(order),
            -reals(row, "r2")[0],
        ),
    )


def predictors(run: RunFiles) -> list[Html] | None:
    """The section: R² with intervals, reliability, the table."""
    rows, reliability = predictor_rows(run), run.tables.get("reliability", [])
    charts = [chart for chart in (reliability_chart(reliability), split_chart(reliability)) if chart is not None]
    if not rows and not charts:
        return None
    return [
        el("h2", "Who predicts the future loss"),
        el(
            "p",
            "The future loss is the cross entropy, in nats, that the model will have at the token after next, once it"
            " has drawn the next one itself.",
        ),
        *(_explained(rows) if rows else ()),
        *(
            [
                el("h3", "Calibration"),
                el("div", charts, class_="charts"),
                el(
                    "p",
                    "Tokens in bins of equal mass by what was predicted; bars are 95 % intervals. On the diagonal a"
                    " prediction of 2 nats is followed by 2 nats on average; how far the points reach along it shows"
                    " how much the prediction tells apart.",
                    class_="note",
                ),
            ]
            if charts
            else ()
        ),
    ]


def _explained(rows: Table) -> list[Html]:
    header = (
        "",
        "R²",
        "95 % interval",
        "Pearson",
        "Spearman",
        "slope",
        "bias, nats",
        "calibration error, nats",
        "tokens",
    )
    return [
        el("p", "R², the share of its variance that is explained, higher is better; bars are 95 % intervals."),
        intervals([_bar(row) for row in rows]),
        el(
            "p",
            "Controls read the same hidden states or the next-token distribution and were fitted after training, on"
            " other text than is scored here. Slope is that of the future loss on the prediction: 1 for a calibrated"
            " one. The calibration error is the mean gap over bins of equal mass.",
            class_="note",
        ),
        el("div", listing(header, [_cells(row) for row in rows]), class_="scroll", tabindex="0"),
    ]


def _bar(row: dict[str, str]) -> dict[str, Any]:
    value, low, high = reals(row, "r2", "low", "high")
    kind = row.get("kind", "")
    return {
        "name": row.get("name", ""),
        "small": KINDS.get(kind, kind),
        "value": value,
        "low": low,
        "high": high,
        "color": COLORS.get(kind, COLORS["control"]),
        "head": kind == "head",
        "limit": "",
    }


def _cells(row: dict[str, str]) -> tuple[list[str], bool]:
    r2, low, high, pearson, spearman, slope, bias, error, n = reals(
        row, "r2", "low", "high", "pearson", "spearman", "slope", "bias", "calibration_error", "n"
    )
    cells = [
        row.get("name", ""),
        cell(r2),
        span(low, high),
        cell(pearson),
        cell(spearman),
        cell(slope),
        cell(bias, "{:+.3f}"),
        cell(error),
        cell(n, "{:,.0f}"),
    ]
    return cells, row.get("kind") == "head"


# Reliability ---------------------------------------------------------------------------------------------------------


def reliability_chart(rows: Table) -> Html | None:
    """The head (or, without one, the entropy fit alone) against the diagonal."""
    head, control = bins(rows, HEAD), bins(rows, CONTROL)
    return calibration_chart(
        [(HEAD, "var(--c0)", head, False), (CONTROL, "var(--c5)", control, bool(head))],
        "Predicted and actual future loss",
    )


def split_chart(rows: Table) -> Html | None:
    """The head where the model's own token was the right one and where it was not."""
    shown = [(RIGHT, "own token correct", "var(--c2)"), (WRONG, "own token wrong", "var(--c1)")]
    return calibration_chart(
        [(words, color, bins(rows, name), False) for name, words, color in shown], "The head, by what the model drew"
    )


def calibration_chart(lines: Sequence[tuple[str, str, Sequence[Bin], bool]], title: str) -> Html | None:
    """Predicted against actual nats with the diagonal, of (name, colour, bins, whether dashed); None without a bin."""
    lines = [line for line in lines if line[2]]
    if not lines:
        return None
    axis = diagonal_axis([b for _, _, found, _ in lines for b in found])
    drawn = [Series([(axis.low, axis.low), (axis.high, axis.high)], color="var(--faint)", width=1.2, dashed=True)]
    for name, color, found, dashed in lines:
        drawn.append(
            Series(
                [(b.predicted, b.actual) for b in found],
                color=color,
                dots=2.6 if dashed else 3.4,
                width=1.3 if dashed else 1.8,
                dashed=dashed,
                errors=[] if dashed else [b.error for b in found],
                title=name,
            )
        )
    x, y = Axis(axis.low, axis.high, "predicted, nats"), Axis(axis.low, axis.high)
    entries = [(color, name + (", dashed" if dashed else ""), True) for name, color, _, dashed in lines]
    chart = line_chart(drawn, x, y, f"{title}: {', '.join(name for name, *_ in lines)}")
    return el(
        "figure",
        el("figcaption", f"{title} ", el("small", "actual nats, upwards")),
        chart,
        keys([*entries, ("var(--faint)", "calibrated", False)]),
    )


def diagonal_axis(found: Sequence[Bin]) -> Axis:
    """One range for both axes: every bin with its interval, and zero where nothing is negative."""
    values = [v for b in found for v in (b.predicted, b.actual, b.low, b.high)]
    positive = min(v for v in values if math.isfinite(v)) >= 0
    return axis_of([*values, 0.0] if positive else values, margin=0.06, floor=0.0 if positive else None)

"""How well the future loss is predicted, by the confidence head and by what needs none: R² and calibration.

The future loss at i is the cross entropy, in nats, that the model will have at token i + 2 once it has drawn token
i + 1 itself. From tables/future_loss.csv and tables/reliability.csv.
"""

from __future__ import annotations

import math

from research_stack.reporting.charts import Bar, Chart, axis_of, interval_chart
from research_stack.reporting.contract import Lines
from research_stack.reporting.elements import cell, listing, note, scrolled, span
from research_stack.reporting.html import Node, el
from research_stack.reporting.reliability import ReliabilityLine, bins_of, reliability_chart
from research_stack.reporting.run_files import RunFiles, Table, reals

HEAD, CONTROL = "confidence head", "entropy fit"
CORRECT, WRONG = "confidence head, own token correct", "confidence head, own token wrong"
COLORS = {"head": "var(--c0)", "control": "var(--c5)", "ceiling": "var(--c2)"}
KINDS = {"head": "trained with the model", "control": "control, fitted after", "ceiling": "of who knows the text"}


def predictor_rows(run: RunFiles) -> Table:
    """The rows of tables/future_loss.csv that have an R², head first, ceiling last, the best control before the
    next.
    """
    rows = [row for row in run.table("future_loss") if math.isfinite(*reals(row, "r2"))]
    order = list(KINDS)
    return sorted(
        rows,
        key=lambda row: (
            order.index(kind) if (kind := row.get("kind", "")) in order else len(order),
            -reals(row, "r2")[0],
        ),
    )


def predictors(run: RunFiles) -> Node:
    """The section: R² with intervals, reliability, the table."""
    rows, reliability = predictor_rows(run), run.table("reliability")
    charts = [chart for chart in (head_chart(reliability), split_chart(reliability)) if chart is not None]
    if not rows and not charts:
        return None
    return [
        el("h2", "Who predicts the future loss"),
        el(
            "p",
            "The future loss is the cross entropy, in nats, that the model will have at the token after next, once it"
            " has drawn the next one itself.",
        ),
        _explained(rows) if rows else None,
        _calibration(charts) if charts else None,
    ]


def terminal(run: RunFiles) -> list[Lines]:
    """The table for the terminal."""
    rows = predictor_rows(run)
    lines = [["predicts the future loss", "R2", "95 % interval", "Spearman", "calibration error"]]
    for row in rows:
        r2, low, high, spearman, error = reals(row, "r2", "low", "high", "spearman", "calibration_error")
        lines.append([row.get("name", ""), cell(r2), span(low, high), cell(spearman), cell(error)])
    return [lines] if rows else []


def _explained(rows: Table) -> Node:
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
    chart = interval_chart(
        [_bar(row) for row in rows],
        axis_of([0.0, *(v for row in rows for v in reals(row, "low", "r2", "high"))], "R², higher is better"),
        "R² of each predictor with 95 % intervals",
        name="future_loss_r2",
        title="Variance of the future loss explained",
        note="R², 95 % intervals",
        table="future_loss",
    )
    return [
        el("div", chart, class_="charts wide"),
        note(
            "R² is the share of its variance that is explained. Controls read the same hidden states or the next-token"
            " distribution and were fitted after training, on other text than is scored here. Slope is that of the"
            " future loss on the prediction: 1 for a calibrated one. The calibration error is the mean gap over bins of"
            " equal mass. The noise ceiling is what someone who knows the real text to come could explain."
        ),
        scrolled(listing(header, [_cells(row) for row in rows])),
    ]


def _calibration(charts: list[Chart]) -> Node:
    return [
        el("h3", "Calibration"),
        el("div", charts, class_="charts"),
        note(
            "Tokens in bins of equal mass by what was predicted; bars are 95 % intervals. On the diagonal a prediction"
            " of 2 nats is followed by 2 nats on average; how far the points reach along it shows how much the"
            " prediction tells apart."
        ),
    ]


def _bar(row: dict[str, str]) -> Bar:
    value, low, high = reals(row, "r2", "low", "high")
    kind = row.get("kind", "")
    color, words = COLORS.get(kind, COLORS["control"]), KINDS.get(kind, kind)
    return Bar(row.get("name", ""), value, low, high, color, cell(value), words, strong=kind == "head")


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


def head_chart(rows: Table) -> Chart | None:
    """The head (or, without one, the entropy fit alone) against the diagonal."""
    head, control = bins_of(rows, HEAD), bins_of(rows, CONTROL)
    return reliability_chart(
        [ReliabilityLine(HEAD, "var(--c0)", head), ReliabilityLine(CONTROL, "var(--c5)", control, dashed=bool(head))],
        name="reliability",
        title="Predicted and actual future loss",
        unit="nats",
        table="reliability",
    )


def split_chart(rows: Table) -> Chart | None:
    """The head where the model's own token was the correct one and where it was not."""
    shown = [(CORRECT, "own token correct", "var(--c2)"), (WRONG, "own token wrong", "var(--c1)")]
    return reliability_chart(
        [ReliabilityLine(words, color, bins_of(rows, name)) for name, words, color in shown],
        name="reliability_by_own_token",
        title="The head, by what the model drew",
        unit="nats",
        table="reliability",
    )

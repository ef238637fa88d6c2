"""The exact loss of the next token beside n-gram models: tables/next_token.csv."""

from __future__ import annotations

import math
from collections.abc import Mapping

from research_stack.evaluation.likelihood_report import INTERVALS, few_documents
from research_stack.reporting.charts import Bar, axis_of, interval_chart
from research_stack.reporting.contract import Lines
from research_stack.reporting.elements import cell, listing, note, scrolled, span
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles, Table, reals

BASELINES = ("unigram", "bigram", "trigram")


def next_token(run: RunFiles) -> Node:
    """The section: a picture, the table with accuracy and calibration, what they mean."""
    rows = next_token_rows(run)
    if not rows:
        return None
    tokens = max((n for row in rows for n in reals(row, "tokens") if math.isfinite(n)), default=math.nan)
    counted = f"The same {tokens:,.0f} validation tokens for all rows. " if math.isfinite(tokens) else ""
    header = (
        "",
        "nats per token",
        "95 % interval",
        "perplexity",
        "bits per byte",
        "accuracy",
        "ECE",
        "ECE, equal mass",
        "Brier",
    )
    chart = interval_chart(
        [_bar(row) for row in rows],
        axis_of(
            [v for row in rows for v in reals(row, "low", "nats", "high")],
            "nats per token, lower is better",
            margin=0.12,
        ),
        "nats per held-out token with 95 % intervals",
        name="next_token",
        title="Nats per held-out token",
        note="95 % intervals",
        table="next_token",
    )
    return [
        el("h2", "Likelihood of held-out text"),
        el("div", chart, class_="charts wide"),
        note(
            f"{counted}The loss is -ln p of the next token itself, not a bound. ECE is the mean gap between the"
            " probability of the likeliest token and how often it is right, in bins of equal width or of equal mass;"
            f" Brier sums the squared errors of all probabilities. {INTERVALS} covers the choice of documents, not a"
            f" new training run.{few_documents(rows)}"
        ),
        scrolled(listing(header, [_cells(row) for row in rows])),
    ]


def next_token_rows(run: RunFiles) -> Table:
    """The rows with a loss, the worst first."""
    rows = [row for row in run.table("next_token") if math.isfinite(*reals(row, "nats"))]
    return sorted(rows, key=lambda row: -reals(row, "nats")[0])


def is_baseline(row: Mapping[str, str]) -> bool:
    """Whether the row is an n-gram model and not the run."""
    return row.get("name") in BASELINES


def terminal(run: RunFiles) -> list[Lines | str]:
    """The table for the terminal, the best first, and whether there are too few documents for its intervals."""
    rows = next_token_rows(run)
    lines = [["nats per held-out token", "", "95 % interval", "bits per byte", "accuracy", "ECE"]]
    for row in reversed(rows):
        value, low, high, bits, accuracy, ece = reals(row, "nats", "low", "high", "bits_per_byte", "accuracy", "ece")
        numbers = [cell(value), span(low, high), cell(bits), cell(accuracy, "{:.1%}"), cell(ece)]
        lines.append([row.get("name", ""), *numbers])
    return [lines, *filter(None, [few_documents(rows).strip()])] if rows else []


def _bar(row: Mapping[str, str]) -> Bar:
    value, low, high = reals(row, "nats", "low", "high")
    if is_baseline(row):
        return Bar(row.get("name", ""), value, low, high, "var(--c5)", f"{value:.3f}", "n-gram model")
    return Bar(row.get("name", ""), value, low, high, "var(--c0)", f"{value:.3f}", "exact -ln p", strong=True)


def _cells(row: Mapping[str, str]) -> tuple[list[str], bool]:
    value, low, high, bits, accuracy, ece, ece_mass, brier = reals(
        row, "nats", "low", "high", "bits_per_byte", "accuracy", "ece", "ece_equal_mass", "brier"
    )
    perplexity = f"{math.exp(value):,.4g}" if value < 700 else "-"
    cells = [
        row.get("name", ""),
        cell(value),
        span(low, high),
        perplexity,
        cell(bits),
        cell(accuracy, "{:.1%}"),
        cell(ece),
        cell(ece_mass),
        cell(brier),
    ]
    return cells, not is_baseline(row)

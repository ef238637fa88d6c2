"""What a next-token model's report says of its likelihood and of its decoders: tables/next_token.csv and
tables/generated_prefix.csv.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from research_stack.reporting.html import Html, el
from research_stack.reporting.reading import RunFiles, reals
from research_stack.reporting.sections import INTERVALS, few_documents, intervals, listing

BASELINES = ("unigram", "bigram", "trigram")


def cell(value: float, form: str = "{:.3f}") -> str:
    """A number for a table; a dash for none."""
    return form.format(value) if math.isfinite(value) else "-"


def span(low: float, high: float, form: str = "{:.3f}") -> str:
    """The ends of an interval for a table; a dash for none."""
    return f"{form.format(low)} to {form.format(high)}" if math.isfinite(low) and math.isfinite(high) else "-"


def next_token(run: RunFiles) -> list[Html] | None:
    """The exact loss beside n-gram models: a picture, the table with accuracy and calibration, what they mean."""
    rows = next_token_rows(run)
    if not rows:
        return None
    tokens = max((n for row in rows for n in reals(row, "tokens") if math.isfinite(n)), default=math.nan)
    counted = f"The same {tokens:,.0f} validation tokens for all rows. " if math.isfinite(tokens) else ""
    return [
        el("h2", "Likelihood of held-out text"),
        el("p", "Nats per token, lower is better; bars are 95 % intervals."),
        intervals([_bar(row) for row in rows]),
        el(
            "p",
            f"{counted}The loss is -ln p of the next token itself, not a bound. ECE is the mean gap between the"
            " probability of the likeliest token and how often it is right, in bins of equal width or of equal mass;"
            f" Brier sums the squared errors of all probabilities. {INTERVALS} covers the choice of documents, not a"
            f" new training run.{few_documents(rows)}",
            class_="note",
        ),
        el(
            "div",
            listing(
                (
                    "",
                    "nats per token",
                    "95 % interval",
                    "perplexity",
                    "bits per byte",
                    "accuracy",
                    "ECE",
                    "ECE, equal mass",
                    "Brier",
                ),
                [_cells(row) for row in rows],
            ),
            class_="scroll",
            tabindex="0",
        ),
    ]


def next_token_rows(run: RunFiles) -> list[dict[str, str]]:
    """The rows with a loss, the worst first."""
    rows = [row for row in run.tables.get("next_token", []) if math.isfinite(*reals(row, "nats"))]
    return sorted(rows, key=lambda row: -reals(row, "nats")[0])


def is_baseline(row: Mapping[str, str]) -> bool:
    """Whether the row is an n-gram model and not the run."""
    return row.get("name") in BASELINES


def _bar(row: Mapping[str, str]) -> dict[str, Any]:
    value, low, high = reals(row, "nats", "low", "high")
    baseline = is_baseline(row)
    return {
        "name": row.get("name", ""),
        "small": "n-gram model" if baseline else "exact -ln p",
        "value": value,
        "low": low,
        "high": high,
        "color": "var(--c5)" if baseline else "var(--c0)",
        "head": not baseline,
        "limit": "",
    }


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


DECODERS = (
    "decoder",
    "setting",
    "future loss",
    "95 % interval",
    "repetition",
    "distinct-2",
    "token entropy",
    "calls",
    "texts",
)


def decoders(run: RunFiles) -> list[Html] | None:
    """Each decoding policy: the loss on held-out text after its own tokens, how varied it writes, what it costs."""
    rows = decoder_rows(run)
    if not rows:
        return None
    return [
        el("h2", "Decoding from its own prefix"),
        el("div", listing(DECODERS, [(row, False) for row in rows], text=(0, 1)), class_="scroll", tabindex="0"),
        el(
            "p",
            "The future loss, in nats per token, is the model's loss on the held-out text that follows after the"
            " decoder's own tokens: lower means that what it wrote leads less astray. A policy that plays it safe may"
            " be low there and repeat itself: read it beside repetition and distinct-2 (the share of different pairs of"
            " tokens). Calls are those of the model for one text.",
            class_="note",
        ),
    ]


def decoder_rows(run: RunFiles) -> list[list[str]]:
    """Cells under DECODERS, for the page and the terminal."""
    found = []
    for row in run.tables.get("generated_prefix", []):
        loss, low, high, repetition, distinct, entropy, calls, texts = reals(
            row, "future_nats", "low", "high", "repetition", "distinct_2", "entropy", "calls", "texts"
        )
        if any(map(math.isfinite, (loss, repetition, distinct, entropy))):
            found.append(
                [
                    row.get("decoder", ""),
                    row.get("setting", ""),
                    cell(loss),
                    span(low, high),
                    cell(repetition),
                    cell(distinct),
                    cell(entropy, "{:.2f}"),
                    cell(calls, "{:,.4g}"),
                    cell(texts, "{:,.0f}"),
                ]
            )
    return found

"""What a run shows of its likelihood: the bound beside n-gram models of the same tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from research_stack.metrics.interval import FEW, few_groups_note
from research_stack.reporting.charts import Bar, axis_of, interval_chart
from research_stack.reporting.contract import Lines, Metric, Report
from research_stack.reporting.elements import listing, note, scrolled, span
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles, real, reals

Row = Mapping[str, str]
INTERVALS = f"The interval, over documents by Student's t and meant for {FEW} of them or more,"
EXPLANATION = (
    " An upper bound holds for any noise process: the model's own -ln p is this or less. It is of the model in"
    " infinitely many small steps. A decoder of few steps draws the tokens of a step independently, greedily or from a"
    " truncated distribution, so the texts it writes have another distribution, which is not bounded."
)


def rows_of(run: RunFiles) -> list[Row]:
    """The rows of tables/likelihood.csv with a number, the best first."""
    rows = [row for row in run.table("likelihood") if math.isfinite(real(row.get("nats_per_token")))]
    return sorted(rows, key=lambda row: real(row["nats_per_token"]))


def likelihood(run: RunFiles) -> Node:
    """The section: a picture, the table, what it means."""
    rows = rows_of(run)[::-1]
    if not rows:
        return None
    ends = [v for row in rows for v in reals(row, "low", "nats_per_token", "high")]
    tokens, sequences = reals(rows[0], "tokens", "sequences")
    measured = f"The same {tokens:,.0f} tokens in {sequences:,.0f} validation sequences for all rows"
    chart = interval_chart(
        [_bar(row) for row in rows],
        axis_of(ends, "nats per token, lower is better", margin=0.12),
        "nats per held-out token with 95 % intervals",
        name="likelihood",
        title="Nats per held-out token",
        note="95 % intervals",
        table="likelihood",
    )
    header = ("", "nats per token", "95 % interval", "perplexity", "bits per byte", "kind")
    return [
        el("h2", "Likelihood of held-out text"),
        el("div", chart, class_="charts wide"),
        note(
            f"{measured}; separators are context only.{EXPLANATION} {INTERVALS} covers the choice of documents and the"
            f" noise of the estimate, not a new training run.{few_documents(rows)}"
        ),
        scrolled(listing(header, [(_cells(row), "headline" in row.get("kind", "")) for row in rows], text=(0, 5))),
    ]


def few_documents(rows: Sequence[Row]) -> str:
    """What is to be said, after a blank, of intervals over few documents; empty where there are enough, or nobody
    counted them.
    """
    count = real(rows[0].get("documents")) if rows else math.nan
    words = few_groups_note(int(count), "documents") if math.isfinite(count) else ""
    return f" {words}" if words else ""


def _bar(row: Row) -> Bar:
    value, low, high = reals(row, "nats_per_token", "low", "high")
    if row.get("kind") == "baseline":
        return Bar(row["name"], value, low, high, "var(--c5)", f"{value:.3f}", "n-gram model")
    strong = "headline" in row.get("kind", "")
    return Bar("this run", value, low, high, "var(--c0)", f"≤ {value:.3f}", f"upper bound, {row['name']}", strong)


def _cells(row: Row) -> list[str]:
    value, low, high, perplexity, bits = reals(row, "nats_per_token", "low", "high", "perplexity", "bits_per_byte")
    sign = "" if row.get("kind") == "baseline" else "≤ "
    numbers = [f"{sign}{value:.3f}", span(low, high), f"{sign}{perplexity:,.4g}", f"{sign}{bits:.3f}"]
    return [row["name"], *numbers, row.get("kind", "")]


def terminal(run: RunFiles) -> list[Lines | str]:
    """The table for the terminal, the best first, and whether there are too few documents for its intervals."""
    rows = rows_of(run)
    lines = [["nats per held-out token", "", "95 % interval", "perplexity", "bits per byte"]]
    for row in rows:
        bound = row.get("kind") != "baseline"
        _, *cells, _ = _cells(row)
        name = f"upper bound, {row['name']}" if bound else row["name"]
        lines.append([name, *(cell.replace("≤", "<=") for cell in cells)])
    return [lines, *filter(None, [few_documents(rows).strip()])] if rows else []


def verdict(run: RunFiles) -> str:
    """The bound, and how it compares with a trigram model."""
    value = run.metric("likelihood/bound")
    if not math.isfinite(value):
        return ""
    sentence = f"At most {value:.2f} nats per held-out token, a perplexity of {math.exp(value):,.4g} or less"
    return f"{sentence}{comparison(*_gain(run))}."


def _gain(run: RunFiles) -> tuple[float, float, float]:
    gain, low, high = (run.metric(f"likelihood/{key}") for key in ("gain_over_trigram", "gain_low", "gain_high"))
    return gain, low, high


def comparison(gain: float, low: float, high: float) -> str:
    """How the bound compares with a trigram model, from the difference and its interval."""
    if not math.isfinite(gain):
        return ""
    if low <= 0 <= high:
        return f": level with a trigram model of the same tokens (difference {gain:+.2f}, within its interval)"
    side = f"{gain:.2f} below a trigram model" if gain > 0 else f"still {-gain:.2f} above a trigram model"
    return f": {side} of the same tokens"


def numbers(run: RunFiles) -> dict[str, str]:
    """Bits per byte, on top of the page."""
    bits = run.metric("likelihood/bits_per_byte")
    return {"bits per byte": f"≤ {bits:.3f}"} if math.isfinite(bits) else {}


NATS = "nats per token"
REPORT = Report(
    metrics={
        "likelihood/bound": Metric("bound", NATS, "lower", headline=True, form="{:.3f}", interval=True),
        "likelihood/gain_over_trigram": Metric(
            "nats below a trigram",
            better="higher",
            headline=True,
            form="{:.3f}",
            interval=("likelihood/gain_low", "likelihood/gain_high"),
        ),
        "likelihood/perplexity": Metric("perplexity bound", better="lower", plot=False),
        "likelihood/bits_per_byte": Metric("bits per byte, bound", better="lower", plot=False, form="{:.3f}"),
        "likelihood/unigram": Metric("unigram model", NATS, plot=False, form="{:.3f}"),
        "likelihood/trigram": Metric("trigram model", NATS, plot=False, form="{:.3f}"),
        "likelihood/*": Metric("{0}", NATS, plot=False, form="{:.3f}"),
    },
    results=(likelihood,),
    verdict=verdict,
    numbers=numbers,
    terminal=terminal,
)

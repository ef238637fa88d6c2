"""What a run shows of its decoders: the loss after tokens they generated, how varied they write, what they cost."""

from __future__ import annotations

import math

from research_stack.reporting.contract import Lines, Metric, Report
from research_stack.reporting.elements import cell, listing, note, scrolled, span
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles, reals

HEADER = (
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
IN_TERMINAL = (0, 1, 2, 4, 5, 7)  # columns that fit


def decoders(run: RunFiles) -> Node:
    """The section: a row for each decoder."""
    rows = decoder_rows(run)
    if not rows:
        return None
    return [
        el("h2", "Decoding from its own prefix"),
        scrolled(listing(HEADER, [(row, False) for row in rows], text=(0, 1))),
        note(
            "The future loss, in nats per token, is the model's loss on the held-out text that follows after the"
            " decoder's own tokens: lower means that what it wrote leads less astray. A policy that plays it safe may"
            " be low there and repeat itself: read it beside repetition and distinct-2 (the share of different pairs of"
            " tokens). Calls are those of the model for one text."
        ),
    ]


def decoder_rows(run: RunFiles) -> Lines:
    """Cells under HEADER."""
    found = []
    for row in run.table("generated_prefix"):
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


def terminal(run: RunFiles) -> list[Lines]:
    """The table for the terminal."""
    rows = decoder_rows(run)
    return [[[row[i] for i in IN_TERMINAL] for row in (HEADER, *rows)]] if rows else []


REPORT = Report(
    metrics={
        "generated_prefix/*/future_nats": Metric(
            "{0}: future loss", "nats per token", "lower", form="{:.3f}", interval=True
        ),
        "generated_prefix/*/excess_nats": Metric(
            "{0}: future loss above that of the real text", "nats per token", "lower", form="{:.3f}", interval=True
        ),
        "generated_prefix/*/repetition": Metric("{0}: repetition", form="{:.3f}"),
        "generated_prefix/*/distinct_2": Metric("{0}: distinct-2", form="{:.3f}"),
        "generated_prefix/*/entropy": Metric("{0}: token entropy", "nats", form="{:.2f}"),
        "generated_prefix/*/calls": Metric("{0}: model calls a text", better="lower", plot=False, form="{:,.4g}"),
    },
    details=(decoders,),
    terminal=terminal,
)

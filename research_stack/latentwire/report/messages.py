"""The sections of messages byte by byte and of times to the first token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from research_stack.latentwire.path_names import LATENT, LONG, TEXT
from research_stack.latentwire.report.loading import load
from research_stack.latentwire.report.tables import LABELS, LatencyRow, SpeedSummary
from research_stack.latentwire.report.words import bytes_text, file_name
from research_stack.reporting.charts import Chart, Series, axis_of, line_chart
from research_stack.reporting.elements import cell, folded, listing, note, scrolled
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles

Rows = Sequence[LatencyRow]
# of the largest median time: where bars to the 90th percentile are cut, so that one late pass does not set the scale
MAX_BAR = 1.5
WIDE = 20  # an axis that spans more than this factor is logarithmic
LATENT_COLOR, TEXT_COLOR = "var(--c0)", "var(--c1)"
HEADER = (
    "reader",
    "",
    "context, bytes",
    "latents",
    "encode, ms",
    "adapt, ms",
    "prefill, ms",
    "to the first token, ms",
    "90th percentile",
    "positions",
    "memory, MiB",
)


def messages(run: RunFiles) -> Node:
    """What a message consists of, part by part."""
    data = load(run)
    if data is None or not data.parts:
        return None
    every = any(math.isfinite(both) for _, both in data.parts.values())
    rows = [([part, *_sizes(sizes, every)], False) for part, sizes in data.parts.items()]
    one, both = (sum(column) for column in zip(*data.parts.values(), strict=True))
    rows.append((["together", *_sizes((one, both), every)], True))
    header = ("part", "bytes for one reader", *(["bytes for all readers, broadcast"] if every else []))
    return [
        el("h2", "The message, byte by byte"),
        scrolled(listing(header, rows)),
        note(
            "What one reader is sent is the shared latents and its own; a broadcast holds the shared ones once and"
            " those of every reader. A message's length follows from its header, so there is no other byte."
        ),
    ]


def _sizes(sizes: tuple[float, float], every: bool) -> list[str]:
    return [bytes_text(one) if math.isfinite(one) else "-" for one in (sizes if every else sizes[:1])]


def speed(run: RunFiles) -> Node:
    """Time to the first token over the length of the context, latents beside text."""
    data = load(run)
    latency = data.latency if data is not None else {}
    found = [latency_chart(i, *pair, data.speed.get(pair[0])) for i, pair in enumerate(latency.items()) if data]
    charts = [chart for chart in found if chart is not None]
    if data is None or not charts:
        return None
    rows = [
        _cells(reader, path, row) for reader, paths in latency.items() for path, own in paths.items() for row in own
    ]
    return [
        el("h2", "Time to the first token"),
        *(el("p", speed_text(reader, data.speed[reader])) for reader in latency if reader in data.speed),
        el("div", charts, class_="charts"),
        note(
            "Median time from a ready prompt to the first token, one question at a time; bars reach up to the 90th"
            " percentile. The text goes the same way through the reader."
        ),
        folded("All times", scrolled(listing(HEADER, rows, text=(0, 1)), wrap=True)),
    ]


def speed_text(reader: str, row: SpeedSummary) -> str:
    """From which length on the latents are faster, and how they compare where the context is LONG times as long."""
    if math.isnan(row.faster_from):
        words = "not faster than the text at the longest context," if row.faster_somewhere else None
        how = f"{words or 'never faster than the text up to'} {row.longest:,.0f} bytes"
    elif row.faster_from <= row.shortest:
        how = f"faster than the text at every length measured, {row.shortest:,.0f} to {row.longest:,.0f} bytes"
    else:
        how = f"faster than the text from {row.faster_from:,.0f} bytes on"
    sentence = f"{reader} with {row.num_latents:g} latents: {how}"
    if not (math.isfinite(row.latent_ms) and math.isfinite(row.text_ms)):
        return f"{sentence}."
    return (
        f"{sentence}; where the context has {LONG}\u00a0×\u00a0{row.num_latents:g} tokens, {row.long_context:,.0f}"
        f" bytes, {row.latent_ms:.3g} ms against {row.text_ms:.3g} ms of the text."
    )


def latency_chart(index: int, reader: str, paths: Mapping[str, Rows], found: SpeedSummary | None) -> Chart | None:
    """Milliseconds over bytes of the context, with the length at which the context is LONG times as many tokens as
    there are latents; None for a single length.
    """
    rows = [row for own in paths.values() for row in own]
    longest_bar = MAX_BAR * max((row.total for row in rows), default=0.0)
    lengths = [row.context_bytes for row in rows]
    times = [min(v, longest_bar) for row in rows for v in (row.total, row.p90) if math.isfinite(v)]
    if len(set(lengths)) < 2:
        return None
    log = max(times) > WIDE * min(times)
    x = axis_of(lengths, "bytes of the context", log=max(lengths) > WIDE * min(lengths), margin=0.05)
    y = axis_of(times if log else [0.0, *times], log=log, margin=0.07, floor=None if log else 0.0)
    lines = [
        _times(paths.get(TEXT, ()), TEXT_COLOR, "whole text", longest_bar),
        _times(paths.get(LATENT, ()), LATENT_COLOR, "latents", longest_bar),
    ]
    legend = [(LATENT_COLOR, "latents: encoding, adapter, prefill", False), (TEXT_COLOR, "whole text: prefill", False)]
    if found is not None and math.isfinite(found.long_context):
        at, words = found.long_context, f"{LONG}\u00a0×\u00a0{found.num_latents:g}"
        line = Series(
            [(at, y.low), (at, y.high)], color="var(--faint)", width=1.2, dashed=True, label=words, anchor="middle"
        )
        lines.insert(0, line)
        legend[0] = (LATENT_COLOR, f"{found.num_latents:g} latents: encoding, adapter, prefill", False)
        legend.append(("var(--faint)", f"context of {words} tokens", False))
    scales = ", log scales" if x.log and y.log else ""
    return line_chart(
        lines,
        x,
        y,
        f"time to the first token of {reader} over the length of the context",
        name=file_name("latentwire_latency", reader, *([str(index)] if file_name(reader) != reader else [])),
        title=reader,
        note=f"ms to the first token{scales}",
        legend=legend,
        table="latentwire_latency",
    )


def _times(rows: Rows, color: str, title: str, longest_bar: float) -> Series:
    errors = [(0.0, min(row.p90, longest_bar) - row.total) if row.p90 > row.total else None for row in rows]
    return Series([(row.context_bytes, row.total) for row in rows], color=color, dots=3.2, errors=errors, title=title)


def _cells(reader: str, path: str, row: LatencyRow) -> tuple[list[str], bool]:
    times = [cell(v, "{:.3g}") for v in (row.encode, row.adapt, row.prefill, row.total, row.p90)]
    count = f"{row.num_latents:g}" if path == LATENT else ""
    rest = [cell(row.positions, "{:.0f}"), cell(row.memory, "{:,.1f}")]
    return [reader, LABELS[path], f"{row.context_bytes:,.0f}", count, *times, *rest], False

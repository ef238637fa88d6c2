"""Messages byte by byte, times to the first token, and single questions with the answers by each path, on the page of a
wire of latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from research_stack.reporting.elements import cell
from research_stack.reporting.html import Html, el
from research_stack.reporting.latentwire_tables import (
    LATENT,
    OFTEN,
    TEXT,
    WORDS,
    Timed,
    Wire,
    at,
    faster_from,
    four_times,
    num_latents_timed,
    with_num_latents,
)
from research_stack.reporting.latentwire_words import joined, size_words
from research_stack.reporting.reading import Table
from research_stack.reporting.sections import keys, listing
from research_stack.reporting.svg_charts import Series, axis_of, line_chart

MOST_EXAMPLES = 12
LONG, LONG_HEX = 1500, 400  # characters of a context, bytes of a message that are shown
# of the largest median time: where whiskers to the 90th percentile are cut, so that one late pass does not set the
# scale
EDGE = 1.5
WIDE = 20  # an axis that spans more than this factor is logarithmic
LATENTS = ("var(--c0)", "var(--c3)", "var(--c2)", "var(--c4)")


# Messages ------------------------------------------------------------------------------------------------------------


def messages(wire: Wire) -> list[Html]:
    """What a message consists of, part by part; [] if that was not written."""
    if not wire.parts:
        return []
    every = any(math.isfinite(both) for _, both in wire.parts.values())
    rows = [([part, *_sizes(sizes, every)], False) for part, sizes in wire.parts.items()]
    total = tuple(sum(column) for column in zip(*wire.parts.values(), strict=True))
    rows.append((["together", *_sizes((total[0], total[1]), every)], True))
    header = ("part", "bytes for one reader", *(["bytes for all readers, broadcast"] if every else []))
    return [
        el("h2", "The message, byte by byte"),
        el("div", listing(header, rows), class_="scroll"),
        el(
            "p",
            "What one reader is sent is the shared latents and its own; a broadcast holds the shared ones once and"
            " those of every reader. A message's length follows from its header, so there is no other byte.",
            class_="note",
        ),
    ]


def _sizes(sizes: tuple[float, float], every: bool) -> list[str]:
    return [size_words(one) if math.isfinite(one) else "-" for one in (sizes if every else sizes[:1])]


# Times ---------------------------------------------------------------------------------------------------------------


def speed(wire: Wire) -> list[Html]:
    """Time to the first token over the length of the context, latents beside text; [] if it was not measured."""
    charts = [chart for reader, paths in wire.latency.items() if (chart := latency_chart(reader, paths)) is not None]
    if not charts:
        return []
    num_latents = list(dict.fromkeys(m for paths in wire.latency.values() for m in num_latents_timed(paths)))
    entries = [
        (LATENTS[i % len(LATENTS)], f"{m:g} latents: encoding, adapter, prefill", False)
        for i, m in enumerate(num_latents)
    ]
    entries += [
        ("var(--c1)", "whole text: prefill", False),
        ("var(--faint)", f"context of {OFTEN}\u00a0×\u00a0M tokens", False),
    ]
    rows = [
        _timed(reader, path, row)
        for reader, paths in wire.latency.items()
        for path, own in paths.items()
        for row in own
    ]
    table = el("div", listing(HEADER, rows, text=(0, 1)), class_="scroll wrap", tabindex="0")
    return [
        el("h2", "Time to the first token"),
        *(el("p", text) for text in speed_story(wire)),
        el("div", charts, class_="charts"),
        keys(entries),
        el(
            "p",
            "Median time from a ready prompt to the first token, one question at a time; bars reach up to the 90th"
            " percentile. The text goes the same way through the reader.",
            class_="note",
        ),
        el("details", el("summary", "All times"), table),
    ]


def speed_story(wire: Wire) -> list[str]:
    """For each reader from which length on the latents are faster, and how they stand where the context is four times
    as long as they are.
    """
    return [
        _told(reader, paths, m)
        for reader, paths in wire.latency.items()
        for m in num_latents_timed(paths)
        if paths.get(TEXT)
    ]


def _told(reader: str, paths: Mapping[str, Sequence[Timed]], num_latents: float) -> str:
    start, place = faster_from(paths, num_latents), four_times(paths, num_latents)
    shortest, longest = (row.context_bytes for row in (paths[TEXT][0], paths[TEXT][-1]))
    if math.isnan(start):
        words = (
            "not faster than the text at the longest context,"
            if _ever(paths, num_latents)
            else "never faster than the text up to"
        )
        how = f"{words} {longest:,.0f} bytes"
    elif start <= shortest:
        how = f"faster than the text at every length measured, {shortest:,.0f} to {longest:,.0f} bytes"
    else:
        how = f"faster than the text from {start:,.0f} bytes on"
    told = f"{reader} with {num_latents:g} latents: {how}"
    latent, text = at(with_num_latents(paths, num_latents), place), at(paths[TEXT], place)
    if not (math.isfinite(latent) and math.isfinite(text)):
        return f"{told}."
    return (
        f"{told}; where the context has {OFTEN}\u00a0×\u00a0{num_latents:g} tokens, {place:,.0f} bytes, {latent:.3g} ms"
        f" against {text:.3g} ms of the text."
    )


def _ever(paths: Mapping[str, Sequence[Timed]], num_latents: float) -> bool:
    text = {row.context_bytes: row.total for row in paths.get(TEXT, ())}
    return any(row.total < text.get(row.context_bytes, 0.0) for row in with_num_latents(paths, num_latents))


def latency_chart(reader: str, paths: Mapping[str, Sequence[Timed]]) -> Html | None:
    """Milliseconds over bytes of the context, with the place where the context is four times as many tokens as there
    are latents.
    """
    rows = [row for own in paths.values() for row in own]
    edge = EDGE * max((row.total for row in rows), default=0.0)
    lengths, times = (
        [row.context_bytes for row in rows],
        [min(v, edge) for row in rows for v in (row.total, row.p90) if math.isfinite(v)],
    )
    if len(set(lengths)) < 2:
        return None
    log = max(times) > WIDE * min(times)
    x = axis_of(lengths, "bytes of the context", log=max(lengths) > WIDE * min(lengths), margin=0.05)
    y = axis_of(times if log else [0.0, *times], log=log, margin=0.07, floor=None if log else 0.0)
    lines = []
    for m in num_latents_timed(paths):
        place = four_times(paths, m)
        if math.isfinite(place):
            lines.append(
                Series(
                    [(place, y.low), (place, y.high)],
                    color="var(--faint)",
                    width=1.2,
                    dashed=True,
                    label=f"{OFTEN}\u00a0×\u00a0{m:g}",
                    anchor="middle",
                )
            )
    lines.append(_times(paths.get(TEXT, ()), "var(--c1)", "whole text", edge))
    lines += [
        _times(with_num_latents(paths, m), LATENTS[i % len(LATENTS)], f"{m:g} latents", edge)
        for i, m in enumerate(num_latents_timed(paths))
    ]
    chart = line_chart(lines, x, y, f"time to the first token of {reader} over the length of the context")
    scales = ", log scales" if x.log and y.log else ""
    return el("figure", el("figcaption", f"{reader} ", el("small", f"ms to the first token{scales}")), chart)


def _times(rows: Sequence[Timed], color: str, title: str, edge: float) -> Series:
    errors = [(0.0, min(row.p90, edge) - row.total) if row.p90 > row.total else None for row in rows]
    return Series([(row.context_bytes, row.total) for row in rows], color=color, dots=3.2, errors=errors, title=title)


HEADER = (
    "reader",
    "",
    "context, bytes",
    "num_latents",
    "encode, ms",
    "adapt, ms",
    "prefill, ms",
    "to the first token, ms",
    "90th percentile",
    "positions",
    "memory, MiB",
)


def _timed(reader: str, path: str, row: Timed) -> tuple[list[str], bool]:
    numbers = [cell(v, "{:.3g}") for v in (row.encode, row.adapt, row.prefill, row.total, row.p90)]
    return [
        reader,
        WORDS[path],
        f"{row.context_bytes:,.0f}",
        f"{row.num_latents:g}" if path == LATENT else "",
        *numbers,
        cell(row.positions, "{:.0f}"),
        cell(row.memory, "{:,.1f}"),
    ], False


# Examples ------------------------------------------------------------------------------------------------------------


def examples(wire: Wire) -> list[Html]:
    """Context, question, gold answers, the answer by each path, the message; [] without any."""
    groups: dict[tuple[str, str, str], Table] = {}
    for row in wire.examples:
        groups.setdefault((row.get("dataset", ""), row.get("context", ""), row.get("question", "")), []).append(row)
    if not groups:
        return []
    shown = list(groups.values())[:MOST_EXAMPLES]
    more = f" The first {len(shown)} of {len(groups)} are shown." if len(groups) > len(shown) else ""
    words = (
        "✓ marks answers equal to a gold answer after the normalisation of SQuAD: lower case, no punctuation, no"
        " articles."
    )
    return [
        el("h2", "Examples"),
        el("p", words, more, class_="note"),
        *(example(rows, len({key[0] for key in groups}) > 1) for rows in shown),
    ]


def example(rows: Table, named: bool) -> Html:
    """One question: its rows are those of the readers. `named`: whether to say the data set."""
    first = rows[0]
    golds = first.get("answers", "").split(" | ")
    context = first.get("context", "")
    cut = f"… ({len(context) - LONG:,} more characters)" if len(context) > LONG else ""
    gold = joined([f"“{answer}”" if answer else "no answer" for answer in golds])
    where = (
        el("small", f"{first.get('dataset', '')}, {len(context.encode('utf-8', 'replace')):,} bytes")
        if named
        else el("small", f"{len(context.encode('utf-8', 'replace')):,} bytes")
    )
    return el(
        "div",
        el("div", context[:LONG], cut, class_="sample", tabindex="0"),
        el("p", where),
        el("p", el("b", first.get("question", "")), " ", el("small", f"gold: {gold}")),
        _answers(rows, golds),
        [_message(row) for row in rows],
        style="margin:0 0 2.4em",
    )


def _answers(rows: Table, golds: Sequence[str]) -> Html:
    """A line for each path, a column for each reader."""
    head = el("tr", el("th"), [el("th", row.get("reader", "")) for row in rows])
    dataset = rows[0].get("dataset", "")
    body = [
        el("tr", el("td", words), [_answer(row.get(path), golds, dataset) for row in rows])
        for path, words in WORDS.items()
        if any(path in row for row in rows)
    ]
    return el("div", el("table", el("thead", head), el("tbody", body)), class_="scroll", tabindex="0")


def _answer(text: str | None, golds: Sequence[str], dataset: str) -> Html:
    if text is None:
        return el("td", "-")
    shown = text if len(text) <= 80 else text[:79] + "…"
    if is_right(text, golds, dataset):
        return el("td", el("b", f"✓ {shown}", style="color:var(--ok)"))
    return el("td", shown or el("small", "(nothing)", style="color:var(--faint)"))


def _message(row: Mapping[str, str]) -> Html | None:
    """The bytes of a message, two digits each."""
    digits = row.get("message_hex", "")
    if not digits:
        return None
    count = len(digits) // 2
    cut = " …" if count > LONG_HEX else ""
    return el(
        "p",
        f"{count} bytes to {row.get('reader', '')}: ",
        el("code", " ".join(digits[i : i + 2] for i in range(0, 2 * min(count, LONG_HEX), 2)), cut),
        class_="note",
    )


def is_right(text: str, golds: Sequence[str], dataset: str = "") -> bool:
    """Whether the answer equals a gold answer once both are normalised, by the rule of NaturalQuestions for `nq` and of
    SQuAD otherwise.
    """
    from research_stack.metrics.qa import exact  # numpy, which a page without examples does not need

    return exact(text, golds, "nq" if dataset == "nq" else "squad") > 0

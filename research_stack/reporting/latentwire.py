"""The report of a wire of latents: what readers answer from them, against bytes and against their number, beside text
of equal cost.

Messages, times and examples are in `latentwire_page`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from research_stack.metrics.interval import FEW
from research_stack.reporting import latentwire_page
from research_stack.reporting.elements import cell, span
from research_stack.reporting.html import Html, el
from research_stack.reporting.latentwire_tables import (
    HEAD,
    LATENT,
    NONE,
    SHUFFLED,
    TAIL,
    TEXT,
    TOKENS,
    WORDS,
    ZLIB,
    Measured,
    Wire,
    alike,
    by_bits,
    distinct,
    load,
)
from research_stack.reporting.latentwire_words import f1_words, interval_words, share, size_words, warnings
from research_stack.reporting.reading import RunFiles
from research_stack.reporting.sections import keys, listing
from research_stack.reporting.svg_charts import Axis, Series, axis_of, line_chart

LATENTS = (
    "var(--c0)",
    "var(--c3)",
    "color-mix(in oklab,var(--c0) 50%,var(--bg))",
    "color-mix(in oklab,var(--c3) 50%,var(--bg))",
)  # by bits
COLORS = {
    HEAD: "var(--c1)",
    TAIL: "var(--c1)",
    ZLIB: "var(--c4)",
    TOKENS: "var(--c2)",
    TEXT: "var(--ink)",
    NONE: "var(--c5)",
    SHUFFLED: "var(--c5)",
}
DASHED = (TAIL, SHUFFLED)


def answers(run: RunFiles) -> list[Html] | None:
    """All sections of a wire of latents; None without scores."""
    wire = load(run, run.problems)
    if wire is None:
        return None
    return [
        *scores(wire),
        *latentwire_page.messages(wire),
        *latentwire_page.speed(wire),
        *latentwire_page.examples(wire),
    ]


def scores(wire: Wire) -> list[Html]:
    """F1 over bytes and over the number of latents for each data set and reader, then the tables."""
    found = [
        el("h2", "Answers from latents"),
        el(
            "p",
            "F1 of the readers' answers, given latents of the context or text that costs as much. Higher is better.",
        ),
    ]
    found += [el("p", el("b", "Caution: "), text) for text in warnings(wire)]
    for dataset in wire.datasets:
        charts = [
            chart
            for draw in (rate_chart, num_latents_chart)
            for reader in wire.readers
            if (chart := draw(wire, dataset, reader)) is not None
        ]
        if charts:
            found += [el("h3", f"Data set {dataset}")] if len(wire.datasets) > 1 else []
            found += [el("div", charts, class_="charts"), legend(wire, dataset)]
    return [*found, el("p", note(wire), class_="note"), *tables(wire), *comparisons(wire)]


def note(wire: Wire) -> str:
    """What the lines, the bars and the paths are."""
    counts = {
        dataset: max(
            (row.questions for row in wire.rows if row.dataset == dataset and math.isfinite(row.questions)),
            default=math.nan,
        )
        for dataset in wire.datasets
    }
    asked = ", ".join(
        f"{n:,.0f} questions{f' of {dataset}' if len(counts) > 1 else ''}"
        for dataset, n in counts.items()
        if math.isfinite(n)
    )
    return (
        f"{f'{asked}. ' if asked else ''}Bars and shades are 95 % intervals over groups of questions, those of one"
        f" article or context together; they are meant for {FEW} groups or more and do not cover a new training run."
        " Bytes are those of the whole message with its header, scales, hint and checksum, beside the UTF-8 bytes of"
        " text. The same bytes of text are the longest part of the context that fits them; as many tokens are its"
        " first ones in the reader's own tokenizer. Latents of another example must score no more than no context at"
        " all."
    )


# Charts --------------------------------------------------------------------------------------------------------------


def rate_chart(wire: Wire, dataset: str, reader: str) -> Html | None:
    """F1 over bytes: the latents by bits, text of as many bytes, the whole text, and the levels without any."""
    latents, text = by_bits(wire, dataset, reader), wire.main(dataset, reader, TEXT)
    parts = {path: rows for path in (HEAD, TAIL, ZLIB) if (rows := distinct(wire.of(dataset, reader, path)))}
    single = {TOKENS: distinct(wire.of(dataset, reader, TOKENS)), TEXT: [text] if text else []}
    drawn = [row for rows in (*latents.values(), *parts.values(), *single.values()) for row in rows if row.bytes > 0]
    if not latents or not drawn:
        return None
    x = axis_of([row.bytes for row in drawn], "bytes that the reader is given, log scale", log=True, margin=0.06)
    lines = _levels(wire, dataset, reader, x)
    lines += [_line(rows, COLORS[path], WORDS[path], path in DASHED) for path, rows in parts.items()]
    lines += [
        _line(rows, COLORS[path], WORDS[path], joined=False, radius=4.5 if path == TEXT else 3.2)
        for path, rows in single.items()
    ]
    lines += [
        _line(rows, LATENTS[i % len(LATENTS)], bits_words(bits)) for i, (bits, rows) in enumerate(latents.items())
    ]
    lines += _ring(wire.main(dataset, reader, LATENT))
    whole = f"; the whole text is {size_words(text.bytes)} bytes, F1 {f1_words(text)}" if text else ""
    chart = line_chart(
        lines, x, f1_axis([row for row in wire.rows if row.dataset == dataset]), f"F1 of {reader} over bytes{whole}"
    )
    return el("figure", el("figcaption", f"{reader} ", el("small", "F1 against bytes on the wire")), chart)


def num_latents_chart(wire: Wire, dataset: str, reader: str) -> Html | None:
    """F1 over the number of latents, beside text of as many bytes and of as many tokens; None if only one number was
    measured.
    """
    latents = by_bits(wire, dataset, reader)
    places = sorted({row.num_latents for rows in latents.values() for row in rows if math.isfinite(row.num_latents)})
    if len(places) < 2:
        return None
    x = Axis(-0.3, len(places) - 0.7, "M, the number of latents", names=[f"{m:g}" for m in places])
    lines = _levels(wire, dataset, reader, x, (NONE, SHUFFLED, TEXT))
    for path in (HEAD, TOKENS):
        rows = [
            (row.num_latents, same)
            for row in next(iter(latents.values()))
            if (same := alike(row, wire.of(dataset, reader, path))) is not None
        ]
        lines.append(_over(rows, places, COLORS[path], WORDS[path]))
    lines += [
        _over([(row.num_latents, row) for row in rows], places, LATENTS[i % len(LATENTS)], bits_words(bits))
        for i, (bits, rows) in enumerate(latents.items())
    ]
    chart = line_chart(
        lines,
        x,
        f1_axis([row for row in wire.rows if row.dataset == dataset]),
        f"F1 of {reader} over the number of latents",
    )
    return el("figure", el("figcaption", f"{reader} ", el("small", "F1 against the number of latents")), chart)


def f1_axis(rows: Sequence[Measured]) -> Axis:
    """From 0 to a little above the highest interval: the same for all readers of a data set."""
    tops = [v for row in rows for v in (row.f1.value, row.f1.high) if math.isfinite(v)]
    return axis_of([0.0, *tops], margin=0.05, floor=0.0)


def bits_words(bits: float) -> str:
    """latents, 4 bits."""
    return f"latents, {bits:g} bits" if math.isfinite(bits) else "latents"


def _line(
    rows: Sequence[Measured], color: str, title: str, dashed: bool = False, joined: bool = True, radius: float = 3.2
) -> Series:
    return Series(
        [(row.bytes, row.f1.value) for row in rows],
        color=color,
        dots=radius,
        line=joined,
        dashed=dashed,
        errors=[row.f1.error for row in rows],
        title=title,
    )


def _over(rows: Sequence[tuple[float, Measured]], places: Sequence[float], color: str, title: str) -> Series:
    rows = sorted(rows, key=lambda pair: pair[0])
    return Series(
        [(float(places.index(m)), row.f1.value) for m, row in rows],
        color=color,
        dots=3.2,
        errors=[row.f1.error for _, row in rows],
        title=title,
    )


def _levels(wire: Wire, dataset: str, reader: str, x: Axis, paths: Sequence[str] = (NONE, SHUFFLED)) -> list[Series]:
    """Paths whose score does not depend on the bytes, as lines over the whole width with their intervals as shades."""
    found = []
    for path in paths:
        row = wire.main(dataset, reader, path)
        if row is not None:
            level, low, high = ([(x.low, y), (x.high, y)] for y in row.f1)
            found.append(
                Series(
                    level,
                    color=COLORS[path],
                    width=1.3,
                    dashed=path in DASHED,
                    band=(low, high) if row.f1.error else None,
                    title=WORDS[path],
                )
            )
    return found


def _ring(main: Measured | None) -> list[Series]:
    """The trained setting by its bytes, above its dot."""
    if main is None:
        return []
    return [
        Series(
            [(main.bytes, main.f1.high if main.f1.error else main.f1.value)],
            color=LATENTS[0],
            line=False,
            label=f"{size_words(main.bytes)} bytes",
            anchor="middle",
        )
    ]


def legend(wire: Wire, dataset: str) -> Html:
    """The lines that the charts of a data set have."""
    bits = list(dict.fromkeys(b for reader in wire.readers for b in by_bits(wire, dataset, reader)))
    entries = [(LATENTS[i % len(LATENTS)], bits_words(b), False) for i, b in enumerate(bits)]
    there = {row.path for row in wire.rows if row.dataset == dataset}
    entries += [
        (COLORS[path], f"{words}{', dashed' if path in DASHED else ''}", path == TEXT)
        for path, words in WORDS.items()
        if path in COLORS and path in there
    ]
    return keys(entries)


# Tables --------------------------------------------------------------------------------------------------------------

HEADER = (
    "",
    "reader",
    "num_latents",
    "bits",
    "bytes",
    "times smaller",
    "positions",
    "F1",
    "95 % interval",
    "of the whole text",
    "EM",
    "95 % interval",
    "FirstTok@1",
    "@5",
    "@10",
)
BRIEF = (0, 1, 4, 5, 7, 8, 9, 10, 12, 13, 14)  # what fits the page


def tables(wire: Wire) -> list[Html]:
    """The trained setting for every data set, then all settings, folded."""
    found: list[Html] = []
    for dataset in wire.datasets:
        rows = [
            row for path in WORDS for reader in wire.readers if (row := wire.main(dataset, reader, path)) is not None
        ]
        found += [
            el("h3", f"At the trained setting, {dataset}" if len(wire.datasets) > 1 else "At the trained setting"),
            _table(wire, rows, BRIEF),
        ]
    every = [
        row
        for dataset in wire.datasets
        for path in WORDS
        for reader in wire.readers
        for row in wire.of(dataset, reader, path)
    ]
    if len(every) > sum(
        1 for dataset in wire.datasets for path in WORDS for reader in wire.readers if wire.main(dataset, reader, path)
    ):
        found.append(
            el(
                "details",
                el("summary", f"All {len(every)} settings and paths"),
                _table(wire, every, range(len(HEADER))),
            )
        )
    return found


def _table(wire: Wire, rows: Sequence[Measured], columns: Sequence[int]) -> Html:
    """Rows under these columns of HEADER, without those that are empty throughout."""
    several = len({row.dataset for row in rows}) > 1
    lines = [_cells(wire, row, several) for row in rows]
    shown = [i for i in columns if any(line[i] not in ("", "-") for line in lines)]
    body = [([line[i] for i in shown], row.path == LATENT and row.main) for line, row in zip(lines, rows, strict=True)]
    return el("div", listing([HEADER[i] for i in shown], body, text=(0, 1)), class_="scroll wrap", tabindex="0")


def _cells(wire: Wire, row: Measured, several: bool) -> list[str]:
    numbers = [f"{value:g}" if math.isfinite(value) else "" for value in (row.num_latents, row.bits)]
    smaller = f"{row.ratio:.2f}" if math.isfinite(row.ratio) and row.bytes > 0 else "-"
    whole = share(row, wire.main(row.dataset, row.reader, TEXT))
    name = f"{WORDS[row.path]}, {row.dataset}" if several else WORDS[row.path]
    costs = [*numbers, size_words(row.bytes), smaller, cell(row.prefill, "{:.1f}")]
    scored = [
        f1_words(row),
        interval_words(row.f1),
        f"{100 * whole:.0f} %" if math.isfinite(whole) else "-",
        cell(row.em.value),
        interval_words(row.em),
    ]
    return [name, row.reader, *costs, *scored, *(cell(value) for value in row.first)]


def comparisons(wire: Wire) -> list[Html]:
    """Paired differences of F1 over the same questions, and the ratios of the means."""
    if not wire.paired:
        return []
    several = len(wire.datasets) > 1
    lines = []
    for (dataset, reader, comparison), one in wire.paired.items():
        first, _, second = comparison.partition("-")
        names = f"{WORDS.get(first, first)} − {WORDS.get(second, second)}{f', {dataset}' if several else ''}"
        p = f"{one.p:.2g}" if one.p >= 0.001 else "< 0.001" if math.isfinite(one.p) else "-"
        gap, ratio = one.difference, one.ratio
        numbers = [
            cell(gap.value, "{:+.3f}"),
            span(gap.low, gap.high, "{:+.3f}"),
            p,
            cell(ratio.value, "{:.2f}"),
            span(ratio.low, ratio.high, "{:.2f}"),
        ]
        lines.append(([names, reader, *numbers], wire.stands(dataset, reader, first, second) not in (0, None)))
    header = ("F1, question by question", "reader", "difference", "95 % interval", "p", "ratio", "95 % interval")
    words = (
        "Intervals over questions, those of one context or article together; p by flipping signs. "
        "Bold: the interval of the difference leaves out zero. Nothing is corrected "
        "for the number of comparisons."
    )
    return [
        el("h3", "Compared question by question"),
        el("div", listing(header, lines, text=(0, 1)), class_="scroll wrap", tabindex="0"),
        el("p", words, class_="note"),
    ]

"""F1 over the bytes that a reader is given, and over the number of latents, beside text of equal cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from research_stack.latentwire.path_names import HEAD, LATENT, NONE, SHUFFLED, TAIL, TEXT, TOKENS, ZLIB
from research_stack.latentwire.report.tables import LABELS, Measurements, PathScore, by_bits, distinct, same_setting
from research_stack.latentwire.report.words import bits_text, bytes_text, file_name
from research_stack.reporting.charts import Axis, Chart, Series, axis_of, line_chart, ramp

LATENT_COLORS = ("var(--c0)", "var(--c3)", ramp(0.35), ramp(0.7))  # by bits
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
TABLE = "latentwire"  # the numbers behind the charts of a run
Legend = list[tuple[str, str, bool]]


def charts(data: Measurements, dataset: str, table: str = TABLE) -> list[Chart]:
    """Both charts for every reader, those over bytes first.

    - table: that holds the numbers; empty for one that is written from the charts.
    """
    found = [draw(data, dataset, reader, table) for draw in (bytes_chart, latents_chart) for reader in data.readers]
    return [chart for chart in found if chart is not None]


def bytes_chart(data: Measurements, dataset: str, reader: str, table: str = TABLE) -> Chart | None:
    """F1 over bytes: the latents by bits, text of as many bytes, the whole text, and the levels without any."""
    latents, text = by_bits(data, dataset, reader), data.main(dataset, reader, TEXT)
    parts = {path: rows for path in (HEAD, TAIL, ZLIB) if (rows := distinct(data.of(dataset, reader, path)))}
    single = {TOKENS: distinct(data.of(dataset, reader, TOKENS)), TEXT: [text] if text else []}
    drawn = [row for rows in (*latents.values(), *parts.values(), *single.values()) for row in rows if row.bytes > 0]
    if not latents or not drawn:
        return None
    x = axis_of([row.bytes for row in drawn], "bytes that the reader is given, log scale", log=True, margin=0.06)
    lines = _levels(data, dataset, reader, x, (NONE, SHUFFLED))
    lines += [_over_bytes(rows, COLORS[path], LABELS[path], dashed=path in DASHED) for path, rows in parts.items()]
    lines += [
        _over_bytes(rows, COLORS[path], LABELS[path], joined=False, radius=4.5 if path == TEXT else 3.2)
        for path, rows in single.items()
    ]
    lines += [_over_bytes(rows, _color(i), bits_text(bits)) for i, (bits, rows) in enumerate(latents.items())]
    lines += [_label(row, color) for row, color in _labelled(data, dataset, reader)]
    whole = f"; the whole text is {bytes_text(text.bytes)} bytes, F1 {text.f1.value:.3f}" if text else ""
    return line_chart(
        lines,
        x,
        f1_axis(data, dataset),
        f"F1 of {reader} over bytes{whole}",
        name=file_name("latentwire_bytes", *_names(data, dataset, reader)),
        title=reader,
        note="F1 against bytes on the wire",
        legend=legend(data, dataset, reader),
        table=table,
    )


def latents_chart(data: Measurements, dataset: str, reader: str, table: str = TABLE) -> Chart | None:
    """F1 over the number of latents, beside text of as many bytes and of as many tokens; None if only one number was
    measured.
    """
    latents = by_bits(data, dataset, reader)
    ticks = sorted({row.num_latents for rows in latents.values() for row in rows if math.isfinite(row.num_latents)})
    if len(ticks) < 2:
        return None
    x = Axis(-0.3, len(ticks) - 0.7, "M, the number of latents", names=[f"{m:g}" for m in ticks])
    lines = _levels(data, dataset, reader, x, (NONE, SHUFFLED, TEXT))
    for path in (HEAD, TOKENS):
        beside = data.of(dataset, reader, path)
        rows = [(row.num_latents, same_setting(row, beside)) for row in next(iter(latents.values()))]
        lines.append(_over_latents([(m, row) for m, row in rows if row], ticks, COLORS[path], LABELS[path]))
    lines += [
        _over_latents([(row.num_latents, row) for row in rows], ticks, _color(i), bits_text(bits))
        for i, (bits, rows) in enumerate(latents.items())
    ]
    return line_chart(
        lines,
        x,
        f1_axis(data, dataset),
        f"F1 of {reader} over the number of latents",
        name=file_name("latentwire_latents", *_names(data, dataset, reader)),
        title=reader,
        note="F1 against the number of latents",
        legend=legend(data, dataset, reader, (NONE, SHUFFLED, TEXT, HEAD, TOKENS)),
        table=table,
    )


def f1_axis(data: Measurements, dataset: str) -> Axis:
    """From 0 to a little above the highest interval: the same for all readers of a data set."""
    rows = [row for row in data.rows if row.dataset == dataset]
    tops = [v for row in rows for v in (row.f1.value, row.f1.high) if math.isfinite(v)]
    return axis_of([0.0, *tops], margin=0.07, floor=0.0)


def legend(data: Measurements, dataset: str, reader: str, paths: Sequence[str] = tuple(COLORS)) -> Legend:
    """The lines of a chart: latents by bits, then the paths in the order of the tables."""
    found: Legend = [(_color(i), bits_text(bits), False) for i, bits in enumerate(by_bits(data, dataset, reader))]
    there = {row.path for row in data.rows if (row.dataset, row.reader) == (dataset, reader)} & set(paths)
    return found + [
        (COLORS[path], f"{words}{', dashed' if path in DASHED else ''}", path == TEXT)
        for path, words in LABELS.items()
        if path in COLORS and path in there
    ]


def _names(data: Measurements, dataset: str, reader: str) -> list[str]:
    """What tells one chart of a page from the others; readers may differ in nothing but signs."""
    number = (
        [] if [file_name(r) for r in data.readers].count(file_name(reader)) == 1 else [f"{data.readers.index(reader)}"]
    )
    return [*([dataset] if len(data.datasets) > 1 else []), reader, *number]


def _color(index: int) -> str:
    return LATENT_COLORS[index % len(LATENT_COLORS)]


def _over_bytes(
    rows: Sequence[PathScore], color: str, title: str, dashed: bool = False, joined: bool = True, radius: float = 3.2
) -> Series:
    rows = [row for row in rows if row.bytes > 0]
    return Series(
        [(row.bytes, row.f1.value) for row in rows],
        color=color,
        dots=radius,
        line=joined,
        dashed=dashed,
        errors=[row.f1.error for row in rows],
        title=title,
    )


def _over_latents(rows: Sequence[tuple[float, PathScore]], ticks: Sequence[float], color: str, title: str) -> Series:
    rows = sorted(rows, key=lambda pair: pair[0])
    return Series(
        [(float(ticks.index(m)), row.f1.value) for m, row in rows],
        color=color,
        dots=3.2,
        errors=[row.f1.error for _, row in rows],
        title=title,
    )


def _levels(data: Measurements, dataset: str, reader: str, x: Axis, paths: Sequence[str]) -> list[Series]:
    """Paths whose score does not depend on the bytes, as lines over the whole width with their intervals as shades."""
    found = []
    for path in paths:
        row = data.main(dataset, reader, path)
        if row is not None:
            level, low, high = ([(x.low, y), (x.high, y)] for y in row.f1)
            band = (low, high) if row.f1.error else None
            found.append(
                Series(level, color=COLORS[path], width=1.3, dashed=path in DASHED, band=band, title=LABELS[path])
            )
    return found


def _labelled(data: Measurements, dataset: str, reader: str) -> list[tuple[PathScore, str]]:
    """The trained setting and the whole text."""
    rows = [(data.main(dataset, reader, LATENT), LATENT_COLORS[0]), (data.main(dataset, reader, TEXT), COLORS[TEXT])]
    return [(row, color) for row, color in rows if row is not None and row.bytes > 0]


def _label(row: PathScore, color: str) -> Series:
    """Bytes and F1 above a dot and its bar."""
    top = row.f1.high if row.f1.error else row.f1.value
    anchor = "end" if row.path == TEXT else "middle"  # the whole text lies at the right edge
    return Series([(row.bytes, top)], color=color, line=False, label=f"{bytes_text(row.bytes)} bytes", anchor=anchor)

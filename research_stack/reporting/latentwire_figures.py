"""figures/latentwire*.png: F1 against bytes on the wire, F1 against the number of latents, time to the first token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from research_stack.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, new_figure
from research_stack.reporting.latentwire import bits_words
from research_stack.reporting.latentwire_page import EDGE, WIDE
from research_stack.reporting.latentwire_tables import (
    HEAD,
    LATENT,
    NONE,
    OFTEN,
    SHUFFLED,
    TAIL,
    TEXT,
    TOKENS,
    WORDS,
    ZLIB,
    Measured,
    Timed,
    Wire,
    alike,
    by_bits,
    distinct,
    four_times,
    load,
    num_latents_timed,
    with_num_latents,
)
from research_stack.reporting.latentwire_words import size_words
from research_stack.reporting.reading import RunFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VIOLET, OCHRE, FAINT = "#7a4a9e", "#a17a00", "#98a1aa"
LATENTS = (BLUE, VIOLET, "#7fa8d4", "#b595cc")  # by bits
STYLES = {
    HEAD: (ORANGE, "o-"),
    TAIL: (ORANGE, "o--"),
    ZLIB: (OCHRE, "o:"),
    TOKENS: (GREEN, "D"),
    TEXT: (INK, "s"),
    NONE: (GREY, "-"),
    SHUFFLED: (GREY, "--"),
}
MOST_DATASETS = 4


def figures(run: RunFiles) -> dict[str, Figure | None]:
    """{file name: figure}; None where there is nothing to draw."""
    wire = load(run)
    if wire is None:
        return {}
    return {
        "latentwire.png": rate_figure(wire),
        "latentwire_slots.png": num_latents_figure(wire),
        "latentwire_latency.png": latency_figure(wire),
    }


def rate_figure(wire: Wire) -> Figure | None:
    """F1 over bytes: a column for each reader, a line for each data set."""
    datasets = [name for name in wire.datasets if any(by_bits(wire, name, reader) for reader in wire.readers)][
        :MOST_DATASETS
    ]
    if not datasets:
        return None
    figure, plots = new_figure(5.2 * len(wire.readers), 3.4 * len(datasets) + 0.7, len(wire.readers), len(datasets))
    for plot, (dataset, reader) in zip(
        plots, [(dataset, reader) for dataset in datasets for reader in wire.readers], strict=True
    ):
        _rate(plot, wire, dataset, reader)
        _title(plot, wire, dataset, reader, "F1 of answers against bytes on the wire")
    _legend(figure, plots)
    return figure


def _rate(plot: Axes, wire: Wire, dataset: str, reader: str) -> None:
    _levels(plot, wire, dataset, reader, (NONE, SHUFFLED))
    for path in (HEAD, TAIL, ZLIB, TOKENS):
        _errorbars(
            plot,
            [(row.bytes, row) for row in distinct(wire.of(dataset, reader, path)) if row.bytes > 0],
            *STYLES[path],
            WORDS[path],
        )
    latents, text, main = (
        by_bits(wire, dataset, reader),
        wire.main(dataset, reader, TEXT),
        wire.main(dataset, reader, LATENT),
    )
    for index, (bits, rows) in enumerate(latents.items()):
        _errorbars(plot, [(row.bytes, row) for row in rows], LATENTS[index % len(LATENTS)], "o-", bits_words(bits), 2.0)
    plot.set_xscale("log")
    places = sorted({round(row.bytes) for row in next(iter(latents.values()), [])})
    if text is not None and text.bytes > 0:
        _errorbars(plot, [(text.bytes, text)], *STYLES[TEXT], WORDS[TEXT])
        _say(plot, text, f"{text.f1.value:.2f}", INK)
        places = [place for place in places if abs(math.log(place / text.bytes)) > 0.12] + [round(text.bytes)]
    if main is not None:
        _say(plot, main, f"{size_words(main.bytes)} bytes: {main.f1.value:.2f}", BLUE)
    plot.set_xticks(places, [f"{place:,}" for place in places])
    plot.minorticks_off()
    plot.set_ylim(0, _top(wire, dataset))
    plot.set_xlabel("bytes that the reader is given, log scale", fontsize=8, color=GREY)


def _say(plot: Axes, row: Measured, text: str, color: str) -> None:
    """Bold text above a point and its bar."""
    from matplotlib.patheffects import withStroke

    top = row.f1.high if row.f1.error else row.f1.value
    plot.annotate(
        text,
        (row.bytes, top),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
        color=color,
        weight="bold",
        parse_math=False,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def num_latents_figure(wire: Wire) -> Figure | None:
    """F1 over the number of latents; None if only one number was measured."""
    pairs = [(dataset, reader) for dataset in wire.datasets[:MOST_DATASETS] for reader in wire.readers]
    if max((len({row.num_latents for row in wire.of(*pair, LATENT)}) for pair in pairs), default=0) < 2:
        return None
    figure, plots = new_figure(
        5.2 * len(wire.readers),
        3.4 * len(pairs) / len(wire.readers) + 0.7,
        len(wire.readers),
        len(pairs) // len(wire.readers),
    )
    for plot, (dataset, reader) in zip(plots, pairs, strict=True):
        _slots(plot, wire, dataset, reader)
        _title(plot, wire, dataset, reader, "F1 of answers against the number of latents")
    _legend(figure, plots)
    return figure


def _slots(plot: Axes, wire: Wire, dataset: str, reader: str) -> None:
    latents = by_bits(wire, dataset, reader)
    _levels(plot, wire, dataset, reader, (NONE, SHUFFLED, TEXT))
    for path in (HEAD, TOKENS):
        rows = [
            (row.num_latents, same)
            for row in next(iter(latents.values()), [])
            if (same := alike(row, wire.of(dataset, reader, path))) is not None
        ]
        _errorbars(plot, rows, STYLES[path][0], STYLES[HEAD][1], WORDS[path])
    for index, (bits, rows) in enumerate(latents.items()):
        _errorbars(
            plot, [(row.num_latents, row) for row in rows], LATENTS[index % len(LATENTS)], "o-", bits_words(bits), 2.0
        )
    places = sorted({row.num_latents for rows in latents.values() for row in rows if math.isfinite(row.num_latents)})
    plot.set_xscale("log", base=2)
    plot.set_xticks(places, [f"{place:g}" for place in places])
    plot.minorticks_off()
    plot.set_ylim(0, _top(wire, dataset))
    plot.set_xlabel("M, the number of latents", fontsize=8, color=GREY)


def _errorbars(
    plot: Axes, rows: Sequence[tuple[float, Measured]], color: str, style: str, name: str, width: float = 1.4
) -> None:
    rows = sorted([(x, row) for x, row in rows if math.isfinite(x)], key=lambda pair: pair[0])
    if rows:
        errors = list(zip(*[row.f1.error or (0.0, 0.0) for _, row in rows], strict=True))
        plot.errorbar(
            [x for x, _ in rows],
            [row.f1.value for _, row in rows],
            yerr=errors,
            fmt=style,
            color=color,
            markersize=4.5,
            linewidth=width,
            capsize=2.5,
            elinewidth=1.2,
            label=name,
        )


def _levels(plot: Axes, wire: Wire, dataset: str, reader: str, paths: Sequence[str]) -> None:
    """Scores that do not depend on the bytes, with their intervals as shades."""
    for path in paths:
        row = wire.main(dataset, reader, path)
        if row is not None:
            color, style = STYLES[path]
            plot.axhline(
                row.f1.value, color=color, linewidth=1.3, linestyle="-" if path == TEXT else style, label=WORDS[path]
            )
            if row.f1.error:
                plot.axhspan(row.f1.low, row.f1.high, color=color, alpha=0.13, linewidth=0)


def _top(wire: Wire, dataset: str) -> float:
    tops = [v for row in wire.rows if row.dataset == dataset for v in (row.f1.value, row.f1.high) if math.isfinite(v)]
    return 1.12 * max(tops, default=1.0)


def _title(plot: Axes, wire: Wire, dataset: str, reader: str, what: str) -> None:
    """What is drawn above the first panel, the reader (and the data set) above each."""
    name = f"{reader}, {dataset}" if len(wire.datasets) > 1 else reader
    first = reader == wire.readers[0] and dataset == wire.datasets[0]
    plot.set_title(f"{what}: {name}" if first else name, loc="left", fontsize=9.5, color=INK, parse_math=False)


def _legend(figure: Figure, plots: Sequence[Axes]) -> None:
    """One legend below all panels, each name once."""
    found = {}
    for plot in plots:
        for handle, name in zip(*plot.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    known = list(WORDS.values())
    order = sorted(
        found, key=lambda name: known.index(name) if name in known else -1
    )  # the latents by bits, then the paths as in the tables
    drawn = figure.legend(
        [found[name] for name in order],
        order,
        loc="outside lower left",
        ncols=min(5, len(order)),
        frameon=False,
        fontsize=8,
        labelcolor=GREY,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def plain_legend(plot: Axes) -> None:
    """A small legend whose names are not read as formulas; none without names."""
    if plot.get_legend_handles_labels()[0]:
        for text in plot.legend(frameon=False, fontsize=7.5, labelcolor=GREY).get_texts():
            text.set_parse_math(False)


# Times ---------------------------------------------------------------------------------------------------------------


def latency_figure(wire: Wire) -> Figure | None:
    """Time to the first token over the length of the context, a panel for each reader; None if it was not measured at
    two lengths.
    """
    timed = {
        reader: paths
        for reader, paths in wire.latency.items()
        if len({row.context_bytes for rows in paths.values() for row in rows}) > 1
    }
    if not timed:
        return None
    figure, plots = new_figure(5.2 * len(timed), 3.9, len(timed))
    for plot, (reader, paths) in zip(plots, timed.items(), strict=True):
        times = [row.total for rows in paths.values() for row in rows]
        _times(plot, paths.get(TEXT, []), ORANGE, "whole text: prefill")
        for index, num_latents in enumerate(num_latents_timed(paths)):
            color = (BLUE, VIOLET, GREEN, OCHRE)[index % 4]
            _times(
                plot,
                with_num_latents(paths, num_latents),
                color,
                f"{num_latents:g} latents: encoding, adapter, prefill",
            )
            place = four_times(paths, num_latents)
            if math.isfinite(place):
                plot.axvline(place, color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)))
                plot.annotate(
                    f"context of {OFTEN} × {num_latents:g} tokens",
                    (place, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(3, -2),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=GREY,
                    rotation=90,
                    va="top",
                )
        plot.set_xscale("log")
        if max(times) > WIDE * min(times):
            plot.set_yscale("log")
        else:
            plot.set_ylim(0, EDGE * max(times))  # a single late pass must not set the scale
        places = sorted({row.context_bytes for rows in paths.values() for row in rows})
        plot.set_xticks(places, [f"{place:,.0f}" for place in places])
        plot.minorticks_off()
        plot.set_xlabel("bytes of the context, log scale", fontsize=8, color=GREY)
        plot.set_title(f"ms to the first token: {reader}", loc="left", fontsize=9.5, color=INK, parse_math=False)
    _legend(figure, plots)
    return figure


def _times(plot: Axes, rows: Sequence[Timed], color: str, name: str) -> None:
    if rows:
        errors = [[0.0] * len(rows), [max(0.0, row.p90 - row.total) if math.isfinite(row.p90) else 0.0 for row in rows]]
        plot.errorbar(
            [row.context_bytes for row in rows],
            [row.total for row in rows],
            yerr=errors,
            fmt="o-",
            color=color,
            markersize=4,
            linewidth=1.6,
            capsize=2.5,
            elinewidth=1,
            label=name,
        )

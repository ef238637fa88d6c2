"""A sweep of wires that differ in nothing but their size, as one curve: F1 against bytes, each point trained for its
own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from research_stack.records.sweep_table import Row, SweepTable
from research_stack.reporting import latentwire
from research_stack.reporting.html import Html, el
from research_stack.reporting.latentwire_sweep import baseline
from research_stack.reporting.latentwire_tables import EQUAL_BYTES, LATENT, TEXT, TOKENS, Measured, Score, Wire, load
from research_stack.reporting.latentwire_words import joined, share, size_words
from research_stack.reporting.reading import RunFiles

OF_EVERY_SIZE = (LATENT, *EQUAL_BYTES, TOKENS)  # the other paths are those of the baseline alone
AXES = ("num_latents", "latent_dim", "levels", "bits", "group_size", "quantizer")  # keys that change a message's size


def sizes(table: SweepTable) -> Wire | None:
    """All settings as the points of one wire, the baseline marked; None for another kind of sweep, or if messages of
    two settings have one size.

    Scores and the ends of their intervals are means over the seeds.
    """
    first = baseline(table)
    if (
        first is None
        or len(table.rows) < 2
        or any(table.labels[axis].rpartition(".")[2] not in AXES for axis in table.axes)
    ):
        return None
    rows = [
        row
        for setting in sorted(table.rows, key=lambda setting: setting is not first)
        for row in _trained(setting, setting is first)
    ]
    latents = [(row.dataset, row.reader, row.bytes) for row in rows if row.path == LATENT]
    return Wire(rows) if len({size for *_, size in latents}) > 1 and len(set(latents)) == len(latents) else None


def _trained(setting: Row, main: bool) -> list[Measured]:
    """What the runs of a setting measured at what they were trained for, the seeds averaged."""
    same: dict[tuple[str, str, str], list[Measured]] = {}
    for folder in setting.points:
        for row in _main_rows(folder):
            if main or row.path in OF_EVERY_SIZE:
                same.setdefault((row.dataset, row.reader, row.path), []).append(row)
    return [_mean(found, main) for found in same.values()]


def _main_rows(folder: Path) -> list[Measured]:
    wire = load(RunFiles(folder))
    return [row for row in wire.rows if row.main] if wire else []


def _mean(found: Sequence[Measured], main: bool) -> Measured:
    def mean(values: Sequence[float]) -> float:
        return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan

    one, scored = (
        found[0],
        [
            Score(*map(mean, zip(*scores, strict=True)))
            for scores in ([row.f1 for row in found], [row.em for row in found])
        ],
    )
    first = tuple(mean([row.first[k] for row in found]) for k in range(len(one.first)))
    return Measured(
        one.dataset,
        one.reader,
        one.path,
        one.num_latents,
        one.bits,
        mean([row.bytes for row in found]),
        one.ratio,
        one.ratio_mean,
        one.prefill,
        *scored,
        first,
        one.questions,
        main,
    )


def verdict(table: SweepTable) -> str:
    """What each size keeps of the whole text, in a sentence; empty for another kind of sweep."""
    wire = sizes(table)
    if wire is None:
        return ""
    dataset, found = wire.datasets[0], {}
    for reader in wire.readers:
        for row in wire.of(dataset, reader, LATENT):
            found.setdefault(row.bytes, []).append(f"{100 * share(row, wire.main(dataset, reader, TEXT)):.0f}\u00a0%")
    first, *rest = [f"{size_words(size)} bytes {{}}{joined(kept)}" for size, kept in sorted(found.items())]
    said = [first.format("of latents keep "), *(one.format("") for one in rest)]
    return f"{', '.join(said)} of what {joined(wire.readers)} answer from the whole text (F1)."


def section(table: SweepTable) -> list[Html] | None:
    """F1 over bytes and over the number of latents, for each data set and reader; None for another kind of sweep."""
    wire = sizes(table)
    if wire is None:
        return None
    found: list[Html] = [el("h2", "What a byte is worth")]
    for dataset in wire.datasets:
        charts = [
            chart
            for draw in (latentwire.rate_chart, latentwire.num_latents_chart)
            for reader in wire.readers
            if (chart := draw(wire, dataset, reader)) is not None
        ]
        found += [el("h3", f"Data set {dataset}")] if len(wire.datasets) > 1 else []
        found += [el("div", charts, class_="charts"), latentwire.legend(wire, dataset)]
    return [
        *found,
        el(
            "p",
            "Each point is a training of its own, beside text of as many bytes and tokens. Bars are 95 % intervals over"
            " questions, the seeds' averaged.",
            class_="note",
        ),
    ]

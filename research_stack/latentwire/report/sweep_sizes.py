"""A sweep of runs that differ in nothing but the size of a message, as one curve: F1 against bytes, each point trained
for its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from research_stack.latentwire.path_names import EQUAL_BYTES, LATENT, TEXT, TOKENS
from research_stack.latentwire.report.loading import load
from research_stack.latentwire.report.score_charts import charts
from research_stack.latentwire.report.sweep_numbers import baseline
from research_stack.latentwire.report.tables import Measurements, PathScore, Score
from research_stack.latentwire.report.words import bytes_text, joined
from research_stack.records.sweep_table import Row, SweepTable
from research_stack.reporting.elements import note
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles

OF_EVERY_SIZE = (LATENT, *EQUAL_BYTES, TOKENS)  # the other paths are those of the baseline alone
AXES = ("num_latents", "latent_dim", "levels", "bits", "group_size", "quantizer")  # keys that change a message's size


def sizes(table: SweepTable) -> Measurements | None:
    """All settings as the points of one curve, the baseline marked; None for another kind of sweep, or if messages of
    two settings have one size.

    Scores and the ends of their intervals are means over the seeds; the share of the whole text is that of these means.
    """
    first = baseline(table)
    of_sizes = all(table.labels[axis].rpartition(".")[2] in AXES for axis in table.axes)
    if first is None or len(table.rows) < 2 or not of_sizes:
        return None
    ordered = sorted(table.rows, key=lambda setting: setting is not first)
    rows = [row for setting in ordered for row in _trained(setting, setting is first)]
    text = {(row.dataset, row.reader): row.f1.value for row in rows if row.path == TEXT}
    rows = [replace(row, share=_share(row, text.get((row.dataset, row.reader), math.nan))) for row in rows]
    latents = [(row.dataset, row.reader, row.bytes) for row in rows if row.path == LATENT]
    if len({size for *_, size in latents}) < 2 or len(set(latents)) < len(latents):
        return None
    return Measurements(rows)


def _trained(setting: Row, is_baseline: bool) -> list[PathScore]:
    """What the runs of a setting measured at what they were trained for, the seeds averaged."""
    same: dict[tuple[str, str, str], list[PathScore]] = {}
    for folder in setting.points:
        for row in _main_rows(folder):
            if is_baseline or row.path in OF_EVERY_SIZE:
                same.setdefault((row.dataset, row.reader, row.path), []).append(row)
    return [_mean(found, is_baseline) for found in same.values()]


def _main_rows(folder: Path) -> list[PathScore]:
    data = load(RunFiles(folder))
    return [row for row in data.rows if row.main] if data else []


def _mean(found: Sequence[PathScore], is_baseline: bool) -> PathScore:
    def mean(values: Sequence[float]) -> float:
        return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan

    scores = [list(zip(*rows, strict=True)) for rows in ([row.f1 for row in found], [row.em for row in found])]
    f1, em = (Score(*map(mean, columns)) for columns in scores)
    return replace(
        found[0],
        bytes=mean([row.bytes for row in found]),
        f1=f1,
        em=em,
        first=tuple(mean(values) for values in zip(*(row.first for row in found), strict=True)),
        main=is_baseline,
    )


def _share(row: PathScore, text: float) -> float:
    return row.f1.value / text if text > 0 else math.nan


def verdict(table: SweepTable) -> str:
    """What each size keeps of the whole text, in a sentence; empty for another kind of sweep, and where readers answer
    nothing from the whole text.
    """
    data = sizes(table)
    if data is None or not all(math.isfinite(row.share) for row in data.rows):
        return ""
    dataset, found = data.datasets[0], {}
    for reader in data.readers:
        for row in data.of(dataset, reader, LATENT):
            found.setdefault(row.bytes, []).append(f"{100 * row.share:.0f}\u00a0%")
    first, *rest = [f"{bytes_text(size)} bytes {{}}{joined(kept)}" for size, kept in sorted(found.items())]
    parts = [first.format("of latents keep "), *(one.format("") for one in rest)]
    return f"{', '.join(parts)} of what {joined(data.readers)} answer from the whole text (F1)."


def section(table: SweepTable) -> Node:
    """F1 over bytes and over the number of latents, for each data set and reader; None for another kind of sweep."""
    data = sizes(table)
    if data is None:
        return None
    found: list[Node] = [el("h2", "What a byte is worth")]
    for dataset in data.datasets:
        found += [el("h3", f"Data set {dataset}")] if len(data.datasets) > 1 else []
        found.append(el("div", charts(data, dataset, table=""), class_="charts"))
    return [
        *found,
        note(
            "Each point is a training of its own, beside text of as many bytes and tokens. Bars are 95 % intervals over"
            " questions, the seeds' averaged."
        ),
    ]

"""What the evaluation measured: scores of every path, paired comparisons, times, bytes, examples.

Numbers that are not there are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from research_stack.latentwire.path_names import (
    EQUAL_BYTES,
    HEAD,
    LATENT,
    NONE,
    POOLED,
    SHUFFLED,
    TAIL,
    TEXT,
    TOKENS,
    ZEROS,
    ZLIB,
)
from research_stack.reporting.run_files import Table

LABELS = {
    LATENT: "latents",
    TEXT: "whole text",
    HEAD: "same bytes of text, its head",
    TAIL: "same bytes of text, its tail",
    ZLIB: "same bytes of text, deflated",
    TOKENS: "as many tokens of text",
    NONE: "no context",
    SHUFFLED: "latents of another example",
    ZEROS: "zero latents",
}


class Score(NamedTuple):
    """A mean over questions with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def error(self) -> tuple[float, float] | None:
        """Lower and upper part of the interval; None without one."""
        below, above = self.value - self.low, self.high - self.value
        return (max(0.0, below), max(0.0, above)) if math.isfinite(below) and math.isfinite(above) else None


@dataclass(frozen=True)
class PathScore:
    """A row of tables/latentwire.csv.

    - bytes: mean bytes the reader was given. ratio: mean bytes of the contexts over it.
    - prefill: mean positions at the reader. share: F1 over that of the whole text. first: FirstTok@1, @5, @10.
    - main: whether it is the setting that was trained.
    """

    dataset: str
    reader: str
    path: str
    num_latents: float
    bits: float
    bytes: float
    ratio: float
    prefill: float
    f1: Score
    em: Score
    share: float
    first: tuple[float, ...]
    questions: float
    main: bool


class PairedScore(NamedTuple):
    """A row of tables/latentwire_paired.csv: the mean difference of F1 over questions, its p-value, the ratio of the
    means.
    """

    difference: Score
    p: float
    ratio: Score


class LatencyRow(NamedTuple):
    """A row of tables/latentwire_latency.csv: milliseconds to the first token and what they are made of, positions at
    the reader.
    """

    context_bytes: float
    num_latents: float
    encode: float
    adapt: float
    prefill: float
    total: float
    p90: float
    positions: float
    memory: float


class SpeedSummary(NamedTuple):
    """A row of tables/latentwire_speed.csv (`latency.summary`)."""

    num_latents: float
    faster_from: float
    faster_somewhere: float
    shortest: float
    longest: float
    long_context: float
    latent_ms: float
    text_ms: float


@dataclass(frozen=True)
class Measurements:
    """All that was measured.

    - rows: in the file's order. paired: {(dataset, reader, comparison): row}. latency: {reader: {path: rows by
      length}}. speed: {reader: row}.
    - parts: {part of a message: (bytes for one reader, bytes for all of them)}. examples: rows as they are.
    """

    rows: Sequence[PathScore]
    paired: Mapping[tuple[str, str, str], PairedScore] = field(default_factory=dict)
    latency: Mapping[str, Mapping[str, Sequence[LatencyRow]]] = field(default_factory=dict)
    speed: Mapping[str, SpeedSummary] = field(default_factory=dict)
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    examples: Table = field(default_factory=list)

    @property
    def datasets(self) -> list[str]:
        """The data sets, the pooled one first."""
        return sorted(dict.fromkeys(row.dataset for row in self.rows), key=lambda name: name != POOLED)

    @property
    def readers(self) -> list[str]:
        """The readers in the file's order."""
        return list(dict.fromkeys(row.reader for row in self.rows))

    def of(self, dataset: str, reader: str, path: str) -> list[PathScore]:
        """The rows of a path by their bytes."""
        found = [row for row in self.rows if (row.dataset, row.reader, row.path) == (dataset, reader, path)]
        return sorted(found, key=lambda row: row.bytes)

    def main(self, dataset: str, reader: str, path: str) -> PathScore | None:
        """The path at the trained setting: the row that says so, that of as many latents and bits, or the only one."""
        rows = self.of(dataset, reader, path)
        marked = [row for row in rows if row.main]
        if marked or path == LATENT or len(rows) < 2:
            return next(iter(marked or rows), None)
        latent = self.main(dataset, reader, LATENT)
        if latent is None:
            return rows[0]
        same = [row for row in rows if (row.num_latents, row.bits) == (latent.num_latents, latent.bits)]
        fits = [row for row in rows if row.bytes <= latent.bytes + 0.5]
        return next(iter(same or fits[-1:] or rows))

    def compare(self, dataset: str, reader: str, first: str, second: str) -> int | None:
        """1 if the first path is better than the second, -1 if worse, 0 if they cannot be told apart; None if one has
        no interval.

        By the interval of the paired difference; without one, by whether the two intervals lie apart.
        """
        found = self.paired.get((dataset, reader, f"{first}-{second}"))
        if found is not None and found.difference.error is not None:
            return 1 if found.difference.low > 0 else -1 if found.difference.high < 0 else 0
        a, b = self.main(dataset, reader, first), self.main(dataset, reader, second)
        if a is None or b is None or a.f1.error is None or b.f1.error is None:
            return None
        return 1 if a.f1.low > b.f1.high else -1 if a.f1.high < b.f1.low else 0

    def upper_bound(self, dataset: str, reader: str, first: str, second: str) -> float:
        """By how much the first path may be better: the upper end of the paired interval, or of the two intervals."""
        found = self.paired.get((dataset, reader, f"{first}-{second}"))
        if found is not None and found.difference.error is not None:
            return found.difference.high
        a, b = self.main(dataset, reader, first), self.main(dataset, reader, second)
        return a.f1.high - b.f1.low if a is not None and b is not None else math.nan

    def best_text(self, dataset: str, reader: str) -> PathScore | None:
        """The best of what as many bytes of text give: the head, the tail or a deflated head."""
        found = [row for path in EQUAL_BYTES if (row := self.main(dataset, reader, path)) is not None]
        return max(found, key=lambda row: row.f1.value, default=None)


def by_bits(found: Measurements, dataset: str, reader: str) -> dict[float, list[PathScore]]:
    """{bits: the latent rows by bytes}, the trained setting's bits first."""
    rows, main = found.of(dataset, reader, LATENT), found.main(dataset, reader, LATENT)
    kinds = dict.fromkeys(([main.bits] if main else []) + sorted({row.bits for row in rows if math.isfinite(row.bits)}))
    return {
        bits: own
        for bits in kinds
        if (own := [row for row in rows if row.bits == bits or (math.isnan(bits) and math.isnan(row.bits))])
    }


def distinct(rows: Iterable[PathScore]) -> list[PathScore]:
    """One row for each number of bytes: settings of equal size have the same part of the text."""
    return list({round(row.bytes, 2): row for row in rows}.values())


def same_setting(row: PathScore, rows: Iterable[PathScore]) -> PathScore | None:
    """The row of as many latents, and of as many bits where rows say them; None without one."""
    found = [one for one in rows if one.num_latents == row.num_latents]
    without_bits = next((one for one in found if math.isnan(one.bits)), None)
    return next((one for one in found if one.bits == row.bits), without_bits)

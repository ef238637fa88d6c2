"""What the evaluation of a wire of latents wrote: scores of every path, paired comparisons, times, bytes, examples.
Standard library only.

A path is what a reader is given beside the question: latents of the context, those of another example, the text, a part
of it, nothing. From tables/latentwire.csv, latentwire_paired.csv, latentwire_latency.csv, latentwire_bytes.csv and
latentwire_examples.csv.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from research_stack.records.run_folder import RunFolder
from research_stack.reporting.curves import interpolate
from research_stack.reporting.reading import RunFiles, Table, reals, table_of

NAME = "latentwire/"  # before the metrics of result.json
LATENT, SHUFFLED, ZEROS, NONE, TEXT = "latent", "shuffled", "zeros", "none", "text"
HEAD, TAIL, ZLIB, TOKENS = "text_bytes", "text_bytes_tail", "text_zlib", "text_tokens"
EQUAL_BYTES = (HEAD, TAIL, ZLIB)
WORDS = {
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
SCORES = tuple(f"{name}{end}" for name in ("f1", "em") for end in ("", "_low", "_high"))
POOLED = "all"  # the data set that holds the questions of all
OFTEN = 4  # times as long as the latents: where encoding should have paid off


class Score(NamedTuple):
    """A mean over questions with its 95 % interval, NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def error(self) -> tuple[float, float] | None:
        """Lower and upper part of the interval; None without one."""
        below, above = self.value - self.low, self.high - self.value
        return (max(0.0, below), max(0.0, above)) if math.isfinite(below) and math.isfinite(above) else None


@dataclass(frozen=True)
class Measured:
    """A row of tables/latentwire.csv; numbers that are not there are NaN.

    - bytes: mean bytes the reader was given. ratio: mean bytes of the contexts over it; ratio_mean: mean of the single
      ratios.
    - prefill: mean positions at the reader. first: FirstTok@1, @5, @10. main: whether it is the setting that was
      trained.
    """

    dataset: str
    reader: str
    path: str
    num_latents: float
    bits: float
    bytes: float
    ratio: float
    ratio_mean: float
    prefill: float
    f1: Score
    em: Score
    first: tuple[float, ...]
    questions: float
    main: bool


class Compared(NamedTuple):
    """A row of tables/latentwire_paired.csv: the mean difference of F1 over questions, its p-value, the ratio of the
    means.
    """

    difference: Score
    p: float
    ratio: Score


class Timed(NamedTuple):
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


@dataclass(frozen=True)
class Wire:
    """All that was measured.

    - rows: in the file's order. paired: {(dataset, reader, comparison): row}. latency: {reader: {path: rows by
      length}}.
    - parts: {part of a message: (bytes for one reader, bytes for all of them)}. examples: rows as they are.
    """

    rows: Sequence[Measured]
    paired: Mapping[tuple[str, str, str], Compared] = field(default_factory=dict)
    latency: Mapping[str, Mapping[str, Sequence[Timed]]] = field(default_factory=dict)
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

    def of(self, dataset: str, reader: str, path: str) -> list[Measured]:
        """The rows of a path by their bytes."""
        found = [row for row in self.rows if (row.dataset, row.reader, row.path) == (dataset, reader, path)]
        return sorted(found, key=lambda row: row.bytes)

    def main(self, dataset: str, reader: str, path: str) -> Measured | None:
        """The path at the trained setting: the row that says so, or the one of the same num_latents and bits, or the
        only one.
        """
        rows = self.of(dataset, reader, path)
        marked = [row for row in rows if row.main]
        if marked or path == LATENT or len(rows) < 2:
            return next(iter(marked or rows), None)
        latent = self.main(dataset, reader, LATENT)
        alike = [
            row
            for row in rows
            if latent is not None and (row.num_latents, row.bits) == (latent.num_latents, latent.bits)
        ]
        fits = [row for row in rows if latent is not None and row.bytes <= latent.bytes + 0.5]
        return next(iter(alike or fits[-1:] or rows), None)

    def stands(self, dataset: str, reader: str, first: str, second: str) -> int | None:
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

    def reach(self, dataset: str, reader: str, first: str, second: str) -> float:
        """The most that the first path may be better by: the upper end of the paired interval, or of the two intervals;
        NaN without them.
        """
        found = self.paired.get((dataset, reader, f"{first}-{second}"))
        if found is not None and found.difference.error is not None:
            return found.difference.high
        a, b = self.main(dataset, reader, first), self.main(dataset, reader, second)
        return a.f1.high - b.f1.low if a is not None and b is not None else math.nan

    def opponent(self, dataset: str, reader: str) -> Measured | None:
        """The best of what as many bytes of text give: the head, the tail or a deflated head."""
        found = [row for path in EQUAL_BYTES if (row := self.main(dataset, reader, path)) is not None]
        return max(found, key=lambda row: row.f1.value, default=None)


def load(run: RunFiles, problems: list[str] | None = None) -> Wire | None:
    """The tables of a run; None without a score. What is wrong with a file goes to the problems."""
    place = RunFolder(run.folder)
    rows = _rows(table_of(place, "latentwire", problems))
    if not rows:
        return None
    tables = {
        name: table_of(place, f"latentwire_{name}", problems) for name in ("paired", "latency", "bytes", "examples")
    }
    return Wire(
        rows, _paired(tables["paired"]), _latency(tables["latency"]), _parts(tables["bytes"]), tables["examples"]
    )


def _rows(table: Table) -> list[Measured]:
    found = []
    for row in table:
        num_latents, bits, size, ratio, ratio_mean, prefill, questions = reals(
            row, "num_latents", "bits", "bytes", "ratio", "ratio_mean", "prefill_tokens", "questions"
        )
        f1, em = Score(*reals(row, *SCORES[:3])), Score(*reals(row, *SCORES[3:]))
        if row.get("path") in WORDS and math.isfinite(f1.value) and math.isfinite(size):
            found.append(
                Measured(
                    row.get("dataset", ""),
                    row.get("reader", ""),
                    row["path"],
                    num_latents,
                    bits,
                    size,
                    ratio,
                    ratio_mean,
                    prefill,
                    f1,
                    em,
                    reals(row, "first1", "first5", "first10"),
                    questions,
                    row.get("main", "").lower() in ("1", "1.0", "true"),
                )
            )
    return found


def _paired(table: Table) -> dict[tuple[str, str, str], Compared]:
    found = {}
    for row in table:
        one = Compared(
            Score(*reals(row, "difference", "low", "high")),
            *reals(row, "p"),
            Score(*reals(row, "ratio", "ratio_low", "ratio_high")),
        )
        if math.isfinite(one.difference.value):
            found[row.get("dataset", ""), row.get("reader", ""), row.get("comparison", "")] = one
    return found


def _latency(table: Table) -> dict[str, dict[str, list[Timed]]]:
    found: dict[str, dict[str, list[Timed]]] = {}
    for row in table:
        one = Timed(
            *reals(
                row,
                "context_bytes",
                "num_latents",
                "encode_ms",
                "adapt_ms",
                "prefill_ms",
                "total_ms",
                "total_p90_ms",
                "prefill_tokens",
                "memory_mib",
            )
        )
        if row.get("path") in (LATENT, TEXT) and one.context_bytes > 0 and one.total > 0:
            found.setdefault(row.get("reader", ""), {}).setdefault(row["path"], []).append(one)
    return {
        reader: {path: sorted(rows, key=lambda one: one.context_bytes) for path, rows in paths.items()}
        for reader, paths in found.items()
    }


def _parts(table: Table) -> dict[str, tuple[float, float]]:
    """Parts in the file's order; a line that sums them up is left out, the sum is taken anew."""
    found = {}
    for row in table:
        one, every, plain = reals(row, "reader_bytes", "broadcast_bytes", "bytes")
        if row.get("part", "").lower() not in ("", "total", "sum", "all") and math.isfinite(
            one if math.isfinite(one) else plain
        ):
            found[row["part"]] = (one if math.isfinite(one) else plain, every)
    return found


# Curves --------------------------------------------------------------------------------------------------------------


def by_bits(wire: Wire, dataset: str, reader: str) -> dict[float, list[Measured]]:
    """{bits: the latent rows by bytes}, the trained setting's bits first."""
    rows, main = wire.of(dataset, reader, LATENT), wire.main(dataset, reader, LATENT)
    kinds = dict.fromkeys(([main.bits] if main else []) + sorted({row.bits for row in rows if math.isfinite(row.bits)}))
    return {
        bits: own
        for bits in kinds
        if (own := [row for row in rows if row.bits == bits or (math.isnan(bits) and math.isnan(row.bits))])
    }


def distinct(rows: Iterable[Measured]) -> list[Measured]:
    """One row for each number of bytes: settings of equal size have the same part of the text."""
    return list({round(row.bytes, 2): row for row in rows}.values())


def alike(row: Measured, rows: Iterable[Measured]) -> Measured | None:
    """The row of the same number of latents, and of the same bits where rows say them; None without one."""
    found = [one for one in rows if one.num_latents == row.num_latents]
    return next(
        (one for one in found if one.bits == row.bits), next((one for one in found if math.isnan(one.bits)), None)
    )


# Times ---------------------------------------------------------------------------------------------------------------


def num_latents_timed(paths: Mapping[str, Sequence[Timed]]) -> list[float]:
    """The numbers of latents that were timed, by size."""
    return sorted({row.num_latents for row in paths.get(LATENT, ()) if math.isfinite(row.num_latents)})


def with_num_latents(paths: Mapping[str, Sequence[Timed]], num_latents: float) -> list[Timed]:
    """The rows of one number of latents by length."""
    return [row for row in paths.get(LATENT, ()) if row.num_latents == num_latents]


def four_times(paths: Mapping[str, Sequence[Timed]], num_latents: float) -> float:
    """Bytes of the context that is four times as many tokens as there are latents; NaN beyond the lengths that were
    measured.

    Tokens of the context are the positions of the text path less those that the latent path has beside its latents (the
    question).
    """
    own = [row.positions - num_latents for row in with_num_latents(paths, num_latents) if math.isfinite(row.positions)]
    beside = max(0.0, min(own)) if own else 0.0
    text = [(row.positions - beside, row.context_bytes) for row in paths.get(TEXT, ()) if math.isfinite(row.positions)]
    if len(text) < 2 or not text[0][0] <= OFTEN * num_latents <= text[-1][0]:
        return math.nan
    return interpolate(text, [OFTEN * num_latents])[0]


def at(rows: Sequence[Timed], place: float) -> float:
    """Milliseconds to the first token at a length between those that were measured; NaN beyond them."""
    if len(rows) < 2 or not rows[0].context_bytes <= place <= rows[-1].context_bytes:
        return math.nan
    return interpolate([(row.context_bytes, row.total) for row in rows], [place])[0]


def faster_from(paths: Mapping[str, Sequence[Timed]], num_latents: float) -> float:
    """The shortest measured context from which on the latents are always faster than the text; NaN if they are not at
    the longest one.
    """
    text, found = {row.context_bytes: row.total for row in paths.get(TEXT, ())}, math.nan
    for row in reversed([row for row in with_num_latents(paths, num_latents) if row.context_bytes in text]):
        if row.total >= text[row.context_bytes]:
            break
        found = row.context_bytes
    return found

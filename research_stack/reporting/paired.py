"""Settings compared seed by seed: mean paired difference, its interval, a sign-flip test; the statistics are
`evaluation.paired`'s.

Runs of one seed share initial weights, data order and documents, so their difference varies less than either: pairing
by seed tells settings apart that two standard errors cannot.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from research_stack.metrics.paired import FLIPS, MOST_GROUPS, mean, sign_flip
from research_stack.records.sweep_table import Row, SweepTable, show_mean
from research_stack.reporting.html import Html, el
from research_stack.reporting.sections import listing
from research_stack.reporting.sweep_axes import better, label_of, metric_words, worth_plotting

MOST_METRICS, MOST_SETTINGS, MOST_ROWS = 6, 8, 30


@dataclass(frozen=True)
class Paired:
    """The difference of one metric between two settings.

    - n: seeds that both have. difference: mean over them of first less second; error: its standard error.
    - low, high: 95 % interval (Student's t, n - 1 degrees of freedom).
    - p: share of the 2^n sign flips whose mean is at least as far from zero; of random ones for more than 16 seeds.
    """

    metric: str
    first: str
    second: str
    n: int
    difference: float
    error: float
    low: float
    high: float
    p: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.low <= 0 <= self.high


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float, float, float]:
    """(mean difference, standard error, low, high, p) of n >= 2 pairs; ValueError for fewer."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if len(differences) < 2:
        raise ValueError(f"n={len(differences)}: a paired comparison needs two seeds")
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    _, low, high = mean(differences)
    return statistics.fmean(differences), error, low, high, sign_flip(differences)


def comparisons(table: SweepTable) -> list[Paired]:
    """Every pair of settings that share two seeds, on the main metrics; of more than eight settings each with the best
    one.
    """
    metrics = [m for m in worth_plotting(table) if better(m) is not None][:MOST_METRICS]
    found = (_compare(table, metric, a, b) for metric in metrics for a, b in _pairs(table, metric))
    return [one for one in found if one is not None]


def _pairs(table: SweepTable, metric: str) -> Iterator[tuple[Row, Row]]:
    if len(table.rows) <= MOST_SETTINGS:
        return itertools.combinations(table.rows, 2)
    means = [(mean, row) for row in table.rows if (mean := row.mean(metric)) is not None and math.isfinite(mean)]
    best = (min if better(metric) else max)(means, key=lambda pair: pair[0])[1] if means else None
    return iter((row, best) for row in table.rows if best is not None and row is not best)


def _compare(table: SweepTable, metric: str, a: Row, b: Row) -> Paired | None:
    """None for fewer than two seeds that both have a finite value."""
    of_a, of_b = by_seed(table, a, metric), by_seed(table, b, metric)
    seeds = [seed for seed in of_a if seed in of_b]
    if len(seeds) < 2:
        return None
    numbers = paired([of_a[seed] for seed in seeds], [of_b[seed] for seed in seeds])
    return Paired(metric, label_of(a, table), label_of(b, table), len(seeds), *numbers)


def by_seed(table: SweepTable, row: Row, metric: str) -> dict[Any, float]:
    """{seed: finite value of the metric} of a setting; runs without a seed are left out."""
    metrics = {point.folder: point.metrics for point in table.points}
    values = {
        seed: metrics.get(folder, {}).get(metric, math.nan)
        for folder, seed in zip(row.points, row.seeds, strict=True)
        if seed is not None
    }
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


# Words ---------------------------------------------------------------------------------------------------------------

HEADER = ("metric", "difference", "mean ± standard error", "95 % interval", "p, sign flips", "seeds")


def as_cells(one: Paired) -> list[str]:
    """A comparison under HEADER."""
    p = f"{one.p:.3g}" if math.isfinite(one.p) else "-"
    places = max(0, 1 - math.floor(math.log10(one.error))) if one.error > 0 else 0
    form = f".{places}f" if 0 < one.error and places < 8 else ".4g"
    interval = f"{one.low:{form}} to {one.high:{form}}"
    return [
        metric_words(one.metric),
        " − ".join(f"({name})" if "→" in name else name for name in (one.first, one.second)),
        show_mean(one.difference, one.error),
        interval,
        p,
        str(one.n),
    ]


def note(found: Sequence[Paired], settings: int) -> str:
    """What the columns mean and what so few seeds cannot show."""
    few = min(one.n for one in found)
    least = (
        f"With {few} seeds p cannot be below {2 / 2**few:.3g}, whatever the difference: the interval, which takes the"
        " differences for normal, says more. "
        if few < 6
        else ""
    )
    compared = "Each setting is compared with the best one of the metric. " if settings > MOST_SETTINGS else ""
    return (
        "Mean over seeds of the difference between runs of the same seed. The interval is Student's t with one degree"
        f" of freedom less than seeds; p is the share of all sign flips of the differences (of {FLIPS:,} random ones"
        f" beyond {MOST_GROUPS} seeds) whose mean is at least as far from zero. {least}{compared}Nothing is corrected"
        " for the number of comparisons."
    )


def section(table: SweepTable) -> list[Html] | None:
    """The table; None if no two settings share two seeds."""
    found = comparisons(table)
    if not found:
        return None
    lines = el(
        "div",
        listing(HEADER, [(as_cells(one), one.differs) for one in found], text=(0, 1)),
        class_="scroll",
        tabindex="0",
    )
    shown = lines if len(found) <= MOST_ROWS else el("details", el("summary", f"{len(found)} comparisons"), lines)
    words = note(found, len(table.rows)) + " Bold: the interval leaves out zero."
    return [el("h2", "Differences, seed by seed"), shown, el("p", words, class_="note")]


def as_markdown(table: SweepTable) -> str:
    """The same for results.md; empty if there is nothing to compare."""
    found = comparisons(table)
    if not found:
        return ""
    lines = [HEADER, ["---", "---", *["---:"] * (len(HEADER) - 2)], *map(as_cells, found)]
    body = "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |" for cells in lines)
    return f"## Differences, seed by seed\n\n{body}\n\n{note(found, len(table.rows))}\n"

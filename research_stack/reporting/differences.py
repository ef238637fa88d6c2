"""Settings of a sweep compared seed by seed, on the page and in results.md. The numbers are those of
`evaluation.seed_differences`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

from research_stack.records.csv_tables import as_csv
from research_stack.records.sweep_table import show_mean
from research_stack.reporting.contract import Metrics
from research_stack.reporting.elements import folded, listing, note, scrolled, span
from research_stack.reporting.html import Node, el

MAX_ROWS = 30
HEADER = ("metric", "difference", "mean ± standard error", "95 % interval", "p, sign flips", "seeds")


@dataclass(frozen=True)
class SettingDifference:
    """The difference of one metric between two settings.

    - seeds: those that both have, 2 or more. difference: mean over them of first less second; error: its standard
      error. low, high: 95 % interval. p: of sign flips; smallest_p: the smallest that so many seeds can have.
    """

    metric: str
    first: str
    second: str
    seeds: int
    difference: float
    error: float
    low: float
    high: float
    p: float
    smallest_p: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.low <= 0 <= self.high


def csv(found: Sequence[SettingDifference]) -> str:
    """The differences as a table for differences.csv."""
    return as_csv([field.name for field in fields(SettingDifference)], (astuple(one) for one in found))


def cells(one: SettingDifference, metrics: Metrics) -> list[str]:
    """A comparison under HEADER."""
    decimals = max(0, 1 - math.floor(math.log10(one.error))) if one.error > 0 else 0
    form = f"{{:.{decimals}f}}" if 0 < one.error and decimals < 8 else "{:.4g}"
    return [
        metrics.of(one.metric).label,
        " − ".join(f"({name})" if "→" in name else name for name in (one.first, one.second)),
        show_mean(one.difference, one.error),
        span(one.low, one.high, form),
        f"{one.p:.3g}" if math.isfinite(one.p) else "-",
        str(one.seeds),
    ]


def words(found: Sequence[SettingDifference]) -> str:
    """What the columns mean and what so few seeds cannot show."""
    few = min(found, key=lambda one: one.seeds)
    smallest = (
        f" With {few.seeds} seeds p cannot be below {few.smallest_p:.3g}, whatever the difference: the interval, which"
        " takes the differences for normal, says more."
        if few.seeds < 6
        else ""
    )
    return (
        "Mean over seeds of the difference between runs of the same seed. The interval is Student's t with one degree"
        " of freedom less than seeds; p is the share of sign flips of the differences whose mean is at least as far"
        f" from zero.{smallest} Of many settings each is compared with the best one of the metric. Nothing is corrected"
        " for the number of comparisons."
    )


def section(found: Sequence[SettingDifference], metrics: Metrics) -> Node:
    """The table; None if no two settings share two seeds."""
    if not found:
        return None
    lines = scrolled(listing(HEADER, [(cells(one, metrics), one.differs) for one in found], text=(0, 1)), wrap=True)
    shown = lines if len(found) <= MAX_ROWS else folded(f"{len(found)} comparisons", lines)
    return [el("h2", "Differences, seed by seed"), shown, note(f"{words(found)} Bold: the interval leaves out zero.")]


def as_markdown(found: Sequence[SettingDifference], metrics: Metrics) -> str:
    """The same for results.md; empty if there is nothing to compare."""
    if not found:
        return ""
    rule = ["---", "---", *["---:"] * (len(HEADER) - 2)]
    lines = [HEADER, rule, *(cells(one, metrics) for one in found)]
    body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"\n## Differences, seed by seed\n\n{body}\n\n{words(found)}\n"

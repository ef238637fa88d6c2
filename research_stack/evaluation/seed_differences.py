"""Settings of a sweep compared seed by seed: mean paired difference, its interval, a sign-flip test.

Runs of one seed share initial weights, data order and documents, so their difference varies less than either: pairing
by seed tells settings apart that two standard errors cannot.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from research_stack.metrics.paired import between_seeds
from research_stack.records.sweep_table import Row, SweepTable
from research_stack.reporting.contract import Metrics, reports_of_sweep
from research_stack.reporting.differences import SettingDifference
from research_stack.reporting.sweep_axes import label_of, plotted
from research_stack.reporting.sweep_declared import comparable

MAX_METRICS, MAX_SETTINGS = 6, 8


def seed_differences(table: SweepTable) -> list[SettingDifference]:
    """Every pair of settings that share two seeds, on the main metrics; of more than eight settings each with the best
    one. None where a report says that the settings cannot be compared.
    """
    if not comparable(table):
        return []
    metrics = Metrics(reports_of_sweep(table))
    names = [name for name in plotted(table, metrics) if metrics.of(name).better is not None][:MAX_METRICS]
    found = (_compare(table, name, a, b) for name in names for a, b in _pairs(table, name, metrics))
    return [one for one in found if one is not None]


def _pairs(table: SweepTable, name: str, metrics: Metrics) -> Iterator[tuple[Row, Row]]:
    if len(table.rows) <= MAX_SETTINGS:
        return itertools.combinations(table.rows, 2)
    means = [(mean, row) for row in table.rows if (mean := row.mean(name)) is not None and math.isfinite(mean)]
    choose = min if metrics.of(name).better == "lower" else max
    best = choose(means, key=lambda pair: pair[0])[1] if means else None
    return iter((row, best) for row in table.rows if best is not None and row is not best)


def _compare(table: SweepTable, name: str, a: Row, b: Row) -> SettingDifference | None:
    """None for fewer than two seeds that both have a finite value."""
    of_a, of_b = by_seed(table, a, name), by_seed(table, b, name)
    seeds = [seed for seed in of_a if seed in of_b]
    if len(seeds) < 2:
        return None
    numbers = between_seeds([of_a[seed] for seed in seeds], [of_b[seed] for seed in seeds])
    return SettingDifference(name, label_of(a, table), label_of(b, table), len(seeds), *numbers)


def by_seed(table: SweepTable, row: Row, name: str) -> dict[Any, float]:
    """{seed: finite value of the metric} of a setting; runs without a seed are left out."""
    metrics = {point.folder: point.metrics for point in table.points}
    values = {
        seed: metrics.get(folder, {}).get(name, math.nan)
        for folder, seed in zip(row.points, row.seeds, strict=True)
        if seed is not None
    }
    return {seed: value for seed, value in values.items() if math.isfinite(value)}

"""Statistics over the seeds of one setting: mean, standard error, range. What a page shows of them is computed here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence


def mean_of_finite(values: Iterable[float]) -> float:
    """The mean of the values that are finite; NaN if none is."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def standard_error(values: Sequence[float]) -> float | None:
    """sd / sqrt(n) with the sd of a sample (n - 1); None for fewer than two values, NaN where one is not finite."""
    if len(values) < 2:
        return None
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))


def mean_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, lowest, highest) of one value or more."""
    return statistics.fmean(values), min(values), max(values)

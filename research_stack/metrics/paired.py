"""Two ways to the same questions compared: difference and ratio of their means, and how likely chance makes as much.

Both ways answer the same questions, and some questions are hard for both: their difference varies less than either.
Questions of one context depend on one another, so give `group_n` where there are several.

Shapes: n questions, g groups of questions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from research_stack.metrics.calibration import columns
from research_stack.metrics.interval import Clustered, Estimate, around, clustered, per_token, ratio_interval
from research_stack.require import require

FLIPS = 9999  # random sign flips where there are too many to try all
MOST_GROUPS = 16  # up to which all 2^g sign flips are tried
BLOCK = 1 << 20  # signs that are held at a time


class Sortable(Hashable, Protocol):
    """What a dictionary can hold and `sorted` can put in order."""

    def __lt__(self, other: Any, /) -> bool: ...


Key = TypeVar("Key", bound=Sortable)  # of a question


class Comparison(NamedTuple):
    """`difference`, `ratio` and `p` as the functions of these names say; n: questions."""

    difference: Estimate
    ratio: Estimate
    p: float
    n: int


def compare(a_n: ArrayLike, b_n: ArrayLike, group_n: ArrayLike | None = None, seed: int = 0) -> Comparison:
    """All that this module says of scores a_n against scores b_n of the same questions, each >= 0."""
    a_n, b_n = columns(a_n=a_n, b_n=b_n)
    return Comparison(
        paired(a_n, b_n, group_n), ratio(a_n, b_n, group_n), sign_flip(a_n - b_n, group_n, seed=seed), len(a_n)
    )


def mean(a_n: ArrayLike, group_n: ArrayLike | None = None) -> Estimate:
    """Mean of n values with its 95 % interval over groups (`interval`; None: every question is one)."""
    (a_n,) = columns(a_n=a_n)
    return around(float(a_n.mean()), _over_groups(a_n, group_n))


def paired(a_n: ArrayLike, b_n: ArrayLike, group_n: ArrayLike | None = None) -> Estimate:
    """mean(a) - mean(b) with its 95 % interval over groups: that of the differences, question by question.

    - a_n, b_n: a score of each of n questions, in the same order. group_n: what belongs together; None: every question
      is one group.

    The interval is NaN for fewer than 2 groups. Raises ValueError for values that are not finite, or not of one shape
    (n,) with n > 0.
    """
    a_n, b_n = columns(a_n=a_n, b_n=b_n)
    return mean(a_n - b_n, group_n)


def ratio(a_n: ArrayLike, b_n: ArrayLike, group_n: ArrayLike | None = None) -> Estimate:
    """mean(a) / mean(b) with its 95 % interval over groups (`ratio_interval`), up to infinity where mean(b) may be 0;
    the value is infinite where b alone is 0, NaN where both are.

    Raises ValueError as `paired` does, and for values below 0.
    """
    a_n, b_n = columns(a_n=a_n, b_n=b_n)
    require(min(a_n.min(), b_n.min()) >= 0, f"a_n={a_n.min()} and b_n={b_n.min()} at their lowest must be at least 0")
    above, below = float(a_n.mean()), float(b_n.mean())
    if not above and not below:
        return Estimate(math.nan, math.nan, math.nan)
    return Estimate(
        above / below if below else math.inf, *ratio_interval(_over_groups(np.stack([a_n, b_n], axis=1), group_n))
    )


def over_runs(
    pairs: Sequence[tuple[Mapping[Key, float], Mapping[Key, float]]], group_of: Callable[[Key], Hashable]
) -> tuple[Estimate, int]:
    """(mean difference of the first scores of each pair and the second ones, with its 95 % interval; how many questions
    it is of).

    Each pair holds the scores of two runs, say of one seed, by question; what only one of them was asked does not
    count. A question's difference is its mean over the pairs in which both were asked it, so that several seeds make
    the interval over groups of questions no narrower than it is.

    - group_of: what a question belongs to. NaN without a question, and for the ends with fewer than two groups.
    """
    differences: dict[Key, list[float]] = {}
    for first, second in pairs:
        for question in first.keys() & second.keys():
            differences.setdefault(question, []).append(first[question] - second[question])
    if not differences:
        return Estimate(math.nan, math.nan, math.nan), 0
    questions = sorted(differences)
    values = [statistics.fmean(differences[question]) for question in questions]
    index: dict[Hashable, int] = {}
    group_n = [index.setdefault(group_of(question), len(index)) for question in questions]
    found = per_token(values, [1.0] * len(values), group_n)
    return Estimate(statistics.fmean(values), found.low, found.high), len(values)


class SeedDifference(NamedTuple):
    """Mean difference of runs of the same seeds: standard error, 95 % interval, p of sign flips, the smallest p that so
    many seeds can have.
    """

    difference: float
    error: float
    low: float
    high: float
    p: float
    smallest_p: float


def between_seeds(a_n: Sequence[float], b_n: Sequence[float]) -> SeedDifference:
    """A metric of two settings, run for run of n >= 2 seeds; the interval is Student's t with n - 1 degrees of freedom.

    Raises ValueError for one seed, and as `paired` does.
    """
    differences = [a - b for a, b in zip(a_n, b_n, strict=True)]
    require(len(differences) > 1, f"n={len(differences)}: a paired comparison needs two seeds")
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    _, low, high = mean(differences)
    smallest = 2 / 2 ** len(differences)
    return SeedDifference(statistics.fmean(differences), error, low, high, sign_flip(differences), smallest)


def _over_groups(values_nK: np.ndarray, group_n: ArrayLike | None) -> Clustered:
    return clustered(values_nK, np.ones(len(values_nK)), _groups(group_n, len(values_nK)))


def sign_flip(difference_n: ArrayLike, group_n: ArrayLike | None = None, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p-value of "the sign of each group's total is random": the share of sign flips whose sum is at least as
    far from 0.

    Groups whose total is 0 have no sign and are left out. Up to 16 others all 2^g flips are tried and p is exact;
    beyond, random ones are drawn and p = (1 + as far) / (1 + drawn), which is never too small (Phipson and Smyth 2010).
    1 where all totals are 0.

    - difference_n: of n questions, finite. group_n: as in `paired`. flips: random ones.

    Raises ValueError as `paired` does and for flips < 1.
    """
    (difference_n,) = columns(difference_n=difference_n)
    require(flips >= 1, f"flips={flips} must be at least 1")
    _, index_n = np.unique(_groups(group_n, len(difference_n)), return_inverse=True)
    total_g = np.bincount(index_n, weights=difference_n)
    slack = 1e-12 * np.abs(difference_n).sum()  # equal sums may differ by rounding
    total_g = total_g[np.abs(total_g) > slack]
    enough = abs(total_g.sum()) - slack
    if len(total_g) <= MOST_GROUPS:
        signs_Sg = np.arange(1 << len(total_g))[:, None] >> np.arange(len(total_g)) & 1
        return float((np.abs(signs_Sg * 2 @ total_g - total_g.sum()) >= enough).mean())
    rng, far, rows = np.random.default_rng(seed), 0, max(1, BLOCK // len(total_g))
    for start in range(0, flips, rows):
        signs_Sg = rng.integers(2, size=(min(rows, flips - start), len(total_g)), dtype=np.int8)
        far += np.count_nonzero(np.abs(signs_Sg @ (2 * total_g) - total_g.sum()) >= enough)
    return (1 + far) / (1 + flips)


def _groups(group_n: ArrayLike | None, count: int) -> np.ndarray:
    group_n = np.arange(count) if group_n is None else np.asarray(group_n)
    require(group_n.shape == (count,), f"group_n={group_n.shape} must be of shape ({count},)")
    return group_n

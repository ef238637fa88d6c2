"""95 % intervals over independent groups (documents, articles, prompts), of which rows, questions or answers are parts.

One kind for all: the spread between groups, corrected for how few and how unequal they are, and a quantile of
Student's t.

- `per_token`, `clustered`: means of parts, sum over sum: residuals of the groups, each over sqrt(1 - its share of all
  parts) (CR2, Bell and McCaffrey 2002), with the degrees of freedom of their unequal sizes (`degrees_of_freedom`).
- `ratio_interval`: of a ratio of two such means, by Fieller (1954), which stays right where the lower one is near 0.
- `jackknife`: of any other statistic, from its values without each group in turn (Tukey 1958), on a scale on which it
  is about symmetric.

Simulated coverage (`python benchmarks/coverage.py`): .93 to .97 from 5 groups on, of very different sizes; .92 where
they differ lopsidedly too. Shares near 0 or 1 that few groups make up have short ones: for pass@8 of .91 it is .71 with
5 prompts, .82 with 10 and .89 with 30, and as much for what is read off it. Below `FEW` = 5 groups the intervals are
given all the same, and are wide: Student's t has 12.7 standard errors for two. That the means of groups are normal is
then taken on trust, and where they are not the interval may be too narrow: whoever prints one says so (`warn_few`). No
interval can know of kinds of groups that the sample has none of: where all groups agree it is a point.

Shapes: n parts, g groups, K means.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

log = logging.getLogger(__name__)

FEW = 5  #: groups below which an interval may be too narrow
OWN_SHARE = (
    0.25  # of a group of mean size: variance that its parts share, over what they have apart; see `degrees_of_freedom`
)
MOST_LEFT_OUT = 400  # statistics that a jackknife computes

Scale = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]
PLAIN: Scale = (lambda x: x, lambda x: x)
NEAREST = 1e-12  # to a perfect prediction, which is infinitely far on both scales
CORRELATION: Scale = (lambda r: np.arctanh(np.clip(r, NEAREST - 1, 1 - NEAREST)), np.tanh)
EXPLAINED: Scale = (
    lambda r2: np.log(np.maximum(1 - r2, NEAREST)),
    lambda x: 1 - np.exp(x),
)  #: the share that R2 leaves, as a logarithm


class Estimate(NamedTuple):
    """A value with its 95 % interval; the interval is NaN for fewer than two independent groups."""

    value: float
    low: float
    high: float


class Clustered(NamedTuple):
    """(K,) means of parts, their (K, K) covariance over draws of groups (NaN for one group), its degrees of freedom."""

    mean_K: np.ndarray
    covariance_KK: np.ndarray
    degrees_of_freedom: float


def per_token(
    nats_n: ArrayLike, tokens_n: ArrayLike, group_n: ArrayLike | None = None, balanced_n: ArrayLike | None = None
) -> Estimate:
    """Total nats over total tokens of n sequences, with its interval (`clustered`).

    Groups are taken to be independent draws; sequences of one document are not. Where nats_n are themselves unbiased
    Monte-Carlo estimates, their noise is part of the spread between groups, so the interval covers it too. It does not
    cover a new training run.

    - nats_n: float (n,). tokens_n: scored tokens of each sequence (n,); those without any are left out.
    - group_n: what belongs together (n,); None: every sequence is a group of its own.
    - balanced_n: the part of nats_n that the design of the Monte-Carlo draws balances out over all sequences
      (`levels`): it is no part of the spread. None: nothing is.

    Raises ValueError if there is no token at all.
    """
    nats_n, tokens_n = np.asarray(nats_n, dtype=np.float64), np.asarray(tokens_n, dtype=np.float64)
    scored_n = tokens_n > 0
    if not scored_n.any():
        raise ValueError("tokens_n=0: no validation token may be scored")
    group_n = np.arange(len(nats_n)) if group_n is None else np.asarray(group_n)
    varied_n = nats_n if balanced_n is None else nats_n - np.asarray(balanced_n, dtype=np.float64)
    (ratio,) = clustered(nats_n[scored_n], tokens_n[scored_n], group_n[scored_n]).mean_K
    return around(float(ratio), clustered(varied_n[scored_n], tokens_n[scored_n], group_n[scored_n]))


def around(value: float, found: Clustered) -> Estimate:
    """The value with the interval of the first mean of `found`."""
    half_width = t_quantile(found.degrees_of_freedom) * float(np.sqrt(found.covariance_KK[0, 0]))
    return Estimate(value, value - half_width, value + half_width)


def clustered(values_nK: ArrayLike, size_n: ArrayLike, group_n: ArrayLike) -> Clustered:
    """Sums of values over the sum of sizes, with their covariance from the residuals of groups.

    - values_nK: float (n, K), or (n,) for K = 1. size_n: above 0 (n,). group_n: what belongs together (n,).
    """
    values_nK, size_n = np.asarray(values_nK, dtype=np.float64), np.asarray(size_n, dtype=np.float64)
    _, index_n = np.unique(np.asarray(group_n), return_inverse=True)
    sums_Kg = [np.bincount(index_n, weights=column_n) for column_n in np.atleast_2d(values_nK.T)]
    size_g = np.bincount(index_n, weights=size_n)
    mean_K = np.array([sums_g.sum() / size_g.sum() for sums_g in sums_Kg])
    if len(size_g) < 2:
        return Clustered(mean_K, np.full((len(mean_K), len(mean_K)), np.nan), np.nan)
    rest_Kg = (np.stack(sums_Kg) - np.outer(mean_K, size_g)) / size_g.sum() / np.sqrt(1 - size_g / size_g.sum())
    return Clustered(mean_K, rest_Kg @ rest_Kg.T, degrees_of_freedom(size_g))


def degrees_of_freedom(size_g: ArrayLike) -> float:
    """Degrees of freedom of the variance of `clustered` (Bell and McCaffrey 2002): groups - 1 where all are of one
    size, else fewer.

    They are those of normal sums of groups with variances m s + s^2 / 4, s the size of a group and m the mean size:
    parts vary by themselves, and a quarter as much by what the parts of a group of mean size share.
    """
    size_g = np.asarray(size_g, dtype=np.float64)
    share_g = size_g / size_g.sum()
    variance_g = size_g * size_g.mean() + OWN_SHARE * size_g**2
    total, weight_g = variance_g.sum(), 1 / (1 - share_g)
    # Residuals are (I - share 1') y, so their covariance is
    # diag(variance) - share variance' - variance share' + total share share'.
    a_g, b_g, own_g = np.sqrt(weight_g) * share_g, np.sqrt(weight_g) * variance_g, weight_g * variance_g
    trace = (weight_g * (variance_g - 2 * share_g * variance_g + share_g**2 * total)).sum()
    aa, bb, ab = a_g @ a_g, b_g @ b_g, a_g @ b_g
    square = (
        own_g @ own_g
        + 2 * own_g @ (total * a_g**2 - 2 * a_g * b_g)
        + 2 * aa * bb
        + 2 * ab**2
        - 4 * total * aa * ab
        + (total * aa) ** 2
    )
    return float(trace**2 / square)


def t_quantile(degrees_of_freedom: float) -> float:
    """97.5 % quantile of Student's t, for any degrees of freedom above 0; NaN for NaN."""
    return float(stdtrit(degrees_of_freedom, 0.975))


def ratio_interval(found: Clustered) -> tuple[float, float]:
    """Which ratios of the first mean to the second one the data do not rule out, both means at least 0: (low, high)
    in [0, inf].

    All r with |mean_0 - r mean_1| within its own interval (Fieller 1954); up to infinity where the second mean may be
    0.
    """
    (above, below), square = found.mean_K, t_quantile(found.degrees_of_freedom) ** 2
    a = below**2 - square * found.covariance_KK[1, 1]
    b = above * below - square * found.covariance_KK[0, 1]
    c = above**2 - square * found.covariance_KK[0, 0]
    if np.isnan(a):
        return np.nan, np.nan
    root = np.sqrt(max(0.0, b * b - a * c))
    if a > 0:
        return float(max(0.0, (b - root) / a)), float(max(0.0, (b + root) / a))
    if a == b == 0:  # nothing below at all
        return (np.inf if c > 0 else 0.0), np.inf
    # The second mean may be 0: all ratios from the larger root on, which is c / (b + root) without cancellation.
    return float(max(0.0, c / (b + root))) if b > 0 and c > 0 else 0.0, np.inf


def jackknife(
    statistic: Callable[[np.ndarray], float], group_n: ArrayLike, scale: Scale = PLAIN
) -> tuple[float, float]:
    """(low, high) of a statistic, from its values without each group in turn; beyond 400 groups, without each of 400
    sets of them.

    - statistic: of the parts where kept_n, bool (n,), is true. group_n: what belongs together (n,).
    - scale: (function, inverse) to a scale on which the statistic is about symmetric, such as `CORRELATION`.

    NaN for fewer than 2 groups, and where it is undefined for all groups or without one of them.
    """
    _, index_n = np.unique(np.asarray(group_n), return_inverse=True)
    index_n = index_n % MOST_LEFT_OUT
    size_g = np.bincount(index_n)
    if len(size_g) < 2:
        return np.nan, np.nan
    value = statistic(np.ones(len(index_n), dtype=bool))
    return from_left_out(value, np.array([statistic(index_n != group) for group in range(len(size_g))]), size_g, scale)


def from_left_out(value: float, without_g: np.ndarray, size_g: np.ndarray, scale: Scale = PLAIN) -> tuple[float, float]:
    """What `jackknife` makes of the value, the values without each group, and the groups' sizes."""
    groups = len(without_g)
    if groups < 2:
        return np.nan, np.nan
    to, back = scale
    middle, moved_g = to(np.asarray(value, dtype=np.float64)), to(np.asarray(without_g, dtype=np.float64))
    error = np.sqrt((groups - 1) / groups * np.square(moved_g - moved_g.mean()).sum())
    half_width = t_quantile(degrees_of_freedom(size_g)) * error
    low, high = sorted((float(back(middle - half_width)), float(back(middle + half_width))))
    return low, high


def clip_interval(estimate: Estimate, lowest: float = -np.inf, highest: float = np.inf) -> Estimate:
    """The estimate with its interval cut to where the truth can lie at all."""
    return Estimate(estimate.value, *(float(np.clip(end, lowest, highest)) for end in estimate[1:]))


def warn_few(group_n: ArrayLike, what: str) -> None:
    """A warning in the log where there are fewer than 5 groups, `what` they are in words ("documents")."""
    if (count := len(np.unique(np.asarray(group_n)))) < FEW:
        log.warning("%s", few_groups_note(count, what))


def few_groups_note(count: int, what: str) -> str:
    """What is to be said beside an interval over so few groups; empty where there are enough."""
    if count >= FEW:
        return ""
    told = "they have no interval" if count < 2 else "their intervals may be too narrow"
    counted = what if count != 1 else what.removesuffix("s")
    return f"Numbers over {count} {counted}: {told}; 95 % is meant from {FEW} {what} on."

"""Right answers among k attempts: pass@k and what is read off its curve, and how well a selector picks.

Every number is unbiased for fresh attempts at a prompt, is taken per prompt, and is averaged with an interval over
prompts (Student's t): attempts at one prompt are no independent draws of the task.

Shapes: P prompts, n attempts in the pool of a prompt, c of them right, k attempts that are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from research_stack.metrics.interval import Estimate, around, clip_interval, clustered, jackknife
from research_stack.require import require

EVERYWHERE = -np.inf, np.inf
SHARE = 0.0, 1.0  #: where the truth of a probability can lie


class Band(NamedTuple):
    """A mean over prompts with its 95 % interval over prompts (`interval`; NaN for fewer than two of them).

    - n: prompts that are averaged. undefined: prompts that have no value and are left out, such as those with too few
      texts.
    """

    value: float
    low: float
    high: float
    n: int
    undefined: int


def over_prompts(values_P: ArrayLike, possible: tuple[float, float] = EVERYWHERE) -> Band:
    """The `Band` of one value per prompt, float (P,), NaN where there is none. Raises ValueError for infinite values.

    - possible: where the mean can lie at all (`SHARE`); the interval is cut to it.
    """
    values_P = np.asarray(values_P, dtype=np.float64)
    require(values_P.ndim == 1, f"values_P={values_P.shape} must be of shape (P,)")
    require(
        not np.isinf(values_P).any(),
        f"values_P={values_P[np.isinf(values_P)][:1]} must be finite, or NaN where there is none",
    )
    known_P = values_P[~np.isnan(values_P)]
    if not len(known_P):
        return Band(np.nan, np.nan, np.nan, 0, len(values_P))
    found = around(float(known_P.mean()), clustered(known_P, np.ones(len(known_P)), np.arange(len(known_P))))
    return Band(*clip_interval(found, *possible), len(known_P), len(values_P) - len(known_P))


# ----------------------------------------------------------------------------------------------------- pass@k
def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> np.ndarray:
    """Probability that k of n attempts, c of them right, drawn without replacement, hold a right one.

    1 - C(n - c, k) / C(n, k), unbiased for k fresh attempts (Chen et al. 2021, equation 1), as a product: nothing
    overflows. Integers that broadcast; float64 of their shape. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    n, c, k = _counts(n, c, k)
    return 1 - _all_of(n - c, n, k)


def pass_hat_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> np.ndarray:
    """Probability that all of k of n attempts are right, C(c, k) / C(n, k) (Yao et al. 2024, pass^k); as `pass_at_k`
    otherwise.
    """
    n, c, k = _counts(n, c, k)
    return _all_of(c, n, k)


def _counts(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    for name, values in {"n": n, "c": c, "k": k}.items():
        require(np.asarray(values).dtype.kind in "iub", f"{name}={values} must be integers")
    n, c, k = (np.asarray(values, dtype=np.int64) for values in np.broadcast_arrays(n, c, k))
    for wrong, name, values, rule in [
        ((c < 0) | (c > n), "c", c, "lie in 0 .. n"),
        ((k < 1) | (k > n), "k", k, "lie in 1 .. n"),
    ]:
        require(not wrong.any(), f"{name}={values[wrong][:1].tolist()} must {rule}, where n={n[wrong][:1].tolist()}")
    return n, c, k


def _all_of(m: np.ndarray, n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """C(m, k) / C(n, k) for m <= n: the probability that k of n, drawn without replacement, are all among m of them."""
    share = np.ones(n.shape)
    for i in range(int(k.max(initial=0))):
        share *= np.where(i < k, np.maximum(m - i, 0) / np.maximum(n - i, 1), 1.0)
    return share


def pass_curve(n_P: ArrayLike, c_P: ArrayLike, ks: Sequence[int], all_right: bool = False) -> dict[int, Band]:
    """pass@k over prompts for each k (`all_right`: pass^k). Raises ValueError where a prompt has fewer than k
    attempts.
    """
    of = pass_hat_k if all_right else pass_at_k
    return {k: over_prompts(of(n_P, c_P, k), SHARE) for k in ks}


# ------------------------------------------------------------------------------------------ what the curve says
def der(at: Mapping[int, float]) -> dict[int, float]:
    """Diversity efficiency ratio pass@k / (k pass@1) of a curve {k: pass@k}: 1 where attempts never overlap, and where
    all attempts at a prompt are the same 1 / k, not 0 (see `normalised_der`). NaN where pass@1 is 0.

    Raises ValueError unless the curve has k = 1 and can be one: pass@1 <= pass@k <= min(1, k pass@1).
    """
    first = _first(at)
    return {k: value / (k * first) if first > 0 else np.nan for k, value in at.items()}


def normalised_der(at: Mapping[int, float]) -> dict[int, float]:
    """(pass@k - pass@1) / (min(1, k pass@1) - pass@1): 0 where all attempts are the same, 1 where no more can be had.

    NaN where pass@1 leaves no room: at k = 1, and where it is 0 or 1. Raises ValueError as `der` does.
    """
    first = _first(at)
    room = {k: min(1.0, k * first) - first for k in at}
    return {k: (value - first) / room[k] if room[k] > 0 else np.nan for k, value in at.items()}


def _first(at: Mapping[int, float]) -> float:
    require(1 in at, f"at={sorted(at)} must hold k=1")
    slack = 1e-9
    for k, value in at.items():
        possible = at[1] - slack <= value <= min(1.0, k * at[1]) + slack and at[1] >= 0
        require(k >= 1 and possible, f"at={{{k}: {value}}} must lie between pass@1={at[1]} and min(1, k pass@1)")
    return float(at[1])


def der_band(n_P: ArrayLike, c_P: ArrayLike, k: int, normalised: bool = True) -> Band:
    """`normalised_der` (or `der`) at k of the mean curve over prompts, with its `jackknife` interval over prompts, in
    [0, 1].
    """
    at_1, at_k = (np.atleast_1d(pass_at_k(n_P, c_P, of)) for of in (1, k))

    def ratio(kept_P: np.ndarray) -> float:
        first, value = (float(at[kept_P].mean()) for at in (at_1, at_k))
        return (normalised_der if normalised else der)({1: first, k: value})[k]

    value = ratio(np.ones(len(at_1), dtype=bool))
    return Band(*clip_interval(Estimate(value, *jackknife(ratio, np.arange(len(at_1)))), *SHARE), len(at_1), 0)


def collapse_point(at: Mapping[int, float], threshold: float = 0.01) -> int | None:
    """The first k that gains less than `threshold` per further attempt since the k before it; None where that is not
    reached.

    {1: .40, 3: .50, 5: .60, 10: .62, 20: .63}: the gains per attempt are .05, .05, .004, .001, so 10 at .01.
    Raises ValueError for fewer than 2 points and for threshold <= 0.
    """
    require(len(at) > 1, f"at={sorted(at)} must hold at least 2 values of k")
    require(threshold > 0, f"threshold={threshold} must be above 0")
    ks = sorted(at)
    return next(
        (k for before, k in zip(ks, ks[1:], strict=False) if (at[k] - at[before]) / (k - before) < threshold), None
    )


# ------------------------------------------------------------------------------------------------- selectors
def picked(score_n: ArrayLike, quality_n: ArrayLike, k: int) -> float:
    """Mean quality of the attempt with the highest score among k of a pool of n: over all C(n, k) subsets, exactly.

    The best of a subset has the score s with probability (C(up to s, k) - C(below s, k)) / C(n, k); of equal scores
    each is picked equally often, so it contributes the mean quality at s. With score = quality this is the expected
    maximum.

    - score_n: the selector's, float (n,); infinite is allowed. quality_n: what the pick is worth, float (n,), finite.

    Raises ValueError unless 1 <= k <= n, for NaN, and for arrays of other shapes.
    """
    score_n, quality_n = np.asarray(score_n, dtype=np.float64), np.asarray(quality_n, dtype=np.float64)
    require(
        score_n.ndim == 1 and score_n.shape == quality_n.shape,
        f"score_n={score_n.shape} must be of the shape of quality_n={quality_n.shape}, (n,)",
    )
    require(
        not np.isnan(score_n).any(),
        f"score_n={np.isnan(score_n).sum()} values are NaN: a selector must score every attempt",
    )
    require(
        bool(np.isfinite(quality_n).all()),
        f"quality_n={quality_n[~np.isfinite(quality_n)][:1].tolist()} must be finite",
    )
    require(1 <= k <= len(score_n), f"k={k} must lie in 1 .. n={len(score_n)}")
    _, index_n, count_S = np.unique(score_n, return_inverse=True, return_counts=True)
    up_to_S = np.cumsum(count_S)
    chance_S = np.diff(_all_of(up_to_S, np.full_like(up_to_S, len(score_n)), np.full_like(up_to_S, k)), prepend=0.0)
    return float(chance_S @ (np.bincount(index_n, weights=quality_n) / count_S))


def selection(score_Pn: Sequence[ArrayLike], quality_Pn: Sequence[ArrayLike], k: int) -> dict[str, Band]:
    """USQ, the quality of a selector's pick among k attempts, over prompts: `picked`, beside what bounds it.

    `oracle`: the best of k. `random`: any of k. `regret`: oracle - picked, per prompt, so its interval is paired.
    Pools may differ in size from prompt to prompt. Raises ValueError as `picked` does.
    """
    pairs = list(zip(score_Pn, quality_Pn, strict=True))
    values = {
        "picked": np.array([picked(score_n, quality_n, k) for score_n, quality_n in pairs]),
        "oracle": np.array([picked(quality_n, quality_n, k) for _, quality_n in pairs]),
        "random": np.array([float(np.asarray(quality_n).mean()) for _, quality_n in pairs]),
    }
    values["regret"] = values["oracle"] - values["picked"]
    return {name: over_prompts(values_P) for name, values_P in values.items()}

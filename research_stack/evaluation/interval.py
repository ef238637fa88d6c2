"""Means per token over sequences, with a 95 % interval that treats documents, not rows, as independent."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

Z95 = 1.959964  # 97.5 % quantile of the standard normal


class Estimate(NamedTuple):
    """A value with its 95 % interval; the interval is NaN for fewer than two independent groups."""

    value: float
    low: float
    high: float


def per_token(nats_n: np.ndarray, tokens_n: np.ndarray, group_n: np.ndarray | None = None) -> Estimate:
    """Total nats over total tokens of n sequences, with the interval of a ratio (delta method, Student's t).

    Groups are taken to be independent draws; sequences of one document are not. Where nats_n are themselves unbiased
    Monte-Carlo estimates, their noise is part of the spread between groups, so the interval covers it too. It does not
    cover a new training run.

    - nats_n: float (n,). tokens_n: scored tokens of each sequence (n,); those without any are left out.
    - group_n: what belongs together, integers (n,); None: every sequence is a group of its own.

    Raises ValueError if there is no token at all.
    """
    nats_n, tokens_n = np.asarray(nats_n, dtype=np.float64), np.asarray(tokens_n, dtype=np.float64)
    scored_n = tokens_n > 0
    if not scored_n.any():
        raise ValueError("tokens_n=0: no validation token may be scored")
    if group_n is not None:
        _, index_n = np.unique(np.asarray(group_n)[scored_n], return_inverse=True)
        nats_n, tokens_n = (np.bincount(index_n, weights=values_n[scored_n]) for values_n in (nats_n, tokens_n))
    else:
        nats_n, tokens_n = nats_n[scored_n], tokens_n[scored_n]
    ratio = nats_n.sum() / tokens_n.sum()
    n = len(nats_n)
    if n < 2:
        return Estimate(float(ratio), float("nan"), float("nan"))
    rest_n = nats_n - ratio * tokens_n
    error = np.sqrt(n / (n - 1) * np.square(rest_n).sum()) / tokens_n.sum()
    reach = student(n - 1) * error
    return Estimate(float(ratio), float(ratio - reach), float(ratio + reach))


def student(freedom: int) -> float:
    """97.5 % quantile of Student's t (Abramowitz & Stegun 26.7.5, to 1/f^2): within 2 % from 4 degrees of freedom on."""
    z = Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)

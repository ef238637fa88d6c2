"""Means per token over sequences, with a 95 % interval."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

Z95 = 1.959964  # 97.5 % quantile of the standard normal


class Estimate(NamedTuple):
    """A value with its 95 % interval; the interval is NaN for fewer than two sequences."""

    value: float
    low: float
    high: float


def per_token(nats_n: np.ndarray, tokens_n: np.ndarray) -> Estimate:
    """Total nats over total tokens of n sequences, with the normal interval of a ratio (delta method).

    The sequences are taken to be independent draws. Where nats_n are themselves unbiased Monte-Carlo estimates, their
    noise is part of the spread between sequences, so the interval covers it too. It does not cover a new training run.

    - nats_n: float (n,). tokens_n: scored tokens of each sequence (n,); those without any are left out.

    Raises ValueError if there is no token at all.
    """
    nats_n, tokens_n = np.asarray(nats_n, dtype=np.float64), np.asarray(tokens_n, dtype=np.float64)
    nats_n, tokens_n = nats_n[tokens_n > 0], tokens_n[tokens_n > 0]
    if len(tokens_n) == 0:
        raise ValueError("tokens_n=0: no validation token may be scored")
    ratio = nats_n.sum() / tokens_n.sum()
    n = len(nats_n)
    if n < 2:
        return Estimate(float(ratio), float("nan"), float("nan"))
    rest_n = nats_n - ratio * tokens_n
    error = np.sqrt(n / (n - 1) * np.square(rest_n).sum()) / tokens_n.sum()
    return Estimate(float(ratio), float(ratio - Z95 * error), float(ratio + Z95 * error))

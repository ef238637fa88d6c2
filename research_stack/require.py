"""Checks that constructors make of their own arguments. No torch, no hydra.

A `require(...)` at the top of a constructor is read twice: when the object is built, and before that by
`check.py`, which evaluates the expression from the source against the composed config without importing
the module. So keep the expressions to parameters, numbers, comparisons, arithmetic and the helpers below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds.

    The message opens with the parameter it speaks of, as in `mask_ratio=1.7 must lie in [0, 1]`: whoever
    builds from a config puts the path of the node in front of it (`corruption.mask_ratio=1.7 ...`).
    """
    if not condition:
        raise ValueError(message)


def low(value: float | Sequence[float]) -> float:
    """The smallest value of a number or of a [low, high] range."""
    return float(min(value)) if isinstance(value, Sequence) else float(value)


def high(value: float | Sequence[float]) -> float:
    """The largest value of a number or of a [low, high] range."""
    return float(max(value)) if isinstance(value, Sequence) else float(value)


def is_rate(value: float | Sequence[float]) -> bool:
    """Whether the value is a number in [0, 1] or an ascending pair of such numbers."""
    if isinstance(value, Sequence):
        return len(value) == 2 and all(is_rate(v) for v in value) and value[0] <= value[1]
    return math.isfinite(value) and 0.0 <= value <= 1.0

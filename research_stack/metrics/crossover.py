"""Where one measured curve comes to lie below another, and a curve between its points.

Shapes: n points of a curve, at x that rise.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from research_stack.metrics.calibration import columns


def always_below_from(x_n: ArrayLike, a_n: ArrayLike, b_n: ArrayLike) -> float:
    """The first of the measured x from which on a is below b up to the last one; NaN where it is not below at the
    last.

    Raises ValueError for values that are not finite or not of one shape (n,) with n > 0.
    """
    x_n, a_n, b_n = columns(x_n=x_n, a_n=a_n, b_n=b_n)
    above_n = np.flatnonzero(a_n >= b_n)
    start = above_n[-1] + 1 if len(above_n) else 0
    return float(x_n[start]) if start < len(x_n) else math.nan


def value_at(x: float, x_n: ArrayLike, value_n: ArrayLike) -> float:
    """The height at x of the straight lines between the points; NaN beyond them and for fewer than two.

    Raises ValueError as `always_below_from` does.
    """
    x_n, value_n = columns(x_n=x_n, value_n=value_n)
    if len(x_n) < 2 or not x_n[0] <= x <= x_n[-1]:
        return math.nan
    return float(np.interp(x, x_n, value_n))

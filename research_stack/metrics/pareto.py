"""Which points are not beaten in everything at once. Numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from research_stack.require import require


def front(points_nM: ArrayLike) -> np.ndarray:
    """(n,) bool: True where no other point is at least as good in all M measures and better in one. Equal points share
    it.

    More is better: hand in the negative of what should be small. Raises ValueError unless points_nM is (n, M) without
    NaN.
    """
    points_nM = np.asarray(points_nM, dtype=np.float64)
    require(points_nM.ndim == 2, f"points_nM={points_nM.shape} must be of shape (n, M)")
    require(not np.isnan(points_nM).any(), f"points_nM={np.isnan(points_nM).sum()} values are NaN; all must be known")
    return np.array(
        [not ((points_nM >= point_M).all(1) & (points_nM > point_M).any(1)).any() for point_M in points_nM], dtype=bool
    )

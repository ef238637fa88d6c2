"""Information in bits that right answers prove."""

from __future__ import annotations

from math import log2

from research_stack.require import require


def fano_bits(exact: float, num_values: int) -> float:
    """The least information in bits that a guess carries about one of `num_values` equally likely values if it is right
    this often.

    max(0, log2 V - h(e) - e log2(V - 1)) with e = 1 - exact and the binary entropy h: Fano's inequality (Cover and
    Thomas 2006, 2.10). It is log2 V for exact = 1 and 0 for guessing, exact = 1 / V. Raises ValueError for exact
    outside [0, 1] and fewer than 2 values.
    """
    require(0 <= exact <= 1, f"exact={exact} must lie in [0, 1]")
    require(num_values >= 2, f"num_values={num_values} must be at least 2")
    wrong = 1 - exact
    if exact <= 1 / num_values:
        return 0.0
    entropy = -sum(share * log2(share) for share in (wrong, exact) if share > 0)
    return max(0.0, log2(num_values) - entropy - wrong * log2(num_values - 1))

"""What a reward model came to, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping


def correlation(metrics: Mapping[str, float], name: str = "reward/") -> str:
    """A sentence on the held-out correlation beside that of the length; empty if it was not measured.

    - metrics: of result.json. name: what stands before the keys of `RewardEvaluation`.
    """
    value, low, high, length = (
        metrics.get(name + key, math.nan) for key in ("pearson", "pearson_low", "pearson_high", "pearson_length")
    )
    if not math.isfinite(value):
        return ""
    control = f"; their length alone {length:.2f}" if math.isfinite(length) else ""
    interval = f" ({low:.2f} to {high:.2f})" if math.isfinite(low) and math.isfinite(high) else ""
    return f"Correlates {value:.2f}{interval} with the engagement of replies to prompts it has not seen{control}."

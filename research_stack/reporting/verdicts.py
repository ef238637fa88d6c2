"""What a next-token model with or without a confidence head came to, in words. Its likelihood is exact: no bound."""

from __future__ import annotations

import math

from research_stack.reporting.reading import RunFiles

FAMILY = "lookahead/"  # the metrics of result.json that these words are made of


def held_out(run: RunFiles) -> str:
    """A sentence on the held-out loss and on the confidence head; empty if neither was measured."""
    value, low, high = _three(run, "nats", "nats_low", "nats_high")
    parts = (
        [f"{value:.2f} nats per held-out token{between(low, high)}{_beside_trigram(run)}"]
        if math.isfinite(value)
        else []
    )
    parts += [words] if (words := _confidence(run)) else []
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def between(low: float, high: float, form: str = "{:.2f}", unit: str = "") -> str:
    """ " (2.55 to 2.67)"; empty without an interval."""
    return f" ({form.format(low)} to {form.format(high)}{unit})" if math.isfinite(low) and math.isfinite(high) else ""


def _three(run: RunFiles, *names: str) -> tuple[float, float, float]:
    value, low, high = (run.metrics.get(FAMILY + name, math.nan) for name in names)
    return value, low, high


def _beside_trigram(run: RunFiles) -> str:
    gain, low, high = _three(run, "gain_over_trigram", "gain_low", "gain_high")
    if not math.isfinite(gain):
        return ""
    if low <= 0 <= high:
        return f", level with a trigram (difference {gain:+.2f}, within its interval)"
    return f", {gain:.2f} below a trigram" if gain > 0 else f", still {-gain:.2f} above a trigram"


def _confidence(run: RunFiles) -> str:
    """What the head explains beside what the entropy explains; empty without a head."""
    value, low, high = _three(run, "r2", "r2_low", "r2_high")
    if not math.isfinite(value):
        return ""
    entropy = run.metrics.get(FAMILY + "r2_entropy", math.nan)
    control = f", an entropy fit {100 * entropy:.0f} %" if math.isfinite(entropy) else ""
    if value <= 0:
        return (
            "the confidence head explains none of the variance of the future loss: R²"
            f" {value:.2f}{between(low, high)}{control}"
        )
    spread = between(100 * low, 100 * high, "{:.0f}", " %")
    return f"the confidence head explains {100 * value:.0f} % of the variance of the future loss{spread}{control}"

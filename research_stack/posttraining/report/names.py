"""What the metrics of a policy's answers are called, and how they are written.

Names are those of `posttraining.answer_metrics`: pass@k, unique_correct@k, self_bleu, distinct_2, entropy and so on;
`_correct` ends those that are taken over correct answers alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

PREFIX = "passk/"  # before the metrics of result.json
HELD_OUT = "held_out_"
CERTAINTY, DIVERSITY, QUALITY = "Certainty", "Diversity", "Correctness"
ENOUGH_PROMPTS = 10  # below, a warning is due
OF_CORRECT = "_correct"
SHARES = ("pass", "preference_pass")


def parts(metric: str) -> tuple[str, int]:
    """("unique_correct", 32) of "unique_correct@32"; 0 for a name without a number."""
    base, _, k = metric.partition("@")
    return base, int(k) if k.isdigit() else 0


def group_of(metric: str) -> str:
    """What the metric is about: correctness, diversity or certainty."""
    base, _ = parts(metric)
    return CERTAINTY if base == "entropy" else QUALITY if base in (*SHARES, "reward") else DIVERSITY


def label(metric: str) -> str:
    """The metric as one reads it, with its unit where the number needs one; an unknown name as it is."""
    base, k = parts(metric)
    known = {
        "pass": "correct at the first try" if k == 1 else f"correct within {k} tries",
        "reward": "mean reward",
        "unique_correct": f"unique correct answers among {k}",
        "unique": f"unique answers among {k}",
        "preference_pass": f"hidden preference met within {k} tries",
        "entropy": "entropy, nats per token",
        "semantic_distance": "distance of meanings",
    }
    if base in known:
        return known[base]
    alone = base.removesuffix(OF_CORRECT)
    ngrams = alone.removeprefix("distinct_")
    found = "self-BLEU" if alone == "self_bleu" else f"distinct-{ngrams}" if ngrams.isdigit() else ""
    return (found or alone.replace("_", " ")) + (", correct answers" if base.endswith(OF_CORRECT) else "")


def short(metric: str) -> str:
    """The metric in a column's few letters, with its unit."""
    base, k = parts(metric)
    found = {
        "pass": metric,
        "unique_correct": f"unique correct of {k}",
        "preference_pass": "hidden preference",
        "entropy": "entropy, nats",
        "semantic_distance": "distance of meanings",
    }
    return found.get(base, label(metric)) + (", %" if is_share(metric) else "")


def is_share(metric: str) -> bool:
    """Whether the metric is a probability, written in percent."""
    return parts(metric)[0] in SHARES


def decimals(metric: str) -> int:
    """How many are worth showing."""
    base, k = parts(metric)
    return 1 if is_share(metric) or k or base.startswith("self_bleu") else 3


def written(metric: str, value: float) -> str:
    """84.3 %, 12.3, .386; a dash for none."""
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.{decimals(metric)}f}"


def written_interval(metric: str, low: float, high: float) -> str:
    """79.0 to 88.5 %; a dash for none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "-"
    factor, unit = (100, " %") if is_share(metric) else (1, "")
    return f"{factor * low:.{decimals(metric)}f} to {factor * high:.{decimals(metric)}f}{unit}"


def percent(share: float) -> str:
    """84 %; 0.4 % where rounding would leave nothing, 99.6 % where it would leave all."""
    return f"{100 * share:.1f} %" if 0 < share < 0.01 or 0.99 < share < 1 - 1e-6 else f"{100 * share:.0f} %"


def largest(names: Iterable[str], base: str) -> str | None:
    """The name of this base with the largest k: unique_correct@32; None without one."""
    found = [(parts(name)[1], name) for name in names if parts(name)[0] == base]
    return max(found)[1] if found else None


def passes(names: Iterable[str]) -> list[str]:
    """The pass@k among these names, by k."""
    return sorted((name for name in names if parts(name)[0] == "pass"), key=lambda name: parts(name)[1])


def main(names: Iterable[str]) -> list[str]:
    """The few that tell quality from diversity, in the order in which they are read: pass@k, unique correct answers,
    hidden preference, entropy.
    """
    names = list(names)
    chosen = [
        *passes(names),
        *(largest(names, base) for base in ("unique_correct", "preference_pass")),
        "semantic_distance",
        "entropy",
    ]
    return [name for name in chosen if name in names]

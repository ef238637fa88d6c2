"""Curves made ready to draw: smoothing, thinning, axis ticks."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Point = tuple[float, float]
Band = tuple[list[Point], list[Point]]  # lower and upper edge


def series(rows: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """(step, value) of the rows of metrics.jsonl that have a finite value of the key, by step."""
    points = [
        (float(row["step"]), float(row[key])) for row in rows if is_number(row.get(key)) and is_number(row.get("step"))
    ]
    return sorted(points)


def is_number(value: Any) -> bool:
    """Whether the value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def smooth(points: Sequence[Point], window: int | None = None) -> list[Point]:
    """Centred moving average over `window` points (default: a fortieth of them, at least 5), narrower at the ends."""
    half = max(2, (window or len(points) // 40) // 2)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    found = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        low, high = i - reach, i + reach + 1
        found.append((x, (sums[high] - sums[low]) / (high - low)))
    return found


def thin(points: Sequence[Point], limit: int = 400) -> list[Point]:
    """At most about `limit` points: the lowest and the highest of each of limit/2 stretches, in order."""
    if len(points) <= limit:
        return list(points)
    size, kept = len(points) / (limit // 2), []
    for part in range(limit // 2):
        piece = points[int(part * size) : int((part + 1) * size)]
        low, high = min(piece, key=lambda p: p[1]), max(piece, key=lambda p: p[1])
        kept += sorted({low, high})
    return kept


def even(points: Sequence[Point], limit: int = 200) -> list[Point]:
    """At most `limit` points, evenly spaced, the last one included: for curves that are smooth already."""
    if len(points) <= limit:
        return list(points)
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def interpolate(points: Sequence[Point], at: Iterable[float]) -> list[float]:
    """The heights of the straight lines between points (rising in x) at these x within their range; the ends' heights
    beyond it.
    """
    found, xs = [], [x for x, _ in points]
    for x in at:
        right = min(max(bisect.bisect_left(xs, x), 1), len(points) - 1)
        (x0, y0), (x1, y1) = points[max(right - 1, 0)], points[right]
        share = (x - x0) / (x1 - x0) if x1 > x0 else 1.0
        found.append(y0 + min(1.0, max(0.0, share)) * (y1 - y0))
    return found


def averaged(curves: Iterable[Sequence[Point]], limit: int = 200) -> tuple[list[Point], Band | None]:
    """The mean of curves whose points lie at different x, and (lowest, highest) of several.

    All are interpolated at all their x that lie where every curve is known, thinned evenly to `limit`.
    """
    known = [sorted(curve) for curve in curves if curve]
    if not known:
        return [], None
    first, last = max(curve[0][0] for curve in known), min(curve[-1][0] for curve in known)
    common = [
        x
        for x, _ in even(
            [(x, 0.0) for x in sorted({x for curve in known for x, _ in curve}) if first <= x <= last], limit
        )
    ]
    heights = list(zip(*(interpolate(curve, common) for curve in known), strict=True))
    mean = [(x, sum(ys) / len(ys)) for x, ys in zip(common, heights, strict=True)]
    if len(known) < 2:
        return mean, None
    return mean, (
        [(x, min(ys)) for x, ys in zip(common, heights, strict=True)],
        [(x, max(ys)) for x, ys in zip(common, heights, strict=True)],
    )


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which a share of the values lies (nearest rank)."""
    return float(np.quantile(np.fromiter(values, dtype=np.float64), share, method="inverted_cdf"))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with 2 and 5 times them where there are few; low > 0."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(found) >= 3:
            return found if len(found) <= 7 else found[:: math.ceil(len(found) / 6)]
    return found or [low, high]


def number(value: float) -> str:
    """A tick's label: 0.05, 2.5, 700, 12k, 1.5M, 30T."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1000 if unit == 'k' else size):g}{unit}"
    return f"{value:.10g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}".replace("e-0", "e-")

"""Small line charts as inline SVG that take their colours from the page, light or dark. Standard library only.

A chart is drawn 430 units wide, which is about its size in CSS pixels in a report, so its text has the size of text.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from research_stack.reporting.curves import Point, log_ticks, number, ticks
from research_stack.reporting.html import Html, el

WIDTH, HEIGHT = 430, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 38


@dataclass
class Series:
    """One line or set of points.

    - color: a CSS colour. opacity, width: of the line.
    - dots: radius of a dot on every point, 0 for none. line: whether points are joined.
    - errors: half-lengths of vertical bars, or their (lower, upper) parts, one per point, or empty; widths: the same of
      horizontal bars.
    - band: (lower, upper) edges of a shaded area, or None. title: shown when the pointer rests on it.
    - arrow: whether heads on the line show which way it goes. label: text beside the last point; anchor: the side that
      lies at the point; rise: 0 for a label above the point, 1 for a line higher, -1 for below it, and so on.
    """

    points: Sequence[Point]
    color: str = "var(--c0)"
    opacity: float = 1.0
    width: float = 1.8
    dots: float = 0.0
    line: bool = True
    errors: Sequence[float | tuple[float, float] | None] = field(default_factory=list)
    widths: Sequence[float | None] = field(default_factory=list)
    band: tuple[Sequence[Point], Sequence[Point]] | None = None
    dashed: bool = False
    title: str = ""
    arrow: bool = False
    label: str = ""
    anchor: Literal["start", "middle", "end"] = "start"
    rise: int = 0


@dataclass
class Axis:
    """The range of an axis, on a linear or a logarithmic scale; `names` are the labels of 0, 1, 2, ... instead of
    numbers.
    """

    low: float
    high: float
    label: str = ""
    log: bool = False
    names: Sequence[str] = ()

    def place(self, value: float) -> float:
        """Where the value lies, 0 at `low` and 1 at `high`; values outside lie outside."""
        if self.log:
            value = max(value, self.low * 1e-3)
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def marks(self, count: int) -> list[tuple[float, str]]:
        """(value, label) of the ticks."""
        if self.names:
            return [(float(i), name) for i, name in enumerate(self.names)]
        return [
            (value, number(value))
            for value in (log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, count))
        ]


def axis_of(
    values: Sequence[float], label: str = "", log: bool = False, margin: float = 0.05, floor: float | None = None
) -> Axis:
    """An axis that holds the finite values with a margin on either side (a share of the range)."""
    values = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
    low, high = min(values), max(values)
    if log:
        low, high = (low / 1.5, high * 1.5) if high <= low * 1.0001 else (low, high)
        stretch = (high / low) ** margin
        return Axis(low / stretch, high * stretch, label, log=True)
    if high - low <= 1e-9 * abs(high):
        spread = abs(high) * 0.05 or 1.0
        low, high = low - spread, high + spread
    span = high - low
    bottom = low - span * margin
    return Axis(max(bottom, floor) if floor is not None else bottom, high + span * margin, label)


def line_chart(lines: Sequence[Series], x: Axis, y: Axis, name: str, height: int = HEIGHT) -> Html:
    """The SVG. `name` tells what it shows to those who cannot see it."""
    right, bottom = WIDTH - RIGHT, height - BOTTOM
    identity = f"clip{zlib.crc32(repr((name, x, y, height)).encode()):08x}"

    def at(point: Point) -> tuple[float, float]:
        return LEFT + x.place(point[0]) * (right - LEFT), bottom - y.place(point[1]) * (bottom - TOP)

    def path(points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in map(at, points))

    drawn = []
    for one in lines:
        if one.band is not None and one.band[0]:
            edge = path([*one.band[0], *reversed(one.band[1])]) + "Z"
            drawn.append(el("path", d=edge, style=f"fill:{one.color};opacity:.16;stroke:none"))
        if one.line and len(one.points) > 1:
            drawn.append(
                el(
                    "path",
                    el("title", one.title) if one.title else None,
                    d=path(one.points),
                    stroke_linejoin="round",
                    stroke_dasharray="3 3" if one.dashed else None,
                    style=f"stroke:{one.color};stroke-width:{one.width};opacity:{one.opacity}",
                )
            )
        drawn += _marks(one, at) + (_heads(one, at) if one.arrow else [])
    return el(
        "svg",
        el("title", name),
        el("clipPath", el("rect", x=LEFT, y=TOP - 6, width=right - LEFT + 6, height=bottom - TOP + 6), id=identity),
        _grid(x, y, right, bottom),
        el("g", drawn, clip_path=f"url(#{identity})"),
        [_label(one, at) for one in lines if one.label and one.points],
        el("text", x.label, x=(LEFT + right) / 2, y=height - 3, text_anchor="middle") if x.label else None,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_label=name,
    )


def _label(one: Series, at: Callable[[Point], tuple[float, float]]) -> Html:
    """Text beside the last point, below the upper border."""
    a, b = at(one.points[-1])
    aside = {"start": 7, "middle": 0, "end": -7}[one.anchor]
    return el(
        "text",
        one.label,
        x=f"{a + aside:.1f}",
        y=f"{max(TOP + 8, b - 13 * one.rise + (3 if one.rise < 0 else -7)):.1f}",
        text_anchor=one.anchor,
        style=f"fill:{one.color}",
    )


def _heads(one: Series, at: Callable[[Point], tuple[float, float]], spacing: float = 55.0) -> list[Html]:
    """Arrow heads in the middle of segments, at least `spacing` apart, and at the end."""
    found, since = [], spacing
    places = [at(point) for point in one.points]
    for index, ((a, b), (c, d)) in enumerate(zip(places, places[1:], strict=False)):
        length = math.hypot(c - a, d - b)
        since += length
        last = index == len(places) - 2
        if length < 4 or not (last or since >= spacing):
            continue
        since, u, v = 0.0, (c - a) / length, (d - b) / length
        x, y = (c, d) if last else ((a + c) / 2 + 4 * u, (b + d) / 2 + 4 * v)
        shape = (
            f"M{x:.1f} {y:.1f}L{x - 9 * u + 4 * v:.1f} {y - 9 * v - 4 * u:.1f}L{x - 9 * u - 4 * v:.1f}"
            f" {y - 9 * v + 4 * u:.1f}Z"
        )
        found.append(el("path", d=shape, style=f"fill:{one.color};stroke:none"))
    return found


def _marks(one: Series, at: Callable[[Point], tuple[float, float]]) -> list[Html]:
    """Dots and error bars."""
    found = []
    for index, point in enumerate(one.points):
        a, b = at(point)
        error = one.errors[index] if index < len(one.errors) else None
        if error:
            below, above = error if isinstance(error, tuple) else (error, error)
            top, low = at((point[0], point[1] + above))[1], at((point[0], point[1] - below))[1]
            shape = f"M{a:.1f} {top:.1f}V{low:.1f}M{a - 4:.1f} {top:.1f}h8M{a - 4:.1f} {low:.1f}h8"
            found.append(el("path", d=shape, style=f"stroke:{one.color};stroke-width:1.6"))
        wide = one.widths[index] if index < len(one.widths) else None
        if wide:
            left, far = at((point[0] - wide, point[1]))[0], at((point[0] + wide, point[1]))[0]
            shape = f"M{left:.1f} {b:.1f}H{far:.1f}M{left:.1f} {b - 4:.1f}v8M{far:.1f} {b - 4:.1f}v8"
            found.append(el("path", d=shape, style=f"stroke:{one.color};stroke-width:1.6"))
        if one.dots:
            found.append(
                el(
                    "circle",
                    el("title", one.title) if one.title else None,
                    cx=f"{a:.1f}",
                    cy=f"{b:.1f}",
                    r=one.dots,
                    style=f"fill:{one.color};opacity:{one.opacity}",
                )
            )
    return found


def _grid(x: Axis, y: Axis, right: float, bottom: float) -> list[Html]:
    """Horizontal grid lines with their labels, the x axis with its ticks."""
    found = []
    for value, text in y.marks(5):
        b = bottom - y.place(value) * (bottom - TOP)
        found += [
            el("line", x1=LEFT, x2=right, y1=f"{b:.1f}", y2=f"{b:.1f}", class_="grid"),
            el("text", text, x=LEFT - 7, y=f"{b + 4:.1f}", text_anchor="end"),
        ]
    found.append(el("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    marks = x.marks(5)
    room = (right - LEFT) / max(1, len(marks)) / 6.6  # characters that fit between two ticks
    for value, text in marks:
        a = LEFT + x.place(value) * (right - LEFT)
        shown = text if not x.names or len(text) <= max(4, room) else text[: max(3, int(room) - 1)] + "…"
        found += [
            el("line", x1=f"{a:.1f}", x2=f"{a:.1f}", y1=bottom, y2=bottom + 4, class_="axis"),
            el("text", el("title", text), shown, x=f"{a:.1f}", y=bottom + 17, text_anchor="middle"),
        ]
    return found


def heat_map(
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
    column_label: str,
    row_label: str,
    name: str,
) -> Html:
    """A table of coloured cells, light for small values and dark for large ones, with each value written in it."""
    known = [v for line in values for v in line if v is not None and math.isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    left, top, cell = 58, 26, 36
    wide = (WIDTH - left - 4) / max(1, len(columns))
    drawn = [el("text", f"{row_label} ↓   {column_label} →", x=0, y=10)]
    drawn += [
        el("text", text, x=left + (i + 0.5) * wide, y=top - 1, text_anchor="middle") for i, text in enumerate(columns)
    ]
    for j, line in enumerate(values):
        drawn.append(el("text", rows[j], x=left - 8, y=top + 8 + (j + 0.6) * cell, text_anchor="end"))
        for i, value in enumerate(line):
            share = 50.0 if value is None or high == low else 100 * (value - low) / (high - low)
            fill = "var(--grid)" if value is None else f"color-mix(in oklab,var(--ramp-b) {share:.0f}%,var(--ramp-a))"
            ink = "var(--soft)" if value is None else "var(--bg)" if share > 45 else "var(--ink)"
            a, b = left + i * wide, top + 8 + j * cell
            drawn += [
                el(
                    "rect",
                    x=f"{a:.1f}",
                    y=f"{b:.1f}",
                    width=f"{wide - 2:.1f}",
                    height=cell - 2,
                    rx=4,
                    style=f"fill:{fill}",
                ),
                el(
                    "text",
                    texts[j][i],
                    x=f"{a + wide / 2 - 1:.1f}",
                    y=f"{b + cell / 2 + 3:.1f}",
                    text_anchor="middle",
                    style=f"fill:{ink}",
                ),
            ]
    return el(
        "svg",
        el("title", name),
        drawn,
        viewBox=f"0 0 {WIDTH} {top + 12 + cell * len(values)}",
        role="img",
        aria_label=name,
    )

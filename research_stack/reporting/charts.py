"""Charts, each drawn once with matplotlib and written three ways: inline SVG for the page, PNG and PDF for a paper.

In the SVG text is text and colours are the variables of the page's style sheet, so a chart follows light and dark; it
is drawn as wide as it is on the page, 430 CSS pixels or what a narrower column has, so that its text has the size
of text. The files beside it carry title and legend inside, in the light colours of the same style sheet. The numbers
behind a chart are a CSV table.
"""

from __future__ import annotations

import functools
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from research_stack.records.csv_tables import as_csv
from research_stack.records.files import atomic_path, atomic_write
from research_stack.reporting.curves import Point, number
from research_stack.reporting.html import Html, clean, el, escape, join

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 430, 250  # points
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 38  # margins around the plot, points
FONT = 12  # points
DPI = 160
COLORS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)")

Legend = Sequence[tuple[str, str, bool]]  # (colour, text, whether it is a dot)


@dataclass
class Series:
    """One line or set of points.

    - color: a CSS colour: `var(--c0)` or a `ramp(...)`. opacity, width: of the line.
    - dots: radius of a dot on every point, 0 for none. line: whether points are joined.
    - errors: half-lengths of vertical bars, or their (lower, upper) parts, one per point, or empty; widths: the same
      of horizontal bars.
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
    """The range of an axis, on a linear or a logarithmic scale; `names` label 0, 1, 2, ... instead of numbers."""

    low: float
    high: float
    label: str = ""
    log: bool = False
    names: Sequence[str] = ()


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
        half = abs(high) * 0.05 or 1.0
        low, high = low - half, high + half
    span = high - low
    bottom = low - span * margin
    return Axis(max(bottom, floor) if floor is not None else bottom, high + span * margin, label)


@dataclass(eq=False)
class Chart:
    """A picture with its words: a node of the page, and the files figures/<name>.png and .pdf.

    - name: of its files, without an ending. title, note: above it, in bold and plain. alt: for those who cannot see it.
    - draw: puts it on the axes. width, height, left, right: of the picture and its margins, points.
    - legend: (colour, text, whether it is a dot), below it. file_legend: that of the files alone, where the page has
      one for several charts.
    - rows: the numbers behind it, header first, for tables/figure_<name>.csv; empty where `table` says which table of
      the run has them.
    """

    name: str
    title: str
    draw: Callable[[Axes], None]
    alt: str
    note: str = ""
    legend: Legend = ()
    height: float = HEIGHT
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    rows: Sequence[Sequence[Any]] = ()
    table: str = ""
    file_legend: Legend = ()
    width: float = WIDTH

    def __html__(self) -> Html:
        """The figure as a page shows it."""
        caption = el("figcaption", self.title, el("small", f" {self.note}") if self.note else None)
        return join(el("figure", caption, self.svg, keys(self.legend) if self.legend else None, self._links()))

    def _links(self) -> Any:
        table = self.table or (f"figure_{self.name}" if self.rows else "")
        links = [("CSV", f"tables/{table}.csv")] if table else []
        links += [(kind.upper(), f"figures/{self.name}.{kind}") for kind in ("png", "pdf")]
        return el("p", [[el("a", text, href=href), " "] for text, href in links], class_="files")

    @functools.cached_property
    def figure(self) -> Figure:
        """The picture without title and legend, drawn once."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(self.width / 72, self.height / 72), facecolor="none")
        wide, high = self.width - self.left - self.right, self.height - self.top - BOTTOM
        axes = figure.add_axes((self.left / self.width, BOTTOM / self.height, wide / self.width, high / self.height))
        dress(axes)
        self.draw(axes)
        return figure

    @functools.cached_property
    def svg(self) -> Html:
        """Inline SVG: colours as variables of the page, text as text."""
        from matplotlib import rc_context

        text = io.StringIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}), _any_script():
            self.figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
        return _inline(text.getvalue(), self.alt, self.name)

    def write(self, folder: Path) -> list[Path]:
        """Write figures/<name>.png and .pdf and, if it has rows, tables/figure_<name>.csv below the folder."""
        self.svg  # noqa: B018  before title and legend are added
        self._add_words()
        paths = [folder / "figures" / f"{self.name}.{kind}" for kind in ("png", "pdf")]
        for path in paths:
            save(self.figure, path)
        if self.rows:
            paths.append(folder / "tables" / f"figure_{self.name}.csv")
            atomic_write(paths[-1], as_csv(self.rows[0], self.rows[1:]))
        return paths

    def _add_words(self) -> None:
        """Title above and legend below, on a page that grows by as much."""
        from matplotlib.lines import Line2D

        figure, legend = self.figure, self.legend or self.file_legend
        columns = 1 if any(len(text) > self.width / 12.6 for _, text, _ in legend) else 2
        above, below = 30.0, 17.0 * math.ceil(len(legend) / columns) + (8 if legend else 0)
        total = self.height + above + below
        boxes = [(axes, axes.get_position()) for axes in figure.axes]
        figure.set_size_inches(self.width / 72, total / 72)
        for axes, box in boxes:
            low, high = (below + edge * self.height for edge in (box.y0, box.y1))
            axes.set_position((box.x0, low / total, box.width, (high - low) / total))
        figure.text(10 / self.width, 1 - 14 / total, clean(self.title), weight="bold", fontsize=FONT, va="center")
        if self.note:
            figure.text(
                10 / self.width, 1 - 28 / total, clean(self.note), fontsize=9.5, va="center", color=rgb("var(--soft)")
            )
        if legend:
            marks = [
                Line2D([], [], color=rgb(color), marker="o" if dot else None, linestyle="none" if dot else "-")
                for color, _, dot in legend
            ]
            figure.legend(
                marks,
                [clean(text) for _, text, _ in legend],
                loc="lower left",
                bbox_to_anchor=(0.01, 2 / total),
                ncols=columns,
                frameon=False,
                fontsize=9.5,
                handlelength=1.2,
                borderpad=0,
                labelcolor=rgb("var(--soft)"),
            )


def keys(entries: Legend) -> Any:
    """A legend of (colour, text, whether it is a dot)."""
    return el(
        "ul",
        [
            el("li", el("i", class_="dot" if dot else None, style=f"color:{css(color)}"), text)
            for color, text, dot in entries
        ],
        class_="legend",
    )


# Colours -------------------------------------------------------------------------------------------------------------


def ramp(share: float) -> str:
    """The colour at a share of the ramp from light to dark, for settings or values in an order."""
    return f"ramp({share:.3f})"


def css(color: str) -> str:
    """A colour as the page's style sheet says it."""
    share = _ramp_share(color)
    return color if share is None else f"color-mix(in srgb,var(--ramp-b) {100 * share:.1f}%,var(--ramp-a))"


def rgb(color: str) -> str:
    """A colour as #rrggbb, of a light page."""
    share = _ramp_share(color)
    if share is None:
        return palette().get(color, color)
    ends = [[int(palette()[f"var(--ramp-{end})"][i : i + 2], 16) for i in (1, 3, 5)] for end in "ab"]
    mixed = [round(a + share * (b - a)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _ramp_share(color: str) -> float | None:
    match = re.fullmatch(r"ramp\(([\d.]+)\)", color)
    return float(match[1]) if match else None


@functools.cache
def palette() -> Mapping[str, str]:
    """{var(--name): #rrggbb} of the style sheet's light colours."""
    light = (Path(__file__).parent / "style.css").read_text(encoding="utf-8").partition("}")[0]
    return {f"var(--{name})": _long(value) for name, value in re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", light)}


def _long(color: str) -> str:
    return color if len(color) == 7 else "#" + "".join(2 * digit for digit in color[1:])


@functools.cache
def _variables() -> Mapping[str, str]:
    """{#rrggbb: the variable it is drawn from}; of several variables of one colour the first."""
    found: dict[str, str] = {}
    for name, value in palette().items():
        found.setdefault(value, name)
    return found


# SVG of a page -------------------------------------------------------------------------------------------------------


def save(figure: Figure, path: Path) -> None:
    """Write a figure on white, whole or not at all; the ending of the path says as what."""
    with _any_script(), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format=path.suffix[1:], facecolor="white")


@contextmanager
def _any_script() -> Iterator[None]:
    """A model may write in any script: a glyph that the font lacks is a box and no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _inline(svg: str, alt: str, name: str) -> Html:
    """matplotlib's SVG as an element of a page: no header, no style of its own, its colours those of the page."""
    body = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', body)
    inside = body[body.index(">") + 1 : body.rindex("</svg>")]
    inside = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", inside, flags=re.S)
    inside = re.sub(r' id="(?!m[0-9a-f]{10}|p[0-9a-f]{10}|title-|ramp-)[^"]*"', "", inside)
    inside = re.sub(r'id="title-([^"]*)">', lambda m: f"><title>{escape(bytes.fromhex(m[1]).decode())}</title>", inside)
    inside = re.sub(r"font: [^;\"]*;?\s*", "", inside)
    inside = re.sub(
        r'(<g id="ramp-)([\d.]+)(".*?fill: )#[0-9a-f]{6}',
        lambda m: f"{m[1]}{m[2]}{m[3]}{css(f'ramp({m[2]})')}",
        inside,
        flags=re.S,
    )
    inside = re.sub(r"#[0-9a-f]{6}\b(?!\w)", lambda m: _variables().get(m[0], m[0]), inside)
    inside = re.sub(r"\s*\n\s*", " ", inside).replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    for identity in set(re.findall(r'id="([mp][0-9a-f]{10})"', inside)):
        inside = inside.replace(identity, f"{name}-{identity}")
    return Html(
        f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{escape(alt)}"'
        f' style="stroke-linejoin:round;stroke-linecap:butt"><title>{escape(alt)}</title>{inside}</svg>'
    )


# Drawing -------------------------------------------------------------------------------------------------------------


def dress(axes: Axes) -> None:
    """The house style of a plot: a baseline, faint horizontal lines, grey labels."""
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(rgb("var(--faint)"))
    axes.grid(axis="y", color=rgb("var(--grid)"), linewidth=1)
    axes.tick_params(length=0, labelsize=FONT, labelcolor=rgb("var(--soft)"), pad=5)
    axes.set_axisbelow(True)


def scale(axes: Axes, which: Literal["x", "y"], axis: Axis, wide: float = WIDTH - LEFT - RIGHT) -> None:
    """Range, scale, ticks and label of one axis of a plot; long names are cut to fit."""
    from matplotlib import ticker

    side = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(axis.low, axis.high)
    if axis.names:
        fits = max(4, int(wide / len(axis.names) / 6.6)) if which == "x" else 40
        names = [name if len(name) <= fits else name[: fits - 1] + "…" for name in axis.names]
        side.set_ticks(range(len(names)), [clean(name) for name in names])
    elif axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        (axes.set_xlim if which == "x" else axes.set_ylim)(axis.low, axis.high)
        decades = math.log10(axis.high / axis.low)
        subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
        side.set_major_locator(ticker.LogLocator(subs=subs, numticks=8) if decades > 0.7 else ticker.MaxNLocator(5))
        side.set_minor_locator(ticker.NullLocator())
    else:
        side.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if not axis.names:
        side.set_major_formatter(ticker.FuncFormatter(lambda value, _: number(float(f"{value:.10g}"))))
    if axis.label:
        side.set_label_text(clean(axis.label), fontsize=FONT, color=rgb("var(--soft)"))


def line_chart(
    lines: Sequence[Series],
    x: Axis,
    y: Axis,
    alt: str,
    *,
    name: str,
    title: str,
    note: str = "",
    legend: Legend = (),
    height: float = HEIGHT,
    table: str = "",
    file_legend: Legend = (),
    width: float = WIDTH,
) -> Chart:
    """Lines, points, bands and bars over two axes.

    - alt: tells what it shows to those who cannot see it. name: of its files. title, note, legend,
      file_legend: its words. width, height: points.
    - table: the run's table that holds its numbers; empty for one that is written from the series.
    """
    widest = max((len(text) for text in y.names), default=0)
    left = max(LEFT, 12 + 6.6 * min(widest, 24))

    def draw(axes: Axes) -> None:
        scale(axes, "y", y)
        scale(axes, "x", x, width - left - RIGHT)
        for index, one in enumerate(lines):
            _draw(axes, one, index)

    rows = [] if table else _rows(lines, x, y)
    return Chart(
        name, title, draw, alt, note, legend, height, left, rows=rows, table=table, file_legend=file_legend, width=width
    )


def _rows(lines: Sequence[Series], x: Axis, y: Axis) -> list[list[Any]]:
    """The numbers of the series as a table."""
    found: list[list[Any]] = [["series", "x", "y", "low", "high"]]
    for index, one in enumerate(lines):
        for i, (a, b) in enumerate(one.points):
            error = one.errors[i] if i < len(one.errors) else None
            below, above = error if isinstance(error, tuple) else (error, error)
            ends = ["" if below is None else b - below, "" if above is None else b + above]
            if one.band is not None and i < len(one.band[0]) and i < len(one.band[1]):
                ends = [one.band[0][i][1], one.band[1][i][1]]
            found.append([one.title or one.label or index, _at(x, a), _at(y, b), *ends])
    return found


def _at(axis: Axis, value: float) -> Any:
    """A value, or on an axis of names the name nearest to it."""
    if not axis.names:
        return value
    index = round(value)
    return axis.names[index] if 0 <= index < len(axis.names) else value


def _draw(axes: Axes, one: Series, index: int) -> None:
    from matplotlib.patches import Polygon

    color, gid = rgb(one.color), f"title-{one.title.encode().hex()}" if one.title else None
    order = 2 + index * 0.01
    if one.band is not None and one.band[0]:
        edge = [*one.band[0], *reversed(one.band[1])]
        axes.add_patch(Polygon(edge, closed=True, facecolor=color, alpha=0.16, linewidth=0, zorder=order - 1))
    if one.line and len(one.points) > 1:
        style = (0, (3, 3)) if one.dashed else "solid"
        (line,) = axes.plot(*zip(*one.points, strict=True), color=color, alpha=one.opacity, zorder=order)
        line.set(linewidth=one.width, linestyle=style, gid=gid)
    points = list(one.points)
    for bars, across in ((one.errors, False), (one.widths, True)):
        for point, length in zip(points, bars, strict=False):
            if length:
                below, above = length if isinstance(length, tuple) else (length, length)
                bar: dict[str, Any] = {"xerr" if across else "yerr": [[below], [above]]}
                axes.errorbar(*point, **bar, fmt="none", ecolor=color, elinewidth=1.6, capsize=3.5, zorder=order)
    if one.dots and points:
        (dots,) = axes.plot(*zip(*points, strict=True), "o", color=color, markersize=2 * one.dots, zorder=order + 0.5)
        dots.set(alpha=one.opacity, markeredgewidth=0, gid=None if one.line and len(points) > 1 else gid)
    if one.arrow:
        _arrows(axes, points, color, order)
    if one.label and points:
        shift = {"start": 7, "middle": 0, "end": -7}[one.anchor]
        across = {"start": "left", "middle": "center", "end": "right"}[one.anchor]
        axes.annotate(
            clean(one.label),
            points[-1],
            xytext=(shift, 13 * one.rise - 3 if one.rise < 0 else 13 * one.rise + 7),
            textcoords="offset points",
            ha=across,
            va="baseline",
            color=color,
            fontsize=FONT,
            annotation_clip=False,
            parse_math=False,
            zorder=9,
        )


def _arrows(axes: Axes, points: Sequence[Point], color: str, order: float, spacing: float = 55.0) -> None:
    """Arrow heads in the middle of segments, at least `spacing` points apart, and at the end."""
    at = [axes.transData.transform(point) * 72 / axes.figure.dpi for point in points]
    since = spacing
    for index, (a, b) in enumerate(zip(at, at[1:], strict=False)):
        length = float(math.dist(a, b))
        since += length
        last = index == len(at) - 2
        if length < 4 or not (last or since >= spacing):
            continue
        since = 0.0
        share = 1.0 if last else 0.5
        tip = a + (b - a) * share
        tip, start = (
            tuple[float, float](axes.transData.inverted().transform(p * axes.figure.dpi / 72))
            for p in (tip, tip - (b - a) / length)
        )
        head = {"arrowstyle": "-|>,head_length=.45,head_width=.2", "color": color, "lw": 0, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", tip, start, arrowprops=head, zorder=order)


# Other charts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A value with its interval in `interval_chart`; `small`: a second line of its name; `text`: how it is written."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    color: str = "var(--c0)"
    text: str = ""
    small: str = ""
    strong: bool = False


def interval_chart(
    bars: Sequence[Bar], axis: Axis, alt: str, *, name: str, title: str, note: str = "", table: str = ""
) -> Chart:
    """Values with their intervals, one below the other."""
    longest = max((len(line) for bar in bars for line in (bar.name, bar.small)), default=0)
    left, right = 14 + 6.4 * min(longest, 24), 14 + 6.8 * max((len(bar.text) for bar in bars), default=0)

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        axes.grid(axis="x", color=rgb("var(--grid)"), linewidth=1)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_yticks([])
        scale(axes, "x", axis, WIDTH - left - right)
        across = axes.get_yaxis_transform()
        words = {"va": "center", "fontsize": FONT, "parse_math": False}
        for row, bar in enumerate(bars):
            color, weight = rgb(bar.color), "bold" if bar.strong else "normal"
            half = [[bar.value - bar.low], [bar.high - bar.value]] if math.isfinite(bar.low) else None
            axes.errorbar([bar.value], [row], xerr=half, fmt="o", color=color, markersize=7, capsize=4, elinewidth=1.8)
            lift = -0.18 if bar.small else 0.0
            gap = 8 / (WIDTH - left - right)
            ink = rgb("var(--ink)")
            axes.text(
                -gap, row + lift, clean(bar.name), transform=across, ha="right", weight=weight, color=ink, **words
            )
            if bar.small:
                soft = rgb("var(--soft)")
                axes.text(-gap, row + 0.22, clean(bar.small), transform=across, ha="right", color=soft, **words)
            axes.text(1 + gap, row, clean(bar.text), transform=across, weight=weight, color=ink, **words)

    rows = [["name", "value", "low", "high"], *([bar.name, bar.value, bar.low, bar.high] for bar in bars)]
    height = TOP + BOTTOM + 38 * len(bars)
    return Chart(name, title, draw, alt, note, (), height, left, right, rows=[] if table else rows, table=table)


def heat_map(
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
    alt: str,
    *,
    name: str,
    title: str,
    note: str = "",
    column_label: str = "",
    row_label: str = "",
) -> Chart:
    """A table of coloured cells, light for small values and dark for large ones, with each value written in it."""
    known = [v for line in values for v in line if v is not None and math.isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    left = 14 + 6.6 * max(len(text) for text in (*rows, row_label[:10]))

    def draw(axes: Axes) -> None:
        from matplotlib.patches import FancyBboxPatch

        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_ylim(len(values) - 0.5, -0.5)
        scale(axes, "x", Axis(-0.5, len(columns) - 0.5, column_label, names=columns), WIDTH - left - RIGHT)
        axes.set_yticks(range(len(rows)), [clean(row) for row in rows])
        if row_label:
            axes.text(
                -0.01,
                1.02,
                clean(row_label),
                transform=axes.transAxes,
                ha="right",
                fontsize=FONT,
                color=rgb("var(--soft)"),
            )
        for j, line in enumerate(values):
            for i, value in enumerate(line):
                share = 0.5 if value is None or high == low else (value - low) / (high - low)
                fill = rgb("var(--grid)") if value is None else rgb(ramp(share))
                ink = "var(--soft)" if value is None else "var(--bg)" if share > 0.45 else "var(--ink)"
                box = FancyBboxPatch((i - 0.46, j - 0.42), 0.92, 0.84, boxstyle="round,pad=0,rounding_size=.06")
                box.set(facecolor=fill, linewidth=0, gid=None if value is None else f"ramp-{share:.3f}")
                axes.add_patch(box)
                axes.text(i, j, texts[j][i], ha="center", va="center", fontsize=FONT, color=rgb(ink))

    table = [[f"{row_label} / {column_label}", *columns], *([rows[j], *line] for j, line in enumerate(values))]
    return Chart(name, title, draw, alt, note, (), TOP + BOTTOM + 20 + 36 * len(values), left, top=TOP + 20, rows=table)

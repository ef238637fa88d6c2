"""A sweep of policies on the page: its table, its settings in the plane of quality and diversity, their trajectories
over each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from research_stack.posttraining.report.names import PREFIX, label, largest, parts, passes
from research_stack.posttraining.report.sweep import PolicySetting, cells, columns, head, is_phase, lines, note
from research_stack.posttraining.report.trajectory import MetricAtStep, Panel, Phase, panels, scaled, trajectory
from research_stack.records.seeds import mean_and_range
from research_stack.records.sweep_table import SweepTable
from research_stack.reporting.charts import COLORS, Axis, Chart, Legend, Series, axis_of, keys, line_chart
from research_stack.reporting.contract import FewColumns
from research_stack.reporting.html import el

MAX_LINES = 12  # settings that are drawn
FAINT, SOFT = "var(--faint)", "var(--soft)"


def tables(table: SweepTable) -> list[FewColumns]:
    """Quality and diversity of every setting, with its charts; [] where no run answered prompts."""
    found = lines(table)
    if not found:
        return []
    names = columns(found)
    charts = [chart for chart in (_plane(found), *_panels(found)) if chart is not None]
    return [
        FewColumns(
            "Quality and diversity",
            [head(found), *(cells(line, names) for line in found)],
            strong=frozenset(index for index, line in enumerate(found) if not line.then),
            text=(0, 1),
            note=note(found) + (f" {drawing_note(found)}" if charts else ""),
            charts=[el("div", keys(legend_of(found)), style="grid-column:1/-1"), *charts] if charts else (),
        )
    ]


class LineStyle(NamedTuple):
    """How a line is drawn: its label, the number of its colour (None: faint), whether it is dashed."""

    label: str
    color: int | None
    dashed: bool


def styles(found: Sequence[PolicySetting]) -> list[LineStyle]:
    """A colour for each setting beside the first phase and dashes for the second first phase; colours alone where there
    are more than two.
    """
    settings = [line for line in found if not is_phase(line, found)]
    firsts, thens = (list(dict.fromkeys(getattr(line, part) for line in settings)) for part in ("first", "then"))
    plain = len(firsts) > 2
    return [
        LineStyle(
            line.label,
            None if is_phase(line, found) else settings.index(line) if plain else thens.index(line.then),
            not plain and line.first in firsts and firsts.index(line.first) == 1,
        )
        for line in found
    ]


def css(color: int | None) -> str:
    """The colour on the page."""
    return SOFT if color is None else COLORS[color % len(COLORS)]


def legend_of(found: Sequence[PolicySetting]) -> Legend:
    """The settings that are drawn."""
    return [
        (css(style.color), f"{style.label}, dashed" if style.dashed else style.label, False)
        for style in styles(found)[:MAX_LINES]
    ]


def track(line: PolicySetting) -> list[Phase]:
    """The mean trajectory over seeds, on an axis on which the last phase begins at 0; bands reach from the lowest to
    the highest seed.
    """
    of_runs = [phases for run in line.runs if (phases := trajectory(run))]
    depth = min(map(len, of_runs), default=0)
    return [_mean([_shifted(phases[-back], -phases[-1].begins) for phases in of_runs]) for back in range(depth, 0, -1)]


def _shifted(phase: Phase, by: float) -> Phase:
    curves = {name: [m._replace(step=m.step + by) for m in curve] for name, curve in phase.curves.items()}
    return replace(phase, begins=phase.begins + by, ends=phase.ends + by, curves=curves)


def _mean(phases: Sequence[Phase]) -> Phase:
    """The mean of one phase over seeds, at the steps that all seeds have."""
    curves = {}
    for name in phases[0].curves:
        seeds = [{m.step: m for m in phase.curves.get(name, [])} for phase in phases]
        steps = sorted(set.intersection(*map(set, seeds)))
        curves[name] = [_over_seeds(step, [seed[step] for seed in seeds]) for step in steps]
    return replace(phases[0], curves={name: curve for name, curve in curves.items() if curve})


def _over_seeds(step: float, of: Sequence[MetricAtStep]) -> MetricAtStep:
    mean, low, high = mean_and_range([m.value for m in of])
    return MetricAtStep(step, mean, *((low, high) if len(of) > 1 else (math.nan, math.nan)))


class PhaseCurve(NamedTuple):
    """One curve to draw: a phase of a line."""

    style: LineStyle
    phase: Phase


def phase_curves(found: Sequence[PolicySetting]) -> list[PhaseCurve]:
    """The last phase of every setting, and each first phase once, before 0."""
    drawn: dict[tuple[str, str], PhaseCurve] = {}
    for line, style in list(zip(found, styles(found), strict=True))[:MAX_LINES]:
        if is_phase(line, found):
            continue
        phases = track(line)
        for index, phase in enumerate(phases):
            last = index == len(phases) - 1
            before = LineStyle(line.first, None, style.dashed)
            drawn.setdefault(
                (line.label, "") if last else (line.first, str(index - len(phases))),
                PhaseCurve(style if last else before, phase),
            )
    return list(drawn.values())


def drawing_note(found: Sequence[PolicySetting]) -> str:
    """How to read the plots."""
    earlier = any(run.earlier for line in found for run in line.runs)
    parts = [
        "In the plane a point is a setting after training, with standard errors over seeds"
        + ("; thin arrows come from the phase it began with." if earlier else ".")
    ]
    parts.append("Curves are means over seeds, shades reach from the lowest to the highest seed.")
    parts += ["0 is where the last phase begins; what lies before it, in grey, is the phase before."] if earlier else []
    parts += [f"The first {MAX_LINES} lines are drawn."] if len(found) > MAX_LINES else []
    return " ".join(parts)


def _panels(found: Sequence[PolicySetting]) -> list[Chart]:
    drawn = phase_curves(found)
    legend = legend_of(found)
    return [_panel(drawn, one, legend) for panel in panels([curve.phase for curve in drawn]) for one in single(panel)]


def single(panel: Panel) -> list[Panel]:
    """With many lines a plot holds one metric: pass@1 and the largest k of pass@k."""
    if len(panel.metrics) == 1:
        return [panel]
    return [
        Panel(label(name).capitalize(), "% of prompts" if parts(name)[1] > 1 else "% of answers", [name])
        for name in dict.fromkeys((panel.metrics[0], panel.metrics[-1]))
    ]


def _panel(drawn: Sequence[PhaseCurve], panel: Panel, legend: Legend) -> Chart:
    series, heights, ends = [], [], [0.0]
    for style, phase in drawn:
        mean, band = scaled(phase.curves.get(panel.metrics[0], []), panel.factor)
        series.append(Series(mean, color=css(style.color), band=band, dashed=style.dashed, title=style.label))
        heights += [y for edge in band or (mean,) for _, y in edge]
        ends += [phase.begins, phase.ends]
    y = axis_of(heights, margin=0.1, floor=0.0 if min(heights, default=0.0) >= 0 else None)
    x = axis_of(
        [min(ends), max(ends)], "optimizer step" + (", 0: the last phase begins" if min(ends) < 0 else ""), margin=0
    )
    border = [Series([(0.0, y.low), (0.0, y.high)], color=FAINT, width=1.2, dashed=True)] if min(ends) < 0 else []
    return line_chart(
        [*border, *series],
        x,
        y,
        f"{panel.title} of {len(drawn)} curves",
        name="dynamics_" + panel.metrics[0].replace("@", "_at_"),
        title=panel.title,
        note=panel.small,
        file_legend=legend,
    )


@dataclass(frozen=True)
class SettingPoint:
    """A setting in the plane: (diversity, quality) with their standard errors, 0 where there is none."""

    line: PolicySetting
    style: LineStyle
    point: tuple[float, float]
    errors: tuple[float, float]


def points_of(found: Sequence[PolicySetting]) -> tuple[list[SettingPoint], str]:
    """The points of all settings that have both numbers, and the name of the diversity."""
    names = columns(found)
    across, up = largest(names, "unique_correct"), next(iter(passes(names)), None)
    placed = []
    for line, style in list(zip(found, styles(found), strict=True))[:MAX_LINES] if across and up else ():
        wide, good = line.row.mean(f"{PREFIX}{across}"), line.row.mean(f"{PREFIX}{up}")
        errors = [line.row.standard_error(f"{PREFIX}{name}") or 0.0 for name in (across, up)]
        if wide is not None and good is not None and math.isfinite(wide) and math.isfinite(good):
            placed.append(SettingPoint(line, style, (wide, 100 * good), (errors[0], 100 * errors[1])))
    return placed, across or ""


class Side(NamedTuple):
    """Where a label is: to the left of its point or to the right, 0 lines above it, 1 more, or -1 for below it."""

    left: bool
    rise: int


SIDES = tuple(Side(left, rise) for rise in (0, -1, 1, -2) for left in (False, True))


def label_sides(
    points: Sequence[tuple[float, float]], texts: Sequence[str], letter: float = 0.018, line: float = 0.075
) -> list[Side]:
    """For each point the first side on which its label runs over no point and no label before it; the first of all if
    none is free.

    - points: as shares of the plot's width and height. letter, line: width and height of a character, as such shares.
    """
    taken = [(x - letter, y - line / 5, x + letter, y + line / 5) for x, y in points]
    found = []
    for (x, y), text in zip(points, texts, strict=True):
        boxes = {}
        for side in SIDES:
            near, far = (
                (x - letter, x - letter * (len(text) + 1)) if side.left else (x + letter, x + letter * (len(text) + 1))
            )
            bottom = y + line * side.rise + line * (0.3 if side.rise >= 0 else -0.3)
            boxes[side] = (min(near, far), bottom, max(near, far), bottom + line)
        free = [
            side
            for side, box in boxes.items()
            if box[0] >= 0 and box[2] <= 1.02 and not any(_overlap(box, other) for other in taken)
        ]
        found.append(free[0] if free else SIDES[0])
        taken.append(boxes[found[-1]])
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def origins(placed: Sequence[SettingPoint]) -> list[tuple[SettingPoint, SettingPoint]]:
    """(first phase, setting) of the settings whose first phase is drawn."""
    found = [spot.line for spot in placed]
    phases = {spot.line.first: spot for spot in placed if is_phase(spot.line, found)}
    return [(phases[spot.line.first], spot) for spot in placed if spot.line.then and spot.line.first in phases]


def _plane(found: Sequence[PolicySetting]) -> Chart | None:
    placed, across = points_of(found)
    if len(placed) < 2:
        return None
    drawn = [
        Series(
            [start.point, end.point],
            color=css(end.style.color),
            width=1,
            opacity=0.6,
            arrow=True,
            dashed=end.style.dashed,
        )
        for start, end in origins(placed)
    ]
    xs = [spot.point[0] + sign * spot.errors[0] for spot in placed for sign in (-1, 1)]
    ys = [spot.point[1] + sign * spot.errors[1] for spot in placed for sign in (-1, 1)]
    room = 0.35 * (max(xs) - min(xs))  # for the names
    x, y = axis_of([*xs, max(xs) + room], label(across)), axis_of(ys, margin=0.12)
    sides = label_sides(
        [(_share(x, spot.point[0]), _share(y, spot.point[1])) for spot in placed], [spot.line.label for spot in placed]
    )
    drawn += [
        Series(
            [spot.point],
            color=css(spot.style.color),
            line=False,
            dots=4.5,
            errors=[spot.errors[1]],
            widths=[spot.errors[0]],
            title=spot.line.label,
            label=spot.line.label,
            anchor="end" if side.left else "start",
            rise=side.rise,
        )
        for spot, side in zip(placed, sides, strict=True)
    ]
    return line_chart(
        drawn,
        x,
        y,
        "pass@1 against unique correct answers",
        name="quality_diversity",
        title="Quality against diversity",
        note="% correct at the first try, upwards",
    )


def _share(axis: Axis, value: float) -> float:
    """Where a value lies on a linear axis, 0 at its low end and 1 at its high end."""
    return (value - axis.low) / (axis.high - axis.low)

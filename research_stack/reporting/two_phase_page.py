"""A sweep of policies on the page: its table, its settings in the plane of quality and diversity, their trajectories
over each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from research_stack.records.sweep_table import SweepTable
from research_stack.reporting import measured
from research_stack.reporting.html import Html, el
from research_stack.reporting.sections import COLORS, keys, listing
from research_stack.reporting.svg_charts import Series, axis_of, line_chart
from research_stack.reporting.trajectory import Moment, Panel, Phase, panels, scaled, trajectory
from research_stack.reporting.two_phase import Line, cells, columns, head, is_phase, lines, note

MOST = 12  # settings that are drawn
FAINT, SOFT = "var(--faint)", "var(--soft)"


def section(table: SweepTable) -> list[Html] | None:
    """Table, plane and trajectories; None where no run answered prompts."""
    found = lines(table)
    if not found:
        return None
    names = columns(found)
    drawn = [chart for chart in (_plane(found), *_panels(found)) if chart is not None]
    legend = [(color, label, False) for label, color, _ in legend_of(found)]
    return [
        el("h2", "Quality and diversity"),
        el(
            "div",
            listing(head(found), [(cells(line, names), not line.then) for line in found], text=(0, 1)),
            class_="scroll wrap",
            tabindex="0",
        ),
        el("p", note(found), class_="note"),
        keys(legend) if drawn else None,
        el("div", drawn, class_="charts") if drawn else None,
        el("p", drawing_note(found), class_="note") if drawn else None,
    ]


class Look(NamedTuple):
    """How a line is drawn: its label, the number of its colour (None: faint), whether it is dashed."""

    label: str
    color: int | None
    dashed: bool


def looks(found: Sequence[Line]) -> list[Look]:
    """A colour for each setting beside the first phase and dashes for the second first phase; colours alone where there
    are more than two.
    """
    settings = [line for line in found if not is_phase(line, found)]
    firsts, thens = (list(dict.fromkeys(getattr(line, part) for line in settings)) for part in ("first", "then"))
    plain = len(firsts) > 2
    return [
        Look(
            line.label,
            None if is_phase(line, found) else settings.index(line) if plain else thens.index(line.then),
            not plain and line.first in firsts and firsts.index(line.first) == 1,
        )
        for line in found
    ]


def css(color: int | None) -> str:
    """The colour on the page."""
    return SOFT if color is None else COLORS[color % len(COLORS)]


def legend_of(found: Sequence[Line]) -> list[tuple[str, str, bool]]:
    """(label, colour, dashed) of what is drawn."""
    return [
        (f"{look.label}, dashed" if look.dashed else look.label, css(look.color), look.dashed)
        for look in looks(found)[:MOST]
    ]


def track(line: Line) -> list[Phase]:
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
        curves[name] = [_moment(step, [seed[step] for seed in seeds]) for step in steps]
    return replace(phases[0], curves={name: curve for name, curve in curves.items() if curve})


def _moment(step: float, of: Sequence[Moment]) -> Moment:
    values = [m.value for m in of]
    ends = (min(values), max(values)) if len(values) > 1 else (math.nan, math.nan)
    return Moment(step, statistics.fmean(values), *ends)


class Stretch(NamedTuple):
    """One curve to draw: a phase of a line."""

    look: Look
    phase: Phase


def stretches(found: Sequence[Line]) -> list[Stretch]:
    """The last phase of every setting, and each first phase once, before 0."""
    drawn: dict[tuple[str, str], Stretch] = {}
    for line, look in list(zip(found, looks(found), strict=True))[:MOST]:
        if is_phase(line, found):
            continue
        phases = track(line)
        for index, phase in enumerate(phases):
            last = index == len(phases) - 1
            before = Look(line.first, None, look.dashed)
            drawn.setdefault(
                (line.label, "") if last else (line.first, str(index - len(phases))),
                Stretch(look if last else before, phase),
            )
    return list(drawn.values())


def drawing_note(found: Sequence[Line]) -> str:
    """How to read the plots."""
    earlier = any(run.earlier for line in found for run in line.runs)
    parts = [
        "In the plane a point is a setting after training, with standard errors over seeds"
        + ("; thin arrows come from the phase it began with." if earlier else ".")
    ]
    parts.append("Curves are means over seeds, shades reach from the lowest to the highest seed.")
    parts += ["0 is where the last phase begins; what lies before it, in grey, is the phase before."] if earlier else []
    parts += [f"The first {MOST} lines are drawn."] if len(found) > MOST else []
    return " ".join(parts)


def _panels(found: Sequence[Line]) -> list[Html]:
    drawn = stretches(found)
    return [_panel(drawn, one) for panel in panels([stretch.phase for stretch in drawn]) for one in single(panel)]


def single(panel: Panel) -> list[Panel]:
    """With many lines a plot holds one metric: pass@1 and the largest k of pass@k."""
    if len(panel.metrics) == 1:
        return [panel]
    return [
        Panel(
            measured.words(name).capitalize(), "% of prompts" if measured.parts(name)[1] > 1 else "% of answers", [name]
        )
        for name in dict.fromkeys((panel.metrics[0], panel.metrics[-1]))
    ]


def _panel(drawn: Sequence[Stretch], panel: Panel) -> Html:
    series, heights, ends = [], [], [0.0]
    for look, phase in drawn:
        mean, band = scaled(phase.curves.get(panel.metrics[0], []), panel.factor)
        series.append(Series(mean, color=css(look.color), band=band, dashed=look.dashed, title=look.label))
        heights += [y for edge in band or (mean,) for _, y in edge]
        ends += [phase.begins, phase.ends]
    y = axis_of(heights, margin=0.1, floor=0.0 if min(heights, default=0.0) >= 0 else None)
    x = axis_of(
        [min(ends), max(ends)], "optimizer step" + (", 0: the last phase begins" if min(ends) < 0 else ""), margin=0
    )
    border = [Series([(0.0, y.low), (0.0, y.high)], color=FAINT, width=1.2, dashed=True)] if min(ends) < 0 else []
    chart = line_chart([*border, *series], x, y, f"{panel.title} of {len(drawn)} curves")
    return el("figure", el("figcaption", f"{panel.title} ", el("small", panel.small)), chart)


@dataclass(frozen=True)
class Spot:
    """A line's place in the plane: (diversity, quality) with their standard errors, 0 where there is none."""

    line: Line
    look: Look
    place: tuple[float, float]
    errors: tuple[float, float]


def spots(found: Sequence[Line]) -> tuple[list[Spot], str]:
    """The places of all lines that have both numbers, and the name of the diversity."""
    names = columns(found)
    across, up = measured.largest(names, "unique_correct"), next(iter(measured.passes(names)), None)
    placed = []
    for line, look in list(zip(found, looks(found), strict=True))[:MOST] if across and up else ():
        wide, good = line.row.mean(f"{measured.NAME}{across}"), line.row.mean(f"{measured.NAME}{up}")
        errors = [line.row.standard_error(f"{measured.NAME}{name}") or 0.0 for name in (across, up)]
        if wide is not None and good is not None and math.isfinite(wide) and math.isfinite(good):
            placed.append(Spot(line, look, (wide, 100 * good), (errors[0], 100 * errors[1])))
    return placed, across or ""


class Side(NamedTuple):
    """Where a label stands: to the left of its point or to the right, 0 lines above it, 1 more, or -1 for below it."""

    left: bool
    rise: int


SIDES = tuple(Side(left, rise) for rise in (0, -1, 1, -2) for left in (False, True))


def label_sides(
    places: Sequence[tuple[float, float]], texts: Sequence[str], letter: float = 0.018, line: float = 0.075
) -> list[Side]:
    """For each point the first side on which its label runs over no point and no label before it; the first of all if
    none is free.

    - places: as shares of the plot's width and height. letter, line: width and height of a character, as such shares.
    """
    taken = [(x - letter, y - line / 5, x + letter, y + line / 5) for x, y in places]
    found = []
    for (x, y), text in zip(places, texts, strict=True):
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


def origins(placed: Sequence[Spot]) -> list[tuple[Spot, Spot]]:
    """(first phase, setting) of the settings whose first phase has a place."""
    found = [spot.line for spot in placed]
    phases = {spot.line.first: spot for spot in placed if is_phase(spot.line, found)}
    return [(phases[spot.line.first], spot) for spot in placed if spot.line.then and spot.line.first in phases]


def _plane(found: Sequence[Line]) -> Html | None:
    placed, across = spots(found)
    if len(placed) < 2:
        return None
    drawn = [
        Series(
            [start.place, end.place],
            color=css(end.look.color),
            width=1,
            opacity=0.6,
            arrow=True,
            dashed=end.look.dashed,
        )
        for start, end in origins(placed)
    ]
    xs = [spot.place[0] + sign * spot.errors[0] for spot in placed for sign in (-1, 1)]
    ys = [spot.place[1] + sign * spot.errors[1] for spot in placed for sign in (-1, 1)]
    room = 0.35 * (max(xs) - min(xs))  # for the names
    x, y = axis_of([*xs, max(xs) + room], measured.words(across)), axis_of(ys, margin=0.12)
    sides = label_sides(
        [(x.place(spot.place[0]), y.place(spot.place[1])) for spot in placed], [spot.line.label for spot in placed]
    )
    drawn += [
        Series(
            [spot.place],
            color=css(spot.look.color),
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
    return el(
        "figure",
        el("figcaption", "Quality against diversity ", el("small", "% right at the first try, upwards")),
        line_chart(drawn, x, y, "pass@1 against different right answers"),
    )

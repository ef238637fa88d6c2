"""A sweep of policies: quality and diversity of every setting beside those of the phases it began with, as a table and as trajectories."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from research_stack.reporting import measured
from research_stack.reporting.charts import Series, axis_of, line_chart
from research_stack.reporting.html import Html, el
from research_stack.reporting.reading import RunFiles, begun_from, read_phase
from research_stack.reporting.sections import COLORS, keys, listing
from research_stack.reporting.sweep_axes import label_of
from research_stack.reporting.sweep_names import INIT
from research_stack.reporting.trajectory import Moment, Panel, Phase, name_of, panels, scaled, trajectory
from research_stack.sweeps import Row, SweepTable, show, show_mean

MOST = 12  # settings that are drawn
FAINT, SOFT = "var(--faint)", "var(--soft)"


@dataclass(frozen=True)
class Line:
    """A row of the table: a setting, or a phase that settings began with.

    - first: the name of the phase it began with; then: its own setting, "" for a phase. row: its seeds and values.
    - runs: of each seed, with the phases before them.
    """

    first: str
    then: str
    row: Row
    runs: Sequence[RunFiles]

    @property
    def label(self) -> str:
        """sft → group; sft."""
        return " → ".join(part for part in (self.first, self.then) if part)


def lines(table: SweepTable) -> list[Line]:
    """Each first phase, followed by the settings that began with it; [] where no run answered prompts (`eval=passk`)."""
    if not any(name.startswith(measured.NAME) for row in table.rows for name in row.values):
        return []
    settings = [_setting(table, row) for row in table.rows]
    found: list[Line] = []
    for first in dict.fromkeys(line.first for line in settings):
        own = [line for line in settings if line.first == first]
        found += [*_phases(first, own), *own]
    return found


def _setting(table: SweepTable, row: Row) -> Line:
    runs = [_with_earlier(folder) for folder in row.points]
    before = [run.earlier[-1] for run in runs if run.earlier]
    rest = {axis: value for axis, value in row.settings.items() if axis != INIT}
    words = ", ".join(show(value) if isinstance(value, str) else f"{table.labels[axis]}={show(value)}" for axis, value in rest.items())
    first = show(row.settings[INIT]) if INIT in row.settings else before[0].name if before else ""
    return Line(first, words or (runs[0].name if before else label_of(row, table)), row, runs)


def _with_earlier(folder: Path) -> RunFiles:
    """A run and the phases before it, the first one first; a phase that is gone ends the search."""
    run, at = read_phase(folder), begun_from(read_phase(folder).run, folder)
    seen = {folder.resolve()}
    while at is not None and at.is_dir() and at.resolve() not in seen:
        seen.add(at.resolve())
        run.earlier.insert(0, read_phase(at))
        at = begun_from(run.earlier[0].run, at)
    return run


def _phases(first: str, settings: Sequence[Line]) -> list[Line]:
    """The phases before these settings as lines of their own, each run once, the earliest first."""
    depth = max((len(run.earlier) for line in settings for run in line.runs), default=0)
    found = []
    for back in range(depth, 0, -1):
        runs = {run.earlier[-back].folder.resolve(): run.earlier[-back] for line in settings for run in line.runs if len(run.earlier) >= back}
        ok = [run for run in runs.values() if run.status == "ok"]
        names = list(dict.fromkeys(name for run in ok for name in run.metrics))
        values = {name: [run.metrics[name] for run in ok if name in run.metrics] for name in names}
        row = Row({}, values, [run.folder for run in ok], [run.setting("seed") for run in ok])
        if ok:
            found.append(Line(first if back == 1 else name_of(ok[0]), "", row, ok))
    return found


# The table -----------------------------------------------------------------------------------------------------------


def columns(found: Sequence[Line]) -> list[str]:
    """The metrics that are shown, by their names in `measured`."""
    return measured.main(dict.fromkeys(name.removeprefix(measured.NAME) for line in found for name in line.row.values if name.startswith(measured.NAME)))


def head(found: Sequence[Line]) -> list[str]:
    """The header of the table."""
    return ["first phase", "then", "seeds", *map(measured.short, columns(found))]


def cells(line: Line, names: Sequence[str]) -> list[str]:
    """A line of the table."""
    numbers = []
    for name in names:
        factor, key = 100.0 if measured.is_share(name) else 1.0, measured.NAME + name
        mean, error = line.row.mean(key), line.row.standard_error(key)
        numbers.append(brief(None if mean is None else factor * mean, None if error is None else factor * error))
    return [line.first or "-", line.then or "-", str(line.row.n), *numbers]


def brief(mean: float | None, error: float | None) -> str:
    """As `show_mean`, with two decimals at most where the number is large enough for them: few seeds may agree by chance."""
    if mean is None or error is None or not math.isfinite(error) or not 0.005 <= error < 0.095 or abs(mean) < 1:
        return show_mean(mean, error)
    return f"{mean:.2f} ± {error:.2f}"


def note(found: Sequence[Line]) -> str:
    """What the numbers are, and which do not compare."""
    text = "Mean ± standard error over seeds (none for one seed), of the prompts that were trained on. Lines without a second entry are the first phases themselves."
    evals = {repr(run.setting("eval")) for line in found for run in line.runs}
    return text + (" Not all runs were measured by the same evaluation: their numbers may not compare." if len(evals) > 1 else "")


def as_markdown(table: SweepTable) -> str:
    """The table for results.md; empty where no run answered prompts."""
    found = lines(table)
    if not found:
        return ""
    rows = [head(found), ["---", "---", *["---:"] * (len(columns(found)) + 1)], *(cells(line, columns(found)) for line in found)]
    body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    return f"## Quality and diversity\n\n{body}\n\n{note(found)}\n"


def section(table: SweepTable) -> list[Html] | None:
    """Table, plane and trajectories; None where no run answered prompts."""
    found = lines(table)
    if not found:
        return None
    names = columns(found)
    drawn = [chart for chart in (_plane(found), *_panels(found)) if chart is not None]
    legend = [(color, label, False) for label, color, _ in legend_of(found)]
    return [
        el("h2", "Quality and diversity"), el("div", listing(head(found), [(cells(line, names), not line.then) for line in found], text=(0, 1)), class_="scroll wrap", tabindex="0"),
        el("p", note(found), class_="note"), keys(legend) if drawn else None, el("div", drawn, class_="charts") if drawn else None,
        el("p", drawing_note(found), class_="note") if drawn else None,
    ]  # fmt: skip


# The plots -----------------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """How a line is drawn: its label, the number of its colour (None: faint), whether it is dashed."""

    label: str
    color: int | None
    dashed: bool


def looks(found: Sequence[Line]) -> list[Look]:
    """A colour for each setting beside the first phase and dashes for the second first phase; colours alone where there are more than two."""
    settings = [line for line in found if not is_phase(line, found)]
    firsts, thens = (list(dict.fromkeys(getattr(line, part) for line in settings)) for part in ("first", "then"))
    plain = len(firsts) > 2
    return [Look(line.label, None if is_phase(line, found) else settings.index(line) if plain else thens.index(line.then),
                 not plain and line.first in firsts and firsts.index(line.first) == 1) for line in found]  # fmt: skip


def is_phase(line: Line, found: Sequence[Line]) -> bool:
    """Whether other lines began with it."""
    return not line.then and any(other.then and other.first == line.first for other in found)


def css(color: int | None) -> str:
    """The colour on the page."""
    return SOFT if color is None else COLORS[color % len(COLORS)]


def legend_of(found: Sequence[Line]) -> list[tuple[str, str, bool]]:
    """(label, colour, dashed) of what is drawn."""
    return [(f"{look.label}, dashed" if look.dashed else look.label, css(look.color), look.dashed) for look in looks(found)[:MOST]]


def track(line: Line) -> list[Phase]:
    """The mean trajectory over seeds, on an axis on which the last phase begins at 0; bands reach from the lowest to the highest seed."""
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
            drawn.setdefault((line.label, "") if last else (line.first, str(index - len(phases))), Stretch(look if last else before, phase))
    return list(drawn.values())


def drawing_note(found: Sequence[Line]) -> str:
    """How to read the plots."""
    earlier = any(run.earlier for line in found for run in line.runs)
    parts = ["In the plane a point is a setting after training, with standard errors over seeds" + ("; thin arrows come from the phase it began with." if earlier else ".")]
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
    return [Panel(measured.words(name).capitalize(), "% of prompts" if measured.parts(name)[1] > 1 else "% of answers", [name]) for name in dict.fromkeys((panel.metrics[0], panel.metrics[-1]))]


def _panel(drawn: Sequence[Stretch], panel: Panel) -> Html:
    series, heights, ends = [], [], [0.0]
    for look, phase in drawn:
        mean, band = scaled(phase.curves.get(panel.metrics[0], []), panel.factor)
        series.append(Series(mean, color=css(look.color), band=band, dashed=look.dashed, title=look.label))
        heights += [y for edge in (band or (mean,)) for _, y in edge]
        ends += [phase.begins, phase.ends]
    y = axis_of(heights, margin=0.1, floor=0.0 if min(heights, default=0.0) >= 0 else None)
    x = axis_of([min(ends), max(ends)], "optimizer step" + (", 0: the last phase begins" if min(ends) < 0 else ""), margin=0)
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
    across, up = measured.largest(names, "distinct_right"), next(iter(measured.passes(names)), None)
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


def label_sides(places: Sequence[tuple[float, float]], texts: Sequence[str], letter: float = 0.018, line: float = 0.075) -> list[Side]:
    """For each point the first side on which its label runs over no point and no label before it; the first of all if none is free.

    - places: as shares of the plot's width and height. letter, line: width and height of a character, as such shares.
    """
    taken = [(x - letter, y - line / 5, x + letter, y + line / 5) for x, y in places]
    found = []
    for (x, y), text in zip(places, texts, strict=True):
        boxes = {}
        for side in SIDES:
            near, far = (x - letter, x - letter * (len(text) + 1)) if side.left else (x + letter, x + letter * (len(text) + 1))
            bottom = y + line * side.rise + line * (0.3 if side.rise >= 0 else -0.3)
            boxes[side] = (min(near, far), bottom, max(near, far), bottom + line)
        free = [side for side, box in boxes.items() if box[0] >= 0 and box[2] <= 1.02 and not any(_overlap(box, other) for other in taken)]
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
    drawn = [Series([start.place, end.place], color=css(end.look.color), width=1, opacity=0.6, arrow=True, dashed=end.look.dashed) for start, end in origins(placed)]
    xs = [spot.place[0] + sign * spot.errors[0] for spot in placed for sign in (-1, 1)]
    ys = [spot.place[1] + sign * spot.errors[1] for spot in placed for sign in (-1, 1)]
    room = 0.35 * (max(xs) - min(xs))  # for the names
    x, y = axis_of([*xs, max(xs) + room], measured.words(across)), axis_of(ys, margin=0.12)
    sides = label_sides([(x.place(spot.place[0]), y.place(spot.place[1])) for spot in placed], [spot.line.label for spot in placed])
    drawn += [Series([spot.place], color=css(spot.look.color), line=False, dots=4.5, errors=[spot.errors[1]], widths=[spot.errors[0]], title=spot.line.label,
                     label=spot.line.label, anchor="end" if side.left else "start", rise=side.rise) for spot, side in zip(placed, sides, strict=True)]  # fmt: skip
    return el("figure", el("figcaption", "Quality against diversity ", el("small", "% right at the first try, upwards")),
              line_chart(drawn, x, y, "pass@1 against different right answers"))  # fmt: skip

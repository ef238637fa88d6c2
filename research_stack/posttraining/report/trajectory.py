"""Quality and diversity of a policy's answers while it is trained, over all its phases: from dynamics.json of the run
and of those it began with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from research_stack.metrics.interval import FEW
from research_stack.posttraining.report.names import ENOUGH_PROMPTS, is_share, label, largest, parts, passes
from research_stack.posttraining.report.verdict import DYNAMICS, method_name
from research_stack.reporting.charts import Axis, Chart, Legend, Series, axis_of, keys, line_chart
from research_stack.reporting.curves import Point, is_number
from research_stack.reporting.elements import note as small_print
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles

PANELS = (
    "unique_correct",
    "preference_pass",
    "self_bleu",
    "distinct_2",
    "entropy",
    "semantic_distance",
)  # beside pass@k, as far as they were measured
COLORS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)")  # of the last phase, of the one before it, and so on
SHADES = (1.0, 0.7, 0.45)  # of pass@1, of pass@k for the next k, and so on


class MetricAtStep(NamedTuple):
    """A metric at a step: mean over prompts with its interval, NaN where it says nothing."""

    step: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Phase:
    """One run's part of the trajectory.

    - begins, ends: optimizer steps since the first phase began.
    - curves: {metric: its values by step, on the same axis}. prompts, count: how many were asked, how many answers
      each. which: held_out or trained.
    - asked: the prompts themselves.
    """

    name: str
    begins: float
    ends: float
    curves: Mapping[str, list[MetricAtStep]]
    which: str = ""
    count: int = 0
    asked: tuple[str, ...] = field(default=(), repr=False)

    @property
    def prompts(self) -> int:
        """How many prompts were asked."""
        return len(self.asked)


def metrics_by_step(dynamics: Mapping[str, Any], offset: float = 0.0) -> dict[str, list[MetricAtStep]]:
    """{metric: moments by step} of a dynamics.json; what is not finite or of another shape is left out."""
    found: dict[str, dict[float, MetricAtStep]] = {}
    points = dynamics.get("points")
    for point in points if isinstance(points, list) else ():
        metrics = point.get("metrics") if isinstance(point, Mapping) and is_number(point.get("step")) else None
        for name, band in metrics.items() if isinstance(metrics, Mapping) else ():
            if isinstance(band, Mapping) and is_number(band.get("value")):
                enough = is_number(band.get("n")) and band["n"] >= FEW
                low, high = (
                    float(band[end]) if enough and is_number(band.get(end)) else math.nan for end in ("low", "high")
                )
                found.setdefault(str(name), {})[point["step"]] = MetricAtStep(
                    offset + point["step"], float(band["value"]), low, high
                )
    return {name: [curve[step] for step in sorted(curve)] for name, curve in found.items()}


def dynamics_of(run: RunFiles) -> Mapping[str, Any]:
    """What dynamics.json holds. A file without points, and one that is missing though the run was to write it, is a
    problem of the run.
    """
    path, found = run.folder / DYNAMICS, run.json(DYNAMICS)
    problem = ""
    if path.is_file() and not isinstance(found.get("points"), list):
        problem = "" if any(str(path) in known for known in run.problems) else f"{path} has no list of points"
    elif not path.is_file() and run.status == "ok" and run.steps and run.setting("callbacks.dynamics"):
        problem = f"{path} is missing though callbacks.dynamics is on"
    if problem and problem not in run.problems:
        run.problems.append(problem)
    return found


def trajectory(run: RunFiles) -> list[Phase]:
    """The phases of a run that were measured, the first one first; [] if the run itself was not."""
    found, begins = [], 0.0
    for phase in (*run.earlier, run):
        curves = metrics_by_step(dynamics_of(phase), begins)
        last = max([m.step for curve in curves.values() for m in curve], default=begins)
        ends = max(last, begins + phase.steps)
        if curves:
            found.append(
                Phase(
                    method_name(phase),
                    begins,
                    ends,
                    curves,
                    str(dynamics_of(phase).get("which", "")),
                    _count(dynamics_of(phase)),
                    _asked(dynamics_of(phase)),
                )
            )
        begins = ends
    return found if metrics_by_step(dynamics_of(run)) else []


def _count(dynamics: Mapping[str, Any]) -> int:
    return int(dynamics["count"]) if is_number(dynamics.get("count")) else 0


def _asked(dynamics: Mapping[str, Any]) -> tuple[str, ...]:
    asked = dynamics.get("prompts")
    return tuple(map(str, asked)) if isinstance(asked, list) else ()


@dataclass(frozen=True)
class Panel:
    """Metrics on one axis."""

    title: str
    small: str
    metrics: list[str]

    @property
    def factor(self) -> float:
        """Shares are drawn in percent."""
        return 100.0 if is_share(self.metrics[0]) else 1.0


SMALL = {
    "unique_correct": "mean over prompts",
    "self_bleu": "100: all answers alike",
    "distinct_2": "different ones among all bigrams",
    "entropy": "nats per token",
    "semantic_distance": "mean cosine distance",
    "preference_pass": "% of preferences",
}


def panels(phases: Sequence[Phase]) -> list[Panel]:
    """What there is to draw: pass@k together, then the others."""
    names = list(dict.fromkeys(name for phase in phases for name in phase.curves))
    ofs = passes(names)
    fainter = (
        f"; k = {parts(ofs[0])[1]}, fainter {' and '.join(str(parts(name)[1]) for name in ofs[1:])}"
        if len(ofs) > 1
        else ""
    )
    found = [Panel("Correct answers, pass@k", f"% of prompts{fainter}", ofs)] if ofs else []
    for base in PANELS:
        if name := largest(names, base):
            title = label(name).partition(",")[0]
            found.append(Panel(title[:1].upper() + title[1:], SMALL[base], [name]))
    return found


def plane_of(phases: Sequence[Phase]) -> tuple[str, str] | None:
    """(diversity, quality): the metrics of the plane; None if they were not both measured."""
    names = {name for phase in phases for name in phase.curves}
    across, up = largest(names, "unique_correct"), next(iter(passes(names)), None)
    return (across, up) if across and up else None


def path_in_plane(phase: Phase, across: str, up: str) -> list[tuple[MetricAtStep, MetricAtStep]]:
    """(diversity, quality) at the steps where both are known."""
    of = {m.step: m for m in phase.curves.get(across, [])}
    return [(of[m.step], m) for m in phase.curves.get(up, []) if m.step in of]


def color_index(phases: Sequence[Phase], index: int) -> int:
    """The last phase has the first colour."""
    return (len(phases) - 1 - index) % len(COLORS)


# The page ------------------------------------------------------------------------------------------------------------


def section(run: RunFiles) -> Node:
    """Quality and diversity while training; None for a run whose answers were not measured then."""
    phases = trajectory(run)
    for phase in run.earlier:
        run.problems += [problem for problem in phase.problems if problem not in run.problems]
    if not phases:
        return None
    plane = plane_of(phases)
    charts = [_plane(phases, *plane)] if plane else []
    charts += [_panel(phases, panel) for panel in panels(phases)]
    words = changes(phases)
    return [
        el("h2", "Quality and diversity while training"),
        el("p", words) if words else None,
        keys(legend_of(phases)),
        el("div", charts, class_="charts"),
        small_print(note(phases)),
    ]


def legend_of(phases: Sequence[Phase]) -> Legend:
    """The phases and their colours."""
    return [(COLORS[color_index(phases, i)], phase.name, False) for i, phase in enumerate(phases)]


def changes(phases: Sequence[Phase]) -> str:
    """From where to where each phase went, in words."""
    plane = plane_of(phases)
    if plane is None:
        return ""
    found = []
    for phase in phases:
        path = path_in_plane(phase, *plane)
        if len(path) > 1:
            (wide, good), (wider, better) = path[0], path[-1]
            found.append(
                f"{phase.name} went from {100 * good.value:.0f} to {100 * better.value:.0f} % correct at the first try"
                f" and from {wide.value:.1f} to {wider.value:.1f} unique correct answers among {parts(plane[0])[1]}"
            )
    return f"{'; '.join(found)}." if found else ""


def note(phases: Sequence[Phase]) -> str:
    """What was asked, what the bands are, and what does not compare."""
    last = phases[-1]
    asked = (
        f"{last.count} answers to each of {last.prompts}"
        f" {'held-out prompts' if last.which == 'held_out' else 'prompts that were trained on'}"
        if last.prompts
        else "The answers"
    )
    found = f"{asked}, drawn alike at every measurement. Shades are 95 % intervals over prompts."
    if any((phase.asked, phase.which, phase.count) != (last.asked, last.which, last.count) for phase in phases):
        found += (
            " The phases were asked other prompts, or gave another number of answers: a jump between them may be due to"
            " that."
        )
    if 0 < last.prompts < ENOUGH_PROMPTS:
        found += f" Only {last.prompts} prompt{'s' if last.prompts > 1 else ''}: what is seen here may be chance."
    return found


def _panel(phases: Sequence[Phase], panel: Panel) -> Chart:
    drawn, heights = [], []
    for index, phase in enumerate(phases):
        for shade, metric in zip(shades(panel.metrics), panel.metrics, strict=True):
            mean, band = scaled(phase.curves.get(metric, []), panel.factor)
            shown = band if shade == 1 else None
            color, title = COLORS[color_index(phases, index)], f"{phase.name}: {label(metric)}"
            drawn.append(Series(mean, color=color, opacity=shade, dots=2.2, band=shown, title=title))
            heights += [y for _, y in mean] + ([y for edge in shown for _, y in edge] if shown else [])
    y = axis_of(heights, margin=0.12, floor=0.0 if min(heights, default=0.0) >= 0 else None)
    return line_chart(
        [*boundaries(phases, y.low, y.high), *drawn],
        steps_axis(phases),
        y,
        f"{panel.title} over {phases[-1].ends:.0f} optimizer steps",
        name=f"dynamics_{parts(panel.metrics[0])[0]}",
        title=panel.title,
        note=panel.small,
        file_legend=legend_of(phases),
    )


def shades(metrics: Sequence[str]) -> list[float]:
    """The opacity of each line, the first one full."""
    return [SHADES[min(i, len(SHADES) - 1)] for i in range(len(metrics))]


def scaled(curve: Sequence[MetricAtStep], factor: float) -> tuple[list[Point], tuple[list[Point], list[Point]] | None]:
    """The means, and the edges of the band where every step has one."""
    mean = [(m.step, factor * m.value) for m in curve]
    if len(curve) < 2 or not all(math.isfinite(m.low) and math.isfinite(m.high) for m in curve):
        return mean, None
    return mean, ([(m.step, factor * m.low) for m in curve], [(m.step, factor * m.high) for m in curve])


def boundaries(phases: Sequence[Phase], low: float, high: float) -> list[Series]:
    """Dashed lines where a phase ended and the next began."""
    return [
        Series([(phase.begins, low), (phase.begins, high)], color="var(--faint)", width=1.2, dashed=True)
        for phase in phases
        if phase.begins > 0
    ]


def steps_axis(phases: Sequence[Phase]) -> Axis:
    """Optimizer steps since the first phase began."""
    label = "optimizer step" if len(phases) == 1 else f"optimizer step, {' | '.join(phase.name for phase in phases)}"
    return axis_of([phases[0].begins, phases[-1].ends], label, margin=0)


def _plane(phases: Sequence[Phase], across: str, up: str) -> Chart:
    drawn, xs, ys = [], [], []
    for index, phase in enumerate(phases):
        path = path_in_plane(phase, across, up)
        points = [(d.value, 100 * q.value) for d, q in path]
        if points:
            color = COLORS[color_index(phases, index)]
            wide, good = path[-1]
            errors = [(100 * (good.value - good.low), 100 * (good.high - good.value))] if known(good) else []
            widths = [max(wide.value - wide.low, wide.high - wide.value)] if known(wide) else []
            end = {"dots": 4, "line": False, "label": phase.name, "title": f"end of {phase.name}"}
            drawn.append(Series(points, color=color, width=2, arrow=True, title=phase.name))
            drawn.append(Series(points[-1:], color=color, errors=errors, widths=widths, **end))
            xs, ys = [*xs, *(x for x, _ in points)], [*ys, *(y for _, y in points)]
    room = 0.25 * (max(xs) - min(xs))  # for the names
    x, y = axis_of([*xs, max(xs) + room], label(across)), axis_of(ys, margin=0.12)
    return line_chart(
        drawn,
        x,
        y,
        f"pass@1 against {label(across)}, a path over {len(phases)} phases",
        name="dynamics_plane",
        title="Quality against diversity",
        note="% correct at the first try, upwards; arrows go with time",
    )


def known(one: MetricAtStep) -> bool:
    """Whether it has an interval."""
    return math.isfinite(one.low) and math.isfinite(one.high)

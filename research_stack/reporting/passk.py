"""pass@k, diversity and certainty of a policy's answers after training: from tables/passk.csv, passk_curve.csv and
passk_prompts.csv.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from research_stack.metrics.interval import FEW
from research_stack.reporting.html import Html, el
from research_stack.reporting.measured import (
    DIVERSE,
    FEWER_THAN_WANTED,
    RIGHT,
    SURE,
    group_of,
    words,
    written,
    written_span,
)
from research_stack.reporting.reading import RunFiles, Table, reals
from research_stack.reporting.sections import keys, listing
from research_stack.reporting.svg_charts import Axis, Series, axis_of, line_chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = {"trained": "trained", "held_out": "held-out"}
COLORS = {"trained": "var(--c0)", "held_out": "var(--c1)"}
MOST_SHOWN = 10  # prompts whose table is not folded
LONG = 90  # characters of a prompt or of its answers


def by_side(rows: Table) -> dict[str, Table]:
    """{side: its rows}, the trained prompts first."""
    found = {side: [row for row in rows if row.get("prompts") == side] for side in SIDES}
    return {side: own for side, own in found.items() if own}


def measured(run: RunFiles) -> dict[str, dict[str, dict[str, str]]]:
    """{side: {metric: row}} of tables/passk.csv, without rows that hold no number."""
    found = {
        side: {row.get("metric", ""): row for row in rows if math.isfinite(*reals(row, "value"))}
        for side, rows in by_side(run.tables.get("passk", [])).items()
    }
    return {side: metrics for side, metrics in found.items() if metrics}


def prompts_of(metrics: Mapping[str, Mapping[str, str]]) -> int:
    """How many prompts a side has."""
    counts = [
        n + (lost if math.isfinite(lost) else 0)
        for n, lost in (reals(row, "n", "undefined") for row in metrics.values())
        if math.isfinite(n)
    ]
    return int(max(counts, default=0))


def interval(row: Mapping[str, str] | None) -> tuple[float, float]:
    """The ends of a number's interval; NaN where too few prompts stand behind it."""
    n, low, high = reals(row or {}, "n", "low", "high")
    return (low, high) if n >= FEW else (math.nan, math.nan)


def answers(run: RunFiles) -> list[Html] | None:
    """The section: pass@k over k, all numbers of both sides beside each other, the prompts."""
    found = measured(run)
    if not found:
        return None
    chart = _curve_chart(run)
    return [
        el("h2", "Right, diverse, sure"),
        *(el("p", text) for text in warnings(found)),
        el("div", chart, class_="charts") if chart else None,
        el("div", listing(*table(found)), class_="scroll", tabindex="0"),
        el("p", note(run, found), class_="note"),
        *_prompts(run),
    ]


def warnings(found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    """A line for each side with too few prompts."""
    counts = {SIDES[side]: prompts_of(metrics) for side, metrics in found.items()}
    return [
        f"Only {n} {side} prompt{'s' if n != 1 else ''}: too few to tell how the policy does on others"
        f"{', and too few for an interval' if n < FEW else ''}."
        for side, n in counts.items()
        if n < FEWER_THAN_WANTED
    ]


def table(found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """(header, rows) with the groups one after another and the sides beside each other."""
    header = [""] + [
        text
        for side, metrics in found.items()
        for text in (f"{prompts_of(metrics)} {SIDES[side]} prompts", "95 % interval")
    ]
    names = list(dict.fromkeys(name for metrics in found.values() for name in metrics))
    rows: list[tuple[list[str], bool]] = []
    for group in (RIGHT, DIVERSE, SURE):
        own = [name for name in names if group_of(name) == group]
        rows += [([group, *[""] * (len(header) - 1)], True)] if own else []
        rows += [([f"{words(name)}", *_numbers(name, found)], False) for name in own]
    return header, rows


def _numbers(name: str, found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    cells = []
    for metrics in found.values():
        row = metrics.get(name)
        cells += [written(name, *reals(row or {}, "value")), written_span(name, *interval(row))]
    return cells


def note(run: RunFiles, found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """What the numbers are, and which were left out for some prompts."""
    count = max(
        [n for row in run.tables.get("passk_prompts", []) for n in reals(row, "answers") if math.isfinite(n)],
        default=math.nan,
    )
    drawn = f"{count:.0f} answers to each prompt. " if math.isfinite(count) else ""
    lost = [
        f"{words(name)} ({int(gone)} of {prompts_of(metrics)} {SIDES[side]})"
        for side, metrics in found.items()
        for name, row in metrics.items()
        for gone in reals(row, "undefined")
        if gone > 0
    ]
    left = f" Not defined for some prompts, which are left out there: {', '.join(lost)}." if lost else ""
    return (
        f"{drawn}Means over prompts; the intervals (Student's t) are over prompts too, and too short for a share near 0"
        " or 100 % of few prompts (in simulation 82 % in place of 95 % for pass@8 of 91 % with 10 prompts). pass@k and"
        " the numbers of different answers are unbiased for k fresh answers; self-BLEU (100: all alike) and distinct-n"
        " (different n-grams among all) depend on how many answers were drawn. Wrong answers are diverse: read"
        f" diversity among the right ones.{left}"
    )


def curve(run: RunFiles) -> dict[str, list[tuple[float, float, float, float]]]:
    """{side: (k, pass@k, low, high) by k}, in percent."""
    found = {
        side: sorted(reals(row, "k", "pass", "low", "high") for row in rows)
        for side, rows in by_side(run.tables.get("passk_curve", [])).items()
    }
    return {
        side: [(k, *(100 * v for v in rest)) for k, *rest in rows if k >= 1 and math.isfinite(rest[0])]
        for side, rows in found.items()
    }


def few(run: RunFiles) -> set[str]:
    """The sides whose intervals say nothing."""
    return {side for side, metrics in measured(run).items() if prompts_of(metrics) < FEW}


def _curve_chart(run: RunFiles) -> Html | None:
    lines, places, skipped = [], sorted({k for rows in curve(run).values() for k, *_ in rows}), few(run)
    for side, rows in curve(run).items():
        points = [(places.index(k), value) for k, value, *_ in rows]
        known = side not in skipped and all(math.isfinite(v) for row in rows for v in row)
        band = (
            ([(places.index(k), low) for k, _, low, _ in rows], [(places.index(k), high) for k, _, _, high in rows])
            if known
            else None
        )
        lines.append(
            Series(
                points, color=COLORS[side], dots=3, band=band, dashed=side in skipped, title=f"{SIDES[side]} prompts"
            )
        )
    if not lines or len(places) < 2:
        return None
    x = Axis(0.0, len(places) - 1.0, "k: answers that are looked at", names=[f"{k:g}" for k in places])
    y = axis_of([0.0, 100.0], margin=0.04)
    entries = [
        (COLORS[side], f"{SIDES[side]} prompts{', too few for a band' if side in skipped else ''}", False)
        for side in curve(run)
    ]
    return el(
        "figure",
        el("figcaption", "pass@k ", el("small", "% of prompts with a right one among k answers")),
        line_chart(lines, x, y, "pass@k over k"),
        keys(entries),
    )


def _prompts(run: RunFiles) -> list[Html]:
    """Each prompt with its most frequent right answers, the hardest first; folded where there are many."""
    rows = [
        (side, row)
        for side, own in by_side(run.tables.get("passk_prompts", [])).items()
        for row in sorted(own, key=_share)
    ]
    if not rows:
        return []
    header = ("prompt", "", "right", "different right", "most frequent right answers")
    lines = [
        (
            [
                shortened(row.get("prompt", "")),
                SIDES[side],
                f"{100 * _share(row):.0f} %",
                row.get("unique_correct", ""),
                shortened(apart(row.get("most_frequent_correct", ""))),
            ],
            False,
        )
        for side, row in rows
    ]
    shown = el("div", listing(header, lines, text=(0, 1, 4)), class_="scroll", tabindex="0")
    title = f"{len(rows)} prompts, the hardest first"
    return [el("h3", title), shown] if len(rows) <= MOST_SHOWN else [el("details", el("summary", title), shown)]


def _share(row: Mapping[str, str]) -> float:
    right, count = reals(row, "correct", "answers")
    return right / count if count > 0 and math.isfinite(right) else 0.0


def apart(counted: str) -> str:
    """`6+1 x2  4+3 x1` as `6+1 ×2 · 4+3 ×1`, since a page shows two blanks as one."""
    return re.sub(r" x(\d+)(?:  |$)", r" ×\1 · ", counted).removesuffix(" · ")


def shortened(text: str) -> str:
    """One line of text, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= LONG else line[: LONG - 1] + "…"


def figure(run: RunFiles) -> Figure | None:
    """figures/passk.png: pass@k over k on both sides of the split."""
    from research_stack.reporting.figures import BLUE, GREY, INK, ORANGE, new_figure

    found = {side: rows for side, rows in curve(run).items() if len(rows) > 1}
    if not found:
        return None
    drawn, (plot,) = new_figure(5.4, 3.6)
    counts, skipped = {side: prompts_of(metrics) for side, metrics in measured(run).items()}, few(run)
    for side, rows in found.items():
        color, n = BLUE if side == "trained" else ORANGE, counts.get(side)
        plot.plot(
            [k for k, *_ in rows],
            [value for _, value, *_ in rows],
            "o-" if side not in skipped else "o--",
            color=color,
            markersize=4,
            linewidth=1.6,
            label=f"{f'{n} ' if n else ''}{SIDES[side]} prompts",
        )
        if side not in skipped:
            plot.fill_between(
                [k for k, *_ in rows],
                [low for _, _, low, _ in rows],
                [high for *_, high in rows],
                color=color,
                alpha=0.15,
                linewidth=0,
            )
    ks = sorted({k for rows in found.values() for k, *_ in rows})
    plot.set_xscale("log", base=2)
    plot.set_xticks(ks, [f"{k:g}" for k in ks])
    plot.minorticks_off()
    plot.set_ylim(-3, 104)
    plot.set_xlabel("k: answers that are looked at", fontsize=8, color=GREY)
    plot.set_title(
        "% of prompts with a right one among k answers, 95 % bands over prompts", loc="left", fontsize=9, color=INK
    )
    plot.legend(frameon=False, fontsize=8, labelcolor=GREY, loc="lower right")
    return drawn

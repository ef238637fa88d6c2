"""pass@k, diversity and certainty of a policy's answers after training: from tables/passk.csv, passk_curve.csv and
passk_prompts.csv.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from research_stack.metrics.interval import FEW
from research_stack.posttraining.report.names import (
    CERTAINTY,
    DIVERSITY,
    ENOUGH_PROMPTS,
    QUALITY,
    group_of,
    label,
    main,
    written,
    written_interval,
)
from research_stack.posttraining.report.sweep_charts import tables
from research_stack.posttraining.report.verdict import numbers, verdict
from research_stack.reporting.charts import Axis, Chart, Series, axis_of, line_chart
from research_stack.reporting.contract import Lines, Metric, Report, SweepReport
from research_stack.reporting.elements import folded, listing, scrolled
from research_stack.reporting.elements import note as small_print
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles, Table, reals

SIDES = {"trained": "trained", "held_out": "held-out"}
COLORS = {"trained": "var(--c0)", "held_out": "var(--c1)"}
MAX_SHOWN = 10  # prompts whose table is not folded
MAX_LENGTH = 90  # characters of a prompt or of its answers


def by_side(rows: Table) -> dict[str, Table]:
    """{side: its rows}, the trained prompts first."""
    found = {side: [row for row in rows if row.get("prompts") == side] for side in SIDES}
    return {side: own for side, own in found.items() if own}


def measured(run: RunFiles) -> dict[str, dict[str, dict[str, str]]]:
    """{side: {metric: row}} of tables/passk.csv, without rows that hold no number."""
    found = {
        side: {row.get("metric", ""): row for row in rows if math.isfinite(*reals(row, "value"))}
        for side, rows in by_side(run.table("passk")).items()
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
    """The ends of a number's interval; NaN where too few prompts are behind it."""
    n, low, high = reals(row or {}, "n", "low", "high")
    return (low, high) if n >= FEW else (math.nan, math.nan)


def answers(run: RunFiles) -> Node:
    """The section: pass@k over k, all numbers of both sides beside each other, the prompts."""
    found = measured(run)
    if not found:
        return None
    chart = _curve_chart(run)
    return [
        el("h2", "Correctness, diversity, certainty"),
        *(el("p", text) for text in warnings(found)),
        el("div", chart, class_="charts") if chart else None,
        scrolled(listing(*comparison(found))),
        small_print(note(run, found)),
        *_prompts(run),
    ]


def warnings(found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    """A line for each side with too few prompts."""
    counts = {SIDES[side]: prompts_of(metrics) for side, metrics in found.items()}
    return [
        f"Only {n} {side} prompt{'s' if n != 1 else ''}: too few to tell how the policy does on others"
        f"{', and too few for an interval' if n < FEW else ''}."
        for side, n in counts.items()
        if n < ENOUGH_PROMPTS
    ]


def comparison(found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """(header, rows) with the groups one after another and the sides beside each other."""
    header = [""] + [
        text
        for side, metrics in found.items()
        for text in (f"{prompts_of(metrics)} {SIDES[side]} prompts", "95 % interval")
    ]
    names = list(dict.fromkeys(name for metrics in found.values() for name in metrics))
    rows: list[tuple[list[str], bool]] = []
    for group in (QUALITY, DIVERSITY, CERTAINTY):
        own = [name for name in names if group_of(name) == group]
        rows += [([group, *[""] * (len(header) - 1)], True)] if own else []
        rows += [([f"{label(name)}", *_numbers(name, found)], False) for name in own]
    return header, rows


def _numbers(name: str, found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    cells = []
    for metrics in found.values():
        row = metrics.get(name)
        cells += [written(name, *reals(row or {}, "value")), written_interval(name, *interval(row))]
    return cells


def note(run: RunFiles, found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """What the numbers are, and which were left out for some prompts."""
    count = max(
        [n for row in run.table("passk_prompts") for n in reals(row, "answers") if math.isfinite(n)], default=math.nan
    )
    drawn = f"{count:.0f} answers to each prompt. " if math.isfinite(count) else ""
    lost = [
        f"{label(name)} ({int(gone)} of {prompts_of(metrics)} {SIDES[side]})"
        for side, metrics in found.items()
        for name, row in metrics.items()
        for gone in reals(row, "undefined")
        if gone > 0
    ]
    left = f" Not defined for some prompts, which are left out there: {', '.join(lost)}." if lost else ""
    return (
        f"{drawn}Means over prompts; the intervals (Student's t) are over prompts too, and too short for a share near 0"
        " or 100 % of few prompts (in simulation 82 % in place of 95 % for pass@8 of 91 % with 10 prompts). pass@k and"
        " the numbers of unique answers are unbiased for k fresh answers; self-BLEU (100: all alike) and distinct-n"
        " (different n-grams among all) depend on how many answers were drawn. Wrong answers are diverse: read"
        f" diversity among the correct ones.{left}"
    )


def curve(run: RunFiles) -> dict[str, list[tuple[float, float, float, float]]]:
    """{side: (k, pass@k, low, high) by k}, in percent."""
    found = {
        side: sorted(reals(row, "k", "pass", "low", "high") for row in rows)
        for side, rows in by_side(run.table("passk_curve")).items()
    }
    return {
        side: [
            (k, 100 * value, 100 * low, 100 * high) for k, value, low, high in rows if k >= 1 and math.isfinite(value)
        ]
        for side, rows in found.items()
    }


def few(run: RunFiles) -> set[str]:
    """The sides whose intervals say nothing."""
    return {side for side, metrics in measured(run).items() if prompts_of(metrics) < FEW}


def _curve_chart(run: RunFiles) -> Chart | None:
    lines, ks, skipped = [], sorted({k for rows in curve(run).values() for k, *_ in rows}), few(run)
    for side, rows in curve(run).items():
        points = [(ks.index(k), value) for k, value, *_ in rows]
        known = side not in skipped and all(math.isfinite(v) for row in rows for v in row)
        band = (
            ([(ks.index(k), low) for k, _, low, _ in rows], [(ks.index(k), high) for k, _, _, high in rows])
            if known
            else None
        )
        lines.append(
            Series(
                points, color=COLORS[side], dots=3, band=band, dashed=side in skipped, title=f"{SIDES[side]} prompts"
            )
        )
    if not lines or len(ks) < 2:
        return None
    x = Axis(0.0, len(ks) - 1.0, "k: answers that are looked at", names=[f"{k:g}" for k in ks])
    y = axis_of([0.0, 100.0], margin=0.04)
    entries = [
        (COLORS[side], f"{SIDES[side]} prompts{', too few for a band' if side in skipped else ''}", False)
        for side in curve(run)
    ]
    return line_chart(
        lines,
        x,
        y,
        "pass@k over k",
        name="passk",
        title="pass@k",
        note="% of prompts with a correct one among k answers",
        legend=entries,
        table="passk_curve",
    )


def _prompts(run: RunFiles) -> list[Node]:
    """Each prompt with its most frequent correct answers, the hardest first; folded where there are many."""
    rows = [(side, row) for side, own in by_side(run.table("passk_prompts")).items() for row in sorted(own, key=_share)]
    if not rows:
        return []
    header = ("prompt", "", "correct", "unique correct", "most frequent correct answers")
    lines = [
        (
            [
                shortened(row.get("prompt", "")),
                SIDES[side],
                f"{100 * _share(row):.0f} %",
                row.get("unique_correct", ""),
                shortened(separated(row.get("most_frequent_correct", ""))),
            ],
            False,
        )
        for side, row in rows
    ]
    shown = scrolled(listing(header, lines, text=(0, 1, 4)))
    title = f"{len(rows)} prompts, the hardest first"
    return [el("h3", title), shown] if len(rows) <= MAX_SHOWN else [folded(title, shown)]


def _share(row: Mapping[str, str]) -> float:
    correct, count = reals(row, "correct", "answers")
    return correct / count if count > 0 and math.isfinite(correct) else 0.0


def separated(counted: str) -> str:
    """`6+1 x2  4+3 x1` as `6+1 ×2 · 4+3 ×1`, since a page shows two blanks as one."""
    return re.sub(r" x(\d+)(?:  |$)", r" ×\1 · ", counted).removesuffix(" · ")


def shortened(text: str) -> str:
    """One line of text, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_LENGTH else line[: MAX_LENGTH - 1] + "…"


def terminal(run: RunFiles) -> list[Lines]:
    """The few numbers that matter, the sides beside each other."""
    found = measured(run)
    if not found:
        return []
    heads = [text for side in found for text in (f"{prompts_of(found[side])} {SIDES[side]}", "95 % interval")]
    names = main(dict.fromkeys(name for metrics in found.values() for name in metrics))
    return [[["answers to prompts", *heads], *([label(name), *_numbers(name, found)] for name in names)]]


def _metric(name: str, *, plot: bool = True, headline: bool = False, better: bool = True) -> dict[str, Metric]:
    """The declaration of a metric of the trained prompts; its k may be a star."""
    base, _, k = name.partition("@")
    words = f"pass@{k}" if base == "pass" else label(f"{base}@0").replace("0", k or "") if k else label(name)
    words = words.replace("*", "{0}")
    return {f"passk/{name}": Metric(words, better="higher" if better else None, plot=plot, headline=headline)}


METRICS = {
    **_metric("pass@1", headline=True),
    **_metric("unique_correct@*", headline=True),
    **_metric("pass@*"),
    **_metric("preference_pass@*"),
    **_metric("semantic_distance", better=False),
    **_metric("entropy", better=False),
    "passk/held_out_pass@1": Metric("held out: pass@1", better="higher"),
    "passk/held_out_pass@*": Metric("held out: pass@{0}", better="higher", plot=False),
    "passk/held_out_unique_correct@*": Metric(
        "held out: unique correct answers among {0}", better="higher", plot=False
    ),
    "passk/held_out_preference_pass@*": Metric(
        "held out: hidden preference met within {0} tries", better="higher", plot=False
    ),
    "passk/held_out_unique@*": Metric("held out: unique answers among {0}", plot=False),
    **_metric("unique@*", plot=False, better=False),
    **_metric("reward", plot=False),
    "passk/held_out_reward": Metric("held out: mean reward", better="higher", plot=False),
    **{
        f"passk/{side}{name}": Metric(words + label(name), plot=False)
        for side, words in (("", ""), ("held_out_", "held out: "))
        for base in ("self_bleu", "distinct_1", "distinct_2", "distinct_3")
        for name in (base, f"{base}_correct")
    },
    "passk/held_out_entropy": Metric("held out: entropy, nats per token", plot=False),
    "passk/held_out_semantic_distance": Metric("held out: distance of meanings", plot=False),
}
REPORT = Report(
    metrics=METRICS,
    results=(answers,),
    verdict=verdict,
    numbers=numbers,
    terminal=terminal,
    sweep=SweepReport(tables=tables),
)

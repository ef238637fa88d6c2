"""What a confidence score is good for: keep the tokens it trusts (risk and coverage), abstain with a promise.

From tables/risk_coverage.csv and tables/abstention.csv.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from research_stack.reporting.charts import COLORS as PALETTE
from research_stack.reporting.charts import Axis, Chart, Series, axis_of, line_chart
from research_stack.reporting.curves import Point
from research_stack.reporting.elements import cell, listing, note, scrolled, span
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles, Table, reals

COLORS = {
    "confidence head": "var(--c0)",
    "entropy": "var(--c1)",
    "max probability": "var(--c2)",
    "margin": "var(--c3)",
    "oracle": "var(--c5)",
}
ORACLE = "oracle"


@dataclass(frozen=True)
class RiskCurve:
    """Mean loss of the share of tokens that a score trusts most, over that share.

    - aurc: area under the curve; excess: what it lies above the oracle's.
    """

    score: str
    loss: str
    points: list[Point]
    aurc: float
    excess: float


def risk_curves(rows: Table) -> dict[str, list[RiskCurve]]:
    """{loss: the curves of its scores, in the order of the file}."""
    groups: dict[tuple[str, str], Table] = {}
    for row in rows:
        if all(map(math.isfinite, reals(row, "coverage", "risk"))):
            groups.setdefault((row.get("loss", ""), row.get("score", "")), []).append(row)
    found: dict[str, list[RiskCurve]] = {}
    for (loss, score), group in groups.items():
        points = sorted((coverage, risk) for coverage, risk in (reals(row, "coverage", "risk") for row in group))
        found.setdefault(loss, []).append(RiskCurve(score, loss, points, *reals(group[0], "aurc", "excess")))
    return found


def risk_coverage(run: RunFiles) -> Node:
    """One chart for each loss, the area under each curve in the legend."""
    found = risk_curves(run.table("risk_coverage"))
    if not found:
        return None
    return [
        el("h2", "Risk and coverage"),
        el("div", [risk_chart(loss, curves) for loss, curves in found.items()], class_="charts"),
        note(
            "Keep only the share of tokens that a score trusts most: the mean loss of those kept. A score that knows"
            " nothing is a level line; the oracle sorts by the loss itself. AURC is the area under a curve, lower is"
            " better, and in brackets what it lies above the oracle's."
        ),
    ]


def risk_chart(loss: str, curves: list[RiskCurve]) -> Chart:
    """The curves of all scores for one loss."""
    colors = [risk_color(curve.score, i) for i, curve in enumerate(curves)]
    drawn = [
        Series(curve.points, color=color, dashed=curve.score == ORACLE, title=curve.score)
        for color, curve in zip(colors, curves, strict=True)
    ]
    y = axis_of([risk for curve in curves for _, risk in curve.points])
    texts = [f"{curve.score}{', dashed' if curve.score == ORACLE else ''}{area(curve)}" for curve in curves]
    return line_chart(
        drawn,
        coverage_axis(),
        y,
        f"{loss} over coverage: {', '.join(curve.score for curve in curves)}",
        name=chart_name(loss),
        title=f"{loss[:1].upper()}{loss[1:]}",
        note="mean nats of the tokens kept",
        legend=[(color, text, False) for color, text in zip(colors, texts, strict=True)],
        table="risk_coverage",
    )


def chart_name(loss: str) -> str:
    """The file name of a loss's chart: letters, digits and underscores."""
    return f"risk_coverage_{re.sub(r'[^a-z0-9]+', '_', loss.lower())}"


def coverage_axis() -> Axis:
    """Shares from nothing to everything."""
    return Axis(0.0, 1.0, "coverage: share of tokens kept")


def risk_color(score: str, index: int) -> str:
    """The score's own colour, so that it is the same in every chart."""
    return COLORS.get(score, PALETTE[index % len(PALETTE)])


def area(curve: RiskCurve) -> str:
    """ ": AURC 1.234 (+0.210)"; empty without one."""
    excess = f" (+{curve.excess:.3f})" if math.isfinite(curve.excess) and curve.score != ORACLE else ""
    return f": AURC {curve.aurc:.3f}{excess}" if math.isfinite(curve.aurc) else ""


# Abstention ----------------------------------------------------------------------------------------------------------

CONFORMAL, TESTED = "conformal", "learn-then-test"
PROMISES = {
    CONFORMAL: (
        "kept and wrong, of all",
        (
            "Conformal risk control: of all tokens of a new document, at most the target is expected to be kept and"
            " wrong. The threshold is chosen on a random half of the documents; coverage and risk are those on the"
            " other half, means over splits. A single split may lie above the target: the promise is about the mean,"
            " and about the mean only."
        ),
    ),
    TESTED: (
        "wrong, of those kept",
        (
            "Learn then test: of the tokens kept, at most the target is wrong, with the stated probability, for a"
            " random token of a random document. It sees one token of each calibration document, so with few documents"
            " no threshold passes."
        ),
    ),
}


def abstention(run: RunFiles) -> Node:
    """What was promised and what was kept, for each kind of promise a table and a sentence."""
    rows = [row for row in run.table("abstention") if math.isfinite(*reals(row, "target"))]
    found = [part for name in PROMISES for part in _promise(name, [row for row in rows if row.get("promise") == name])]
    return [el("h2", "Abstention with a promise"), *found] if found else None


def _promise(name: str, rows: Table) -> list[Node]:
    """The table of one kind of promise; nothing without rows."""
    if not rows:
        return []
    of, words = PROMISES[name]
    above = "splits above" if name == CONFORMAL else "broken in"
    header = (
        "score",
        "target",
        *(("promised with",) if name == TESTED else ()),
        "tokens kept",
        of,
        "95 % of splits",
        above,
        "splits",
    )
    cells = [(_cells(row, name), row.get("score") == "confidence head") for row in rows]
    return [
        el("h3", name[:1].upper() + name[1:].replace("-", " ")),
        el("p", promise(rows, name)),
        scrolled(listing(header, cells)),
        note(words),
    ]


def promise(rows: Table, name: str) -> str:
    """Whether the promises were kept, and the coverage that the first usable one leaves, in plain words."""
    usable = [row for row in rows if reals(row, "coverage")[0] > 0 and math.isfinite(reals(row, "risk")[0])]
    if not usable:
        return (
            "No threshold passes at these targets: with so few documents the promise can only be kept by keeping no"
            " token."
        )
    row = next((r for r in usable if r.get("score") == "confidence head"), usable[0])
    target, coverage, risk = reals(row, "target", "coverage", "risk")
    first = (
        f"At a target of {100 * target:.3g}% {article(row.get('score', ''))} keeps {coverage:.1%} of the tokens; "
        f"{risk:.1%} {'are kept and wrong' if name == CONFORMAL else 'of them are wrong'} on fresh documents."
    )
    broken = [
        r
        for r in usable
        if (
            reals(r, "risk")[0] > reals(r, "target")[0]
            if name == CONFORMAL
            else reals(r, "violations")[0] > reals(r, "delta")[0]
        )
    ]
    return f"{first} {f'{len(broken)} of {len(usable)} promises are broken.' if broken else 'All promises are kept.'}"


def article(score: str) -> str:
    """The confidence head, but entropy."""
    return f"the {score}" if score == "confidence head" else score


def _cells(row: dict[str, str], name: str) -> list[str]:
    target, delta, coverage, risk, low, high, violations, splits = reals(
        row, "target", "delta", "coverage", "risk", "low", "high", "violations", "splits"
    )
    sure = [cell(100 - 100 * delta, "{:.3g}%")] if name == TESTED else []
    return [
        row.get("score", ""),
        cell(100 * target, "{:.3g}%"),
        *sure,
        cell(coverage, "{:.1%}"),
        cell(risk, "{:.1%}"),
        span(low, high, "{:.1%}"),
        cell(violations, "{:.1%}"),
        cell(splits, "{:,.0f}"),
    ]

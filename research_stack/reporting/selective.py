"""What a confidence score is good for: keep the tokens it trusts (risk and coverage), abstain with a promise.

From tables/risk_coverage.csv and tables/abstention.csv.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from research_stack.reporting.charts import Axis, Series, axis_of, line_chart
from research_stack.reporting.curves import Point
from research_stack.reporting.html import Html, el
from research_stack.reporting.next_token import cell, span
from research_stack.reporting.reading import RunFiles, Table, reals
from research_stack.reporting.sections import keys, listing

COLORS = {"confidence head": "var(--c0)", "entropy": "var(--c1)", "max probability": "var(--c2)", "margin": "var(--c3)", "oracle": "var(--c5)"}
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


def risk_coverage(run: RunFiles) -> list[Html] | None:
    """One chart for each loss, the area under each curve in the legend."""
    found = risk_curves(run.tables.get("risk_coverage", []))
    if not found:
        return None
    return [
        el("h2", "Risk and coverage"), el("div", [risk_chart(loss, curves) for loss, curves in found.items()], class_="charts"),
        el("p", "Keep only the share of tokens that a score trusts most: the mean loss of those kept. A score that knows nothing is a level line; "
                "the oracle "
           "sorts by the loss itself. AURC is the area under a curve, lower is better, and in brackets what it lies above the "
           "oracle's.", class_="note"),
    ]  # fmt: skip


def risk_chart(loss: str, curves: list[RiskCurve]) -> Html:
    """The curves of all scores for one loss."""
    colors = [risk_color(curve.score, i) for i, curve in enumerate(curves)]
    drawn = [Series(curve.points, color=color, dashed=curve.score == ORACLE, title=curve.score) for color, curve in zip(colors, curves, strict=True)]
    y = axis_of([risk for curve in curves for _, risk in curve.points])
    texts = [f"{curve.score}{', dashed' if curve.score == ORACLE else ''}{area(curve)}" for curve in curves]
    chart = line_chart(drawn, coverage_axis(), y, f"{loss} over coverage: {', '.join(curve.score for curve in curves)}")
    return el("figure", el("figcaption", f"{loss[:1].upper()}{loss[1:]} ", el("small", "mean nats of the tokens kept")), chart,
              keys([(color, text, False) for color, text in zip(colors, texts, strict=True)]))  # fmt: skip


def coverage_axis() -> Axis:
    """Shares from nothing to everything."""
    return Axis(0.0, 1.0, "coverage: share of tokens kept")


def risk_color(score: str, index: int) -> str:
    """The score's own colour, so that it is the same in every chart."""
    return COLORS.get(score, f"var(--c{index % 6})")


def area(curve: RiskCurve) -> str:
    """": AURC 1.234 (+0.210)"; empty without one."""
    excess = f" (+{curve.excess:.3f})" if math.isfinite(curve.excess) and curve.score != ORACLE else ""
    return f": AURC {curve.aurc:.3f}{excess}" if math.isfinite(curve.aurc) else ""


# Abstention ----------------------------------------------------------------------------------------------------------


def abstention(run: RunFiles) -> list[Html] | None:
    """What was promised, what was kept, in a sentence and a table."""
    rows = [row for row in run.tables.get("abstention", []) if math.isfinite(*reals(row, "target"))]
    if not rows:
        return None
    header = ("score", "wrong at most", "promised with", "tokens kept", "wrong among them", "95 % interval", "broken in", "splits")
    return [
        el("h2", "Abstention with a promise"), el("p", promise(rows)),
        el("div", listing(header, [(_cells(row), row.get("score") == "confidence head") for row in rows]), class_="scroll", tabindex="0"),
        el("p", "A threshold on the score is chosen on some documents by a test (learn then test) so that the share of wrong own tokens among "
                "those kept stays below the "
           "target with the stated probability; coverage and risk are those on other documents. Broken in: the share of random splits of the "
           "documents in which the risk "
           "came out above the target.", class_="note"),
    ]  # fmt: skip


def promise(rows: Table) -> str:
    """Two plain sentences: the first row with coverage in words, then whether all promises held."""
    usable = [row for row in rows if all(map(math.isfinite, reals(row, "delta", "coverage", "risk"))) and reals(row, "coverage")[0] > 0]
    if not usable:
        return "No threshold passes the test at these targets: the promise can only be kept by keeping no token."
    row = next((r for r in usable if r.get("score") == "confidence head"), usable[0])
    target, delta, coverage, risk = reals(row, "target", "delta", "coverage", "risk")
    first = (f"Promised: at most {100 * target:.3g}% of the tokens kept are wrong, with probability {1 - delta:.3g}. With "
             f"{article(row.get('score', ''))} as the score, "
             f"{coverage:.1%} of the tokens are kept, and {risk:.1%} of them are wrong on fresh documents.")  # fmt: skip
    tested = [r for r in rows if all(map(math.isfinite, reals(r, "violations", "delta")))]
    broken = [r for r in tested if reals(r, "violations")[0] > reals(r, "delta")[0]]
    if not tested:
        return first
    if broken:
        return f"{first} In {len(broken)} of {len(tested)} rows it is broken more often than promised."
    return f"{first} Over random splits no row breaks its promise more often than it may."


def article(score: str) -> str:
    """The confidence head, but entropy."""
    return f"the {score}" if score == "confidence head" else score


def _cells(row: dict[str, str]) -> list[str]:
    target, delta, coverage, risk, low, high, violations, splits = reals(
        row, "target", "delta", "coverage", "risk", "low", "high", "violations", "splits")  # fmt: skip
    return [row.get("score", ""), cell(100 * target, "{:.3g}%"), cell(100 - 100 * delta, "{:.3g}%"), cell(coverage, "{:.1%}"), cell(risk, "{:.1%}"),
            span(low, high, "{:.1%}"), cell(violations, "{:.1%}"), cell(splits, "{:,.0f}")]  # fmt: skip

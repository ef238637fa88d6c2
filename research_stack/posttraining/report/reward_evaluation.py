"""A reward model on prompts it has not seen: the table beside its controls, predicted against actual engagement.

From tables/reward_heldout.csv, reward_reliability.csv and reward_points.csv.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from research_stack.metrics.interval import few_groups_note
from research_stack.reporting.charts import Axis, Bar, Chart, Legend, Series, axis_of, interval_chart, line_chart
from research_stack.reporting.contract import Metric, Report
from research_stack.reporting.elements import between, cell, listing, note, scrolled, span
from research_stack.reporting.html import Node, el
from research_stack.reporting.reliability import DiagramBin, diagonal_axis
from research_stack.reporting.run_files import RunFiles, reals

UNIT = "log(1 + engagement)"


def deciles(run: RunFiles) -> list[DiagramBin]:
    """The bins of tables/reward_reliability.csv, by prediction."""
    rows = run.table("reward_reliability")
    found = [DiagramBin(*reals(row, "predicted", "actual", "low", "high")) for row in rows]
    return sorted(
        (b for b in found if math.isfinite(b.predicted) and math.isfinite(b.actual)), key=lambda b: b.predicted
    )


def points(run: RunFiles) -> list[tuple[float, float]]:
    """(predicted, actual) of single pairs."""
    found = [reals(row, "predicted", "actual") for row in run.table("reward_points")]
    return [(p, a) for p, a in found if math.isfinite(p) and math.isfinite(a)]


def engagement(run: RunFiles) -> Node:
    """The section: correlations with intervals, predicted against actual, the table."""
    rows = [row for row in run.table("reward_heldout") if math.isfinite(*reals(row, "pearson"))]
    if not rows:
        return None
    pairs, prompts = reals(rows[0], "pairs", "prompts")
    return [
        el("h2", "Engagement on unseen prompts"),
        el("div", _correlations(rows), class_="charts wide"),
        *_charts(run),
        scrolled(listing(HEADER, [_cells(row) for row in rows])),
        note(
            f"{pairs:,.0f} held-out pairs of {prompts:,.0f} prompts. Pairwise accuracy: of two replies to one"
            " prompt that earned differently, how often the better one is predicted higher; chance is .5. The controls"
            " were fitted on the same training side. What the model is made of and what it is not for: reward_card.md."
            f" {few_groups_note(int(prompts), 'prompts') if math.isfinite(prompts) else ''}"
        ),
    ]


KINDS = {"model": "trained", "control": "control", "ceiling": "knows how it was drawn"}
COLORS = {"model": "var(--c0)", "ceiling": "var(--c2)"}
HEADER = (
    "",
    "Pearson",
    "Spearman",
    "R²",
    "95 % interval",
    "pairwise accuracy",
    "95 % interval",
    "slope",
    "calibration error",
)


def _correlations(rows: Sequence[Mapping[str, str]]) -> Chart:
    """The model's correlation between those of its controls and the ceiling."""
    ends = [v for row in rows for v in reals(row, "pearson", "pearson_low", "pearson_high")]
    return interval_chart(
        [_bar(row) for row in rows],
        axis_of(ends, "Pearson correlation", margin=0.12),
        "Pearson correlation on unseen prompts with 95 % intervals",
        name="reward_correlation",
        title="Pearson correlation on unseen prompts",
        note=f"predicted and actual {UNIT}, 95 % intervals over prompts",
        table="reward_heldout",
    )


def _bar(row: Mapping[str, str]) -> Bar:
    value, low, high = reals(row, "pearson", "pearson_low", "pearson_high")
    kind = row.get("kind", "")
    return Bar(
        row.get("name", ""),
        value,
        low,
        high,
        COLORS.get(kind, "var(--c5)"),
        cell(value),
        KINDS.get(kind, kind),
        strong=kind == "model",
    )


def _cells(row: dict[str, str]) -> tuple[list[str], bool]:
    pearson, spearman, r2, within, slope, error = reals(
        row, "pearson", "spearman", "r2", "pairwise_accuracy", "slope", "calibration_error"
    )
    r2_low, r2_high, low, high = reals(row, "r2_low", "r2_high", "pairwise_accuracy_low", "pairwise_accuracy_high")
    r2_span, within_span = span(r2_low, r2_high), span(low, high)
    cells = [cell(pearson), cell(spearman), cell(r2), r2_span, cell(within), within_span, cell(slope), cell(error)]
    return [row.get("name", ""), *cells], row.get("kind") == "model"


def _charts(run: RunFiles) -> list[Node]:
    """Single pairs with the deciles over them, and the deciles alone at their own scale."""
    bins, single = deciles(run), points(run)
    if not bins:
        return []
    means = Series(
        [(b.predicted, b.actual) for b in bins], width=1.8, dots=3.4, errors=[b.error for b in bins], title="decile"
    )
    tenth = ("var(--c0)", "mean of a tenth of the pairs, 95 % interval", True)
    shown = []
    if single:
        axis = axis_of([v for point in single for v in point], margin=0.04)
        cloud = Series(single, color="var(--c5)", opacity=0.35, line=False, dots=1.8, title="pair")
        legend = [("var(--c5)", "a held-out pair", True), tenth]
        shown.append(_chart(axis, [cloud, means], "Single pairs", "reward_pairs", legend))
    legend = [tenth, ("var(--faint)", "calibrated", False)]
    shown.append(_chart(diagonal_axis(bins), [means], "Deciles", "reward_deciles", legend))
    return [el("div", shown, class_="charts")]


def _chart(axis: Axis, lines: list[Series], title: str, name: str, legend: Legend) -> Chart:
    diagonal = Series(
        [(axis.low, axis.low), (axis.high, axis.high)], color="var(--faint)", width=1.2, dashed=True, title="calibrated"
    )
    return line_chart(
        [diagonal, *lines],
        Axis(axis.low, axis.high, f"predicted {UNIT}"),
        Axis(axis.low, axis.high),
        f"predicted and actual engagement, {title.lower()}",
        name=name,
        title=title,
        note=f"actual {UNIT}, upwards",
        legend=legend,
    )


def verdict(run: RunFiles) -> str:
    """The held-out correlation beside that of the length; empty if it was not measured."""
    value, low, high, length = (
        run.metric(f"reward/{key}") for key in ("pearson", "pearson_low", "pearson_high", "pearson_length")
    )
    if not math.isfinite(value):
        return ""
    control = f"; their length alone {length:.2f}" if math.isfinite(length) else ""
    return (
        f"Correlates {value:.2f}{between(low, high)} with the engagement of replies to prompts it has not"
        f" seen{control}."
    )


def numbers(run: RunFiles) -> dict[str, str]:
    """The correlation, on top of the page."""
    pearson = run.metric("reward/pearson")
    return {"Pearson, unseen prompts": f"{pearson:.2f}"} if math.isfinite(pearson) else {}


REPORT = Report(
    metrics={
        "reward/pearson": Metric("Pearson correlation", better="higher", headline=True, form="{:.3f}", interval=True),
        "reward/r2": Metric("R² of the engagement", better="higher", headline=True, form="{:.3f}", interval=True),
        "reward/spearman": Metric("Spearman correlation", better="higher", form="{:.3f}", interval=True),
        "reward/pairwise_accuracy": Metric("pairwise accuracy", better="higher", form="{:.3f}", interval=True),
        "reward/r2_over_length": Metric(
            "R² above the length alone", better="higher", form="{:.3f}", interval=True, plot=False
        ),
        "reward/calibration_error": Metric("calibration error", "nats", "lower", form="{:.3f}"),
        "reward/slope": Metric("slope of actual on predicted", form="{:.2f}", plot=False),
        "reward/pearson_length": Metric("Pearson correlation of the length", form="{:.3f}", plot=False),
        "reward/pearson_ceiling": Metric("Pearson correlation of the ceiling", form="{:.3f}", plot=False),
        "reward/r2_length": Metric("R² of the length", form="{:.3f}", plot=False),
        "reward/r2_linear": Metric("R² of a linear model", form="{:.3f}", plot=False),
        "reward/r2_ceiling": Metric("R² of the ceiling", form="{:.3f}", plot=False),
        "reward/pairs": Metric("held-out pairs", form="{:,.0f}", plot=False),
        "reward/prompts": Metric("held-out prompts", form="{:,.0f}", plot=False),
    },
    results=(engagement,),
    verdict=verdict,
    numbers=numbers,
)

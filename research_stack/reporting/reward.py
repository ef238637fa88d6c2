"""A reward model on prompts it has not seen: the table beside its controls, predicted against actual engagement.

From tables/reward_heldout.csv, reward_reliability.csv and reward_points.csv.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from research_stack.metrics.interval import few_groups_note
from research_stack.reporting.elements import cell, span
from research_stack.reporting.html import Html, el
from research_stack.reporting.reading import RunFiles, Table, reals
from research_stack.reporting.reliability import DiagramBin, diagonal_axis
from research_stack.reporting.sections import intervals, keys, listing
from research_stack.reporting.svg_charts import Axis, Series, axis_of, line_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = ("reward_heldout", "reward_reliability", "reward_points")
UNIT = "log(1 + engagement)"


def deciles(run: RunFiles) -> list[DiagramBin]:
    """The bins of tables/reward_reliability.csv, by prediction."""
    rows = run.tables.get("reward_reliability", [])
    found = [DiagramBin(*reals(row, "predicted", "actual", "low", "high")) for row in rows]
    return sorted(
        (b for b in found if math.isfinite(b.predicted) and math.isfinite(b.actual)), key=lambda b: b.predicted
    )


def points(run: RunFiles) -> list[tuple[float, float]]:
    """(predicted, actual) of single pairs."""
    found = [reals(row, "predicted", "actual") for row in run.tables.get("reward_points", [])]
    return [(p, a) for p, a in found if math.isfinite(p) and math.isfinite(a)]


def reward_model(run: RunFiles) -> list[Html] | None:
    """The section: correlations with intervals, predicted against actual, the table."""
    rows = [row for row in run.tables.get("reward_heldout", []) if math.isfinite(*reals(row, "pearson"))]
    if not rows:
        return None
    pairs, prompts = reals(rows[0], "pairs", "prompts")
    return [
        el("h2", "Engagement on unseen prompts"),
        el("p", f"Pearson correlation of predicted and actual {UNIT}; bars are 95 % intervals over prompts."),
        intervals([_bar(row) for row in rows]),
        *_charts(run),
        el("div", listing(HEADER, [_cells(row) for row in rows]), class_="scroll", tabindex="0"),
        el(
            "p",
            f"{pairs:,.0f} held-out pairs of {prompts:,.0f} prompts. Pairwise accuracy: of two replies to one"
            " prompt that earned differently, how often the better one is predicted higher; chance is .5. The controls"
            " were fitted on the same training side. What the model is made of and what it is not for: reward_card.md."
            f" {few_groups_note(int(prompts), 'prompts') if math.isfinite(prompts) else ''}",
            class_="note",
        ),
    ]


KINDS = {"model": "trained", "control": "control", "ceiling": "of who knows how it was drawn"}
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


def _bar(row: dict[str, str]) -> dict[str, object]:
    value, low, high = reals(row, "pearson", "pearson_low", "pearson_high")
    kind = row.get("kind", "")
    return {
        "name": row.get("name", ""),
        "small": KINDS.get(kind, kind),
        "value": value,
        "low": low,
        "high": high,
        "color": COLORS.get(kind, "var(--c5)"),
        "head": kind == "model",
        "limit": "",
    }


def _cells(row: dict[str, str]) -> tuple[list[str], bool]:
    pearson, spearman, r2, within, slope, error = reals(
        row, "pearson", "spearman", "r2", "pairwise_accuracy", "slope", "calibration_error"
    )
    r2_span, within_span = (span(*reals(row, f"{key}_low", f"{key}_high")) for key in ("r2", "pairwise_accuracy"))
    cells = [cell(pearson), cell(spearman), cell(r2), r2_span, cell(within), within_span, cell(slope), cell(error)]
    return [row.get("name", ""), *cells], row.get("kind") == "model"


def _charts(run: RunFiles) -> list[Html]:
    """Single pairs with the deciles over them, and the deciles alone at their own scale."""
    bins, single = deciles(run), points(run)
    if not bins:
        return []
    means = Series(
        [(b.predicted, b.actual) for b in bins], width=1.8, dots=3.4, errors=[b.error for b in bins], title="decile"
    )
    shown = [
        el(
            "figure",
            el("figcaption", "Deciles ", el("small", f"actual {UNIT}, upwards")),
            _chart(diagonal_axis(bins), [means], "deciles"),
            keys(
                [
                    ("var(--c0)", "mean of a tenth of the pairs, 95 % interval", True),
                    ("var(--faint)", "calibrated", False),
                ]
            ),
        )
    ]
    if single:
        axis = axis_of([v for point in single for v in point], margin=0.04)
        cloud = Series(single, color="var(--c5)", opacity=0.35, line=False, dots=1.8)
        shown.insert(
            0,
            el(
                "figure",
                el("figcaption", "Single pairs ", el("small", f"actual {UNIT}, upwards")),
                _chart(axis, [cloud, means], "single pairs and deciles"),
                keys([("var(--c5)", "a held-out pair", True), ("var(--c0)", "mean of a tenth of the pairs", True)]),
            ),
        )
    return [el("div", shown, class_="charts")]


def _chart(axis: Axis, lines: list[Series], name: str) -> Html:
    diagonal = Series([(axis.low, axis.low), (axis.high, axis.high)], color="var(--faint)", width=1.2, dashed=True)
    return line_chart(
        [diagonal, *lines],
        Axis(axis.low, axis.high, f"predicted {UNIT}"),
        Axis(axis.low, axis.high),
        f"predicted and actual engagement, {name}",
    )


def figure(run: RunFiles) -> Figure | None:
    """figures/reward.png: single pairs and deciles; the correlations beside them."""
    from research_stack.reporting.figures import INK, new_figure

    bins, rows = deciles(run), run.tables.get("reward_heldout", [])
    if not bins or not rows:
        return None
    drawn, (left, right) = new_figure(9, 3.6, columns=2)
    _agreement(left, bins, points(run))
    left.set_title(f"actual {UNIT} on unseen prompts", loc="left", fontsize=9, color=INK)
    _correlations(right, rows)
    right.set_title("Pearson correlation on unseen prompts, 95 % intervals", loc="left", fontsize=9, color=INK)
    return drawn


def _agreement(plot: Axes, bins: Sequence[DiagramBin], single: Sequence[tuple[float, float]]) -> None:
    """Predicted against actual: single pairs, deciles over them, the diagonal."""
    from research_stack.reporting.figures import BLUE, GREY

    values = [v for point in single or [(b.predicted, b.actual) for b in bins] for v in point]
    plot.plot([min(values), max(values)], [min(values), max(values)], "--", color="#98a1aa", linewidth=1)
    if single:
        plot.plot(*zip(*single, strict=True), ".", color=GREY, alpha=0.3, markersize=4, label="a held-out pair")
    errors = list(zip(*[b.error or (0.0, 0.0) for b in bins], strict=True))
    plot.errorbar(
        [b.predicted for b in bins],
        [b.actual for b in bins],
        yerr=errors,
        fmt="o-",
        color=BLUE,
        markersize=4,
        linewidth=1.4,
        capsize=2,
        label="deciles, 95 % intervals",
    )
    plot.set_xlabel(f"predicted {UNIT}", fontsize=8, color=GREY)
    plot.legend(frameon=False, fontsize=8, labelcolor=GREY)


def _correlations(plot: Axes, rows: Table) -> None:
    """The model's correlation between those of its controls and the ceiling."""
    from research_stack.reporting.figures import BLUE, GREEN, GREY

    plot.grid(axis="y", visible=False)
    plot.grid(axis="x", color="#ebe8e1", linewidth=0.8)
    for place, row in enumerate(reversed(rows)):
        value, low, high = reals(row, "pearson", "pearson_low", "pearson_high")
        half = [[value - low], [high - value]] if math.isfinite(low) else None
        color = {"model": BLUE, "ceiling": GREEN}.get(row.get("kind", ""), GREY)
        plot.errorbar([value], [place], xerr=half, fmt="o", color=color, markersize=6, capsize=3, linewidth=1.5)
        plot.annotate(
            f"{value:.3f}",
            (value, place),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=color,
        )
    plot.set_yticks(range(len(rows)), [row.get("name", "") for row in reversed(rows)], fontsize=8)
    plot.set_ylim(-0.6, len(rows) - 0.3)

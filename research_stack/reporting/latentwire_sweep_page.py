"""A sweep of wires of latents on the page: every setting beside the baseline, and the intervals of the differences as a
picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from research_stack.records.sweep_table import SweepTable
from research_stack.reporting.html import Html, el
from research_stack.reporting.latentwire_sweep import Line, cells, comparable, head, lines, note, readers, title
from research_stack.reporting.sections import listing
from research_stack.reporting.svg_charts import Axis, Series, axis_of, line_chart

MOST = 24  # settings that are drawn
ROW = 22  # height of a setting in a chart


def section(table: SweepTable) -> list[Html] | None:
    """For each reader a table, and the differences as a picture; None for another kind of sweep."""
    found = lines(table)
    if not found:
        return None
    charts = [chart for reader in readers(table) if (chart := differences_chart(found, reader)) is not None]
    words = note(table) + (
        " Bold: the baseline, and settings whose interval leaves out zero."
        if comparable(table) and len(found) > 1
        else ""
    )
    return [
        el("h2", title(table)),
        [_of_reader(table, found, index, reader) for index, reader in enumerate(readers(table))],
        el("p", words, class_="note"),
        el("div", charts, class_="charts") if charts else None,
    ]


def _of_reader(table: SweepTable, found: Sequence[Line], index: int, reader: str) -> list[Html]:
    """The columns of one reader, which fit the page's width."""
    header, *rows = (
        [*line[:3], *line[3 + 5 * index : 8 + 5 * index]]
        for line in (head(table), *(cells(table, line) for line in found))
    )
    body = [
        (row, line.baseline or (reader in line.differences and line.differences[reader].side != 0))
        for row, line in zip(rows, found, strict=True)
    ]
    return [
        el("h3", reader),
        el("div", listing([header[0], *header[1:3], "F1", *header[4:]], body), class_="scroll wrap", tabindex="0"),
    ]


def differences_chart(found: Sequence[Line], reader: str) -> Html | None:
    """Settings below each other, their difference of F1 from the baseline to the right; None without one."""
    shown = [(line.label, line.differences[reader]) for line in found if reader in line.differences][:MOST]
    if not shown:
        return None
    ends = [v for _, one in shown for v in (one.value, one.low, one.high) if math.isfinite(v)]
    x = axis_of([0.0, *ends], "F1 less that of the baseline", margin=0.08)
    y = Axis(-len(shown) + 0.2, 0.9, names=("",))  # no ticks
    drawn = [Series([(0.0, y.low), (0.0, y.high)], color="var(--faint)", width=1.3, dashed=True, title="the baseline")]
    for place, (label, one) in enumerate(shown):
        color = {1: "var(--ok)", -1: "var(--bad)", 0: "var(--c5)"}[one.side]
        wide = max(one.high - one.value, one.value - one.low) if math.isfinite(one.low) else None
        drawn.append(
            Series(
                [(one.value, float(-place))],
                color=color,
                line=False,
                dots=4,
                widths=[wide],
                title=label,
                label=label if len(label) < 46 else label[:45] + "…",
                anchor="middle",
            )
        )
    return el(
        "figure",
        el(
            "figcaption", f"{reader} ", el("small", "difference of F1 from the baseline, 95 % intervals over questions")
        ),
        line_chart(
            drawn, x, y, f"difference of F1 from the baseline for {reader}", height=70 + int(1.6 * ROW) * len(shown)
        ),
    )

"""report.html of a sweep: what the swept keys did to each metric, whether training was stable, and what failed."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_stack.records.sweep_table import Row, SweepTable, failure_line, show, show_mean
from research_stack.reporting import budgets, paired, speed, sweep_declared, two_phase, two_phase_page
from research_stack.reporting.charts import css
from research_stack.reporting.html import Html, Node, el, page
from research_stack.reporting.page import asset, write_page
from research_stack.reporting.sections import keys
from research_stack.reporting.stability import stability
from research_stack.reporting.svg_charts import Series, axis_of, heat_map, line_chart
from research_stack.reporting.sweep_axes import (
    UNITS,
    Grid,
    better,
    color_of,
    grid_of,
    label_of,
    metric_words,
    with_unit,
    worth_plotting,
)
from research_stack.reporting.sweep_names import named

if TYPE_CHECKING:
    from research_stack.records.sweep_table import Failure

log = logging.getLogger(__name__)

MOST_PLOTS = 8


def write_sweep_report(folder: str | os.PathLike[str], table: SweepTable) -> Path:
    """Write report.html (and figures/*.png) in the sweep's folder; returns the page's path.

    - table: what `sweeps.collect` made of the points; their metrics.jsonl give the curves.
    """
    from research_stack.reporting.sweep_figures import write_sweep_figures

    folder, table = Path(folder), named(table)
    write_page(folder / "report.html", *contents(folder, table))
    write_sweep_figures(folder, table)
    return folder / "report.html"


def render(folder: Path, table: SweepTable) -> str:
    """The page as text."""
    return page(*contents(folder, table), asset("style.css"), asset("player.js"))


def contents(folder: Path, table: SweepTable) -> tuple[str, Node]:
    """Title and body of the page."""
    seeds = max((row.n for row in table.rows), default=0)
    axes = " × ".join(table.labels[axis] for axis in table.axes) or "seeds"
    over = budgets.panels(table)
    compared = [paired.section(table), _plots(table, axes)] if sweep_declared.comparable(table) else []
    parts = [
        _header(folder, table, axes),
        *sweep_declared.first_sections(table),
        *_results(table),
        *compared,
        budgets.section(table, over),
        *sweep_declared.sections(table),
        speed.section(table),
        stability(table, validation=not over),
        _failures(table),
        _fine_print(table),
    ]
    title = f"{folder.name}: {axes}"
    body = [
        *(part for part in parts if part),
        el(
            "footer",
            f"{len(table.points)} runs, up to {seeds} seeds a setting. Made from the files of the run folders; loads"
            " nothing from anywhere.",
        ),
    ]
    return title, body


# Words ---------------------------------------------------------------------------------------------------------------


def _header(folder: Path, table: SweepTable, axes: str) -> list[Html]:
    done, failed = sum(row.n for row in table.rows), len(table.failures)
    pill = el("span", f"{failed} without result" if failed else "all ok", class_=f"pill {'failed' if failed else 'ok'}")
    values = [
        (table.labels[axis], ", ".join(dict.fromkeys(show(row.settings[axis]) for row in table.rows)))
        for axis in table.axes
    ]
    facts = [("runs", f"{done} of {len(table.points)}"), ("settings", str(len(table.rows))), *values]
    return [
        el("h1", el("b", f"Sweep over {axes}"), pill, el("time", folder.name)),
        el("p", verdict(table), class_="verdict"),
        el("dl", [el("div", el("dt", key), el("dd", value)) for key, value in facts], class_="facts"),
    ]


def verdict(table: SweepTable) -> str:
    """Which setting is best on the first metric that has a direction, and whether seeds can tell it from the next."""
    found = next(((m, better(m)) for m in worth_plotting(table) if better(m) is not None), None)
    if not table.rows:
        return "No run has a result."
    if sentence := sweep_declared.verdict(table):
        return sentence
    if found is None or len(table.rows) < 2:
        return f"{sum(row.n for row in table.rows)} runs."
    metric, lower = found
    ranked = sorted(
        (row for row in table.rows if _finite(row.mean(metric))),
        key=lambda row: row.mean(metric) or 0.0,
        reverse=not lower,
    )
    if len(ranked) < 2:
        return f"{sum(row.n for row in table.rows)} runs."
    first, second = ranked[0], ranked[1]
    value = show_mean(first.mean(metric), first.standard_error(metric))
    unit = f" {UNITS[metric]}" if metric in UNITS else ""
    return (
        f"{label_of(first, table)} gives the {'lowest' if lower else 'highest'} {metric_words(metric)}, {value}{unit}; "
        f"{_apart(first, second, metric, table)}."
    )


def _apart(first: Row, second: Row, metric: str, table: SweepTable) -> str:
    """How the two best compare, measured by their standard errors."""
    errors = [row.standard_error(metric) for row in (first, second)]
    next_best = f"{label_of(second, table)} follows with {show_mean(second.mean(metric), errors[1])}"
    if any(error is None for error in errors):
        return f"{next_best} (one seed each: no telling them apart)"
    gap, spread = (
        abs((first.mean(metric) or 0) - (second.mean(metric) or 0)),
        math.hypot(*(error or 0.0 for error in errors)),
    )
    return next_best if gap > 2 * spread else f"{next_best}, within two standard errors"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


# Table ---------------------------------------------------------------------------------------------------------------


def as_markdown(table: SweepTable) -> str:
    """What results.md says below its table: the tables that are read first, the differences seed by seed."""
    table = named(table)
    few, sentence = sweep_declared.tables_markdown(sweep_declared.tables(table)), sweep_declared.verdict(table)
    differences = paired.as_markdown(table) if sweep_declared.comparable(table) else ""
    parts = [two_phase.as_markdown(table), f"{sentence}\n" if sentence else "", few, differences]
    return "\n".join(part for part in parts if part)


def as_text(table: SweepTable, width: int) -> str:
    """The table for a terminal of `width` columns: quality and diversity where runs answered prompts, the tables that
    are read first where a report has some, else as many metrics as fit.
    """
    few = sweep_declared.tables(table)
    if not few:
        return two_phase.as_text(table) or table.as_text(width)
    failures = "\n".join(map(failure_line, table.failures))
    parts = [sweep_declared.tables_text(few, width), failures, sweep_declared.verdict(table)]
    return "\n\n".join(part for part in parts if part)


def _results(table: SweepTable) -> list[Any]:
    """All numbers, folded behind the few that are read where a report says which."""
    found, tables = _table_section(table), sweep_declared.tables(table)
    few = two_phase_page.section(table) or (sweep_declared.tables_section(tables) if tables else None)
    if few is None or found is None:
        return [found]
    return [few, [el("details", el("summary", "All numbers"), found[1:])]]


def _table_section(table: SweepTable) -> list[Html] | None:
    if not table.rows:
        return None
    metrics = table.estimates
    best = {metric: _best(table.rows, metric) if sweep_declared.comparable(table) else None for metric in metrics}
    head = [
        *(el("th", table.labels[axis]) for axis in table.axes),
        el("th", "seeds", class_="num"),
        *(el("th", with_unit(metric), class_="num") for metric in metrics),
    ]
    body = []
    for row in table.rows:
        cells = [
            *(el("td", el("b", show(row.settings[axis]))) for axis in table.axes),
            el("td", str(row.n), class_="num"),
        ]
        for metric in metrics:
            text = show_mean(row.mean(metric), row.standard_error(metric))
            cells.append(el("td", el("b", text) if best[metric] is row else text, class_="num"))
        body.append(el("tr", cells))
    return [
        el("h2", "Results"),
        el("div", el("table", el("thead", el("tr", head)), el("tbody", body)), class_="scroll", tabindex="0"),
        el(
            "p",
            "Mean ± standard error over seeds; no error for one seed. The best mean of a column is bold where better"
            " has a direction. results.csv has every run and every metric.",
            class_="note",
        ),
    ]


def _best(rows: Sequence[Row], metric: str) -> Row | None:
    """The row with the best mean; None where better has no direction or there is nothing to compare."""
    lower, known = better(metric), [row for row in rows if _finite(row.mean(metric))]
    if lower is None or len(known) < 2:
        return None
    return (min if lower else max)(known, key=lambda row: row.mean(metric) or 0.0)


# Plots ---------------------------------------------------------------------------------------------------------------


def _plots(table: SweepTable, axes: str) -> list[Html] | None:
    metrics = worth_plotting(table)[:MOST_PLOTS]
    if not metrics or len(table.rows) < 2:
        return None
    grid = grid_of(table)
    charts = [plot(table, grid, metric) for metric in metrics]
    return [
        el("h2", f"Over {axes}"),
        el("div", charts, class_="charts"),
        el(
            "p",
            (
                "Dots are means, bars their standard errors over seeds, faint dots the single runs."
                if not grid.is_heat_map
                else "Means over seeds."
            ),
            class_="note",
        ),
    ]


def plot(table: SweepTable, grid: Grid, metric: str) -> Html:
    """One metric over the axes: a heat map for two long axes, lines or points otherwise."""
    arrow = {True: " ↓ better", False: " ↑ better", None: ""}[better(metric)]
    title = el("figcaption", with_unit(metric), el("small", arrow))
    if grid.is_heat_map:
        cells = [[grid.at(x, line) for x in grid.columns] for line in grid.lines]
        values = [[row.mean(metric) if row else None for row in line] for line in cells]
        texts = [["" if v is None else f"{v:.4g}" for v in line] for line in values]
        return el(
            "figure",
            title,
            heat_map(
                values,
                texts,
                [show(x) for x in grid.columns],
                [show(y) for y in grid.lines],
                grid.column_label,
                grid.line_label,
                f"{metric} over {grid.column_label} and {grid.line_label}",
            ),
        )
    drawn, ends = [], []
    for index, line in enumerate(grid.lines):
        pairs = [
            (grid.place(x, line), row)
            for x in grid.columns
            if (row := grid.at(x, line)) is not None and _finite(row.mean(metric))
        ]
        points = [(x, row.mean(metric) or 0.0) for x, row in pairs]
        errors = [row.standard_error(metric) for _, row in pairs]
        color = css(color_of(index, len(grid.lines)))
        runs = [(x, value) for x, row in pairs for value in row.values.get(metric, []) if math.isfinite(value)]
        drawn += [
            Series(runs, color=color, opacity=0.35, dots=2.4, line=False),
            Series(
                points,
                color=color,
                dots=4,
                errors=errors,
                line=grid.numeric,
                title=show(line) if line is not None else "",
            ),
        ]
        ends += [v for _, v in runs] + [
            v + s * (e or 0) for (_, v), e in zip(points, errors, strict=True) for s in (-1, 1)
        ]
    chart = line_chart(drawn, grid.axis(), axis_of(ends, margin=0.1), f"{metric} over {grid.column_label}")
    entries = (
        [
            (css(color_of(i, len(grid.lines))), f"{grid.line_label} {show(line)}", True)
            for i, line in enumerate(grid.lines)
        ]
        if len(grid.lines) > 1
        else []
    )
    return el("figure", title, chart, keys(entries) if entries else None)


# What else -----------------------------------------------------------------------------------------------------------


def _failures(table: SweepTable) -> list[Html] | None:
    if not table.failures:
        return None
    return [
        el("h2", f"Runs without a result: {len(table.failures)} of {len(table.points)}"),
        [_failure(failure) for failure in table.failures],
    ]


def _failure(failure: Failure) -> Html:
    what = " ".join(f"{axis}={show(value)}" for axis, value in failure.settings.items()) or failure.folder.name
    seed = f" seed={failure.seed}" if failure.seed is not None else ""
    lines = [
        el("b", f"{failure.status}: {what}{seed}"),
        "\n",
        failure.error or "no error was recorded",
        "\n",
        str(failure.folder),
    ]
    return el("p", lines, class_="error")


def _fine_print(table: SweepTable) -> list[Html]:
    found: list[Any] = [el("h2", "Fine print")]
    if table.constant:
        found.append(
            el(
                "p",
                "The same in all runs: "
                + ", ".join(f"{metric_words(k)} {show_mean(v)}" for k, v in table.constant.items())
                + ".",
            )
        )
    for axis, hidden in table.collapsed.items():
        found.append(
            el(
                "p",
                "Along with ",
                el("code", axis),
                " change: ",
                [[", " if i else "", el("code", key)] for i, key in enumerate(hidden)],
                ".",
            )
        )
    rows = [
        el("tr", el("td", el("code", point.folder.name)), el("td", str(point.seed)), el("td", point.status))
        for point in table.points
    ]
    found.append(
        el(
            "details",
            el("summary", "All runs"),
            el(
                "div",
                el(
                    "table",
                    el("thead", el("tr", el("th", "folder"), el("th", "seed"), el("th", "status"))),
                    el("tbody", rows),
                ),
                class_="scroll",
            ),
        )
    )
    return found

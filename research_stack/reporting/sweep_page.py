"""report.html of a sweep: what the swept keys did to each metric, whether training was stable, and what failed."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_stack.records.sweep_table import Row, SweepTable, failure_line, show, show_mean
from research_stack.reporting import budgets, differences, speed
from research_stack.reporting import sweep_declared as declared
from research_stack.reporting.charts import Chart, Series, axis_of, heat_map, line_chart
from research_stack.reporting.contract import Metrics, reports_of_sweep
from research_stack.reporting.differences import SettingDifference
from research_stack.reporting.elements import folded, listing, note, scrolled
from research_stack.reporting.html import Node, el
from research_stack.reporting.page import write_page
from research_stack.reporting.stability import stability
from research_stack.reporting.sweep_axes import Grid, color_of, grid_of, label_of, plotted

if TYPE_CHECKING:
    from research_stack.records.sweep_table import Failure

log = logging.getLogger(__name__)

MAX_PLOTS = 8
ARROWS = {"lower": "↓ better", "higher": "↑ better", None: ""}


def write_sweep_report(
    folder: str | os.PathLike[str], table: SweepTable, compared_by_seed: Sequence[SettingDifference] = ()
) -> Path:
    """Write report.html and its charts' files in the sweep's folder; returns the page's path.

    - table: what `sweep_table.collect` made of the points, `named`; their metrics.jsonl give the curves.
    - compared_by_seed: what `evaluation.seed_differences` made of the table.
    """
    folder = Path(folder)
    write_page(folder / "report.html", f"{folder.name}: {_axes(table)}", contents(folder, table, compared_by_seed))
    return folder / "report.html"


def contents(folder: Path, table: SweepTable, compared_by_seed: Sequence[SettingDifference] = ()) -> Node:
    """What the page of a sweep shows."""
    metrics = Metrics(reports_of_sweep(table))
    seeds = max((row.n for row in table.rows), default=0)
    over = budgets.panels(table)
    parts = [
        _header(folder, table, metrics),
        *declared.first_sections(table),
        _results(table, metrics),
        differences.section(compared_by_seed, metrics),
        _plots(table, metrics) if declared.comparable(table) else None,
        budgets.section(table, over),
        *declared.sections(table),
        speed.section(table),
        stability(table, validation=not over),
        _failures(table),
        _fine_print(table, metrics),
    ]
    footer = (
        f"{len(table.points)} runs, up to {seeds} seeds a setting. Made from the files of the run folders; loads"
        " nothing from anywhere."
    )
    return [[part for part in parts if part is not None], el("footer", footer)]


# Words ---------------------------------------------------------------------------------------------------------------


def _axes(table: SweepTable) -> str:
    return " × ".join(table.labels[axis] for axis in table.axes) or "seeds"


def _header(folder: Path, table: SweepTable, metrics: Metrics) -> Node:
    done, failed = sum(row.n for row in table.rows), len(table.failures)
    pill = el("span", f"{failed} without result" if failed else "all ok", class_=f"pill {'failed' if failed else 'ok'}")
    values = [
        (table.labels[axis], ", ".join(dict.fromkeys(show(row.settings[axis]) for row in table.rows)))
        for axis in table.axes
    ]
    facts = [("runs", f"{done} of {len(table.points)}"), ("settings", str(len(table.rows))), *values]
    return [
        el("h1", el("b", f"Sweep over {_axes(table)}"), pill, el("time", folder.name)),
        el("p", verdict(table, metrics), class_="verdict"),
        el("dl", [el("div", el("dt", key), el("dd", value)) for key, value in facts], class_="facts"),
    ]


def verdict(table: SweepTable, metrics: Metrics) -> str:
    """A report's own sentence; else which setting is best on the first metric that has a direction, and whether seeds
    can tell it from the next.
    """
    if not table.rows:
        return "No run has a result."
    return declared.verdict(table) or _best_of_all(table, metrics)


def _best_of_all(table: SweepTable, metrics: Metrics) -> str:
    runs = f"{sum(row.n for row in table.rows)} runs."
    name = next((name for name in plotted(table, metrics) if metrics.of(name).better is not None), None)
    if name is None:
        same = next((one for one in table.constant if metrics.of(one).better is not None), None)
        if same is None:
            return runs
        return f"{runs[:-1]}, and {metrics.of(same).label} is {show_mean(table.constant[same])} in all of them."
    metric = metrics.of(name)
    known = [row for row in table.rows if _finite(row.mean(name))]
    ranked = sorted(known, key=lambda row: row.mean(name) or 0.0, reverse=metric.better == "higher")
    if len(ranked) < 2:
        return runs
    first, second = ranked[:2]
    value = show_mean(first.mean(name), first.standard_error(name))
    end = "lowest" if metric.better == "lower" else "highest"
    unit = f" {metric.unit}" if metric.unit else ""
    return (
        f"{label_of(first, table)} gives the {end} {metric.label}, {value}{unit}; {_gap(first, second, name, table)}."
    )


def _gap(first: Row, second: Row, metric: str, table: SweepTable) -> str:
    """How the two best compare, measured by their standard errors."""
    errors = [row.standard_error(metric) for row in (first, second)]
    next_best = f"{label_of(second, table)} follows with {show_mean(second.mean(metric), errors[1])}"
    if any(error is None for error in errors):
        return f"{next_best} (one seed each: no telling them apart)"
    gap = abs((first.mean(metric) or 0) - (second.mean(metric) or 0))
    error = math.hypot(*(error or 0.0 for error in errors))
    return next_best if gap > 2 * error else f"{next_best}, within two standard errors"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


# Table ---------------------------------------------------------------------------------------------------------------


def as_markdown(table: SweepTable, compared_by_seed: Sequence[SettingDifference] = ()) -> str:
    """What results.md says below its table: the tables that are read first, and the differences seed by seed."""
    sentence = declared.verdict(table)
    by_seed = differences.as_markdown(compared_by_seed, Metrics(reports_of_sweep(table)))
    few = declared.tables_markdown(declared.tables(table))
    return "\n".join(filter(None, [f"{sentence}\n" if sentence else "", few, by_seed]))


def as_text(table: SweepTable, width: int) -> str:
    """The table for a terminal of `width` columns: those that are read first, else as many metrics as fit."""
    few = declared.tables(table)
    if not few:
        return table.as_text(width)
    failures = "\n".join(map(failure_line, table.failures))
    return "\n\n".join(filter(None, [declared.tables_text(few, width), failures, declared.verdict(table)]))


def _results(table: SweepTable, metrics: Metrics) -> Node:
    """The tables that are read first, and all numbers, folded where there are others."""
    few, found = declared.tables(table), _all_numbers(table, metrics)
    if not few:
        return [el("h2", "Results"), found] if found else None
    return [declared.tables_section(few), folded("All numbers", found) if found else None]


def _all_numbers(table: SweepTable, metrics: Metrics) -> Node:
    if not table.rows:
        return None
    names = [name for name in table.estimates if not metrics.is_interval_end(name)]
    best = {name: _best(table.rows, name, metrics) if declared.comparable(table) else None for name in names}
    head = [
        *(el("th", table.labels[axis]) for axis in table.axes),
        el("th", "seeds", class_="num"),
        *(el("th", metrics.of(name).with_unit, class_="num") for name in names),
    ]
    body = []
    for row in table.rows:
        cells = [
            *(el("td", el("b", show(row.settings[axis]))) for axis in table.axes),
            el("td", str(row.n), class_="num"),
        ]
        for name in names:
            text = show_mean(row.mean(name), row.standard_error(name))
            cells.append(el("td", el("b", text) if best[name] is row else text, class_="num"))
        body.append(el("tr", cells))
    words = (
        "Mean ± standard error over seeds; no error for one seed. The best mean of a column is bold where better has a"
        " direction. results.csv has every run and every metric."
    )
    return [scrolled(el("table", el("thead", el("tr", head)), el("tbody", body))), note(words)]


def _best(rows: Sequence[Row], name: str, metrics: Metrics) -> Row | None:
    """The row with the best mean; None where better has no direction or there is nothing to compare."""
    better, known = metrics.of(name).better, [row for row in rows if _finite(row.mean(name))]
    if better is None or len(known) < 2:
        return None
    return (min if better == "lower" else max)(known, key=lambda row: row.mean(name) or 0.0)


# Plots ---------------------------------------------------------------------------------------------------------------


def _plots(table: SweepTable, metrics: Metrics) -> Node:
    names = plotted(table, metrics)[:MAX_PLOTS]
    if not names or len(table.rows) < 2:
        return None
    grid = grid_of(table)
    charts = [plot(table, grid, name, metrics) for name in names]
    dots = "Dots are means, bars their standard errors over seeds, faint dots the single runs."
    words = "Means over seeds." if grid.is_heat_map else dots
    return [el("h2", f"Over {_axes(table)}"), el("div", charts, class_="charts"), note(words)]


def plot(table: SweepTable, grid: Grid, name: str, metrics: Metrics) -> Chart:
    """One metric over the axes: a heat map for two long axes, lines or points otherwise."""
    metric = metrics.of(name)
    words: dict[str, Any] = {
        "name": "sweep_" + "".join(c if c.isalnum() else "_" for c in name),
        "title": metric.with_unit,
        "note": ARROWS[metric.better],
    }
    if grid.is_heat_map:
        cells = [[grid.at(x, line) for x in grid.columns] for line in grid.lines]
        values = [[row.mean(name) if row else None for row in line] for line in cells]
        texts = [["" if v is None else f"{v:.4g}" for v in line] for line in values]
        columns, lines = [show(x) for x in grid.columns], [show(y) for y in grid.lines]
        alt = f"{metric.label} over {grid.column_label} and {grid.line_label}"
        labels = {"column_label": grid.column_label, "row_label": grid.line_label}
        return heat_map(values, texts, columns, lines, alt, **labels, **words)
    drawn, ends = [], []
    for index, line in enumerate(grid.lines):
        pairs = [
            (grid.position(x, line), row)
            for x in grid.columns
            if (row := grid.at(x, line)) is not None and _finite(row.mean(name))
        ]
        points = [(x, row.mean(name) or 0.0) for x, row in pairs]
        errors = [row.standard_error(name) for _, row in pairs]
        color, label = color_of(index, len(grid.lines)), show(line) if line is not None else ""
        runs = [(x, value) for x, row in pairs for value in row.values.get(name, []) if math.isfinite(value)]
        drawn += [
            Series(runs, color=color, opacity=0.35, dots=2.4, line=False, title=f"{label} runs".strip()),
            Series(points, color=color, dots=4, errors=errors, line=grid.numeric, title=f"{label} mean".strip()),
        ]
        ends += [v for _, v in runs] + [
            v + s * (e or 0) for (_, v), e in zip(points, errors, strict=True) for s in (-1, 1)
        ]
    several = len(grid.lines) > 1
    legend = [(color_of(i, len(grid.lines)), f"{grid.line_label} {show(y)}", True) for i, y in enumerate(grid.lines)]
    alt = f"{metric.label} over {grid.column_label}"
    return line_chart(drawn, grid.axis(), axis_of(ends, margin=0.1), alt, legend=legend if several else (), **words)


# What else -----------------------------------------------------------------------------------------------------------


def _failures(table: SweepTable) -> Node:
    if not table.failures:
        return None
    return [
        el("h2", f"Runs without a result: {len(table.failures)} of {len(table.points)}"),
        [_failure(failure) for failure in table.failures],
    ]


def _failure(failure: Failure) -> Node:
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


def _fine_print(table: SweepTable, metrics: Metrics) -> Node:
    found: list[Any] = [el("h2", "Fine print")]
    if table.constant:
        values = ", ".join(f"{metrics.of(name).label} {show_mean(v)}" for name, v in table.constant.items())
        found.append(el("p", f"The same in all runs: {values}."))
    for axis, hidden in table.collapsed.items():
        keys = [[", " if i else "", el("code", key)] for i, key in enumerate(hidden)]
        found.append(el("p", "Along with ", el("code", axis), " change: ", keys, "."))
    header = ("folder", "seed", "status")
    rows = [((el("code", point.folder.name), str(point.seed), point.status), False) for point in table.points]
    found.append(folded("All runs", scrolled(listing(header, rows, text=(0, 1, 2)))))
    return found

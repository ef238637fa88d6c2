"""Many runs as one table, from their folders alone: what differed, mean and standard error over seeds. No torch.

The axes are the config keys in which the runs differ, apart from the seed and from what cannot change a number
(`results.is_science`). Keys that always change together are one axis: a group choice such as `corruption=uniform`
changes dozens of keys and is shown by the one that reads best; the others are listed under the table.
"""

from __future__ import annotations

import difflib
import glob
import json
import logging
import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from research_stack.records import csv_tables
from research_stack.records.axes import PRESET, find_axes, shortest
from research_stack.records.config_hash import ABSENT, canonical, class_names, hashed_keys
from research_stack.records.files import atomic_write, read_json, to_json
from research_stack.records.run_folder import RunFolder, is_run
from research_stack.records.seeds import standard_error

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One run.

    - config: what can change its numbers, by dotted key, without the seed.
    - choices: {group: name} of the group choices among its overrides (`sampler=llada`), from run.json.
    - classes: the `_target_`s of its config and of later evaluations.
    """

    folder: Path
    config: Mapping[str, Any]
    seed: Any
    name: Any
    status: str
    metrics: Mapping[str, float]
    finished: str = ""
    error: str | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """The runs that differ in nothing but the seed.

    - settings: {axis: value}.
    - values: {metric: its value for each seed}; points: the folders, in the same order.
    """

    settings: Mapping[str, Any]
    values: Mapping[str, list[float]]
    points: Sequence[Path]
    seeds: Sequence[Any]

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.points)

    def mean(self, metric: str) -> float | None:
        """Mean over seeds; None if no run has the metric."""
        values = self.values.get(metric)
        return statistics.fmean(values) if values else None

    def standard_error(self, metric: str) -> float | None:
        """sd / sqrt(n) with the sd of a sample (n - 1); None for fewer than two seeds."""
        return standard_error(self.values.get(metric, []))


@dataclass(frozen=True)
class Failure:
    """A run without a result: failed, interrupted, running or missing."""

    folder: Path
    settings: Mapping[str, Any]
    seed: Any
    status: str
    error: str | None


@dataclass(frozen=True)
class SweepTable:
    """What a sweep came to.

    - rows: one per setting of the axes, in natural order.
    - axes: dotted config keys (a group's own name where its class differs).
    - metrics: names of the metrics that vary, in the order the runs wrote them; "seconds" comes last.
    - failures: the runs that have no result.
    - constant: metrics that are the same in all runs.
    - collapsed: {axis: config keys that changed with it and are not shown}.
    - points: all runs, as they were given; settings: {folder: {axis: value}} of those with a config.
    """

    rows: list[Row]
    axes: list[str]
    metrics: list[str]
    failures: list[Failure]
    constant: dict[str, float] = field(default_factory=dict)
    collapsed: dict[str, list[str]] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    settings: dict[Path, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """{axis: its shortest ending that no other axis shares}."""
        return {axis: shortest(axis, self.axes) for axis in self.axes}

    @property
    def estimates(self) -> list[str]:
        """The metrics without the ends of their intervals, which results.csv keeps: the mean over seeds has an error of
        its own.
        """
        return [metric for metric in self.metrics if not metric.endswith(("_low", "_high"))]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SweepTable:
        """The table that `as_json` wrote (a sweep's results.json); ValueError in one line if the file is torn or is
        none.
        """
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError(f"{path} is not the table of a sweep: it is not marked {FORMAT!r}")
        try:
            found = unpacked({name: node for name, node in value.items() if name != "format"})
            parts = {"rows": Row, "failures": Failure, "points": Point}
            return cls(**found | {name: [kind(**one) for one in found[name]] for name, kind in parts.items()})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not the table of a sweep: {error}") from error

    def cells(self, metrics: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table as text: the axes, the number of seeds, each metric as mean ± standard error."""
        shown = self.estimates if metrics is None else list(metrics)
        header = [*(self.labels[axis] for axis in self.axes), "seeds", *shown]
        return header, [
            [*(show(row.settings[axis]) for axis in self.axes), str(row.n), *(_cell(row, metric) for metric in shown)]
            for row in self.rows
        ]

    def as_text(self, width: int = 100) -> str:
        """The table for a terminal of `width` columns: as many metrics as fit, then the failures."""
        shown = self.estimates
        while len(shown) > 1 and max(map(len, aligned(*self.cells(shown))), default=0) > width:
            shown.pop()
        lines = aligned(*self.cells(shown)) if self.rows else []
        if len(shown) < len(self.metrics):
            lines.append(f"{len(self.metrics) - len(shown)} more metrics in results.csv")
        return "\n".join([*lines, *(failure_line(failure) for failure in self.failures)])


# ------------------------------------------------------------------------------------------------ reading
def expand(runs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The run folders that `runs` names: each a run, a folder above runs (a sweep), or a pattern with `*`.

    Raises ValueError in one line for a name of no run. Each run comes once, in natural order.
    """
    found: dict[Path, None] = {}
    for given in runs:
        run = os.fspath(given)
        names = [run] if os.path.exists(run) else sorted(glob.glob(run, recursive=True), key=_natural)
        below = [folder for name in names for folder in _runs_below(Path(name))]
        if not below:
            raise ValueError(f"runs={run} {_why_none(run, names)}")
        found |= dict.fromkeys(below)
    return list(found)


def _runs_below(folder: Path) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif folder.is_dir():
        for child in sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: _natural(p.name)):
            yield from _runs_below(child)


def _why_none(run: str, names: Sequence[str]) -> str:
    if names:
        return "holds no run: no folder in it has a config.yaml beside a run.json or result.json"
    parent = Path(run).parent
    siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(Path(run).name, siblings, 1)
    return "does not exist" + (f"; did you mean {parent / near[0]}?" if near else "")


def read_point(folder: Path) -> Point:
    """A run's config and result; what cannot be read becomes a point with status `missing` and the reason."""
    run_folder = RunFolder(folder)
    try:
        plain = run_folder.read_config()
    except ValueError as error:
        return Point(folder, {}, None, None, "missing", {}, error=str(error))
    config = settings_of(plain)
    seed, name = plain.get("seed"), plain.get("name")
    try:
        result, kept = run_folder.load_result(), read_json(run_folder.result_json)
    except ValueError as error:
        return Point(folder, config, seed, name, "missing", {}, error=str(error))
    finished, measured = kept.get("finished"), kept.get("measured")
    if measured:  # evaluations made again later may differ from the config's
        plain = plain | {"eval": {**(plain.get("eval") or {}), **measured}}
        config = settings_of(plain)
    numbers = {k: float(v) for k, v in result.metrics.items() if isinstance(v, int | float)}
    numbers |= {"seconds": result.seconds}
    choices, classes = _choices(run_folder, plain), class_names(plain)
    return Point(folder, config, seed, name, result.status, numbers, finished or "", result.error, choices, classes)


def settings_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of what changes the numbers, but for seeds."""
    return {k: v for k, v in hashed_keys(plain).items() if k.rpartition(".")[2] != "seed"}


def _choices(run_folder: RunFolder, plain: Mapping[str, Any]) -> dict[str, str]:
    overrides = read_json(run_folder.run_json).get("overrides", []) if run_folder.run_json.is_file() else []
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {group: choice for group, _, choice in pairs if isinstance(plain.get(group), Mapping) or group == PRESET}


def collect(points: Sequence[str | os.PathLike[str]]) -> SweepTable:
    """The table of the runs in these folders; folders that hold no run are listed among the failures."""
    read = [read_point(Path(folder)) for folder in points]
    known = [point for point in read if point.config]
    axes = find_axes([p.config for p in known], [p.name for p in known], [p.choices for p in known])
    settings: dict[Path, Mapping[str, Any]] = {
        point.folder: {axis.name: axis.values[index] for axis in axes} for index, point in enumerate(known)
    }
    rows = _rows([point for point in known if point.status == "ok"], settings)
    failures = [
        Failure(p.folder, settings.get(p.folder, {}), p.seed, p.status, p.error) for p in read if p.status != "ok"
    ]
    varying, constant = _metrics(rows)
    collapsed = {axis.name: axis.hidden for axis in axes if axis.hidden}
    return SweepTable(rows, [axis.name for axis in axes], varying, failures, constant, collapsed, read, settings)


# --------------------------------------------------------------------------------------------------- rows
def _rows(points: Sequence[Point], settings: Mapping[Path, Mapping[str, Any]]) -> list[Row]:
    """Group by settings; of two runs with one seed the one that finished last counts."""
    groups: dict[str, dict[Any, Point]] = {}
    for point in sorted(points, key=lambda point: point.finished):
        group = groups.setdefault(json.dumps(canonical(settings[point.folder]), sort_keys=True, default=str), {})
        if point.seed in group:
            log.warning(
                "%s and %s are the same experiment with the same seed: the later one counts",
                group[point.seed].folder,
                point.folder,
            )
        group[point.seed] = point
    rows = [_row(sorted(group.values(), key=lambda point: _natural(point.seed)), settings) for group in groups.values()]
    return sorted(rows, key=lambda row: [_natural(value) for value in row.settings.values()])


def _row(points: Sequence[Point], settings: Mapping[Path, Mapping[str, Any]]) -> Row:
    names = dict.fromkeys(name for point in points for name in point.metrics)
    values = {name: [point.metrics[name] for point in points if name in point.metrics] for name in names}
    return Row(settings[points[0].folder], values, [point.folder for point in points], [point.seed for point in points])


def _metrics(rows: Sequence[Row]) -> tuple[list[str], dict[str, float]]:
    """(metrics that vary, {metric: value} of those that are the same in all of several runs)."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row.values) if name != "seconds"]
    values = {name: [value for row in rows for value in row.values.get(name, [])] for name in names}
    runs = sum(row.n for row in rows)
    constant = {
        name: found[0] for name, found in values.items() if runs > 1 and len(found) == runs and len(set(found)) == 1
    }
    if len(constant) == len(names):
        constant = {}
    return [*(name for name in names if name not in constant), *(["seconds"] if rows else [])], constant


def _natural(value: Any) -> tuple[Any, ...]:
    """A sort key: nothing, then numbers by size, then text with the numbers within it by size; lists by their items."""
    if value is None or value == ABSENT:
        return (0,)
    if isinstance(value, int | float):
        return (1, float(value))
    if isinstance(value, list | tuple):
        return (2, tuple(_natural(item) for item in value))
    parts = re.split(r"(\d+(?:\.\d+)?)", os.fspath(value) if isinstance(value, os.PathLike) else str(value))
    return (3, tuple((0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)))


# ---------------------------------------------------------------------------------------------------- text
def show(value: Any) -> str:
    """A setting as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(show, value))}]"
    return "-" if value == ABSENT else str(value)


def show_mean(mean: float | None, error: float | None = None) -> str:
    """mean ± standard error, to two significant digits of the error; four significant digits without one."""
    if mean is None:
        return "-"
    if error is None or not math.isfinite(error) or not math.isfinite(mean):
        return f"{mean:.4g}"
    if error == 0:
        return f"{mean:.4g} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}" if decimals < 8 else f"{mean:.4g} ± {error:.1e}"


def _cell(row: Row, metric: str) -> str:
    count = len(row.values.get(metric, []))
    text = show_mean(row.mean(metric), row.standard_error(metric))
    return text if count in (0, row.n) else f"{text} (n={count})"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    line = "  ".join("-" * width for width in widths)
    texts = [
        "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in (header, *rows)
    ]
    return [texts[0], line, *texts[1:]]


def failure_line(failure: Failure) -> str:
    """A run without a result, in a line: its settings, its folder, why."""
    what = " ".join(f"{axis}={show(value)}" for axis, value in failure.settings.items())
    what += f" seed={failure.seed}" if failure.seed is not None else ""
    return f"{failure.status}: {what.strip() or failure.folder.name} ({failure.folder})" + (
        f": {failure.error}" if failure.error else ""
    )


def as_markdown(table: SweepTable) -> str:
    """The grouped table, what is constant, what the axes stand for, and the failures, in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    header, rows = table.cells()
    lines = (
        [line(header), line(["---", *["---:"] * (len(header) - 1)]), *map(line, rows)]
        if rows
        else ["No run has a result."]
    )
    lines += (
        ["", "Mean ± standard error over seeds (sample sd / sqrt(n)); no error is given for one seed."] if rows else []
    )
    if table.constant:
        lines += [
            "",
            "The same in all runs: " + ", ".join(f"{k} {show_mean(v)}" for k, v in table.constant.items()) + ".",
        ]
    for axis, keys in table.collapsed.items():
        lines += ["", f"Along with `{axis}` change: {', '.join(f'`{key}`' for key in keys)}."]
    if table.failures:
        lines += ["", f"{len(table.failures)} of {len(table.points)} runs have no result:", ""]
        lines += [f"- {failure_line(failure)}" for failure in table.failures]
    return "\n".join(lines) + "\n"


def as_csv(table: SweepTable, folder: Path) -> str:
    """One line per run as it is: folder (relative to `folder` where below it), status, seed, axes, all metrics,
    error.
    """
    metrics = list(dict.fromkeys([*table.metrics, *table.constant]))
    rows: list[list[Any]] = []
    for point in table.points:
        name = point.folder.relative_to(folder) if point.folder.is_relative_to(folder) else point.folder
        of = table.settings.get(point.folder, {})
        axes = [show(of[axis]) if axis in of else "" for axis in table.axes]
        numbers = [point.metrics.get(m, "") for m in metrics]
        rows.append([str(name), point.status, point.seed, *axes, *numbers, point.error or ""])
    return csv_tables.as_csv(["folder", "status", "seed", *table.axes, *metrics, "error"], rows)


FORMAT = "research-stack sweep 1"  # of results.json


def as_json(table: SweepTable) -> str:
    """The whole table, failures included, as JSON that `SweepTable.load` reads back equal."""
    return to_json({"format": FORMAT, **packed(table)}, indent=1) + "\n"


def packed(value: Any) -> Any:
    """The value in JSON's own types, with marks for what JSON has not: paths, tuples, NaN and infinities, keys that are
    no text.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: packed(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Path):
        return {"$path": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, Mapping):
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        return (
            {k: packed(v) for k, v in value.items()}
            if plain
            else {"$pairs": [[packed(k), packed(v)] for k, v in value.items()]}
        )
    if isinstance(value, tuple):
        return {"$tuple": [packed(item) for item in value]}
    return [packed(item) for item in value] if isinstance(value, list) else value


def unpacked(value: Any) -> Any:
    """What `packed` was given; every NaN is `math.nan`, so that tables that hold it can be equal."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    mark, inside = next(iter(value.items()), ("", None))
    if len(value) != 1 or not mark.startswith("$"):
        return {k: unpacked(v) for k, v in value.items()}
    made = {
        "$path": Path,
        "$float": lambda text: math.nan if text == "nan" else float(text),
        "$tuple": lambda items: tuple(unpacked(items)),
        "$pairs": lambda pairs: {unpacked(k): unpacked(v) for k, v in pairs},
    }
    return made[mark](inside)


def write_table(folder: str | os.PathLike[str], table: SweepTable, more: str = "") -> None:
    """Write results.csv (one line per run), results.md (the grouped table) and results.json (all of it), atomically.

    - more: Markdown that is put below the table.
    """
    folder = Path(folder)
    atomic_write(folder / "results.csv", as_csv(table, folder))
    atomic_write(folder / "results.md", as_markdown(table) + (f"\n{more.rstrip()}\n" if more else ""))
    atomic_write(folder / "results.json", as_json(table))

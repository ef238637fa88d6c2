"""The contract between what measures and what shows.

An evaluation, a method, a callback or any other class that a config names may have a report beside it: a module that
imports no torch and holds `REPORT = Report(...)`. It says what the numbers are that the class leaves in result.json
(`Metric`), what a run's page shows of them, the sentence the run came to, the few numbers on top of the page, the
tables in the terminal, and what a sweep of such runs shows (`SweepReport`). The engine renders what it is handed.

Where the report of a class lies is a convention, so there is nothing to register. For `_target_: pkg.module.Class` the
first of these modules that exists and has a REPORT:

- `pkg.report.module`, in a package with many of them
- `pkg.module_report`, beside a single module
- `pkg.report`, for a whole package

A project of one's own does the same in its own package (see docs/extending.md).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from typing import Literal

from research_stack.config.targets import packages
from research_stack.records.config_hash import class_names
from research_stack.records.sweep_table import SweepTable
from research_stack.reporting.html import Node
from research_stack.reporting.run_files import RunFiles

Lines = list[list[str]]  # a table of texts, its header first


@dataclass(frozen=True)
class Metric:
    """What a number of result.json or metrics.jsonl is.

    - label: as one reads it. `{0}`, `{1}`, ... stand for what the stars of its name matched.
    - unit: "nats per token"; empty where the label says it or there is none.
    - better: which direction is; None where neither is.
    - headline: whether it is what such a run is judged by: a sweep compares and plots it first.
    - plot: whether a sweep plots it; not where another metric says the same.
    - form: how a value is written, as for `str.format`: "{:.3f}", "{:.1%}".
    - interval: names of the metrics that are the ends of its 95 % interval; True for its name with _low and _high.
    """

    label: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    headline: bool = False
    plot: bool = True
    form: str = "{:.4g}"
    interval: bool | tuple[str, str] = False

    @property
    def with_unit(self) -> str:
        """The label, and in brackets the unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class TrainingCurve:
    """The logged metric that shows how training went, for a sweep that draws the curves of all its settings.

    - key: of metrics.jsonl. validation: the same on held-out rows. title, note: what it is, in a few words.
    - surrogate: its height says nothing, so that it is not compared over budgets of compute.
    - comparable: settings with other losses or noise have the same quantity.
    """

    key: str
    validation: str
    title: str = "Training loss"
    validation_title: str = "Validation loss"
    note: str = ""
    validation_note: str = "the training loss on held-out rows"
    surrogate: bool = False
    comparable: bool = True


@dataclass(frozen=True)
class FewColumns:
    """The table of a sweep that is read first: few columns, of one's own making.

    - title: of the section. lines: header and rows. strong: rows that stand out (0 is the first below the header).
    - text: columns that are words. note: below the table. charts: drawn below it.
    """

    title: str
    lines: Lines
    strong: frozenset[int] = frozenset()
    text: tuple[int, ...] = (0,)
    note: str = ""
    charts: Sequence[Node] = ()


@dataclass(frozen=True)
class SweepReport:
    """What a sweep shows of runs whose configs name the class. Each function may say that it has nothing to show.

    - verdict: the sentence on top; empty for none of its own.
    - first: sections above the table of results.
    - tables: tables that are read before the table of all numbers, which is folded behind them, in the terminal too.
    - sections: below the results.
    - comparable: whether the settings may be compared at all; where not, none is marked as the best, and the generic
      comparison and plots are left out.
    - curve: the training curve, where every run logs it.
    """

    verdict: Callable[[SweepTable], str] | None = None
    first: Sequence[Callable[[SweepTable], Node]] = ()
    tables: Callable[[SweepTable], Sequence[FewColumns]] | None = None
    sections: Sequence[Callable[[SweepTable], Node]] = ()
    comparable: Callable[[SweepTable], bool] | None = None
    curve: TrainingCurve | None = None


@dataclass(frozen=True)
class Report:
    """What a run shows of a class that its config names. Each function may say that it has nothing to show.

    - metrics: {name in result.json: what it is}; a star matches any text but a slash ("samples/*/entropy").
    - results: sections of the page, above the training curves; details: those below them.
    - training: the section of the training curves, in place of the generic one.
    - verdict: the sentence the run came to; empty for none. progress: that of a run without results.
    - numbers: {label: text} on top of the page.
    - terminal: tables for the terminal; a text between them is a remark on the table above it.
    - measured_by: the option of `eval` that measures a finished run of the class ("likelihood").
    - samples: whether a run of the class can be sampled from (task=sample).
    - sweep: what a sweep of such runs shows.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    results: Sequence[Callable[[RunFiles], Node]] = ()
    training: Callable[[RunFiles], Node] | None = None
    details: Sequence[Callable[[RunFiles], Node]] = ()
    verdict: Callable[[RunFiles], str] | None = None
    progress: Callable[[RunFiles], str] | None = None
    numbers: Callable[[RunFiles], Mapping[str, str]] | None = None
    terminal: Callable[[RunFiles], Sequence[Lines | str]] | None = None
    measured_by: str = ""
    samples: bool = True
    sweep: SweepReport = field(default_factory=SweepReport)


# Which reports a config has ------------------------------------------------------------------------------------------


def reports_of(run: RunFiles) -> list[Report]:
    """The reports of the classes that a run's config names, and of those that have measured it since; each once."""
    later = {"eval": run.result.get("measured") or {}}
    return reports_of_classes((*class_names(run.config), *class_names(later)))


def reports_of_sweep(table: SweepTable) -> list[Report]:
    """The reports of the classes that the configs of a sweep's runs name, each once."""
    return reports_of_classes(tuple(dict.fromkeys(name for point in table.points for name in point.classes)))


@functools.lru_cache(maxsize=64)
def reports_of_classes(names: tuple[str, ...]) -> list[Report]:
    """The reports of these classes, each once, in their order."""
    found: dict[int, Report] = {}
    for name in names:
        report = report_of(name)
        if report is not None:
            found.setdefault(id(report), report)
    return list(found.values())


@functools.cache
def report_of(target: str) -> Report | None:
    """The report beside the class, by the convention; None where there is none.

    Only packages that a config may name are searched. Raises TypeError for a REPORT that is no Report.
    """
    package, _, module = target.rpartition(".")[0].rpartition(".")
    if target.partition(".")[0] not in packages():
        return None
    modules = (f"{package}.report.{module}", f"{package}.{module}_report", f"{package}.report")
    for found in modules if package else (f"{module}_report",):
        if _exists(found) and (report := vars(importlib.import_module(found)).get("REPORT")) is not None:
            if not isinstance(report, Report):
                raise TypeError(f"{found}.REPORT must be a Report, not {type(report).__name__}")
            return report
    return None


def _exists(name: str) -> bool:
    """Whether there is such a module; the packages above it are imported, as Python does."""
    return _found(name) is not None


def _found(name: str) -> ModuleSpec | None:
    above = name.rpartition(".")[0]
    package = _found(above) if above else None
    inside = not above or (package is not None and package.submodule_search_locations is not None)
    return importlib.util.find_spec(name) if inside else None


# What the metrics are ------------------------------------------------------------------------------------------------


class Metrics:
    """The declarations of several reports: what any name of result.json is."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self.declared = {name: metric for report in reversed(reports) for name, metric in report.metrics.items()}
        patterns = (name for name in self.declared if "*" in name)
        self._patterns = [
            (re.compile(re.escape(name).replace(r"\*", "([^/]*)")), name)
            for name in sorted(patterns, key=lambda name: len(name.replace("*", "")), reverse=True)
        ]
        self._order = [name for report in reports for name in report.metrics]

    def find(self, name: str) -> Metric | None:
        """The declaration of a metric; None where there is none."""
        if name in self.declared:
            return self.declared[name]
        for pattern, key in self._patterns:
            if match := pattern.fullmatch(name):
                metric = self.declared[key]
                return replace(metric, label=metric.label.format(*match.groups()))
        return None

    def of(self, name: str) -> Metric:
        """The declaration, or a bare one whose label is the name."""
        return self.find(name) or Metric(name.replace("_", " ").replace("/", ": ", 1).replace("/", ", "))

    def is_interval_end(self, name: str) -> bool:
        """Whether the metric is an end of another's interval."""
        for ending in ("_low", "_high"):
            if name.endswith(ending) and self.of(name.removesuffix(ending)).interval is True:
                return True
        return any(isinstance(m.interval, tuple) and name in m.interval for m in self.declared.values())

    def is_declared(self, name: str) -> bool:
        """Whether a report says what the metric is, or that it is the end of an interval."""
        return self.find(name) is not None or self.is_interval_end(name)

    def rank(self, name: str) -> tuple[bool, int]:
        """For sorting: headlines first, in the order in which they are declared."""
        keys = [key for key in self._order if key == name] or [
            key for pattern, key in self._patterns if pattern.fullmatch(name)
        ]
        return not self.of(name).headline, self._order.index(keys[0]) if keys else len(self._order)

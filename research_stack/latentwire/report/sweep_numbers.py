"""The numbers of a sweep, from its runs' files: every setting beside the baseline over the same questions, if the
baseline passed its gate.

The baseline is the point whose swept keys all have their first value. A feature is compared with it only if the
baseline itself works: its readers' first token is correct at least 15 % of the time (FirstTok@1), since
between settings that all fail there is nothing to compare.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from research_stack.latentwire.path_names import LATENT
from research_stack.metrics.paired import over_runs
from research_stack.records.run_folder import RunFolder
from research_stack.records.sweep_table import Row, SweepTable
from research_stack.reporting.run_files import RunFiles, reals

GATE = 0.15  # FirstTok@1 that the baseline needs for every reader
NAME = "latentwire/"  # before the metrics of result.json
F1, SHARE, FIRST = "f1_latent", "share_of_text", "first1"  # the metrics of a reader


class QuestionKey(NamedTuple):
    """A question of a data set and the group it belongs to."""

    dataset: str
    question: str
    group: str


@dataclass(frozen=True)
class Difference:
    """Mean difference of a setting's F1 and the baseline's over the same questions.

    - low, high: 95 % interval over groups of questions, NaN without their scores. questions: how many both were
      asked, 0 without scores. seeds: how many both have.
    """

    value: float
    low: float
    high: float
    questions: int
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies above or below zero, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Setting:
    """A row of the table and, by reader, its difference from the baseline ({} for the baseline and where nothing may be
    compared).
    """

    row: Row
    is_baseline: bool
    differences: Mapping[str, Difference]


def readers(table: SweepTable) -> list[str]:
    """The readers that any run has a score of, in order; [] where none was measured."""
    names = dict.fromkeys(
        name for row in table.rows for name in row.values if name.startswith(NAME) and name.endswith(f"/{F1}")
    )
    return [name.removeprefix(NAME).removesuffix(f"/{F1}") for name in names]


def key(reader: str, metric: str) -> str:
    """The name of a reader's metric in result.json."""
    return f"{NAME}{reader}/{metric}"


# The baseline and its gate -------------------------------------------------------------------------------------------


def baseline(table: SweepTable) -> Row | None:
    """The setting whose swept keys have their first values; None if it has no result.

    By the sweep's own record of what it swept where there is one, else the first point.
    """
    first = table.points[0].folder if table.points else None
    folder = next((point.folder for point in table.points if has_first_values(point.folder)), first)
    settings = table.settings.get(folder) if folder is not None else None
    return next((row for row in table.rows if folder in row.points or dict(row.settings) == settings), None)


def has_first_values(folder: Path) -> bool:
    """Whether a run's overrides hold the first value of every swept key but the seed, as multirun.yaml beside the runs
    says.
    """
    firsts = {name: values[0] for name, values in swept(folder.parent).items() if name.rpartition(".")[2] != "seed"}
    overrides = _overrides(folder)
    return bool(firsts) and all(overrides.get(name) == value for name, value in firsts.items())


def _overrides(folder: Path) -> dict[str, str]:
    """The overrides of run.json; {} where it is missing or torn."""
    try:
        found = json.loads(RunFolder(folder).run_json.read_text(encoding="utf-8")).get("overrides")
    except (OSError, ValueError, AttributeError):
        return {}
    return _by_key(found) if isinstance(found, list) else {}


def _by_key(overrides: Sequence[object]) -> dict[str, str]:
    """{key: value} of overrides `key=value`."""
    parts = (str(one).lstrip("+").partition("=") for one in overrides)
    return {key: value for key, _, value in parts}


def swept(folder: Path) -> dict[str, list[str]]:
    """{key: its values} of a sweep's folder, of what was given more than one; {} without a readable multirun.yaml."""
    path = folder / "multirun.yaml"
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}
    hydra: Any = record.get("hydra") if isinstance(record, dict) else None
    sweeper, overrides = (hydra.get(name) if isinstance(hydra, dict) else None for name in ("sweeper", "overrides"))
    params = sweeper.get("params") if isinstance(sweeper, dict) else None
    task = overrides.get("task") if isinstance(overrides, dict) else None
    found = {str(name): str(value) for name, value in params.items()} if isinstance(params, dict) else {}
    found |= _by_key(task) if isinstance(task, list) else {}
    return {name: values for name, text in found.items() if len(values := choices(text)) > 1}


def choices(text: str) -> list[str]:
    """`[],[a,b],c` as its three values: commas within brackets, braces and quotes do not part them."""
    found, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
    return [one.strip() for one in found]


def gate(table: SweepTable) -> dict[str, float]:
    """{reader: FirstTok@1 of the baseline, mean over seeds}; NaN where it was not measured, {} without a baseline."""
    row = baseline(table)
    means = {} if row is None else {reader: row.mean(key(reader, FIRST)) for reader in readers(table)}
    return {reader: math.nan if mean is None else mean for reader, mean in means.items()}


def passed(table: SweepTable) -> bool:
    """Whether every reader's baseline is good enough for a comparison."""
    found = gate(table)
    return bool(found) and all(value >= GATE for value in found.values())


def comparable(table: SweepTable) -> bool:
    """False where settings may not be compared; True for a single setting, and where no answers were measured."""
    return not readers(table) or len(table.rows) < 2 or passed(table)


# Differences ---------------------------------------------------------------------------------------------------------


def settings(table: SweepTable) -> list[Setting]:
    """Every setting, the baseline first; [] where no answers were measured."""
    names = readers(table)
    if not names:
        return []
    first = baseline(table)
    compared = first is not None and passed(table)
    found = [
        Setting(row, row is first, _differences(table, row, first, names) if compared and row is not first else {})
        for row in table.rows
    ]
    return sorted(found, key=lambda setting: not setting.is_baseline)


def _differences(table: SweepTable, row: Row, first: Row | None, names: Sequence[str]) -> dict[str, Difference]:
    found = {reader: difference(table, row, first, reader) for reader in names} if first is not None else {}
    return {reader: one for reader, one in found.items() if one is not None}


def difference(table: SweepTable, row: Row, first: Row, reader: str) -> Difference | None:
    """Of F1 by latents, over the seeds that both have: by question where the runs kept their scores (`over_runs`), of
    the means otherwise. None if no seed is shared.
    """
    own, other = (dict(zip(one.seeds, one.points, strict=True)) for one in (row, first))
    seeds = [seed for seed in own if seed in other]
    pairs = [(question_scores(own[seed], reader), question_scores(other[seed], reader)) for seed in seeds]
    estimate, questions = over_runs(pairs, lambda question: (question.dataset, question.group))
    if questions > 1:
        return Difference(*estimate, questions, len(seeds))
    metrics = {point.folder: point.metrics for point in table.points}
    means = [
        metrics.get(own[seed], {}).get(key(reader, F1), math.nan)
        - metrics.get(other[seed], {}).get(key(reader, F1), math.nan)
        for seed in seeds
    ]
    means = [value for value in means if math.isfinite(value)]
    return Difference(statistics.fmean(means), math.nan, math.nan, 0, len(means)) if means else None


def question_scores(folder: Path, reader: str) -> dict[QuestionKey, float]:
    """{question: F1 by latents} of tables/latentwire_scores.csv."""
    path = RunFolder(folder).tables / "latentwire_scores.csv"
    return _scores(folder, path.stat().st_mtime_ns).get(reader, {}) if path.is_file() else {}


@functools.lru_cache(maxsize=256)
def _scores(folder: Path, written: int) -> dict[str, dict[QuestionKey, float]]:
    """{reader: {question: F1}} of a file as it was `written`: the page, the terminal and results.md all ask for it."""
    found: dict[str, dict[QuestionKey, float]] = {}
    for row in RunFiles(folder).table("latentwire_scores"):
        value, name = reals(row, "f1")[0], row.get("question", "")
        if row.get("path") == LATENT and name and math.isfinite(value):
            question = QuestionKey(row.get("dataset", ""), name, row.get("group") or name)
            found.setdefault(row.get("reader", ""), {})[question] = value
    return found

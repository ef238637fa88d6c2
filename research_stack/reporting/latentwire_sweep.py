"""A sweep of wires of latents as a table: every setting beside the baseline, over the same questions, if the baseline
passed its gate.

The baseline is the point whose swept keys all have their first value. A feature is compared with it only if the
baseline itself works: its readers' first token is right at least 15 % of the time (FirstTok@1), since between settings
that all fail there is nothing to compare.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from research_stack.metrics.interval import per_token
from research_stack.records.run_folder import RunFolder
from research_stack.records.sweep_table import Row, SweepTable, aligned, failure_line, show_mean
from research_stack.reporting.budgets import run_facts
from research_stack.reporting.curves import is_number
from research_stack.reporting.latentwire_tables import LATENT, NAME
from research_stack.reporting.latentwire_words import joined
from research_stack.reporting.reading import reals, table_of
from research_stack.reporting.sweep_axes import label_of

GATE = 0.15  # FirstTok@1 that the baseline needs for every reader
F1, SHARE, FIRST = "f1_latent", "share_of_text", "first1"  # the metrics of a reader


class Asked(NamedTuple):
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
    def side(self) -> int:
        """1 or -1 if the interval lies above or below zero, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Line:
    """A row of the table: a setting and, by reader, its difference from the baseline ({} for the baseline and where
    nothing may be compared).
    """

    label: str
    row: Row
    baseline: bool
    differences: Mapping[str, Difference]


def readers(table: SweepTable) -> list[str]:
    """The readers that any run has a score of, in order; [] for another kind of sweep."""
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
    folder = next(
        (point.folder for point in table.points if begins(point.folder)),
        table.points[0].folder if table.points else None,
    )
    settings = table.settings.get(folder) if folder is not None else None
    return next((row for row in table.rows if folder in row.points or dict(row.settings) == settings), None)


def begins(folder: Path) -> bool:
    """Whether a run's overrides hold the first value of every swept key but the seed, as multirun.yaml beside the runs
    says.
    """
    firsts = {name: values[0] for name, values in swept(folder.parent).items() if name.rpartition(".")[2] != "seed"}
    overrides = run_facts(folder).get("overrides")
    own = dict(str(one).lstrip("+").partition("=")[::2] for one in overrides) if isinstance(overrides, list) else {}
    return bool(firsts) and all(own.get(name) == value for name, value in firsts.items())


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
    found |= dict(str(one).lstrip("+").partition("=")[::2] for one in task) if isinstance(task, list) else {}
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
    return (
        {}
        if row is None
        else {reader: math.nan if (mean := row.mean(key(reader, FIRST))) is None else mean for reader in readers(table)}
    )


def passed(table: SweepTable) -> bool:
    """Whether every reader's baseline is good enough for a comparison."""
    found = gate(table)
    return bool(found) and all(value >= GATE for value in found.values())


def comparable(table: SweepTable) -> bool:
    """False for a sweep of wires whose settings may not be compared; True for every other sweep."""
    return not readers(table) or len(table.rows) < 2 or passed(table)


# Differences ---------------------------------------------------------------------------------------------------------


def lines(table: SweepTable) -> list[Line]:
    """Every setting, the baseline first; [] for another kind of sweep."""
    names = readers(table)
    if not names:
        return []
    first = baseline(table)
    compared = first is not None and passed(table)
    found = [
        Line(
            label_of(row, table),
            row,
            row is first,
            _differences(table, row, first, names) if compared and first is not None and row is not first else {},
        )
        for row in table.rows
    ]
    return sorted(found, key=lambda line: not line.baseline)


def _differences(table: SweepTable, row: Row, first: Row, names: Sequence[str]) -> dict[str, Difference]:
    found = {reader: difference(table, row, first, reader) for reader in names}
    return {reader: one for reader, one in found.items() if one is not None}


def difference(table: SweepTable, row: Row, first: Row, reader: str) -> Difference | None:
    """Of F1 by latents, over the seeds that both have: by question where the runs kept their scores, of the means
    otherwise.

    A question's difference is its mean over the seeds in which both runs were asked it; questions of one group (a
    context, an article) count as one draw. None if no seed is shared.
    """
    own, other = (dict(zip(one.seeds, one.points, strict=True)) for one in (row, first))
    seeds = [seed for seed in own if seed in other]
    by_question: dict[Asked, list[float]] = {}
    for seed in seeds:
        a, b = question_scores(own[seed], reader), question_scores(other[seed], reader)
        for question in a.keys() & b.keys():
            by_question.setdefault(question, []).append(a[question] - b[question])
    if len(by_question) > 1:
        return Difference(
            *over_groups({question: statistics.fmean(values) for question, values in by_question.items()}),
            len(by_question),
            len(seeds),
        )
    metrics = {point.folder: point.metrics for point in table.points}
    means = [
        metrics.get(own[seed], {}).get(key(reader, F1), math.nan)
        - metrics.get(other[seed], {}).get(key(reader, F1), math.nan)
        for seed in seeds
    ]
    means = [value for value in means if is_number(value)]
    return Difference(statistics.fmean(means), math.nan, math.nan, 0, len(means)) if means else None


def over_groups(values: Mapping[Asked, float]) -> tuple[float, float, float]:
    """(mean over questions, low, high): a 95 % interval over the groups, which are drawn whole
    (`evaluation.interval`); NaN ends for fewer than two.
    """
    names = {
        group: index
        for index, group in enumerate(dict.fromkeys((asked.dataset, asked.group) for asked in sorted(values)))
    }
    _, low, high = per_token(
        [values[asked] for asked in sorted(values)],
        [1.0] * len(values),
        [names[asked.dataset, asked.group] for asked in sorted(values)],
    )
    return statistics.fmean(values.values()), low, high


def question_scores(folder: Path, reader: str) -> dict[Asked, float]:
    """{question: F1 by latents} of tables/latentwire_scores.csv."""
    path = RunFolder(folder).tables / "latentwire_scores.csv"
    return _scores(folder, path.stat().st_mtime_ns).get(reader, {}) if path.is_file() else {}


@functools.lru_cache(maxsize=256)
def _scores(folder: Path, written: int) -> dict[str, dict[Asked, float]]:
    """{reader: {question: F1}} of a file as it was `written`: the page, the terminal and results.md all ask for it."""
    found: dict[str, dict[Asked, float]] = {}
    for row in table_of(RunFolder(folder), "latentwire_scores"):
        value, name = reals(row, "f1")[0], row.get("question") or row.get("key", "")
        if row.get("path") == LATENT and name and math.isfinite(value):
            found.setdefault(row.get("reader", ""), {})[
                Asked(row.get("dataset", ""), name, row.get("group") or name)
            ] = value
    return found


# Words and tables ----------------------------------------------------------------------------------------------------


def headline(table: SweepTable) -> str:
    """Whether the gate was passed and what came of the settings, in a sentence; empty for another kind of sweep or for
    one setting.
    """
    found = lines(table)
    if len(found) < 2:
        return ""
    values = gate(table)
    if not values:
        return "The baseline, the point with the first value of every swept key, has no result: no feature is compared."
    if not passed(table):
        shown = joined(
            [f"{'unknown' if math.isnan(value) else percent(value)} ({reader})" for reader, value in values.items()]
        )
        return (
            f"The gate was not passed: the baseline's first token is right {shown} of the time, and every reader needs"
            f" {percent(GATE)}. No feature is compared."
        )
    rest = [line for line in found if line.differences]
    if not rest:
        return "No setting shares a seed with the baseline."
    best = max(rest, key=lambda line: statistics.fmean(one.value for one in line.differences.values()))
    better, worse = (
        sum(all(one.side == side for one in line.differences.values()) for line in rest) for side in (1, -1)
    )
    changes = joined([f"{one.value:+.3f} ({reader}{_span(one)})" for reader, one in best.differences.items()])
    every = "every reader" if len(values) > 1 else next(iter(values))
    counts = (
        f"Of {len(rest)} setting{'s' if len(rest) > 1 else ''} {better or 'none'} {'is' if better < 2 else 'are'}"
        " better than the baseline"
    )
    known = "" if found[0].label == "baseline" else f", {found[0].label},"
    return f"{counts}{known} for {every} and {worse or 'none'} worse; the best, {best.label}, changes F1 by {changes}."


def percent(value: float) -> str:
    """9 %; 14.8 % where rounding would hide on which side of the gate it is."""
    return f"{100 * value:.0f} %" if abs(value - GATE) >= 0.005 or value == GATE else f"{100 * value:.1f} %"


def _span(one: Difference) -> str:
    return f", {one.low:+.3f} to {one.high:+.3f}" if math.isfinite(one.low) else ""


def title(table: SweepTable) -> str:
    """What stands above the table."""
    return (
        "Answers from latents"
        if len(table.rows) < 2
        else "Against the baseline"
        if comparable(table)
        else "Settings, not compared"
    )


def head(table: SweepTable) -> list[str]:
    """The header of the table."""
    found = [
        text
        for reader in readers(table)
        for text in (f"F1, {reader}", "of the text", "against the baseline", "95 % interval", "FirstTok@1")
    ]
    return ["setting", "seeds", "bytes", *found]


def cells(table: SweepTable, line: Line) -> list[str]:
    """A line of the table."""
    names = readers(table)
    numbers = []
    for reader in names:
        share, one = line.row.mean(key(reader, SHARE)), line.differences.get(reader)
        against = "baseline" if line.baseline else f"{one.value:+.3f}" if one else "-"
        interval = f"{one.low:+.3f} to {one.high:+.3f}" if one and math.isfinite(one.low) else "-"
        numbers += [
            _mean(line.row, key(reader, F1)),
            "-" if share is None else f"{100 * share:.0f} %",
            against,
            interval,
            _mean(line.row, key(reader, FIRST)),
        ]
    sizes = dict.fromkeys(
        f"{mean:.4g}" for reader in names if (mean := line.row.mean(key(reader, "bytes"))) is not None
    )
    return [line.label, str(line.row.n), " / ".join(sizes) or "-", *numbers]


def _mean(row: Row, metric: str) -> str:
    mean = row.mean(metric)
    return "-" if mean is None else show_mean(mean, row.standard_error(metric)) if row.n > 1 else f"{mean:.3f}"


def note(table: SweepTable) -> str:
    """What the numbers are and what they do not cover."""
    found = [one for line in lines(table) for one in line.differences.values()]
    asked = sorted({one.questions for one in found if one.questions})
    text = (
        "F1 is that of the answers from latents, with its standard error over seeds; of the text: the share of what the"
        " whole text gives. "
    )
    if not comparable(table):
        return f"{text}Nothing is compared with a baseline that does not work."
    if asked:
        text += (
            f"Differences are paired over the same {' or '.join(f'{n:,}' for n in asked)} questions, a question's"
            " scores averaged over the seeds that both have; the interval is over questions and does not cover a new"
            " training run: several seeds tell that, below. "
        )
    if any(not one.questions for one in found):
        text += "Without the scores of single questions there is no interval. "
    return f"{text}Nothing is corrected for the number of comparisons."


def as_markdown(table: SweepTable) -> str:
    """The table for results.md; empty for another kind of sweep."""
    found = lines(table)
    if not found:
        return ""
    header, said = head(table), f"{told}\n\n" if (told := headline(table)) else ""
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *(cells(table, line) for line in found)]
    body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    return f"## {title(table)}\n\n{said}{body}\n\n{note(table)}\n"


KEPT = ((0, 1, 2, 3, 4), (0, 1, 2, 3), (0, 2, 3), (0, 2))  # of a reader's columns, as the terminal gets narrower


def as_text(table: SweepTable, width: int = 100) -> str:
    """The table for a terminal of `width` columns, the failures, the headline; empty for another kind of sweep."""
    found = lines(table)
    if not found:
        return ""
    full, said = [head(table), *(cells(table, line) for line in found)], headline(table)
    for kept in KEPT:
        shown = [[*line[:3], *(cell for place, cell in enumerate(line[3:]) if place % 5 in kept)] for line in full]
        text = aligned(shown[0], shown[1:])
        if max(map(len, text)) <= width:
            break
    return "\n".join([*text, *map(failure_line, table.failures), *(["", said] if said else [])])

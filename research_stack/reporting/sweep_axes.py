"""How the settings of a sweep lie on paper: which axis goes where, which metrics are worth a plot, what they are
called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from research_stack.records.sweep_table import Row, SweepTable, show
from research_stack.reporting import measured
from research_stack.reporting.charts import ramp
from research_stack.reporting.contract import Metrics, reports_of_sweep
from research_stack.reporting.sections import COLORS
from research_stack.reporting.svg_charts import Axis, axis_of

# {ending of a metric's name: whether lower is better}; metrics that are not listed have no direction.
LOWER = {
    "bound": True,
    "perplexity": True,
    "bits_per_byte": True,
    "loss": True,
    "gain_over_trigram": False,
    "accuracy": False,
    "reward": False,
    "exact_match": False,
    "f1": False,
    "nats": True,
    "loss_lm": True,
    "ece": True,
    "brier": True,
    "aurc": True,
    "calibration_error": True,
    "future_nats": True,
    "r2": False,
    "r2_over_entropy": False,
    "pass": False,
    "preference_pass": False,
    "unique_correct": False,
    "f1_latent": False,
}
FIRST = ("likelihood/bound", "likelihood/gain_over_trigram", "lookahead/nats", "lookahead/r2")
REDUNDANT = ("_low", "_high", "likelihood/perplexity", "/bits_per_byte", "unigram", "trigram")  # say what others say
GAIN = "/gain_over_trigram"
APART = 0.12  # between the lines of a column of names, of the distance of two columns


def better(metric: str) -> bool | None:
    """True where lower is better, False where higher is, None where neither is said."""
    ending = metric.rpartition("/")[2]
    return LOWER.get(
        measured.parts(ending.removeprefix(measured.HELD_OUT))[0] if metric.startswith(measured.NAME) else ending
    )


UNITS = {"likelihood/bound": "nats per token", "lookahead/nats": "nats per token"}
WORDS = {
    "likelihood/bound": "bound",
    "likelihood/perplexity": "perplexity bound",
    "likelihood/bits_per_byte": "bits per byte, bound",
    "likelihood/gain_over_trigram": "nats below a trigram",
    "lookahead/nats": "held-out loss",
    "lookahead/bits_per_byte": "bits per byte",
    "lookahead/gain_over_trigram": "nats below a trigram",
    "lookahead/r2": "R² of the confidence head",
    "lookahead/r2_entropy": "R² of an entropy fit",
    "lookahead/r2_over_entropy": "R² above an entropy fit",
    "lookahead/ece": "calibration error (ECE)",
    "lookahead/brier": "Brier score",
}
ENDINGS = {
    "aurc": "AURC",
    "calibration_error": "calibration error, nats",
    "future_nats": "future loss, nats per token",
    "loss_lm": "loss of the language model",
    "ece": "ECE",
    "r2": "R²",
    "f1_latent": "F1 from latents",
}


def metric_words(metric: str) -> str:
    """A metric's name as one reads it."""
    if metric in WORDS:
        return WORDS[metric]
    if metric.startswith(measured.NAME):
        return _of_answers(metric.removeprefix(measured.NAME))
    head, slash, ending = metric.rpartition("/")
    return f"{head}{slash}{ENDINGS.get(ending, ending)}".replace("_", " ").replace("/", ": ", 1).replace("/", ", ")


def _of_answers(name: str) -> str:
    """pass@k stays as it is: in a sweep it stands where there is little room."""
    base = name.removeprefix(measured.HELD_OUT)
    return ("held out: " if base != name else "") + (base if base in measured.passes([base]) else measured.words(base))


def with_unit(metric: str) -> str:
    """The name and, where it is not plain, the unit."""
    return f"{metric_words(metric)} ({UNITS[metric]})" if metric in UNITS else metric_words(metric)


def worth_plotting(table: SweepTable) -> list[str]:
    """The metrics that say something of their own, the most important first; seconds come last."""
    answers, declared = _answers_worth_plotting(table), Metrics(reports_of_sweep(table))
    own = [
        m
        for m in table.metrics
        if (not m.endswith(REDUNDANT) or m.endswith(GAIN))
        and (not m.startswith(measured.NAME) or m in answers)
        and ((metric := declared.find(m)) is None or metric.plot)
    ]
    if not own:
        return list(table.metrics)
    first = (*FIRST, *answers)
    return sorted(own, key=lambda m: (m == "seconds", first.index(m) if m in first else len(first)))


def _answers_worth_plotting(table: SweepTable) -> list[str]:
    """Of a policy's many numbers: being right, different right answers and the rest of `measured.main`; of held-out
    prompts, being right.
    """
    names = [m.removeprefix(measured.NAME) for m in table.metrics if m.startswith(measured.NAME)]
    own = measured.main([name for name in names if not name.startswith(measured.HELD_OUT)])
    passes, others = measured.passes(own), [name for name in own if measured.parts(name)[0] != "pass"]
    held_out = [name for name in names if name == f"{measured.HELD_OUT}pass@1"]
    return [measured.NAME + name for name in (*passes[:1], *others[:1], *passes[1:], *others[1:], *held_out)]


def label_of(row: Row, table: SweepTable) -> str:
    """A setting in words: the bare value for one axis of names, key=value otherwise; `sft → group` where it begins with
    another run.
    """
    if "init_from" in row.settings:
        rest = [
            show(value) if isinstance(value, str) else f"{table.labels[axis]}={show(value)}"
            for axis, value in row.settings.items()
            if axis != "init_from"
        ]
        return " → ".join([show(row.settings["init_from"]), *([", ".join(rest)] if rest else [])])
    if len(table.axes) == 1 and isinstance(row.settings[table.axes[0]], str):
        return show(row.settings[table.axes[0]])
    return (
        ", ".join(f"{table.labels[axis]}={show(value)}" for axis, value in row.settings.items()) or "the only setting"
    )


def color_of(index: int, count: int) -> str:
    """A colour of its own for each of a few, a shade of a ramp for each of many."""
    if count <= len(COLORS):
        return COLORS[index]
    return ramp(index / (count - 1))


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether all values are finite numbers (True and False are names)."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


@dataclass
class Grid:
    """Settings in columns (x) and lines.

    - cells: {(column number, line number): row}. numeric: whether columns are numbers on a scale.
    """

    columns: list[Any]
    lines: list[Any]
    cells: dict[tuple[int, int], Row]
    column_label: str
    line_label: str = ""
    numeric: bool = True

    @property
    def is_heat_map(self) -> bool:
        """Two axes with at least three values each."""
        return min(len(self.columns), len(self.lines)) >= 3

    @property
    def log(self) -> bool:
        """Whether the columns span more than a factor of twenty, as learning rates do."""
        return self.numeric and min(self.columns) > 0 and max(self.columns) > 20 * min(self.columns)

    def at(self, column: Any, line: Any) -> Row | None:
        """The row of a setting; None if it has no result."""
        return self.cells.get((self.columns.index(column), self.lines.index(line)))

    def place(self, column: Any, line: Any = None) -> float:
        """Where a column lies on the x axis; the lines of a column of names lie beside each other."""
        if self.numeric:
            return float(column)
        aside = (
            APART * (self.lines.index(line) - (len(self.lines) - 1) / 2)
            if line in self.lines and len(self.lines) > 1
            else 0.0
        )
        return self.columns.index(column) + aside

    def axis(self) -> Axis:
        """The x axis."""
        if self.numeric:
            return axis_of([float(v) for v in self.columns], self.column_label, log=self.log, margin=0.07)
        return Axis(-0.5, len(self.columns) - 0.5, self.column_label, names=[show(v) for v in self.columns])


def grid_of(table: SweepTable) -> Grid:
    """One axis: columns. Two, mostly crossed: the longer one that is numeric in columns, the other in lines. Else:
    every setting a column.
    """
    values = {
        axis: list({repr(row.settings[axis]): row.settings[axis] for row in table.rows}.values()) for axis in table.axes
    }
    if len(table.axes) == 2 and len(table.rows) > 0.6 * math.prod(map(len, values.values())):
        x, y = sorted(table.axes, key=lambda axis: (is_numeric(values[axis]), len(values[axis])), reverse=True)
        cells = {(values[x].index(row.settings[x]), values[y].index(row.settings[y])): row for row in table.rows}
        return Grid(values[x], values[y], cells, table.labels[x], table.labels[y], is_numeric(values[x]))
    if len(table.axes) == 1:
        axis = table.axes[0]
        return Grid(
            values[axis],
            [None],
            {(i, 0): row for i, row in enumerate(table.rows)},
            table.labels[axis],
            numeric=is_numeric(values[axis]),
        )
    names = [" / ".join(show(value) for value in row.settings.values()) for row in table.rows]
    return Grid(
        names,
        [None],
        {(i, 0): row for i, row in enumerate(table.rows)},
        " / ".join(table.labels.values()),
        numeric=False,
    )

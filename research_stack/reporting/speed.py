"""What a step of each setting costs: seconds, tokens per second, parameters, FLOPs; from metrics.jsonl and run.json."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research_stack.records.files import read_jsonl
from research_stack.records.run_folder import RunFolder
from research_stack.records.seeds import mean_of_finite, standard_error
from research_stack.records.sweep_table import Row, SweepTable, show_mean
from research_stack.reporting.budgets import flops_of, run_facts
from research_stack.reporting.curves import is_number, number
from research_stack.reporting.elements import listing, note, scrolled
from research_stack.reporting.html import Node, el
from research_stack.reporting.sweep_axes import label_of


@dataclass(frozen=True)
class Speed:
    """One run: wall time of a step, tokens of a step, parameters, FLOPs of a step; NaN for what is not known."""

    seconds: float
    tokens: float
    parameters: float
    flops: float


def seconds_per_step(history: Sequence[Mapping[str, Any]]) -> float:
    """The median time from row to row over the steps between them; NaN for fewer than two rows.

    A validation is timed after the row that holds it, or in a row of its own: such stretches are left out where others
    remain.
    """
    rows = [row for row in history if is_number(row.get("time")) and is_number(row.get("step"))]
    paces, unvalidated = [], []
    for before, after in zip(rows, rows[1:], strict=False):
        if (
            after["step"] > before["step"] and after["time"] >= before["time"]
        ):  # not where an earlier part of the run was resumed
            paces.append((after["time"] - before["time"]) / (after["step"] - before["step"]))
            if not _validates(before) and (not _validates(after) or _trains(after)):
                unvalidated.append(paces[-1])
    return statistics.median(unvalidated or paces) if paces else math.nan


def _validates(row: Mapping[str, Any]) -> bool:
    return any(key.startswith("val/") for key in row)


def _trains(row: Mapping[str, Any]) -> bool:
    return any(key.startswith("train/") for key in row)


def speed_of(folder: Path, config: Mapping[str, Any]) -> Speed:
    """The speed of a run; config is flat."""
    facts = run_facts(folder)
    model, data = (value if isinstance(value := facts.get(key), Mapping) else {} for key in ("model", "data"))
    batch, length = known(config, "data.batch_size"), known(data, "sequence_length")
    tokens = known(model, "tokens_per_step")
    return Speed(
        seconds_per_step(read_jsonl(RunFolder(folder).metrics_jsonl)),
        batch * length if math.isnan(tokens) else tokens,
        known(model, "parameters"),
        flops_of(facts) or math.nan,
    )


def known(facts: Mapping[str, Any], key: str) -> float:
    """A fact as a number; NaN if it is none."""
    return float(facts[key]) if is_number(facts.get(key)) else math.nan


def section(table: SweepTable) -> Node:
    """The table, a row for each setting; None if no run logged two rows with their times."""
    configs = {point.folder: point.config for point in table.points}
    found = [(row, [speed_of(folder, configs.get(folder, {})) for folder in row.points]) for row in table.rows]
    paces = [mean_of_finite(run.seconds for run in runs) for _, runs in found]
    fastest = min((pace for pace in paces if math.isfinite(pace) and pace > 0), default=math.nan)
    if not math.isfinite(fastest):
        return None
    header = (
        "setting",
        "seconds a step",
        "times the fastest",
        "tokens a second",
        "parameters",
        "FLOPs a step",
        "seconds in all",
    )
    lines = [
        ([label_of(row, table), *_cells(row, runs, pace, fastest)], False)
        for (row, runs), pace in zip(found, paces, strict=True)
    ]
    return [
        el("h2", "Speed"),
        scrolled(listing(header, lines)),
        note(
            "Seconds a step are the median over the run, without validation, mean ± standard error over seeds; seconds"
            " in all count everything, evaluations included. Times compare only between runs that had the same machine"
            " to themselves."
        ),
    ]


def _cells(row: Row, runs: Sequence[Speed], pace: float, fastest: float) -> list[str]:
    paces = [run.seconds for run in runs if math.isfinite(run.seconds)]
    rate = mean_of_finite(run.tokens / run.seconds for run in runs if run.seconds > 0)
    parameters, flops = mean_of_finite(run.parameters for run in runs), mean_of_finite(run.flops for run in runs)
    return [
        show_mean(pace, standard_error(paces)) if paces else "-",
        f"{pace / fastest:.2f} ×" if paces else "-",
        f"{rate:,.0f}" if math.isfinite(rate) else "-",
        short(parameters),
        short(flops),
        show_mean(row.mean("seconds"), row.standard_error("seconds")),
    ]


def short(value: float) -> str:
    """3.41M, 21G: three significant digits; a dash for none."""
    return number(float(f"{value:.3g}")) if math.isfinite(value) else "-"

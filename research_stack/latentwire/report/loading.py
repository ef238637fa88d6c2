"""The tables that the evaluation wrote, read back: latentwire.csv, latentwire_paired.csv, latentwire_latency.csv,
latentwire_speed.csv, latentwire_bytes.csv and latentwire_examples.csv.
"""

from __future__ import annotations

import math

from research_stack.latentwire.path_names import LATENT, TEXT
from research_stack.latentwire.report.tables import (
    LABELS,
    LatencyRow,
    Measurements,
    PairedScore,
    PathScore,
    Score,
    SpeedSummary,
)
from research_stack.reporting.run_files import RunFiles, Table, real, reals

SCORES = tuple(f"{name}{end}" for name in ("f1", "em") for end in ("", "_low", "_high"))


def load(run: RunFiles) -> Measurements | None:
    """The tables of a run; None without a score. What is wrong with a file is a problem of the run."""
    rows = _rows(run.table("latentwire"))
    if not rows:
        return None
    tables = {name: run.table(f"latentwire_{name}") for name in ("paired", "latency", "speed", "bytes", "examples")}
    return Measurements(
        rows,
        _paired(tables["paired"]),
        _latency(tables["latency"]),
        _speed(tables["speed"]),
        _parts(tables["bytes"]),
        tables["examples"],
    )


def _rows(table: Table) -> list[PathScore]:
    found = []
    for row in table:
        num_latents, bits, size, ratio, prefill, share, questions = reals(
            row, "num_latents", "bits", "bytes", "ratio", "prefill_tokens", "share_of_text", "questions"
        )
        f1, em = Score(*reals(row, *SCORES[:3])), Score(*reals(row, *SCORES[3:]))
        first, main = reals(row, "first1", "first5", "first10"), row.get("main", "").lower() in ("1", "1.0", "true")
        if row.get("path") in LABELS and math.isfinite(f1.value) and math.isfinite(size):
            names = row.get("dataset", ""), row.get("reader", ""), row["path"]
            numbers = num_latents, bits, size, ratio, prefill, f1, em, share, first, questions
            found.append(PathScore(*names, *numbers, main))
    return found


def _paired(table: Table) -> dict[tuple[str, str, str], PairedScore]:
    found = {}
    for row in table:
        difference, ratio = reals(row, "difference", "low", "high"), reals(row, "ratio", "ratio_low", "ratio_high")
        one = PairedScore(Score(*difference), real(row.get("p")), Score(*ratio))
        if math.isfinite(one.difference.value):
            found[row.get("dataset", ""), row.get("reader", ""), row.get("comparison", "")] = one
    return found


def _latency(table: Table) -> dict[str, dict[str, list[LatencyRow]]]:
    times = ("encode_ms", "adapt_ms", "prefill_ms", "total_ms", "total_p90_ms")
    found: dict[str, dict[str, list[LatencyRow]]] = {}
    for row in table:
        one = LatencyRow(*reals(row, "context_bytes", "num_latents", *times, "prefill_tokens", "memory_mib"))
        if row.get("path") in (LATENT, TEXT) and one.context_bytes > 0 and one.total > 0:
            found.setdefault(row.get("reader", ""), {}).setdefault(row["path"], []).append(one)
    return {
        reader: {path: sorted(rows, key=lambda one: one.context_bytes) for path, rows in paths.items()}
        for reader, paths in found.items()
    }


def _speed(table: Table) -> dict[str, SpeedSummary]:
    lengths = ("faster_from_bytes", "faster_somewhere", "shortest_bytes", "longest_bytes", "long_context_bytes")
    found = {
        row.get("reader", ""): SpeedSummary(*reals(row, "num_latents", *lengths, "latent_ms", "text_ms"))
        for row in table
    }
    return {reader: row for reader, row in found.items() if math.isfinite(row.num_latents)}


def _parts(table: Table) -> dict[str, tuple[float, float]]:
    """Parts in the file's order."""
    sizes = {row.get("part", ""): reals(row, "reader_bytes", "broadcast_bytes") for row in table}
    return {part: (one, every) for part, (one, every) in sizes.items() if part and math.isfinite(one)}

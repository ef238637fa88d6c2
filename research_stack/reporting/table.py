"""The few lines that stand in the terminal when a run has ended."""

from __future__ import annotations

import math
import os
from pathlib import Path

from research_stack.reporting import latentwire_words
from research_stack.reporting.calibration import predictor_rows
from research_stack.reporting.measured import main, words, written, written_span
from research_stack.reporting.next_token import DECODERS, cell, decoder_rows, next_token_rows, span
from research_stack.reporting.passk import SIDES, interval, measured, prompts_of
from research_stack.reporting.policy_words import answers
from research_stack.reporting.reading import RunFiles, read, real, reals
from research_stack.reporting.reward_words import correlation
from research_stack.reporting.sections import MEASURES, duration, few_documents, headline, last_loss, verdict
from research_stack.reporting.verdicts import held_out


def summary(folder: str | os.PathLike[str]) -> str:
    """What the run came to, as aligned text that ends with the report's path (relative where it lies below here)."""
    run = read(Path(folder))
    took = f", {run.steps:,} steps, {duration(run.seconds)}" if run.steps else ""
    blocks = [f"{run.name}: {run.status}{took}"]
    if run.error:
        blocks.append(run.error)
    blocks += [
        block
        for block in (
            _likelihood(run),
            _answers(run),
            _next_token(run),
            _predictors(run),
            _decoders(run),
            _decoding(run),
            *map(aligned, latentwire_words.terminal(run)),
        )
        if block
    ]
    if (
        headline(run) is not None
        or held_out(run)
        or answers(run)
        or correlation(run.metrics)
        or latentwire_words.verdict(run)
        or latentwire_words.last_step(run)
    ):
        blocks.append(verdict(run))
    elif words := last_loss(run):
        blocks.append(words)
    report = run.folder / "report.html"
    if report.is_file():
        blocks.append(str(_shown(report)))
    return "\n\n".join(blocks)


def _likelihood(run: RunFiles) -> str:
    rows = [row for row in run.likelihood if math.isfinite(real(row.get("nats_per_token")))]
    if not rows:
        return ""
    lines = [["nats per held-out token", "", "95 % interval", "perplexity", "bits per byte"]]
    for row in sorted(rows, key=lambda row: real(row["nats_per_token"])):
        baseline = row.get("kind") == "baseline"
        sign, name = ("", row["name"]) if baseline else ("<= ", f"upper bound, {row['name']}")
        value, low, high, perplexity, bits = (
            real(row.get(key)) for key in ("nats_per_token", "low", "high", "perplexity", "bits_per_byte")
        )
        interval = f"{low:.3f} to {high:.3f}" if math.isfinite(low) else "-"
        lines.append([name, f"{sign}{value:.3f}", interval, f"{sign}{perplexity:,.4g}", f"{sign}{bits:.3f}"])
    return "\n".join(part for part in (aligned(lines), few_documents(rows).strip()) if part)


def _answers(run: RunFiles) -> str:
    found = measured(run)
    if not found:
        return ""
    lines = [
        [
            "answers to prompts",
            *(text for side in found for text in (f"{prompts_of(found[side])} {SIDES[side]}", "95 % interval")),
        ]
    ]
    for name in main(list(dict.fromkeys(name for metrics in found.values() for name in metrics))):
        cells = [
            (written(name, *reals(metrics.get(name, {}), "value")), written_span(name, *interval(metrics.get(name))))
            for metrics in found.values()
        ]
        lines.append([words(name), *(cell for pair in cells for cell in pair)])
    return aligned(lines)


def _next_token(run: RunFiles) -> str:
    rows = next_token_rows(run)
    if not rows:
        return ""
    lines = [["nats per held-out token", "", "95 % interval", "bits per byte", "accuracy", "ECE"]]
    for row in reversed(rows):
        value, low, high, bits, accuracy, ece = reals(row, "nats", "low", "high", "bits_per_byte", "accuracy", "ece")
        lines.append(
            [row.get("name", ""), cell(value), span(low, high), cell(bits), cell(accuracy, "{:.1%}"), cell(ece)]
        )
    return "\n".join(part for part in (aligned(lines), few_documents(rows).strip()) if part)


def _predictors(run: RunFiles) -> str:
    rows = predictor_rows(run)
    if not rows:
        return ""
    lines = [["predicts the future loss", "R2", "95 % interval", "Spearman", "calibration error"]]
    for row in rows:
        r2, low, high, spearman, error = reals(row, "r2", "low", "high", "spearman", "calibration_error")
        lines.append([row.get("name", ""), cell(r2), span(low, high), cell(spearman), cell(error)])
    return aligned(lines)


def _decoders(run: RunFiles) -> str:
    shown = (0, 1, 2, 4, 5, 7)  # of DECODERS, what fits a terminal
    rows = [[row[i] for i in shown] for row in decoder_rows(run)]
    return aligned([[DECODERS[i] for i in shown], *rows]) if rows else ""


def _decoding(run: RunFiles) -> str:
    found = [key.split("/") for key in run.metrics if key.startswith("samples/") and key.count("/") == 2]
    names = list(dict.fromkeys(parts[1] for parts in found))
    if not names:
        return ""
    lines = [["decoder", *(label for label, _ in MEASURES.values())]]
    for name in names:
        values = [run.metrics.get(f"samples/{name}/{key}", math.nan) for key in MEASURES]
        lines.append(
            [
                name,
                *(
                    form.format(v) if math.isfinite(v) else "-"
                    for v, (_, form) in zip(values, MEASURES.values(), strict=True)
                ),
            ]
        )
    return aligned(lines)


def aligned(lines: list[list[str]]) -> str:
    """Columns of text: the first to the left, the rest to the right, a rule below the first line."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "-" * (sum(widths) + 2 * len(widths) - 2), *texts[1:]])


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path

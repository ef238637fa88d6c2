"""What does not yet lie beside its class, by the contract: goes with the last of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from research_stack.records.run_folder import RunFolder
from research_stack.reporting import passk, policy_training, sections
from research_stack.reporting.contract import TrainingCurve
from research_stack.reporting.elements import aligned
from research_stack.reporting.measured import main, words, written, written_span
from research_stack.reporting.passk import SIDES, interval, measured, prompts_of
from research_stack.reporting.policy_words import answers
from research_stack.reporting.policy_words import glance as policy_glance
from research_stack.reporting.reading import RunFiles, read, real, reals
from research_stack.reporting.reward import reward_model
from research_stack.reporting.reward_words import correlation
from research_stack.reporting.run_files import RunFiles as Run
from research_stack.reporting.trajectory import dynamics

CURVES = (  # of sweeps
    TrainingCurve("train/loss_reply", "val/loss", note="of the replies, nats per token, smoothed"),
    TrainingCurve(
        "train/reward",
        "val/reward",
        "Training reward",
        "Held-out reward",
        "mean of the answers drawn, smoothed",
        "mean of the answers drawn",
        surrogate=True,
    ),
)


def old(run: Run) -> RunFiles:
    """The run as the old modules read it."""
    return read(run.folder, run.status)


def results(run: Run) -> Any:
    """Sections above the training curves."""
    files = old(run)
    run.problems += [problem for problem in files.problems if problem not in run.problems]
    parts = (passk.answers, dynamics, reward_model)
    return [found for part in parts if (found := part(files)) is not None]


def training(run: Run) -> Any:
    """The training section of a family."""
    files = old(run)
    return policy_training.training(files)


def verdict(run: Run) -> str:
    """The sentence."""
    files = old(run)
    return answers(files) or correlation(files.metrics)


def progress(run: Run) -> str:
    """The last word of training."""
    files = old(run)
    return sections.last_loss(files)


def numbers(run: Run) -> dict[str, str]:
    """On top of the page."""
    files, found = old(run), {}
    found |= policy_glance(files)
    if math.isfinite(pearson := files.metrics.get("reward/pearson", math.nan)):
        found["Pearson, unseen prompts"] = f"{pearson:.2f}"
    return found


def terminal(run: Run) -> list[str]:
    """Tables."""
    files = old(run)
    return [_answers(files)]


def _answers(run: RunFiles) -> str:
    found = measured(run)
    if not found:
        return ""
    heads = (text for side in found for text in (f"{prompts_of(found[side])} {SIDES[side]}", "95 % interval"))
    lines = [["answers to prompts", *heads]]
    for name in main(list(dict.fromkeys(name for metrics in found.values() for name in metrics))):
        cells = [
            (written(name, *reals(metrics.get(name, {}), "value")), written_span(name, *interval(metrics.get(name))))
            for metrics in found.values()
        ]
        lines.append([words(name), *(cell for pair in cells for cell in pair)])
    return aligned(lines)


def write_figures(run_folder: RunFolder, run: Run) -> list[Path]:
    """The figures that the old modules draw apart."""
    from research_stack.reporting.figures import write_figures as write

    _ = real
    return write(run_folder, old(run))

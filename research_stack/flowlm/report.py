"""What a run of a denoiser shows of its training: the loss and what it is."""

from __future__ import annotations

from research_stack.reporting.run_files import RunFiles
from research_stack.reporting.training_curves import loss_report

POSITIONS = {"masked": "masked positions", "corrupted": "corrupted positions", "all": "all eligible positions"}
WEIGHTS = {"none": "unweighted", "inv_t": "weighted by 1/p"}


def unit(run: RunFiles) -> str:
    """What the training loss is measured in."""
    normalized = str(run.setting("method.loss.normalize"))
    return {"tokens": "nats per token", "answer": "nats per answer token"}.get(normalized, "nats per position")


def loss_words(run: RunFiles) -> str:
    """Which loss was trained, from its config."""
    positions, weight = str(run.setting("method.loss.positions")), str(run.setting("method.loss.weight"))
    kind = "bound terms" if weight in ("elbo", "clip", "dynamic") else "cross entropy"
    return f"{kind} at {POSITIONS.get(positions, positions)}, {WEIGHTS.get(weight, f'weight {weight}')}"


def words(run: RunFiles) -> str:
    """What the loss is, and what it is not."""
    return (
        f"The loss is {loss_words(run)}, in {unit(run)}. It is what the optimizer sees, averaged over noise levels: no"
        " likelihood, and not comparable between losses or corruptions."
    )


REPORT = loss_report(unit, words, measured_by="likelihood")

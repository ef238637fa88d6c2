"""What a run of a denoiser shows of its training: the loss and what it is."""

from __future__ import annotations

from research_stack.reporting import training_curves
from research_stack.reporting.contract import Metric, Report
from research_stack.reporting.html import Node
from research_stack.reporting.run_files import RunFiles

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


def training(run: RunFiles) -> Node:
    """Curves of the loss and the gradient norm, and what the loss is not."""
    words = (
        f"The loss is {loss_words(run)}, in {unit(run)}. It is what the optimizer sees, averaged over noise levels: no"
        " likelihood, and not comparable between losses or corruptions."
    )
    return training_curves.training(run, unit(run), words)


def progress(run: RunFiles) -> str:
    """The last training loss."""
    return training_curves.last_loss(run, unit(run))


REPORT = Report(
    metrics={
        "train/loss": Metric("training loss", better="lower"),
        "val/loss": Metric("validation loss", better="lower"),
    },
    training=training,
    progress=progress,
    measured_by="likelihood",
)

"""What a run of a reward model shows of its training: the error of the predicted engagement."""

from __future__ import annotations

from research_stack.reporting import training_curves
from research_stack.reporting.contract import Metric, Report
from research_stack.reporting.html import Node
from research_stack.reporting.run_files import RunFiles


def unit(run: RunFiles) -> str:
    """What the training loss is measured in."""
    if run.setting("method.loss") == "huber":
        return "Huber's loss, standardised target"
    return "squared standard deviations of the target"


def words(run: RunFiles) -> str:
    """What is drawn as the loss."""
    mean = ": always predicting the mean gives about 1" if run.setting("method.loss") == "mse" else ""
    return f"The loss is the error of the predicted engagement, in {unit(run)}{mean}. Dots are held-out pairs."


def training(run: RunFiles) -> Node:
    """Curves of the loss and the gradient norm."""
    return training_curves.training(run, unit(run), words(run))


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
    measured_by="reward",
)

"""What a run of a reward model shows of its training: the error of the predicted engagement."""

from __future__ import annotations

from research_stack.reporting.run_files import RunFiles
from research_stack.reporting.training_curves import loss_report


def unit(run: RunFiles) -> str:
    """What the training loss is measured in."""
    if run.setting("method.loss") == "huber":
        return "Huber's loss, standardised target"
    return "squared standard deviations of the target"


def words(run: RunFiles) -> str:
    """What is drawn as the loss."""
    mean = ": always predicting the mean gives about 1" if run.setting("method.loss") == "mse" else ""
    return f"The loss is the error of the predicted engagement, in {unit(run)}{mean}. Dots are held-out pairs."


REPORT = loss_report(unit, words, measured_by="reward", samples=False)

"""What a run of GRPO shows: as every policy; over a sweep its reward, since the height of its loss says nothing."""

from dataclasses import replace

from research_stack.posttraining.report import training
from research_stack.reporting.contract import SweepReport, TrainingCurve

REPORT = replace(
    training.REPORT,
    sweep=SweepReport(
        curve=TrainingCurve(
            "train/reward",
            "val/reward",
            "Training reward",
            "Held-out reward",
            "mean of the answers drawn, smoothed",
            "mean of the answers drawn",
            surrogate=True,
        )
    ),
)

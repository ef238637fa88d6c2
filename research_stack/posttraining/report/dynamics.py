"""What a run shows of its answers while it was trained: `trajectory` draws them, here it is read and checked."""

from __future__ import annotations

from research_stack.posttraining.report.trajectory import section
from research_stack.reporting.contract import Metric, Report

REPORT = Report(metrics={"dynamics/*": Metric("in training: {0}", plot=False)}, results=(section,))

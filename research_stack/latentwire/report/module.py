"""What a run of LatentWire shows of its training."""

from __future__ import annotations

from research_stack.latentwire.report.training import progress, training
from research_stack.reporting.contract import Report

REPORT = Report(training=training, progress=progress, measured_by="latentwire", samples=False)

"""What runs of post-training show: the metrics that its classes leave, declared, and the parts of a page."""

from research_stack.posttraining.report.training import REPORT

__all__ = ["REPORT"]

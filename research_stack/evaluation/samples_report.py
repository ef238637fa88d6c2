"""What a run shows of its samples: as of any sampler."""

from research_stack.sampling.report import REPORT

__all__ = ["REPORT"]

"""When a sequence is done. Masks are never left: a sequence that has some goes on, and its last step fills them."""

from __future__ import annotations

import torch
from torch import Tensor

from research_stack.require import require
from research_stack.sampling.state import State


class Steps:
    """All steps are taken, unless nothing is left that could change."""

    #: Whether it must know the likeliest token of every position of a step.
    reads_likeliest: bool = False

    def max_steps(self, cost_B: Tensor) -> Tensor | None:
        """(B,) the most steps a sequence may take when each costs `cost_B` model calls; None: no limit."""
        return None

    def is_done(self, state: State) -> Tensor:
        """(B,) bool: whether the block of a sequence without masks is done. `state` is the one after the step."""
        return torch.zeros_like(state.idle_B, dtype=torch.bool)

    def is_stalled(self, stale_B: Tensor) -> Tensor:
        """(B,) bool: sequences whose step is not written any more, `stale_B` steps after their self-accuracy last
        rose.
        """
        return torch.zeros_like(stale_B, dtype=torch.bool)


class FixedPoint(Steps):
    """A step that changes nothing ends it.

    - patience: steps in a row without change; more than 1 makes sense with random proposals.
    """

    def __init__(self, patience: int = 1) -> None:
        require(patience >= 1, f"patience={patience} must be at least 1")
        self.patience = patience

    def is_done(self, state: State) -> Tensor:
        """Whether nothing has changed for `patience` steps."""
        return state.idle_B >= self.patience


class SelfAccuracy(FixedPoint):
    """A step changes nothing, or self-accuracy has not risen for more than `patience` steps, the last of which is not
    written.

    Self-accuracy is the share of positions that hold, after the step, the token that was the likeliest one before it
    (von Ruette et al. 2025, section 5.3).
    """

    reads_likeliest = True

    def __init__(self, patience: int = 32) -> None:
        require(patience >= 0, f"patience={patience} must be at least 0")
        super().__init__(patience=1)
        self.stale = patience

    def is_stalled(self, stale_B: Tensor) -> Tensor:
        """Whether self-accuracy has not risen for too long."""
        return stale_B > self.stale


class Confident(FixedPoint):
    """Every token of the block has at least the probability `threshold`; or a fixed point.

    - threshold: in (0, 1]. patience: see `FixedPoint`.
    """

    def __init__(self, threshold: float = 0.9, patience: int = 1) -> None:
        require(0 < threshold <= 1, f"threshold={threshold} must lie in (0, 1]")
        super().__init__(patience)
        self.threshold = threshold

    def is_done(self, state: State) -> Tensor:
        """Whether every token is sure, or nothing has changed for `patience` steps."""
        sure_B = ((state.confidence_BG >= self.threshold) | ~state.inside_BG).all(1)
        return sure_B | super().is_done(state)


class Budget(FixedPoint):
    """At most `calls` model calls per sequence, schedules shortened to fit; or a fixed point.

    - calls: per sequence; guidance costs two a step. patience: see `FixedPoint`.
    """

    def __init__(self, calls: int, patience: int = 1) -> None:
        require(calls >= 1, f"calls={calls} must be at least 1")
        super().__init__(patience)
        self.calls = calls

    def max_steps(self, cost_B: Tensor) -> Tensor | None:
        """Steps that the budget pays for."""
        if int(cost_B.max()) > self.calls:
            raise ValueError(
                f"calls={self.calls} must be at least {int(cost_B.max())}: guidance takes that many a step"
            )
        return self.calls // cost_B

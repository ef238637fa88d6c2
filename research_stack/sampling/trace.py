"""What a sampler returns: the tokens, what they cost, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class PositionChange(IntEnum):
    """What a step did to a position."""

    KEPT = 0
    FILLED = 1  #: a mask became a token
    CHANGED = 2  #: a token became another one
    REMASKED = 3  #: a token became a mask


@dataclass(frozen=True)
class Trace:
    """Decoded sequences, B of L columns: prompt, generated tokens, padding on the right.

    - tokens_BL: int64 ids; no mask among the generated ones. generated_BL: bool, True at generated positions.
    - calls_B: model calls of each sequence; guidance makes two a step.
    - history: (S + 1, B, L) the tokens at the start and after each step, S the steps of the longest; None unless
      recorded.
    - confidence: (S + 1, B, L) float32 probability of the token in place when it was last seen, 0 at masks and before
      the first look, 1 outside the generated positions; None unless recorded.
    - mask: id of the mask.
    """

    tokens_BL: Tensor
    generated_BL: Tensor
    calls_B: Tensor
    history: Tensor | None
    confidence: Tensor | None
    mask: int

    @property
    def kinds(self) -> Tensor:
        """(S, B, L) uint8 `PositionChange` of each step at each position; needs the history."""
        if self.history is None:
            raise ValueError("record=False keeps no history; sample with record=True")
        before, after = self.history[:-1], self.history[1:]
        kinds = torch.where(before != after, PositionChange.CHANGED, PositionChange.KEPT)
        kinds = torch.where((before == self.mask) & (after != self.mask), PositionChange.FILLED, kinds)
        return torch.where((before != self.mask) & (after == self.mask), PositionChange.REMASKED, kinds).to(torch.uint8)

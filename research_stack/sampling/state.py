"""What the parts of a sampler look at: the sequences at a step, and what is proposed for them.

Shapes: B live sequences, G generated positions (the prompt is not among them), L columns (prompt, generated, padding),
n positions whose logits are asked for, V vocabulary, N real tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from research_stack.corruption.process import Process
from research_stack.data.vocabulary import Vocabulary
from research_stack.streams import generator


class RowStreams:
    """One random stream per sequence, so that a sequence gets the same numbers alone and in any batch, on any device.

    - seed, rows, name: row b draws from the stream (seed, name, rows[b]).
    """

    def __init__(self, seed: int, rows: Sequence[int], device: torch.device | str, name: str = "sampling") -> None:
        self.generators, self.device = [generator(seed, name, row) for row in rows], device

    def uniform(self, at: Sequence[int], *shape: int) -> Tensor:
        """(len(at), *shape) float64 in [0, 1) for the rows `at`, which go on in their streams."""
        return torch.stack([torch.rand(shape, generator=self.generators[b], dtype=torch.float64) for b in at]).to(
            self.device
        )


@dataclass
class State:
    """The live sequences at the start of a step. Counts of steps are those of the block a sequence is in.

    - z_BG: tokens. inside_BG: positions of the block. mask_BG: masks inside the block.
    - left_B, total_B: steps left, this one included, and steps in all.
    - masks_at_start_B: masks in the block when it was begun.
    - idle_B: steps since the block last changed.
    - confidence_BG: probability of the token in place when it was last seen; 0 at masks.
    - t_B: noise level told to the model.
    - draw_BG, coin_BG: this step's U[0, 1) for proposals and for choices.
    - process: the diffusion process, bound to the vocabulary; None where none is known.
    """

    vocab: Vocabulary
    process: Process | None
    z_BG: Tensor
    inside_BG: Tensor
    mask_BG: Tensor
    left_B: Tensor
    total_B: Tensor
    masks_at_start_B: Tensor
    idle_B: Tensor
    confidence_BG: Tensor
    t_B: Tensor
    draw_BG: Tensor
    coin_BG: Tensor

    @property
    def done_B(self) -> Tensor:
        """Steps taken in the block."""
        return self.total_B - self.left_B

    def known_process(self) -> Process:
        """The process, or a ValueError that says how to give one."""
        if self.process is None:
            raise ValueError(
                "process=null must be a process, since this denoiser has no corruption of its own: one of Absorbing,"
                " Uniform, Hybrid of research_stack.corruption.process"
            )
        return self.process


class Positions(NamedTuple):
    """The n positions whose logits were asked for, in row-major order.

    - p_nV: probabilities of the clean token. z_n: token in place. mask_n: whether that is the mask.
    - draw_n, coin_n: this step's U[0, 1). t_n, s_n: scheduled noise level before and after the step.
    """

    p_nV: Tensor
    z_n: Tensor
    mask_n: Tensor
    draw_n: Tensor
    coin_n: Tensor
    t_n: Tensor
    s_n: Tensor


class Proposal(NamedTuple):
    """What could be put where; meaningful where `seen_BG`.

    - token_BG: proposed ids. score_BG: how much the selector wants it; -inf where it must not or would change nothing.
    - p_token_BG, p_current_BG: probabilities of the proposed token and of the one in place (0 for a mask).
    - seen_BG: positions with logits. likeliest_BG: ids of the likeliest tokens there; None unless the stopper asks for
      them.
    """

    token_BG: Tensor
    score_BG: Tensor
    p_token_BG: Tensor
    p_current_BG: Tensor
    seen_BG: Tensor
    likeliest_BG: Tensor | None = None


class Decision(NamedTuple):
    """What a step does: positions that take the proposed token, and positions that become masks again (None: none)."""

    commit_BG: Tensor
    remask_BG: Tensor | None = None

"""Which token a position would get in a denoising sampler. `choosers.Temperature` is the usual one: it covers greedy
(temperature 0), temperature and top-p, as for models of the next token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from research_stack.require import require
from research_stack.sampling.categorical import draw_from_probabilities
from research_stack.sampling.choosers import Temperature
from research_stack.sampling.state import Positions, State


class Proposer(Protocol):
    """Proposes one token id per position."""

    def propose(self, at: Positions, state: State) -> Tensor:
        """(n,) ids for the positions `at`."""
        ...


@dataclass(frozen=True)
class VisibleTemperature(Temperature):
    """`temperature` at masks, and another one at tokens that are already visible.

    - visible_temperature: at visible tokens; None: the same. With 0 the likeliest token is what may replace one,
      whatever masks are filled with.
    """

    visible_temperature: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.visible_temperature is None or self.visible_temperature >= 0,
            f"visible_temperature={self.visible_temperature} must be at least 0, or null",
        )

    def propose(self, at: Positions, state: State) -> Tensor:
        filled_n = self.proposed(at, self.temperature)
        if self.visible_temperature is None or self.visible_temperature == self.temperature:
            return filled_n
        return torch.where(at.mask_n, filled_n, self.proposed(at, self.visible_temperature))


class Reverse:
    """A draw from the reverse kernel p(z_s | z_t) of the process: a token, the mask, or what is in place.

    Needs leave-one-out predictions (`Sampler(reads="leave_one_out")`). With them the output has the model's own
    distribution.
    """

    def propose(self, at: Positions, state: State) -> Tensor:
        """(n,) ids."""
        process = state.known_process()
        if not process.has_masks and bool(at.mask_n.any()):  # it says nothing of masks, and would leave them
            raise ValueError(
                f"init=... must not put masks where process={type(process).__name__} has none; inits.Noise puts none"
            )
        real_N = torch.from_numpy(state.vocab.real).to(at.z_n.device)
        index_V = torch.full((state.vocab.size,), process.n_real, device=at.z_n.device)
        index_V[real_N] = torch.arange(len(real_N), device=at.z_n.device)
        kernel = process.reverse(at.p_nV[:, real_N].double(), index_V[at.z_n], at.s_n, at.t_n)
        ids = torch.cat([real_N, torch.tensor([state.vocab.mask], device=real_N.device)])
        return ids[draw_from_probabilities(kernel.clamp_min(0), at.draw_n)]

"""Which token a position would get.

A random proposal inverts the cumulative distribution with one uniform number per position. That is the law of
Gumbel-max without its V numbers per position, and without the lower effective temperature that 32-bit Gumbel noise
has (Zheng et al. 2024, "Masked diffusion models are secretly time-agnostic masked models", section 5).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from research_stack.require import require
from research_stack.sampling.state import Positions, State


class Proposer(Protocol):
    """Proposes one token id per position."""

    def __call__(self, at: Positions, state: State) -> Tensor:
        """(n,) ids for the positions `at`."""


class Greedy:
    """The likeliest token."""

    def __call__(self, at: Positions, state: State) -> Tensor:
        return at.p_nV.argmax(1)


class Temperature:
    """A draw from p^(1 / temperature), normalised; 0 is greedy.

    - temperature: everywhere, or at masks only if there is a
    - visible_temperature: at visible tokens. With 0 the likeliest token is what may replace one, whatever masks are
      filled with.
    """

    def __init__(self, temperature: float = 1.0, visible_temperature: float | None = None) -> None:
        require(temperature >= 0, f"temperature={temperature} must be at least 0")
        require(
            visible_temperature is None or visible_temperature >= 0,
            f"visible_temperature={visible_temperature} must be at least 0, or null",
        )
        self.temperature = temperature
        self.visible_temperature = temperature if visible_temperature is None else visible_temperature

    def __call__(self, at: Positions, state: State) -> Tensor:
        filled_n = tempered(at, self.temperature)
        if self.visible_temperature == self.temperature:
            return filled_n
        return torch.where(at.mask_n, filled_n, tempered(at, self.visible_temperature))


class Nucleus:
    """A draw from the fewest tokens that together have probability `top_p` (Holtzman et al. 2020), after the
    temperature.
    """

    def __init__(self, top_p: float = 0.9, temperature: float = 1.0) -> None:
        require(0 < top_p <= 1, f"top_p={top_p} must lie in (0, 1]")
        require(temperature > 0, f"temperature={temperature} must be above 0; sampling.proposers.Greedy has none")
        self.top_p, self.temperature = top_p, temperature

    def __call__(self, at: Positions, state: State) -> Tensor:
        p_nV, ids_nV = sharpened(at.p_nV, self.temperature).sort(dim=1, descending=True)
        before_nV = p_nV.cumsum(1) - p_nV
        before_nV[:, 0] = 0  # the likeliest token stays, whatever was rounded
        place_n = drawn(p_nV.masked_fill(before_nV >= self.top_p, 0), at.draw_n)
        return ids_nV.gather(1, place_n.unsqueeze(1)).squeeze(1)


class Reverse:
    """A draw from the reverse kernel p(z_s | z_t) of the process: a token, the mask, or what is in place.

    Needs leave-one-out predictions (`Sampler(reads="leave_one_out")`). With them the law of the output is the model's
    own.
    """

    def __call__(self, at: Positions, state: State) -> Tensor:
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
        return ids[drawn(kernel.clamp_min(0), at.draw_n)]


def tempered(at: Positions, temperature: float) -> Tensor:
    """(n,) ids drawn from p^(1 / temperature); the likeliest where that is 0."""
    return at.p_nV.argmax(1) if temperature == 0 else drawn(sharpened(at.p_nV, temperature), at.draw_n)


def sharpened(p_nV: Tensor, temperature: float) -> Tensor:
    """p^(1 / temperature), normalised."""
    return p_nV if temperature == 1 else (p_nV.log() / temperature).softmax(1)


def drawn(p_nV: Tensor, draw_n: Tensor) -> Tensor:
    """Indices drawn with probabilities proportional to p, (n,); never one with probability 0.

    - p_nV: nonnegative. draw_n: U[0, 1).
    """
    total_nV = p_nV.cumsum(1)
    end_n1 = total_nV[:, -1:]
    aim_n1 = torch.minimum(draw_n.unsqueeze(1).to(p_nV.dtype) * end_n1, end_n1.nextafter(torch.zeros_like(end_n1)))
    return torch.searchsorted(total_nV, aim_n1, right=True).squeeze(1)

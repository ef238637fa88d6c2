"""What decoding starts from: masks, noise, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from research_stack.corruption.process import Process
from research_stack.data.vocabulary import Vocabulary
from research_stack.require import require


class Init(Protocol):
    """Fills the generated positions of every sequence."""

    def __call__(
        self, draw_B2G: Tensor, prompts: Sequence[Tensor], vocab: Vocabulary, process: Process | None
    ) -> Tensor:
        """(B, G) token ids.

        - draw_B2G: U[0, 1), two numbers for each position. prompts: B int64 vectors of ids, maybe empty.
        - process: the diffusion process, where one is known.
        """
        ...


class Masks:
    """All masks."""

    def __call__(
        self, draw_B2G: Tensor, prompts: Sequence[Tensor], vocab: Vocabulary, process: Process | None
    ) -> Tensor:
        return torch.full_like(draw_B2G[:, 0], vocab.mask, dtype=torch.int64)


class RandomTokens:
    """Real tokens, uniformly at random."""

    def __call__(
        self, draw_B2G: Tensor, prompts: Sequence[Tensor], vocab: Vocabulary, process: Process | None
    ) -> Tensor:
        return pick_uniformly(torch.from_numpy(vocab.real).to(draw_B2G.device), draw_B2G[:, 0])


class MasksAndTokens:
    """Each position is a mask with probability `mask_ratio`, else a real token uniformly at random."""

    def __init__(self, mask_ratio: float = 0.5) -> None:
        require(0 <= mask_ratio <= 1, f"mask_ratio={mask_ratio} must lie in [0, 1]")
        self.mask_ratio = mask_ratio

    def __call__(
        self, draw_B2G: Tensor, prompts: Sequence[Tensor], vocab: Vocabulary, process: Process | None
    ) -> Tensor:
        z_BG = RandomTokens()(draw_B2G, prompts, vocab, process)
        return z_BG.masked_fill(draw_B2G[:, 1] < self.mask_ratio, vocab.mask)


class FromPrompt:
    """Tokens drawn from the sequence's own prompt, with repetition; uniformly random real ones where it is empty."""

    def __call__(
        self, draw_B2G: Tensor, prompts: Sequence[Tensor], vocab: Vocabulary, process: Process | None
    ) -> Tensor:
        real = torch.from_numpy(vocab.real).to(draw_B2G.device)
        rows = []
        for draw_G, prompt in zip(draw_B2G[:, 0], prompts, strict=True):
            own = prompt[torch.isin(prompt, real)]
            rows.append(pick_uniformly(own if len(own) else real, draw_G))
        return torch.stack(rows)


class Noise:
    """The noisiest state of the process, q at t = 1: masks, or uniform tokens where it has no masks."""

    def __call__(
        self, draw_B2G: Tensor, prompts: Sequence[Tensor], vocab: Vocabulary, process: Process | None
    ) -> Tensor:
        if process is None:
            raise ValueError("process=null must be a process: the init takes its noise from it")
        return (Masks() if process.has_masks else RandomTokens())(draw_B2G, prompts, vocab, process)


def pick_uniformly(options: Tensor, draw: Tensor) -> Tensor:
    """Uniform choices among the options by U[0, 1) draws."""
    return options[(draw * len(options)).long().clamp_max(len(options) - 1)]

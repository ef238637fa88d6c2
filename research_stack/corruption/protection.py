"""Smart corruption: positions that are left alone because their tokens carry the meaning."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from research_stack.require import require


class Protection(ABC):
    """Base: protects the rarest tokens among some candidates.

    - share: at most this fraction of each row's eligible positions is protected.

    Rarity is the token's count in the training data where the corruption was given counts; otherwise its id, since
    byte-pair merges are learned from the most to the least frequent.
    """

    def __init__(self, share: float = 0.15) -> None:
        require(0 <= share <= 1, f"share={share} must lie in [0, 1]")
        self.share = share

    @abstractmethod
    def candidates(self, tokens_BL: Tensor, eligible_BL: Tensor, prompt_BL: Tensor | None) -> Tensor:
        """(B, L) bool: positions whose token is worth protecting."""

    def __call__(self, tokens_BL: Tensor, eligible_BL: Tensor, prompt_BL: Tensor | None, rarity_V: Tensor) -> Tensor:
        """(B, L) bool: the protected positions, the rarest tokens first, earlier positions first among equals."""
        candidate_BL = self.candidates(tokens_BL, eligible_BL, prompt_BL) & eligible_BL
        key_BL = torch.where(candidate_BL, rarity_V[tokens_BL].double(), -torch.inf)
        order_BL = key_BL.argsort(dim=1, descending=True, stable=True)
        rank_BL = torch.empty_like(order_BL).scatter_(
            1, order_BL, torch.arange(order_BL.shape[1], device=order_BL.device).expand_as(order_BL)
        )
        limit_B1 = (self.share * eligible_BL.sum(1, keepdim=True) + 1e-9).floor()
        return candidate_BL & (rank_BL < limit_B1)


class PromptTokens(Protection):
    """Protects tokens that also occur in the row's prompt: names and terms that the answer takes over from it."""

    def candidates(self, tokens_BL: Tensor, eligible_BL: Tensor, prompt_BL: Tensor | None) -> Tensor:
        if prompt_BL is None or not bool(prompt_BL.any()):
            raise ValueError(
                "protection=PromptTokens needs rows with prompts and these have none: choose data that has "
                "(data=docstrings), or protection=RareTokens"
            )
        size = int(tokens_BL.max()) + 1
        seen_BV = torch.zeros(len(tokens_BL), size + 1, dtype=torch.bool, device=tokens_BL.device)
        seen_BV.scatter_(1, torch.where(prompt_BL, tokens_BL, size), True)  # the last column collects the rest
        return seen_BV.gather(1, tokens_BL)


class RareTokens(Protection):
    """Protects the rarest tokens of each row."""

    def candidates(self, tokens_BL: Tensor, eligible_BL: Tensor, prompt_BL: Tensor | None) -> Tensor:
        return eligible_BL

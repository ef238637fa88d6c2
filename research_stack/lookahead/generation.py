"""MiniGPT and Lookahead as samplers read them: token by token with a cache, each told the confidence before it.

a_0 = 0 and a_j = c_{j-1}, normalised and not passed on across the end of a document: what a text tells itself while it
is written, exactly, its prompt included. A model that is told nothing reads a prompt in one pass, one that is told its
own confidences token by token.

Shapes: B texts, L tokens, n of the texts, k candidates for the next token of each, V tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from research_stack.lookahead.branches import Branches
from research_stack.lookahead.previous import after
from research_stack.sampling.causal import NextTokenPrediction

if TYPE_CHECKING:
    from research_stack.lookahead.module import MiniGPT


class CachedReader:
    """B texts that a method is reading (`causal.IncrementalReader`).

    - told_B: what the next token of each will be told; None before the first.
    """

    def __init__(self, method: MiniGPT) -> None:
        self.method, self.cache = method, method.model.new_cache()
        self.predicts_loss, self.listens = method.predicts_loss, method.listens
        self.told_B: Tensor | None = None

    def read(self, tokens_BL: Tensor) -> NextTokenPrediction:
        """Read these tokens, which follow those read before."""
        hidden_BLD, confidence_BL = tokens_BL, None
        for piece_Bl in tokens_BL.split(1, dim=1) if self.listens else (tokens_BL,):
            told_B1 = self._told(piece_Bl).unsqueeze(1)
            hidden_BLD, confidence_BL = self.method.advance(piece_Bl, told_B1.expand(piece_Bl.shape), self.cache)
            if self.listens:
                self.told_B = after(self.method.normalised(confidence_BL), piece_Bl, self.method.vocab.end)[:, -1].to(
                    told_B1.dtype
                )
        logits_BV = self._logits(hidden_BLD[:, -1])
        if confidence_BL is None:
            return NextTokenPrediction(logits_BV)
        return NextTokenPrediction(logits_BV, confidence_BL[:, -1], self.method.normalised(confidence_BL)[:, -1])

    def _told(self, tokens_BL: Tensor) -> Tensor:
        """(B,) what the next token is told."""
        if self.told_B is not None:
            return self.told_B
        return torch.zeros(len(tokens_BL), device=tokens_BL.device, dtype=self.method.model.unembedding.dtype)

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        logits_BV = self.method.model.head(hidden_BD)
        return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)) + self.method.bias_V

    def keep(self, rows: Tensor) -> None:
        """Go on with these texts only."""
        self.cache = self.cache.select(rows)
        self.told_B = None if self.told_B is None else self.told_B[rows]

    @torch.no_grad()
    def confidence_at(self, tokens_nk: Tensor, rows: Tensor | None = None) -> Tensor:
        """(n, k) confidences at candidates for the next token, from one pass of k branches off the cache, which stays
        as it is.

        Each candidate sees what has been read and itself, at the place and told the confidence that the next token
        would have.
        """
        cache = self.cache if rows is None else self.cache.select(rows)
        told_B = self._told(tokens_nk)
        told_n = told_B if rows is None or self.told_B is None else told_B[rows]
        pairs = {block: pair for block, pair in enumerate(cache.pairs) if pair is not None}
        last_nk = torch.full_like(tokens_nk, cache.length - 1)
        condition = self.method.condition(told_n.unsqueeze(1).expand(tokens_nk.shape))
        hidden_nkD = self.method.model.through(tokens_nk, last_nk + 1, Branches(pairs, last_nk), condition)
        confidence_nk = self.method.confidence(hidden_nkD)
        assert confidence_nk is not None, "asked only of models that predict their loss"
        return confidence_nk

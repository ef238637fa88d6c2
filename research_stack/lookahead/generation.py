"""MiniGPT and Lookahead as samplers read them: token by token with a cache, each with the confidence before it.

a_0 = 0 and a_j = c_{j-1}, normalised and not passed on across the end of a document: what a text tells itself while it
is written, exactly, its prompt included. A model that takes no confidence reads a prompt in one pass, one that takes
its own token by token.

Shapes: B texts, L tokens, n of the texts, k candidates for the next token of each, V tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from research_stack.lookahead.branches import Branches
from research_stack.lookahead.previous import zero_at_document_end
from research_stack.sampling.causal import NextTokenPrediction

if TYPE_CHECKING:
    from research_stack.lookahead.module import MiniGPT


class CachedReader:
    """B texts that a method is reading (`causal.IncrementalReader`).

    - previous_B: the normalised confidence that the next token of each reads; None before the first.
    """

    def __init__(self, method: MiniGPT) -> None:
        self.method, self.cache = method, method.model.new_cache()
        self.predicts_loss, self.reads_confidence = method.predicts_loss, method.reads_confidence
        self.previous_B: Tensor | None = None

    def read(self, tokens_BL: Tensor) -> NextTokenPrediction:
        """Read these tokens, which follow those read before."""
        hidden_BLD, confidence_BL = tokens_BL, None
        for piece_Bl in tokens_BL.split(1, dim=1) if self.reads_confidence else (tokens_BL,):
            previous_B1 = self._previous(piece_Bl).unsqueeze(1)
            hidden_BLD, confidence_BL = self.method.advance(piece_Bl, previous_B1.expand(piece_Bl.shape), self.cache)
            if self.reads_confidence:
                assert confidence_BL is not None, "only models that predict their loss read it"
                self.previous_B = zero_at_document_end(
                    self.method.normalised(confidence_BL), piece_Bl, self.method.vocab.end
                )[:, -1].to(previous_B1.dtype)
        logits_BV = self._logits(hidden_BLD[:, -1])
        if confidence_BL is None:
            return NextTokenPrediction(logits_BV)
        return NextTokenPrediction(logits_BV, confidence_BL[:, -1], self.method.normalised(confidence_BL)[:, -1])

    def _previous(self, tokens_BL: Tensor) -> Tensor:
        """(B,) the confidence that the next token reads."""
        if self.previous_B is not None:
            return self.previous_B
        return torch.zeros(len(tokens_BL), device=tokens_BL.device, dtype=self.method.model.unembedding.dtype)

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        logits_BV = self.method.model.head(hidden_BD)
        return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)) + self.method.bias_V

    def keep(self, rows: Tensor) -> None:
        """Go on with these texts only."""
        self.cache = self.cache.select(rows)
        self.previous_B = None if self.previous_B is None else self.previous_B[rows]

    @torch.no_grad()
    def confidence_at(self, tokens_nk: Tensor, rows: Tensor | None = None) -> Tensor:
        """(n, k) confidences at candidates for the next token, from one pass of k branches off the cache, which stays
        as it is.

        Each candidate sees what has been read and itself, at the position and with the confidence that the next token
        would have.
        """
        cache = self.cache if rows is None else self.cache.select(rows)
        previous_B = self._previous(tokens_nk)
        previous_n = previous_B if rows is None or self.previous_B is None else previous_B[rows]
        pairs = {block: pair for block, pair in enumerate(cache.pairs) if pair is not None}
        last_nk = torch.full_like(tokens_nk, cache.length - 1)
        condition = self.method.condition(previous_n.unsqueeze(1).expand(tokens_nk.shape))
        hidden_nkD = self.method.model.forward_at(tokens_nk, last_nk + 1, Branches(pairs, last_nk), condition)
        confidence_nk = self.method.confidence(hidden_nkD)
        assert confidence_nk is not None, "asked only of models that predict their loss"
        return confidence_nk

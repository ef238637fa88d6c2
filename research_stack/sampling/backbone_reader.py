"""A causal backbone as samplers read it: token by token with a cache.

Shapes: B texts, L tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from research_stack.backbones.causal import CausalBackbone
from research_stack.sampling.causal import NextTokenPrediction


class BackboneReader:
    """B texts that a backbone is reading (`causal.IncrementalReader`); it predicts no losses.

    - bias_V: added to the logits, -inf at tokens that must not come.
    """

    predicts_loss = False

    def __init__(self, model: CausalBackbone, bias_V: Tensor) -> None:
        self.model, self.bias_V, self.cache = model, bias_V, model.new_cache()

    def read(self, tokens_BL: Tensor) -> NextTokenPrediction:
        """Read these tokens, which follow those read before."""
        logits_BV = self.model.head(self.model.read(tokens_BL, cache=self.cache)[:, -1])
        return NextTokenPrediction(logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)) + self.bias_V)

    def keep(self, rows: Tensor) -> None:
        """Go on with these texts only."""
        self.cache = self.cache.select(rows)

    def confidence_at(self, tokens_nk: Tensor, rows: Tensor | None = None) -> Tensor:
        """This model has no confidences."""
        raise ValueError("confidence_at: this model predicts no losses")

"""FlowLM: a denoiser that predicts the clean token at any position, trained under any corruption.

The corruption, the positions that carry loss and their weights are the experiment; this module only joins them.
Logits are computed at the positions that carry loss, never for the whole batch at once.
"""
from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from research_stack.backbones.transformer import Transformer
from research_stack.corruption.base import Corruption
from research_stack.data.vocabulary import Vocabulary
from research_stack.flowlm.losses import Loss
from research_stack.streams import Draws
from research_stack.training.module import Rows, TrainingModule
from research_stack.training.optimization import Optimization


class FlowLM(TrainingModule):
    """A bidirectional transformer under a corruption and a loss. It is a `Denoiser` for samplers and bounds.

    - model: a backbone with `forward(tokens_BL, attend_BL, t_B) -> hidden_BLD` and `unembedding` (V, D).
    - corruption: draws z from x, anew at every step.
    - loss: which positions carry loss, with which weight, divided by what.
    - vocab: special tokens are never predicted: their logits are -inf.
    """

    def __init__(
        self, model: Transformer, corruption: Corruption, loss: Loss, vocab: Vocabulary, optimization: Optimization, seed: int
    ) -> None:
        super().__init__(optimization, seed)
        self.model, self.corruption, self.loss, self.vocab = model, corruption, loss.bind(corruption), vocab
        bias_V = torch.zeros(vocab.size)
        bias_V[list(vocab.special)] = -torch.inf
        self.bias_V: Tensor
        self.register_buffer("bias_V", bias_V, persistent=False)

    @property
    def predicts(self) -> Literal["posterior", "leave_one_out"]:
        """What the logits at a visible position mean (see `corruption.process`): set by the loss it was trained with."""
        return self.loss.predicts

"""FlowLM: a denoiser that predicts the clean token at any position, trained under any corruption.

The corruption, the positions that carry loss and their weights are the experiment; this module only joins them.
Logits are computed at the positions that carry loss and nowhere else, and never whole.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from research_stack.backbones.linear_loss import linear_loss
from research_stack.backbones.transformer import Transformer
from research_stack.corruption.base import Corruption
from research_stack.data.batches import Batch
from research_stack.data.vocabulary import Vocabulary
from research_stack.flowlm.losses import DenoisingLoss
from research_stack.sampling.logits import special_token_bias
from research_stack.streams import Draws
from research_stack.training.module import TrainingModule
from research_stack.training.optimization import Optimization


class FlowLM(TrainingModule):
    """A bidirectional transformer under a corruption and a loss. It is a `Denoiser` for samplers and bounds.

    - model: a backbone with `forward(tokens_BL, attention_mask_BL, t_B) -> hidden_BLD` and `unembedding` (V, D).
    - corruption: draws z from x, anew at every step.
    - loss: which positions carry loss, with which weight, divided by what.
    - vocab: special tokens are never predicted: their logits are -inf. Of pairs the end token is none of them: rows are
      filled with it behind the response, as in LLaDA's fine-tuning (Nie et al. 2025, section 2.3), so that answers may
      end before the text does.
    """

    learns_to_stop = True

    def __init__(
        self,
        model: Transformer,
        corruption: Corruption,
        loss: DenoisingLoss,
        vocab: Vocabulary,
        optimization: Optimization,
        seed: int,
    ) -> None:
        super().__init__(optimization, seed)
        self.model, self.corruption, self.loss, self.vocab = model, corruption, loss.bind(corruption), vocab
        self.bias_V: Tensor
        self.register_buffer("bias_V", special_token_bias(vocab), persistent=False)

    @property
    def predicts(self) -> Literal["posterior", "leave_one_out"]:
        """What the logits at a visible position mean (`corruption.process`): the loss it was trained with decides."""
        return self.loss.predicts

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens."""
        return self.model.max_length

    def prepare(self, batch: Batch, draws: Draws) -> tuple[Batch, Tensor]:
        """Corrupt the batch; where loss is carried, with which weight, and what the sum is divided by."""
        corrupted = self.corruption(batch["tokens"], batch["eligible"], draws, batch["prompt"])
        carry_BL, weight_BL = self.loss.weights(corrupted, batch["tokens"], batch["eligible"])
        rows = {
            "x": batch["tokens"],
            "z": corrupted.z_BL,
            "attention_mask": batch["attention_mask"],
            "t": corrupted.t_B,
            "carry": carry_BL,
            "weight": weight_BL,
        }
        return rows, self.loss.denominator(corrupted, batch)

    def loss_sum(self, rows: Batch) -> Tensor:
        """The sum of weight * loss over the positions of these rows that carry loss."""
        carry_BL = rows["carry"]
        hidden_nD = self.model(rows["z"], rows["attention_mask"], rows["t"])[carry_BL]
        x_n, z_n, weight_n = (rows[name][carry_BL] for name in ("x", "z", "weight"))
        t_n = rows["t"].unsqueeze(1).expand_as(carry_BL)[carry_BL]

        def token_losses(logits_cV: Tensor, part: slice) -> Tensor:
            return self.loss.token_losses(logits_cV, x_n[part], z_n[part], t_n[part])

        return linear_loss(hidden_nD, self.model.unembedding, weight_n, token_losses, self.bias_V)

    def logits(
        self,
        z_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        t_B: Tensor | None = None,
        where_BL: Tensor | None = None,
    ) -> Tensor:
        """float32 logits, (B, L, V) or (n, V) for the True positions of `where_BL` in row-major order.

        - t_B: noise level; without one, a time-conditioned model is told the share of masks in each row.
        """
        if t_B is None:
            t_B = (z_BL == self.vocab.mask).float().mean(1)
        hidden_BLD = self.model(z_BL, attention_mask_BL, t_B)
        return self._logits(hidden_BLD if where_BL is None else hidden_BLD[where_BL])

    def _logits(self, hidden_xD: Tensor) -> Tensor:
        return (hidden_xD @ self.model.unembedding.T.to(hidden_xD.dtype)).float() + self.bias_V

"""Training losses: which positions carry loss, what each is worth, and what the sum is divided by.

- none: CE. BERT-style; at visible positions it learns the posterior p(x_i given z).
- inv_t: CE / p, p the probability of carrying. LLaDA (Nie et al. 2025, eq. 3; algorithms 1 and 2); MDLM (Sahoo et al.
  2024).
- elbo: w_t(z, x) g, see `corruption.elbo`. MDLM at masks only; UDLM (Schiff et al. 2024); GIDD (von Ruette et
  al. 2025).
- clip: min(w_t(z, x), max_weight) g. GIDD, section 3.4.
- dynamic: w_max (1 + [z=m] + (r/(1+r) - 1) [z=x]) g. GIDD, section 3.4, which has r for r/(1+r).

r = B/N e^(-l/2), l = ln((1-t)/t), grows without bound where t -> 1; r/(1+r) is bounded, near r where r is small, and
makes `dynamic` exactly 2t(1-t) w_max times `elbo`.

The last three train leave-one-out predictions p(x_i given z without z_i), the first two posteriors: at masks they
are the same, at visible tokens they are not (`corruption.process.to_posterior`).
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from research_stack.corruption.base import Corrupted, Corruption
from research_stack.corruption.elbo import bound_terms
from research_stack.require import require

_EDGE = 1e-6  # keeps float32 levels off 0 and 1; reported bounds come from `corruption.bound`, which cuts nothing


class DenoisingLoss:
    """A weighted sum over positions.

    - positions: `masked`; `corrupted`: all selected ones (substituted and kept on purpose too); `all`: every position
      that could have been corrupted.
    - weight: see the list above.
    - normalize: what the sum is divided by. `tokens`: all tokens but padding, LLaDA's B*L; `positions`: the positions
      that carry loss; `answer`: each row by its own number of eligible positions, and by the number of rows (LLaDA's
      fine-tuning, where only the answer is eligible).
    - max_weight: the largest w of `clip`; w_max of `dynamic`.
    """

    def __init__(
        self,
        positions: Literal["masked", "corrupted", "all"] = "masked",
        weight: Literal["none", "inv_t", "elbo", "clip", "dynamic"] = "none",
        normalize: Literal["tokens", "positions", "answer"] = "tokens",
        max_weight: float = 1.0,
    ) -> None:
        require(max_weight > 0, f"max_weight={max_weight} must be positive")
        require(
            not (weight == "inv_t" and positions == "all"),
            f"weight={weight} with positions={positions}: the mean of 1/t over all positions is infinite; choose masked"
            " or corrupted",
        )
        require(
            not (weight in ("inv_t", "elbo") and normalize == "positions"),
            f"normalize={normalize} with weight={weight}: the weight already accounts for the number of positions;"
            " choose tokens or answer",
        )
        self.positions, self.weight, self.normalize, self.max_weight = positions, weight, normalize, max_weight

    corruption: Corruption

    def bind(self, corruption: Corruption) -> DenoisingLoss:
        """A copy for a (bound) corruption. Raises ValueError for a pair that makes no sense."""
        rates = corruption.rates(torch.tensor([0.25, 0.75], dtype=torch.float64))
        carried = (
            rates.mask
            if self.positions == "masked"
            else rates.total
            if self.positions == "corrupted"
            else rates.total + 1
        )
        if not bool(carried.any()):
            raise ValueError(
                f"loss.positions={self.positions} has nothing to learn from under this corruption, which makes no "
                "such positions; choose loss.positions=all"
            )
        if self._bound_like and not corruption.exact:
            raise ValueError(
                f"loss.weight={self.weight} needs a diffusion process without position-dependent rates "
                "(corruption=absorbing, uniform or gidd); choose loss.weight=none or inv_t"
            )
        if self.weight == "elbo" and self.positions != "all" and corruption.process.has_uniform:
            raise ValueError(
                f"loss.positions={self.positions} with loss.weight=elbo is no bound under substitutions, where every "
                "position contributes; choose loss.positions=all"
            )
        bound = copy.copy(self)
        bound.corruption = corruption
        return bound

    @property
    def _bound_like(self) -> bool:
        return self.weight in ("elbo", "clip", "dynamic")

    @property
    def predicts(self) -> Literal["posterior", "leave_one_out"]:
        """What logits at a visible position estimate after training with this loss."""
        return "leave_one_out" if self._bound_like else "posterior"

    @property
    def cross_entropy(self) -> bool:
        """Whether the loss of a position is its weight times the cross entropy, so that logits need not be seen
        whole.
        """
        return not (self._bound_like and self.corruption.process.has_uniform)

    def weights(self, corrupted: Corrupted, tokens_BL: Tensor, eligible_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(carry_BL bool, weight_BL float32): where loss is carried, and the factor of `token_losses` there."""
        carry_BL = {"masked": corrupted.masked_BL, "corrupted": corrupted.selected_BL, "all": corrupted.open_BL}[
            self.positions
        ]
        weight_BL = self._factors(corrupted, tokens_BL)
        if self._bound_like:
            carry_BL = carry_BL & (weight_BL > 0)
        if self.normalize == "answer":
            weight_BL = weight_BL / eligible_BL.sum(1, keepdim=True).clamp_min(1)
        return carry_BL, weight_BL * carry_BL

    def denominator(self, corrupted: Corrupted, batch: dict[str, Tensor]) -> Tensor:
        """What the sum of weight * loss over these rows is divided by, a scalar that adds up over parts of a batch."""
        if self.normalize == "answer":
            return batch["eligible"].any(1).sum().float()
        if self.normalize == "tokens":
            return batch["attention_mask"].sum().float()
        return self.weights(corrupted, batch["tokens"], batch["eligible"])[0].sum().float()

    def token_losses(self, logits_nV: Tensor, targets_n: Tensor, z_n: Tensor, t_n: Tensor) -> Tensor:
        """Unweighted float32 (or float64) loss of each carrying position, from its row of logits over token ids.

        - logits_nV: -inf at special tokens. targets_n: clean ids. z_n: corrupted ids. t_n: level of each one's row.
        """
        logits_nV = logits_nV if logits_nV.dtype == torch.float64 else logits_nV.float()
        if self.cross_entropy:
            return torch.nn.functional.cross_entropy(logits_nV, targets_n, reduction="none")
        t_n = t_n.double().clamp(_EDGE, 1 - _EDGE)
        return bound_terms(logits_nV, targets_n, z_n, self.corruption.vocab.mask, self.corruption.process, t_n)

    def _factors(self, corrupted: Corrupted, tokens_BL: Tensor) -> Tensor:
        """(B, L) float32 weights, for all positions."""
        slope_B1 = corrupted.slope_B.unsqueeze(1)
        if self.weight == "none":
            return torch.ones_like(corrupted.mask_p_BL)
        if self.weight == "inv_t":
            p_BL = corrupted.mask_p_BL if self.positions == "masked" else corrupted.select_p_BL
            return slope_B1 / p_BL.clamp_min(_EDGE)
        process, t_B1 = self.corruption.process, corrupted.t_B.double().clamp(_EDGE, 1 - _EDGE).unsqueeze(1)
        weight_BL = process.weights(t_B1).at(corrupted.masked_BL, corrupted.z_BL == tokens_BL)
        if self.weight == "clip":
            weight_BL = weight_BL.clamp_max(self.max_weight)
        elif self.weight == "dynamic":
            # Times 2t(1-t) the weights are 2, 1 and r / (1 + r), r = B/N e^(-l/2): GIDD's, but bounded where t -> 1.
            weight_BL = weight_BL * (2 * t_B1 * (1 - t_B1) * self.max_weight)
        if self.cross_entropy:  # g = (1 - t) CE without substitutions
            weight_BL = weight_BL * process.coefficients(t_B1).keep
        return (weight_BL * slope_B1).float()

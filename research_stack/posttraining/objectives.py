"""The policy losses of post-training: what each token of a completion adds, and what the sum is divided by.

A loss is (weights * per_token).sum() / denominator, with the sum and the denominator each taken over everything that
belongs to one optimizer step: pieces of an accumulated batch, devices. So no kind depends on how a batch is cut up.

With r the ratio p(token) / p_old(token), A the completion's advantage and T the length of a completion:

| loss_type | per token | weight | denominator |
| --- | --- | --- | --- |
| grpo | clipped r A | 1 / T | completions (Shao et al. 2024, arXiv 2402.03300, equation 3) |
| dapo | clipped r A | 1 | tokens (Yu et al. 2025, arXiv 2503.14476, equation 8) |
| bnpo | clipped r A | 1 | tokens, as dapo: see below |
| dr_grpo | clipped r A | 1 | completions * max_completion_length (Liu et al. 2025, arXiv 2503.20783) |
| gspo | clipped s A, s = the geometric mean of r over the completion | 1 / T | completions (Zheng et al. 2025, arXiv
2507.18071, equation 5) | | cispo | constant(min(r, epsilon_high)) A ln p | 1 | tokens (MiniMax 2025, arXiv 2506.13585,
equation 4) |

TRL's bnpo is the token mean of the local batch, what one device holds at once, so that it changes with the number of
devices and with accumulation. Here the batch is that of the whole optimizer step: so bnpo is dapo, number for number.

Shapes: B completions, T tokens of the longest one, padded. Log-probabilities are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from research_stack.require import require


@dataclass(frozen=True)
class PolicyLoss:
    """A policy loss of the table above.

    - epsilon: a ratio below 1 - epsilon is clipped where A < 0. Not used by cispo.
    - epsilon_high: a ratio above 1 + epsilon_high is clipped where A > 0; None: as epsilon. Token ratios: .2 and .28
      (DAPO); gspo's ratio is a mean over the completion and hardly moves: 3e-4 and 4e-4. For cispo it is the largest
      ratio itself (not 1 + it), whatever the sign of A, and must be given: 5 is usual.
    - delta: a ratio above delta is clipped where A < 0 as well, which bounds the loss (two-sided clipping, INTELLECT-2,
      arXiv 2505.07291, equation 2); None: it is not bounded there.
    """

    loss_type: Literal["grpo", "dapo", "bnpo", "dr_grpo", "gspo", "cispo"] = "grpo"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        require(0 < self.epsilon < 1, f"epsilon={self.epsilon} must lie in (0, 1)")
        require(
            self.epsilon_high is None or 0 < self.epsilon_high <= 1000,
            f"epsilon_high={self.epsilon_high} must be positive and at most 1000",
        )
        require(
            self.loss_type != "cispo" or (self.epsilon_high is not None and self.epsilon_high >= 1),
            f"epsilon_high={self.epsilon_high} must be at least 1 for loss_type=cispo: it is the largest ratio",
        )
        require(
            self.loss_type != "cispo" or self.delta is None,
            f"delta={self.delta} must be null for loss_type=cispo, which cuts every ratio at epsilon_high",
        )
        require(
            self.delta is None or 1 + self.epsilon < self.delta <= 1000,
            f"delta={self.delta} must be above 1 + epsilon={1 + self.epsilon} and at most 1000",
        )
        require(
            self.delta is None or self.epsilon_high is None or self.delta > 1 + self.epsilon_high,
            f"delta={self.delta} must be above 1 + epsilon_high, epsilon_high={self.epsilon_high}",
        )

    def weights(self, mask_BT: Tensor) -> Tensor:
        """(B, T) float: what each token's loss is multiplied with before the sum, 0 where the mask is False.

        - mask_BT: bool, the tokens that carry loss. A completion without any (truncated, say) adds nothing to the sum.
        """
        weight_BT = mask_BT.float()
        if self.loss_type in ("grpo", "gspo"):
            return weight_BT / weight_BT.sum(1, keepdim=True).clamp_min(1)
        return weight_BT

    def denominator(self, mask_BT: Tensor, max_completion_length: int) -> Tensor:
        """() float: what the sum is divided by, once it too is summed over pieces and devices.

        Where it counts completions, those whose mask is empty count, as in TRL. Where it counts tokens it may be 0:
        clamp the total, not the parts, to at least 1.

        - max_completion_length: the most tokens a completion may have.
        """
        if self.loss_type in ("dapo", "bnpo", "cispo"):
            return mask_BT.sum().float()
        count = len(mask_BT) * (max_completion_length if self.loss_type == "dr_grpo" else 1)
        return torch.tensor(float(count), device=mask_BT.device)

    def per_token(self, logp_BT: Tensor, old_BT: Tensor, advantage_B: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) loss of each token, and bool: where the clip has cut the ratio. 0 and False where the mask is False.

        A cut token has no gradient, except with cispo, where it keeps the gradient of its log-probability, times
        epsilon_high.

        - logp_BT: of the policy, with its graph. old_BT: of the policy that drew the completions, without.
        - advantage_B: of each completion. mask_BT: bool. What stands in logp and old elsewhere does not matter.
        """
        log_ratio_BT = torch.where(mask_BT, logp_BT - old_BT, 0.0)
        if self.loss_type == "cispo":
            assert self.epsilon_high is not None
            weight_BT = log_ratio_BT.detach().exp()
            cut_BT = weight_BT > self.epsilon_high
            loss_BT = (
                -weight_BT.clamp_max(self.epsilon_high) * advantage_B[:, None] * torch.where(mask_BT, logp_BT, 0.0)
            )
            return loss_BT, cut_BT
        if self.loss_type == "gspo":
            log_ratio_BT = (log_ratio_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp_min(1)).expand_as(
                mask_BT
            )
        low_B1, high_B1 = self._bounds(advantage_B.to(logp_BT.dtype)[:, None])
        # min(r A, clip(r) A) is A times r cut on one side; cut before exp, no large ratio can overflow into the
        # gradient.
        loss_BT = -advantage_B[:, None] * log_ratio_BT.clamp(low_B1, high_B1).exp()
        cut_BT = ((log_ratio_BT < low_B1) | (log_ratio_BT > high_B1)) & (advantage_B[:, None] != 0)
        return torch.where(mask_BT, loss_BT, 0.0), cut_BT & mask_BT

    def _bounds(self, advantage_B1: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest log-ratio (B, 1) that count, by the sign of the advantage."""
        high = math.log1p(self.epsilon if self.epsilon_high is None else self.epsilon_high)
        most = math.inf if self.delta is None else math.log(self.delta)
        worse_B1 = advantage_B1 < 0
        low_B1 = torch.full_like(advantage_B1, -math.inf).masked_fill(worse_B1, math.log1p(-self.epsilon))
        return low_B1, torch.full_like(advantage_B1, high).masked_fill(worse_B1, most)


def k3(ref: Tensor, logp: Tensor, mask: Tensor | None = None) -> Tensor:
    """exp(d) - d - 1 with d = ref - logp, for each token: at least 0, and under the policy its mean is KL(policy,
    reference).

    (Schulman 2020, "Approximating KL divergence"; Shao et al. 2024, equation 4.) Its gradient is (1 - exp(d)) grad
    logp.

    - ref, logp: log-probabilities of the drawn tokens in nats, of one shape. mask: bool; 0 where it is False, whatever
      stands there.
    """
    difference = ref - logp
    if mask is not None:
        difference = torch.where(mask, difference, 0.0)
    return torch.expm1(difference) - difference

"""The per-position term of the continuous-time bound, in closed form from a row of logits.

For a process q_t(z|x) = a [z = x] + b [z real] + mask (b = uniform / N, k = a / b) and a prediction p over the N real
tokens, von Ruette et al. 2025 (GIDD, Theorem 3.7) have

    NELBO = E_t,z  w_t(z, x) * g,    g = KL(q_t(.|x) || q_t(.|p)) + r - ln r - 1,    r = q_t(z|x) / q_t(z|p).

The mask's part of the KL is 0 and the rest needs one sum over the vocabulary, T = sum_v ln(1 + k p_v):

    KL = (a + b) ln(1 + k) - a ln(1 + k p_x) - b T
    ln r = 0 at the mask;  -ln(1 + k p_z) where z is another token;  ln(1 + k) - ln(1 + k p_x) where z = x.

So no one-hot, no q_t over the vocabulary: logsumexp, two gathers and T, with a backward that keeps only p.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from research_stack.corruption.process import Process


class _SoftmaxSums(Function):
    """(logsumexp, T) of each row, differentiable in the logits; one (n, V) tensor, p, is kept."""

    @staticmethod
    def forward(ctx: Any, logits_nV: Tensor, k_n: Tensor) -> tuple[Tensor, Tensor]:
        lse_n = logits_nV.logsumexp(1)
        p_nV = (logits_nV - lse_n.unsqueeze(1)).exp_()
        spread_n = (p_nV * k_n.unsqueeze(1)).log1p_().sum(1)
        ctx.save_for_backward(p_nV, k_n)
        return lse_n, spread_n

    @staticmethod
    def backward(ctx: Any, lse_grad_n: Tensor, spread_grad_n: Tensor) -> tuple[Tensor, None]:
        p_nV, k_n = ctx.saved_tensors
        # dT/dlogit_v = p_v (k / (1 + k p_v) - sum_u p_u k / (1 + k p_u))
        slope_nV = (p_nV * k_n.unsqueeze(1)).add_(1).reciprocal_().mul_(k_n.unsqueeze(1))
        mean_n = torch.einsum("nv,nv->n", p_nV, slope_nV)
        slope_nV.sub_(mean_n.unsqueeze(1)).mul_(spread_grad_n.unsqueeze(1)).add_(lse_grad_n.unsqueeze(1))
        return slope_nV.mul_(p_nV), None


def log_softmax_at(logits_nV: Tensor, ids_n: Tensor, lse_n: Tensor) -> Tensor:
    """ln p at one id per row."""
    return logits_nV.gather(1, ids_n.unsqueeze(1)).squeeze(1) - lse_n


def bound_terms(
    logits_nV: Tensor, x_n: Tensor, z_n: Tensor, mask: int, process: Process, t_n: Tensor, rest_n: Tensor | None = None
) -> Tensor:
    """g of each row, in the dtype of the logits and differentiable in them; times `Process.weights` it is the bound.

    - logits_nV: leave-one-out logits over token ids, -inf at special tokens.
    - x_n, z_n: clean and corrupted ids, z = `mask` at masks. t_n: noise levels; rest_n: 1 - t where that cancels.

    Where the process has no substitutions g is a CE(x), valid at masks; elsewhere its weight is 0.
    """
    dtype = logits_nV.dtype
    parts = process.coefficients(t_n, rest_n)
    keep_n = parts.keep.to(dtype)
    if not process.has_uniform:
        return keep_n * torch.nn.functional.cross_entropy(logits_nV, x_n, reduction="none")
    each_n = (parts.uniform / process.n_real).to(dtype)
    k_n = process.keep_ratio(t_n, rest_n).to(dtype)
    lse_n, spread_n = _SoftmaxSums.apply(logits_nV, k_n)
    at_x_n = torch.log1p(k_n * log_softmax_at(logits_nV, x_n, lse_n).exp())
    is_mask_n, is_same_n = z_n == mask, z_n == x_n
    seen_n = torch.where(is_mask_n, x_n, z_n)  # the mask's own logit is -inf, and exp of it has no finite gradient path
    at_z_n = torch.log1p(k_n * log_softmax_at(logits_nV, seen_n, lse_n).exp())
    top_n = torch.log1p(k_n)
    kl_n = (keep_n + each_n) * top_n - keep_n * at_x_n - each_n * spread_n
    log_r_n = torch.where(is_same_n, top_n, 0.0) - at_z_n
    log_r_n = log_r_n.masked_fill(is_mask_n, 0.0)
    return kl_n + torch.expm1(log_r_n) - log_r_n

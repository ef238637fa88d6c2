"""Log-probabilities of given tokens and entropies of the laws they were drawn from, without keeping the n x V logits.

Losses that are not linear in the log-probability (clipped ratios, penalties) need the numbers themselves with a
gradient. The logits are made a chunk at a time and made again in the backward pass; where one chunk holds all positions
they are kept instead. What needs no gradient (the unembedding under adapters) gets none made: that of the unembedding
is a third of the work.

With z = h W^T / temperature + bias, p = softmax(z) and H = -sum p ln p: d ln p_y / dz = 1_y - p and dH / dz = -p (ln p
+ H).

Shapes: n positions, D width, V tokens, c positions of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class _TokenLogps(Function):
    """(n,) log-probabilities and (n,) entropies in nats."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nD: Tensor,
        unembedding_VD: Tensor,
        token_n: Tensor,
        bias_V: Tensor | None,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        parts = [slice(start, start + chunk) for start in range(0, len(token_n), chunk)]
        found, kept = [], None
        for part in parts:
            logp_cV = _log_softmax(hidden_nD[part], unembedding_VD, bias_V, temperature)
            p_cV = logp_cV.exp()
            found.append((logp_cV.gather(1, token_n[part].unsqueeze(1)).squeeze(1), -_weighted(p_cV, logp_cV)))
            kept = logp_cV if len(parts) == 1 else None
        empty_n = hidden_nD.new_zeros(0, dtype=torch.promote_types(hidden_nD.dtype, torch.float32))
        logp_n, entropy_n = (
            (torch.cat(column) for column in zip(*found, strict=True)) if found else (empty_n, empty_n.clone())
        )
        ctx.save_for_backward(hidden_nD, unembedding_VD, token_n, bias_V, entropy_n, kept)
        ctx.temperature, ctx.parts = temperature, parts
        return logp_n, entropy_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp_n: Tensor, grad_entropy_n: Tensor) -> tuple[Tensor | None, ...]:
        hidden_nD, unembedding_VD, token_n, bias_V, entropy_n, kept = ctx.saved_tensors
        of_hidden, of_unembedding = ctx.needs_input_grad[:2]
        hidden_grad_nD = torch.empty_like(hidden_nD) if of_hidden else None
        accurate = torch.promote_types(unembedding_VD.dtype, torch.float32)
        unembedding_grad_VD = torch.zeros_like(unembedding_VD, dtype=accurate) if of_unembedding else None
        bends = bool(grad_entropy_n.any())
        for part in ctx.parts:
            logp_cV = _log_softmax(hidden_nD[part], unembedding_VD, bias_V, ctx.temperature) if kept is None else kept
            slope_cV = logp_cV.exp()
            if bends:
                down_cV = (
                    torch.where(slope_cV > 0, logp_cV, 0.0)
                    .add_(entropy_n[part].unsqueeze(1))
                    .mul_(slope_cV)
                    .mul_(grad_entropy_n[part].unsqueeze(1))
                )
            slope_cV = slope_cV.mul_(-grad_logp_n[part].unsqueeze(1))
            slope_cV.scatter_add_(1, token_n[part].unsqueeze(1), grad_logp_n[part].unsqueeze(1))
            if bends:
                slope_cV -= down_cV
            slope_cV = (slope_cV / ctx.temperature).to(hidden_nD.dtype)
            if hidden_grad_nD is not None:
                hidden_grad_nD[part] = slope_cV @ unembedding_VD
            if unembedding_grad_VD is not None:
                unembedding_grad_VD += slope_cV.T @ hidden_nD[part]
        return (
            hidden_grad_nD,
            None if unembedding_grad_VD is None else unembedding_grad_VD.to(unembedding_VD.dtype),
            None,
            None,
            None,
            None,
        )


def _log_softmax(hidden_cD: Tensor, unembedding_VD: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    """(c, V) in float32 (float64 for float64)."""
    logits_cV = hidden_cD @ unembedding_VD.T
    logits_cV = logits_cV.to(torch.promote_types(logits_cV.dtype, torch.float32)) / temperature
    return (logits_cV if bias_V is None else logits_cV + bias_V).log_softmax(-1)


def _weighted(p_cV: Tensor, logp_cV: Tensor) -> Tensor:
    """(c,) sum of p ln p, where 0 ln 0 is 0."""
    return torch.where(p_cV > 0, p_cV * logp_cV, 0.0).sum(-1)


def token_logps(
    hidden_nD: Tensor,
    unembedding_VD: Tensor,
    token_n: Tensor,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int = 4096,
) -> tuple[Tensor, Tensor]:
    """(ln p(token) (n,), entropy in nats (n,)), float32 (float64 for float64 input), both with exact gradients.

    - hidden_nD: last hidden states. unembedding_VD: cast to their dtype. bias_V: added to the logits, without gradient;
      -inf rules a token out. temperature: divides the logits, > 0. chunk: positions whose logits are held at once.
    """
    device = hidden_nD.device.type
    if torch.is_autocast_enabled(device):
        hidden_nD = hidden_nD.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _TokenLogps.apply(hidden_nD, unembedding_VD.to(hidden_nD.dtype), token_n, bias_V, temperature, chunk)

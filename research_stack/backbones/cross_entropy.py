"""Cross entropy of hidden states against a large vocabulary, without the n x V tensor.

The logits are made chunk by chunk and thrown away; the forward pass keeps their logsumexp, and the backward pass makes
them again and turns each chunk into its share of the gradients. Peak memory is one chunk instead of n x V (Wijmans et al.
2025, Cut Your Losses, without the vocabulary blocks).
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx


class _ChunkedCrossEntropy(Function):
    """loss_n = lse(h W^T + b) - (h W^T + b)[target]; gradients are weighted per position in the backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden_nD: Tensor, weight_VD: Tensor, targets_n: Tensor, bias_V: Tensor | None, chunk: int) -> Tensor:
        accurate = torch.promote_types(hidden_nD.dtype, torch.float32)
        lse = []
        loss = []
        for start in range(0, len(hidden_nD), chunk):
            logits_cV = _logits(hidden_nD[start : start + chunk], weight_VD, bias_V, accurate)
            lse_c = logits_cV.logsumexp(1)
            loss.append(lse_c - logits_cV.gather(1, targets_n[start : start + chunk, None]).squeeze(1))
            lse.append(lse_c)
        empty = hidden_nD.new_zeros(0, dtype=accurate)
        ctx.save_for_backward(hidden_nD, weight_VD, targets_n, bias_V, torch.cat(lse) if lse else empty)
        ctx.chunk = chunk
        return torch.cat(loss) if loss else empty

    @staticmethod
    def backward(ctx: FunctionCtx, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        hidden_nD, weight_VD, targets_n, bias_V, lse_n = ctx.saved_tensors
        hidden_grad_nD = torch.empty_like(hidden_nD)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=lse_n.dtype)
        for start in range(0, len(hidden_nD), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            # d loss / d logits = softmax - one-hot, times the position's weight
            slope_cV = _logits(hidden_nD[part], weight_VD, bias_V, lse_n.dtype).sub_(lse_n[part, None]).exp_()
            slope_cV.mul_(grad_n[part, None]).scatter_add_(1, targets_n[part, None], -grad_n[part, None].to(slope_cV.dtype))
            slope_cV = slope_cV.to(hidden_nD.dtype)
            hidden_grad_nD[part] = slope_cV @ weight_VD
            weight_grad_VD += slope_cV.T @ hidden_nD[part]
        return hidden_grad_nD, weight_grad_VD.to(weight_VD.dtype), None, None, None


def _logits(hidden_cD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits_cV = (hidden_cD @ weight_VD.T).to(dtype)
    return logits_cV if bias_V is None else logits_cV.add_(bias_V)


def chunked_cross_entropy(
    hidden_nD: Tensor, weight_VD: Tensor, targets_n: Tensor, bias_V: Tensor | None = None, chunk: int = 1024
) -> Tensor:
    """Cross entropy in nats of each of n positions, float32 (float64 for float64 input); (n,).

    - hidden_nD: last hidden states. weight_VD: unembedding, cast to the dtype of the hidden states.
    - targets_n: int64 ids. bias_V: added to the logits, without gradient; -inf rules a token out.
    - chunk: positions whose logits are held at once.
    """
    device = hidden_nD.device.type
    if torch.is_autocast_enabled(device):
        hidden_nD = hidden_nD.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _ChunkedCrossEntropy.apply(hidden_nD, weight_VD.to(hidden_nD.dtype), targets_n, bias_V, chunk)

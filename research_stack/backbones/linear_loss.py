"""A weighted loss of hidden states against a large vocabulary, without the n x V tensor.

The logits of a chunk of positions are made, turned into losses and at once into the gradients of hidden states and
unembedding, then thrown away. So nothing of them is kept for the backward pass nor made twice: one chunk is the peak
of memory, and the backward pass only scales what is there (the order of work of Hsu et al. 2024, Liger Kernel). What
needs no gradient (the unembedding under adapters) gets none made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

#: Losses of some positions, (c,), from their logits (c, V) and where they stand among all n.
TokenLosses = Callable[[Tensor, slice], Tensor]


class _LinearLoss(Function):
    """sum_n weight_n * token_losses(h W^T + b)_n; the gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nD: Tensor,
        unembedding_VD: Tensor,
        weight_n: Tensor,
        bias_V: Tensor | None,
        token_losses: TokenLosses,
        chunk: int,
        learning: bool,
    ) -> Tensor:
        accurate = torch.promote_types(hidden_nD.dtype, torch.float32)
        needed = ctx.needs_input_grad[:2]
        of_hidden, of_unembedding = (learning and need for need in needed)
        hidden_grad_nD = torch.empty_like(hidden_nD) if of_hidden else None
        unembedding_grad_VD = torch.zeros_like(unembedding_VD, dtype=accurate) if of_unembedding else None
        total = hidden_nD.new_zeros((), dtype=accurate)
        for start in range(0, len(hidden_nD), chunk):
            part = slice(start, start + chunk)
            logits_cV = (hidden_nD[part] @ unembedding_VD.T).to(accurate)
            if bias_V is not None:
                logits_cV += bias_V
            with torch.set_grad_enabled(learning):
                loss = (token_losses(logits_cV.requires_grad_(learning), part) * weight_n[part]).sum()
            total += loss.detach()
            if learning:
                slope_cV = torch.autograd.grad(loss, logits_cV)[0].to(hidden_nD.dtype)
                if hidden_grad_nD is not None:
                    hidden_grad_nD[part] = slope_cV @ unembedding_VD
                if unembedding_grad_VD is not None:
                    unembedding_grad_VD += slope_cV.T @ hidden_nD[part]
        ctx.save_for_backward(
            hidden_grad_nD, None if unembedding_grad_VD is None else unembedding_grad_VD.to(unembedding_VD.dtype)
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = (made if made is None else made * grad.to(made.dtype) for made in ctx.saved_tensors)
        return *grads, *[None] * 5


def linear_loss(
    hidden_nD: Tensor,
    unembedding_VD: Tensor,
    weight_n: Tensor,
    token_losses: TokenLosses,
    bias_V: Tensor | None = None,
    chunk: int = 1024,
) -> Tensor:
    """The sum of weight * loss over n positions, a float32 scalar (float64 for float64 input).

    - hidden_nD: last hidden states. unembedding_VD: cast to their dtype. weight_n: constants.
    - token_losses: called with the logits of some positions, float32, and their slice of the n; gives their losses.
    - bias_V: added to the logits, without gradient; -inf rules a token out.
    - chunk: positions whose logits are held at once; on a CPU they should stay in its cache.
    """
    device = hidden_nD.device.type
    if torch.is_autocast_enabled(device):
        hidden_nD = hidden_nD.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        learning = torch.is_grad_enabled() and (hidden_nD.requires_grad or unembedding_VD.requires_grad)
        return _LinearLoss.apply(
            hidden_nD, unembedding_VD.to(hidden_nD.dtype), weight_n, bias_V, token_losses, chunk, learning
        )

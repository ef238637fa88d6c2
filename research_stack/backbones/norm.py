"""RMSNorm whose backward pass is written out: a third of the time of torch's on a CPU, where it is a tenth of a training step."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019); the result has the type of x.

    - dim: E, its size. eps is the float32 (float64) rounding unit, whatever the type of x.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_xE: Tensor) -> Tensor:
        eps = torch.finfo(torch.promote_types(x_xE.dtype, torch.float32)).eps
        if x_xE.device.type == "cpu":
            return _RMSNorm.apply(x_xE, self.weight.to(x_xE.dtype), eps)
        return F.rms_norm(x_xE, self.weight.shape, self.weight.to(x_xE.dtype), eps)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_xE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        accurate = torch.promote_types(x_xE.dtype, torch.float32)
        length_x1 = torch.linalg.vector_norm(x_xE, dim=-1, keepdim=True, dtype=accurate)
        scale_x1 = length_x1.square_().div_(x_xE.shape[-1]).add_(eps).rsqrt_().to(x_xE.dtype)
        unit_xE = x_xE * scale_x1
        ctx.save_for_backward(unit_xE, scale_x1, weight_E)
        return unit_xE * weight_E

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_xE: Tensor) -> tuple[Tensor, Tensor, None]:
        unit_xE, scale_x1, weight_E = ctx.saved_tensors
        weighted_xE = grad_xE * weight_E
        along_x1 = torch.linalg.vecdot(weighted_xE, unit_xE).div_(unit_xE.shape[-1]).unsqueeze(-1)
        x_grad_xE = torch.addcmul(weighted_xE, unit_xE, along_x1, value=-1).mul_(scale_x1)
        weight_grad_E = (grad_xE * unit_xE).flatten(0, -2).sum(0, dtype=torch.promote_types(grad_xE.dtype, torch.float32))
        return x_grad_xE, weight_grad_E.to(weight_E.dtype), None

"""One token from each row, by one uniform number a row: inversion of the distribution function.

Half the random numbers of a Gumbel maximum over V tokens are not drawn, the same number gives the same token whatever
else is in the batch, and there is no lower effective temperature as with 32-bit Gumbel noise (Zheng et al. 2024,
"Masked diffusion models are secretly time-agnostic masked models", section 5).

Shapes: n rows, V tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # tokens of a block


def draw(logits_nV: Tensor, u_n: Tensor, trusted: bool = False) -> Tensor:
    """(n,) int64: token v with probability softmax(logits)_v when u is uniform on [0, 1).

    Tokens whose probability is 0 are never drawn. The sum over V is taken in blocks, so that only the block that holds
    the token is summed up token by token: for large vocabularies. Raises ValueError for a row without a finite largest
    logit, unless the logits are `trusted`: the check would wait for the device. Such a row then gives token 0.
    """
    weights_nV = (logits_nV - logits_nV.amax(-1, keepdim=True)).exp_()
    weights_nkb = F.pad(weights_nV, (0, -weights_nV.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    upto_nk = weights_nkb.sum(-1).double().cumsum(-1)
    if not trusted and not bool(torch.isfinite(upto_nk[:, -1]).all()):
        raise ValueError("logits: a row has no finite largest value, so that no token can be drawn")
    target_n1 = (u_n.double() * upto_nk[:, -1]).unsqueeze(1)
    k_n1 = first_above(upto_nk, target_n1)
    inside_nb = weights_nkb.gather(1, k_n1.unsqueeze(-1).expand(-1, 1, BLOCK)).squeeze(1).double()
    before_n1 = torch.where(k_n1 > 0, upto_nk.gather(1, (k_n1 - 1).clamp_min(0)), 0.0)
    return (k_n1 * BLOCK + first_above(inside_nb.cumsum(-1), target_n1 - before_n1)).squeeze(1)


def first_above(upto_nm: Tensor, target_n1: Tensor) -> Tensor:
    """(n, 1): the first index whose running sum exceeds the target, where the sum grows; rounding cannot lead past the
    last such index.
    """
    grown_n1 = (upto_nm < upto_nm[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(upto_nm, target_n1, right=True), grown_n1)


def draw_from_probabilities(p_nV: Tensor, u_n: Tensor) -> Tensor:
    """(n,) int64: indices drawn with probabilities proportional to p; never one with probability 0.

    - p_nV: nonnegative, summed up in its own precision. u_n: U[0, 1).
    """
    total_nV = p_nV.cumsum(1)
    end_n1 = total_nV[:, -1:]
    target_n1 = torch.minimum(u_n.unsqueeze(1).to(p_nV.dtype) * end_n1, end_n1.nextafter(torch.zeros_like(end_n1)))
    return torch.searchsorted(total_nV, target_n1, right=True).squeeze(1)

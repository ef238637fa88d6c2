"""Scaled dot-product attention by whichever form is fastest for the device and the length."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to so many keys plain products win on a CPU in bf16: torch's blocked kernel takes 3.5 times as long at 128 keys,
# twice as long at 512, where the scores begin to leave the cache.
_SHORT = 512


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(E)) v, (B, H, L, E) from q (B, H, L, E) and k, v (B, K, S, E), H a multiple of K.

    - mask: bool, True where a query may look, broadcast to (B, H, L, S); None: everywhere, or up to itself if `causal`.
    """
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= _SHORT
    if not plain or causal or dropout:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, enable_gqa=k.shape[1] != q.shape[1])
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores_BHLS = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:  # the least number, not -inf: a row of padding must not become nan
        scores_BHLS = scores_BHLS.masked_fill(~mask, torch.finfo(scores_BHLS.dtype).min)
    return scores_BHLS.softmax(-1) @ v

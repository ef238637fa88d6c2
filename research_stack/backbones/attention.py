"""Scaled dot-product attention by whichever form is fastest for the device and the length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to so many keys plain products win on a CPU in bf16: at 128 to 256 keys a causal training step through torch's
# blocked kernel takes 2.5 to 4 times as long; at 512 the scores begin to leave the cache.
SHORT = 512

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def never_compiled(function: Decorated) -> Decorated:
    """`torch.compiler.disable`, which hides the signature from type checkers."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


class AttentionFunction(Protocol):
    """Attention of the queries of a forward pass; the same object serves every block."""

    def __call__(self, q_BHLE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, block: int, /) -> Tensor:
        """The output (B, H, L, E), given the queries, keys and values of the tokens of this pass."""
        ...


@dataclass
class KVCache:
    """Keys and values of the tokens seen so far, one pair (B, K, L, E) per block."""

    pairs: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens seen."""
        return 0 if not self.pairs or self.pairs[0] is None else self.pairs[0][0].shape[2]

    def extend(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The block's keys and values with the new ones behind, which are kept."""
        old = self.pairs[block]
        if old is not None:
            k, v = torch.cat((old[0], k), dim=2), torch.cat((old[1], v), dim=2)
        self.pairs[block] = (k, v)
        return k, v

    def select(self, rows: Tensor) -> KVCache:
        """The cache of some of the sequences, in the order asked for; a row may come more than once."""
        return KVCache(
            [
                None if pair is None else (pair[0].index_select(0, rows), pair[1].index_select(0, rows))
                for pair in self.pairs
            ]
        )


@dataclass
class StandardAttention:
    """Attention to all tokens of this pass and those in the cache.

    - mask: bool, True where a query attends, broadcast to (B, H, L, S); None: everywhere, or up to itself if `causal`.
    """

    mask: Tensor | None = None
    causal: bool = False
    dropout: float = 0.0
    cache: KVCache | None = None

    def __call__(self, q_BHLE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, block: int) -> Tensor:
        """Attention, after the cache has grown by these keys and values."""
        if self.cache is not None:
            return self._behind_cache(q_BHLE, k_BKLE, v_BKLE, block)
        return attend(q_BHLE, k_BKLE, v_BKLE, self.mask, self.causal and self.mask is None, self.dropout)

    @never_compiled  # else each block would be compiled for itself: the cache asks for its number
    def _behind_cache(self, q_BHLE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, block: int) -> Tensor:
        assert self.cache is not None
        k_BKSE, v_BKSE = self.cache.extend(block, k_BKLE, v_BKLE)
        causal = self.causal and self.mask is None and q_BHLE.shape[2] > 1
        return attend(q_BHLE, k_BKSE, v_BKSE, self.mask, causal, self.dropout)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(E)) v, (B, H, L, E) from q (B, H, L, E) and k, v (B, K, S, E), H a multiple of K.

    - mask: bool, True where a query attends, broadcast to (B, H, L, S); None: everywhere, or up to itself if `causal`.
    """
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= SHORT
    if not plain or dropout:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, enable_gqa=k.shape[1] != q.shape[1]
        )
    if (
        _one_query_for_shared_keys(q, k, mask) and not causal
    ):  # heads that share keys are queries of one head: no copies of the keys
        q_BKGE = q.unflatten(1, (k.shape[1], -1)).squeeze(3)
        return attend(q_BKGE, k, v, mask, False, dropout).flatten(1, 2).unsqueeze(2)
    k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    scores_BHLS = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        scores_BHLS = scores_BHLS + causal_bias(q.shape[2], k.shape[2], q)
    elif mask is not None:  # the least number, not -inf: a row of padding must not become nan
        scores_BHLS = scores_BHLS.masked_fill(~mask, torch.finfo(scores_BHLS.dtype).min)
    return scores_BHLS.softmax(-1) @ v


def _one_query_for_shared_keys(q: Tensor, k: Tensor, mask: Tensor | None) -> bool:
    """Whether a text asks with one token, several heads share keys, and all heads attend to the same."""
    return q.shape[2] == 1 and q.shape[1] != k.shape[1] and (mask is None or (mask.ndim == 4 and mask.shape[1] == 1))


def causal_bias(queries: int, keys: int, like: Tensor) -> Tensor:
    """(queries, keys): 0 where query i attends, to keys up to i, else -inf; to be added to the scores."""
    return torch.full((queries, keys), -torch.inf, dtype=like.dtype, device=like.device).triu_(1)


def repeat_kv(x_BKLE: Tensor, heads: int) -> Tensor:
    """(B, H, L, E): keys or values repeated for the query heads that share them."""
    shared = heads // x_BKLE.shape[1]
    return x_BKLE if shared == 1 else x_BKLE.repeat_interleave(shared, dim=1)

"""Branches: at every position one token of another world, which sees the real tokens before it and itself.

A branch is at position i + 1 and must attend to the real prefix x_{<=i} and to its own key. All L branches of a
sequence go through the model in one pass of L queries: the keys and values of the prefix are those of the pass over the
real tokens, so that only what is new is computed. With the own keys' score s and the prefix's log-sum-exp,

    softmax over both = lerp(prefix, own value, sigmoid(s - lse prefix)),

which any kernel for causal attention can serve that gives its log-sum-exp (`lse`, `flex`), or that is given one more
key whose score is s and whose value counts its weight (`sink`). `math` writes the scores out: the oracle, and in bf16
on a CPU the fastest for short sequences.

Shapes: B sequences, H heads, K key/value heads, L tokens, n branches of a sequence, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from research_stack.backbones.attention import SHORT, AttentionFunction, causal_bias, never_compiled, repeat_kv

Kernel = Literal["auto", "lse", "sink", "math", "flex"]
KERNEL_NAMES = ("auto", "lse", "sink", "math", "flex")
Pairs = dict[int, tuple[Tensor, Tensor]]  # keys and values (B, K, L, E) of each block


class RecordingAttention:
    """Attention that keeps the keys and values of its pass, without their graph, for branches off it."""

    def __init__(self, attention_fn: AttentionFunction) -> None:
        self.attention_fn, self.pairs = attention_fn, Pairs()

    @never_compiled  # else each block would be compiled for itself: the pairs are kept by its number
    def __call__(self, q_BHLE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, block: int) -> Tensor:
        """What the attention inside gives."""
        self.pairs[block] = (
            k_BKLE.detach(),
            v_BKLE.detach(),
        )  # a recomputed block (checkpointing) only writes the same again
        return self.attention_fn(q_BHLE, k_BKLE, v_BKLE, block)


@dataclass
class Prefix:
    """What a pass over real tokens gives: last hidden states, and the keys and values of each block, without graph."""

    hidden_BLD: Tensor
    pairs: Pairs


class Branches:
    """Attention of branches: each query sees the recorded keys up to its own position and the branch's tokens so far.

    - pairs: of the pass over the real tokens.
    - at_Bn: int64, the last real position each branch sees; None: branch i sees up to i, for every i.
    - kernel: how it is computed; `auto` picks by device, precision and length. With at_Bn it is always written out.

    One object serves the passes of one branch after another: its own keys grow by one token a pass.
    """

    def __init__(self, pairs: Pairs, at_Bn: Tensor | None = None, kernel: Kernel = "auto") -> None:
        self.pairs, self.at_Bn, self.kernel = pairs, at_Bn, kernel
        self.own: dict[int, list[tuple[Tensor, Tensor]]] = {block: [] for block in pairs}

    @never_compiled
    def __call__(self, q_BHnE: Tensor, k_BKnE: Tensor, v_BKnE: Tensor, block: int) -> Tensor:
        """(B, H, n, E)."""
        self.own[block].append((k_BKnE, v_BKnE))
        k, v = (repeat_kv(x, q_BHnE.shape[1]) for x in self.pairs[block])
        score_BHn, value_BHnE = self._own(q_BHnE, block)
        kernel = self._kernel_for(q_BHnE, k)
        return (
            KERNELS[kernel](q_BHnE, k, v, score_BHn, value_BHnE)
            if self.at_Bn is None
            else chosen(q_BHnE, k, v, score_BHn, value_BHnE, self.at_Bn)
        )

    def _own(self, q_BHnE: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """(B, H, n) log-sum-exp of the own keys' scores and (B, H, n, E) their values' softmax mean."""
        keys, values = zip(*self.own[block], strict=True)
        heads, scale = q_BHnE.shape[1], q_BHnE.shape[-1] ** -0.5
        scores = [((q_BHnE * repeat_kv(k, heads)).sum(-1) * scale) for k in keys]
        if len(scores) == 1:
            return scores[0], repeat_kv(values[0], heads)
        score_sBHn = torch.stack(scores)
        value_sBHnE = torch.stack([repeat_kv(v, heads) for v in values])
        return score_sBHn.logsumexp(0), (score_sBHn.softmax(0).unsqueeze(-1) * value_sBHnE).sum(0)

    def _kernel_for(self, q: Tensor, k: Tensor) -> str:
        if self.kernel != "auto":
            return self.kernel
        if q.device.type == "cpu":
            return "math" if q.dtype == torch.bfloat16 and k.shape[2] <= SHORT else "lse"
        return "flex" if q.device.type == "cuda" else "sink"


def mixed(prefix_BHnE: Tensor, lse_BHn: Tensor, score_BHn: Tensor, value_BHnE: Tensor) -> Tensor:
    """The prefix's attention and the own value, weighted as one softmax over both would."""
    own_BHn1 = torch.sigmoid(score_BHn - lse_BHn.to(score_BHn.dtype)).unsqueeze(-1)
    return torch.lerp(prefix_BHnE, value_BHnE, own_BHn1.to(prefix_BHnE.dtype))


def by_lse(q: Tensor, k: Tensor, v: Tensor, score_BHn: Tensor, value_BHnE: Tensor) -> Tensor:
    """Causal attention by torch's CPU kernel, which gives its log-sum-exp; no gradient flows through that."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    return mixed(out, lse, score_BHn, value_BHnE)


def by_flex(q: Tensor, k: Tensor, v: Tensor, score_BHn: Tensor, value_BHnE: Tensor) -> Tensor:
    """Causal FlexAttention with its log-sum-exp; compiled on a GPU."""
    from torch.nn.attention import flex_attention

    mask = _causal(q.shape[2], str(q.device))
    if hasattr(flex_attention, "AuxRequest"):  # from torch 2.10 on, where return_lse is deprecated
        out, aux = _flex(q.device.type)(q, k, v, block_mask=mask, return_aux=flex_attention.AuxRequest(lse=True))
        return mixed(out, aux.lse, score_BHn, value_BHnE)
    out, lse = _flex(q.device.type)(q, k, v, block_mask=mask, return_lse=True)
    return mixed(out, lse, score_BHn, value_BHnE)


def by_sink(q: Tensor, k: Tensor, v: Tensor, score_BHn: Tensor, value_BHnE: Tensor) -> Tensor:
    """One plain causal attention of L + 1 queries and keys, on any backend.

    The first key is a unit vector in a further dimension of the heads, where the queries carry their own score; its
    value is 1 in a further dimension, where the output then carries the own key's weight. The first query is of no use.
    """
    extra = 8  # kernels like widths that are multiples of 8
    scale = q.shape[-1] ** -0.5
    wide_q, wide_k, wide_v = (F.pad(x, (0, extra, 1, 0)) for x in (q, k, v))
    wide_q[:, :, 1:, -1] = score_BHn / scale
    wide_k[:, :, 0, -1] = 1
    wide_v[:, :, 0, -1] = 1
    out = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, is_causal=True, scale=scale)[:, :, 1:]
    return out[..., :-extra] + out[..., -1:] * value_BHnE


def by_math(q: Tensor, k: Tensor, v: Tensor, score_BHn: Tensor, value_BHnE: Tensor) -> Tensor:
    """The scores written out, the own one behind those of the prefix."""
    return written_out(q, k, v, score_BHn, value_BHnE, causal_bias(q.shape[2], k.shape[2], q))


def chosen(q: Tensor, k: Tensor, v: Tensor, score_BHn: Tensor, value_BHnE: Tensor, at_Bn: Tensor) -> Tensor:
    """`by_math` for branches at some positions only."""
    unseen_BnL = torch.arange(k.shape[2], device=q.device) > at_Bn.unsqueeze(-1)
    mask_B1nL = torch.zeros_like(unseen_BnL, dtype=q.dtype).masked_fill_(unseen_BnL, -torch.inf).unsqueeze(1)
    return written_out(q, k, v, score_BHn, value_BHnE, mask_B1nL)


def written_out(q: Tensor, k: Tensor, v: Tensor, score_BHn: Tensor, value_BHnE: Tensor, mask: Tensor) -> Tensor:
    """softmax over the prefix keys and the own one; the mask is added to the scores."""
    scores_BHnL = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).add_(mask)
    scores_BHnS = torch.cat((scores_BHnL, score_BHn.unsqueeze(-1)), dim=-1)
    del scores_BHnL  # the largest tensors of a branch pass
    weights_BHnS = scores_BHnS.softmax(-1)
    del scores_BHnS
    return torch.addcmul(weights_BHnS[..., :-1] @ v, weights_BHnS[..., -1:], value_BHnE)


def gather_positions(values_BL: Tensor, at_Bn: Tensor | None) -> Tensor:
    """(B, n) the values at some positions; all of them for None."""
    return values_BL if at_Bn is None else values_BL.gather(1, at_Bn)


KERNELS: dict[str, Callable[..., Tensor]] = {"lse": by_lse, "sink": by_sink, "math": by_math, "flex": by_flex}
_kept: dict[object, Any] = {}  # compiled kernels and their masks, by device and length


def _flex(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":
        return flex_attention
    if device not in _kept:
        _kept[device] = torch.compile(flex_attention, dynamic=False)
    return _kept[device]


def _causal(length: int, device: str) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    key = (length, device)
    if key not in _kept:
        _kept[key] = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device=device)
    return _kept[key]

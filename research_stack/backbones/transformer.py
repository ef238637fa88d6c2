"""One transformer, used bidirectionally (denoisers) and causally (autoregressive models).

Pre-norm blocks of RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021), SwiGLU (Shazeer 2020) and scaled
dot-product attention, optionally with fewer key and value heads (GQA, Ainslie et al. 2023), norms on queries and keys,
squared ReLU (So et al. 2021), learned positions, norms that read a noise level or a condition at each position (zero at
the start: Peebles & Xie 2023) and a key-value cache for the causal use.

Shapes: B sequences, L tokens, D width, H heads, K key/value heads, E width of a head, F width of the feed-forward, V
tokens, C numbers of a condition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from research_stack.backbones.attention import AttentionFunction, KVCache, StandardAttention
from research_stack.backbones.norm import RMSNorm
from research_stack.require import require
from research_stack.streams import generator

TIME_FEATURES = 64  # sines and cosines that describe a noise level
Rope = tuple[Tensor, Tensor]  # cos and sin, (L, 1, E/2) or (B, L, 1, E/2)
Positions = slice | Tensor  # positions of the tokens of a pass: a stretch, or int64 (L,) or (B, L)


class Attention(nn.Module):
    """Multi-head attention over rotated queries and keys; one matrix makes all three."""

    def __init__(self, dim: int, heads: int, kv_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()

    def forward(self, x_BLD: Tensor, rope: Rope | None, attention_fn: AttentionFunction, block: int) -> Tensor:
        """`attention_fn` decides what the queries see; `block` is the index of this one."""
        batch, length, _ = x_BLD.shape
        qkv_BLHE = self.qkv(x_BLD).view(batch, length, -1, self.head_dim)
        q, k, v = qkv_BLHE.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        q, k = rotate(self.q_norm(q), rope).transpose(1, 2), rotate(self.k_norm(k), rope).transpose(1, 2)
        y_BHLE = attention_fn(q, k, v.transpose(1, 2), block)
        return self.out(y_BHLE.transpose(1, 2).reshape(batch, length, -1))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x); one matrix makes gate and up."""

    matrices = 3  # D x F of them

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        gate_BLF, up_BLF = self.gate_up(x_BLD).chunk(2, dim=-1)
        return self.down(F.silu(gate_BLF) * up_BLF)


class SquaredReLU(nn.Module):
    """down(relu(up x)^2)."""

    matrices = 2

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x_BLD)).square())


FEED_FORWARD: dict[str, type[SwiGLU] | type[SquaredReLU]] = {"swiglu": SwiGLU, "relu2": SquaredReLU}


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); with a condition, norms are shifted and scaled by it."""

    def __init__(self, dim: int, attention: Attention, ffn: nn.Module, dropout: float, condition_dim: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(dim), RMSNorm(dim)
        self.attention, self.ffn, self.drop = attention, ffn, nn.Dropout(dropout)
        self.modulation = nn.Linear(condition_dim, 4 * dim) if condition_dim else None

    def forward(
        self, x_BLD: Tensor, rope: Rope | None, attention_fn: AttentionFunction, condition: Tensor | None, block: int
    ) -> Tensor:
        """condition: (B, 1, C) or (B, L, C)."""
        scale, shift = self._scales_and_shifts(condition)
        x_BLD = x_BLD + self.drop(
            self.attention(self.attention_norm(x_BLD, scale[0], shift[0]), rope, attention_fn, block)
        )
        return x_BLD + self.drop(self.ffn(self.ffn_norm(x_BLD, scale[1], shift[1])))

    def _scales_and_shifts(self, condition: Tensor | None) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Scales and shifts of both norms. They are made apart: the backward pass keeps the scales, and must not keep
        the shifts.
        """
        if self.modulation is None or condition is None:
            return (None, None), (None, None)
        halves = zip(self.modulation.weight.chunk(2), self.modulation.bias.chunk(2), strict=True)
        scale, shift = (F.linear(condition, weight, bias).chunk(2, dim=-1) for weight, bias in halves)
        return scale, shift


class Transformer(nn.Module):
    """Token ids to hidden states; `head` makes logits of them.

    - vocab_size: V, given by the data. dim: D, a multiple of 2 * heads. layers: blocks.
    - heads, kv_heads: attention heads; key/value heads (None: as many).
    - ffn_dim: F; None: 8/3 D (4 D for relu2) rounded up to a multiple of 32.
    - activation: of the feed-forward, SwiGLU or squared ReLU.
    - max_length: longest sequence, in tokens.
    - causal: each token sees itself and what is before it. Otherwise all that is not padding.
    - dropout: of attention weights and of each branch.
    - positions: rotary, or learned vectors added to the embeddings.
    - time_conditioning: takes the noise level t in [0, 1]; at the start its effect is zero.
    - condition_dim: C, numbers at each position that the model reads besides the token; 0: none. At the start their
      effect is zero.
    - conditioning: adaptive: they scale and shift the norms of each block; additive: they are added to the embeddings.
    - keep_size: with condition_dim, the feed-forward is as much narrower as the conditioning has parameters, so that
      the model has as many (within .1 %) as one without. spared: further columns by which each feed-forward is
      narrower, in exchange for `spared_parameters` of what a method adds.
    - tie_embeddings: the unembedding is the embedding.
    - qk_norm: RMSNorm on queries and keys.
    - checkpoint_blocks: recompute each block in the backward pass instead of keeping its activations.
    - seed: of the initial weights, drawn from the stream (seed, "init").
    """

    #: See research_stack.config.smoke.
    smoke = {"layers": 2}

    def __init__(
        self,
        vocab_size: int,
        dim: int = 256,
        layers: int = 4,
        heads: int = 4,
        kv_heads: int | None = None,
        ffn_dim: int | None = None,
        activation: Literal["swiglu", "relu2"] = "swiglu",
        max_length: int = 1024,
        causal: bool = False,
        dropout: float = 0.0,
        positions: Literal["rotary", "learned"] = "rotary",
        time_conditioning: bool = False,
        condition_dim: int = 0,
        conditioning: Literal["adaptive", "additive"] = "adaptive",
        keep_size: bool = True,
        spared: int = 0,
        tie_embeddings: bool = True,
        qk_norm: bool = False,
        checkpoint_blocks: bool = False,
        seed: int = 0,
    ) -> None:
        require(layers >= 1, f"layers={layers} must be at least 1")
        require(dim >= 1, f"dim={dim} must be at least 1")
        require(ffn_dim is None or ffn_dim >= 1, f"ffn_dim={ffn_dim} must be at least 1, or null for 8/3 of dim={dim}")
        require(
            heads >= 1 and dim % (2 * heads) == 0,
            f"dim={dim} must be a multiple of 2 * heads={heads}: positions rotate pairs",
        )
        require(
            kv_heads is None or (kv_heads >= 1 and heads % kv_heads == 0),
            f"kv_heads={kv_heads} must divide heads={heads}",
        )
        require(0 <= dropout < 1, f"dropout={dropout} must lie in [0, 1)")
        require(max_length >= 1, f"max_length={max_length} must be at least 1")
        require(condition_dim >= 0, f"condition_dim={condition_dim} must be at least 0")
        require(spared >= 0, f"spared={spared} must be at least 0")
        require(
            not (condition_dim and time_conditioning),
            f"condition_dim={condition_dim} with time_conditioning=true: the norms can read one of them",
        )
        super().__init__()
        kind, adaptive = FEED_FORWARD[activation], condition_dim if conditioning == "adaptive" else 0
        self.dim, self.layers, self.max_length, self.causal, self.dropout = dim, layers, max_length, causal, dropout
        self.head_dim, self.checkpoint_blocks, self.condition_dim = dim // heads, checkpoint_blocks, condition_dim
        self.ffn_dim = ffn_dim or -(-8 * dim // (32 * kind.matrices)) * 32
        self.ffn_dim -= spared + (
            self._columns(condition_dim, adaptive, kind.matrices) if condition_dim and keep_size else 0
        )
        require(
            self.ffn_dim >= 1,
            f"ffn_dim={ffn_dim} is less than condition_dim={condition_dim} and spared={spared} take of it; lower them",
        )
        self.spared_parameters = spared * kind.matrices * dim * layers
        self.embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim) if positions == "learned" else None
        self.added = nn.Linear(condition_dim, dim) if condition_dim and not adaptive else None
        self.blocks = nn.ModuleList(
            Block(
                dim,
                Attention(dim, heads, kv_heads or heads, qk_norm),
                kind(dim, self.ffn_dim),
                dropout,
                dim if time_conditioning else adaptive,
            )
            for _ in range(layers)
        )
        self.norm = RMSNorm(dim)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, dim), nn.SiLU()) if time_conditioning else None
        self.untied = None if tie_embeddings else nn.Parameter(torch.empty(vocab_size, dim))
        self._initialise(seed)
        self._rope: dict[tuple[torch.device, torch.dtype], Rope] = {}

    @staticmethod
    def least_numbers(
        tokens: int,
        vocab_size: int,
        dim: int,
        layers: int,
        ffn_dim: int | None,
        condition_dim: int,
        positions: str,
        max_length: int,
        checkpoint_blocks: bool,
    ) -> int:
        """Weights, and bf16 activations of a step, at the very least; the check reads it."""
        return (
            vocab_size * dim
            + 2 * layers * dim * dim
            + layers * (ffn_dim or 0) * dim // 2
            + condition_dim * dim
            + max_length * dim * (positions == "learned")
            + tokens * dim * (1 if checkpoint_blocks else max(1, layers // 2))
        )

    def _columns(self, condition_dim: int, adaptive: int, matrices: int) -> int:
        """Columns of the feed-forward that have as many parameters as the conditioning: 4 (C + 1) D a block, or (C + 1)
        D in all.
        """
        a_block = 4 * (condition_dim + 1) if adaptive else (condition_dim + 1) / self.layers
        return round(a_block / matrices)

    def _initialise(self, seed: int) -> None:
        """N(0, 0.02^2); matrices that write into the residual stream by 1/sqrt(2 layers) less (GPT-2); conditioning:
        zero.
        """
        stream = generator(seed, "init")
        for name, parameter in self.named_parameters():
            if parameter.is_meta or "norm" in name:
                continue
            if "modulation" in name or name.startswith("added") or name.endswith("bias"):
                nn.init.zeros_(parameter)
                continue
            branch = name.endswith(("attention.out.weight", "ffn.down.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.layers) if branch else 0.02, generator=stream)

    @property
    def unembedding(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight if self.untied is None else self.untied

    def head(self, hidden_xD: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return hidden_xD @ self.unembedding.T.to(hidden_xD.dtype)

    def new_cache(self) -> KVCache:
        """An empty key-value cache for `forward`; causal models only."""
        require(self.causal, f"causal={self.causal}: only a causal model can go on from a cache")
        return KVCache([None] * self.layers)

    def forward(
        self,
        tokens_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        t_B: Tensor | None = None,
        cache: KVCache | None = None,
        condition_BLC: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D), normalised, ready for `head`.

        - attention_mask_BL: bool, False at padding, which no token sees; None: no padding. With a cache it covers the
          tokens in it too.
        - t_B: noise level in [0, 1]; used by a model with time_conditioning, which needs it.
        - cache: grows by these tokens, which follow those in it.
        - condition_BLC: what a model with condition_dim reads; None: the norms are plain.
        """
        start, length = (cache.length if cache is not None else 0), tokens_BL.shape[1]
        if attention_mask_BL is not None and attention_mask_BL.shape[1] != start + length:
            raise ValueError(
                f"attention_mask_BL has {attention_mask_BL.shape[1]} columns and must have {start + length}: the"
                " cache's tokens, then these"
            )
        attention_fn = StandardAttention(
            self._mask(attention_mask_BL, length, start), self.causal, self.dropout if self.training else 0.0, cache
        )
        return self.forward_at(
            tokens_BL,
            slice(start, start + length),
            attention_fn,
            self._time(t_B) if condition_BLC is None else condition_BLC,
        )

    def forward_at(
        self,
        tokens_BL: Tensor,
        position_ids: Positions,
        attention_fn: AttentionFunction,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D) of tokens at any positions, under any attention.

        - position_ids: of the tokens. condition: (B, 1, C) or (B, L, C).
        """
        if isinstance(position_ids, slice):  # to read a tensor would wait for the device
            require(
                position_ids.stop <= self.max_length,
                f"max_length={self.max_length} is less than the {position_ids.stop} tokens asked for",
            )
        return self.forward_embeddings(self.embedding(tokens_BL), position_ids, attention_fn, condition)

    def forward_embeddings(
        self, x_BLD: Tensor, position_ids: Positions, attention_fn: AttentionFunction, condition: Tensor | None = None
    ) -> Tensor:
        """As `forward_at`, of vectors instead of the embeddings of tokens."""
        if self.position_embedding is not None:
            x_BLD = x_BLD + self.position_embedding.weight[position_ids]
        if self.added is not None and condition is not None:
            x_BLD = x_BLD + self.added(condition)
        rope = None if self.position_embedding is not None else self._rope_at(position_ids, x_BLD.device, x_BLD.dtype)
        for index, block in enumerate(self.blocks):
            if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
                x_BLD = checkpoint(block, x_BLD, rope, attention_fn, condition, index, use_reentrant=False)
            else:
                x_BLD = block(x_BLD, rope, attention_fn, condition, index)
        return self.norm(x_BLD)

    def read(
        self,
        tokens_BL: Tensor,
        position_ids_BL: Tensor | None = None,
        attention_mask_BLS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D) of a causal pass over packed, padded or cached texts (`causal.CausalBackbone`).

        - position_ids_BL: positions; None: they follow the cache, or begin at 0.
        - attention_mask_BLS: bool, True where a query attends, over the S tokens of the cache and of this pass; None:
          each token attends to itself and what is before it.
        - cache: grows by these tokens.
        """
        start, length = (cache.length if cache is not None else 0), tokens_BL.shape[1]
        if attention_mask_BLS is None:
            seen = self._mask(None, length, start)
        else:
            seen = attention_mask_BLS.unsqueeze(1)
        attention_fn = StandardAttention(seen, self.causal, self.dropout if self.training else 0.0, cache)
        return self.forward_at(
            tokens_BL, slice(start, start + length) if position_ids_BL is None else position_ids_BL, attention_fn
        )

    def without_adapters(self) -> AbstractContextManager[None]:
        """There are none: raises ValueError."""
        raise ValueError("model=Transformer has none")

    def _time(self, t_B: Tensor | None) -> Tensor | None:
        """The noise level as seen by the blocks; None for a model that takes none."""
        if self.time is None:
            return None
        if t_B is None:
            raise ValueError("time_conditioning=True: the model needs the noise level t_B")
        return self.time(sinusoids(t_B).to(self.embedding.weight.dtype)).unsqueeze(1)

    def _mask(self, attention_mask_BL: Tensor | None, length: int, start: int) -> Tensor | None:
        """None where attention needs no mask, which is the fast path."""
        if attention_mask_BL is not None and bool(attention_mask_BL.all()):
            attention_mask_BL = None
        if not self.causal:
            return None if attention_mask_BL is None else attention_mask_BL[:, None, None, :]
        if attention_mask_BL is None and (start == 0 or length == 1):
            return None
        keys = start + length
        seen = torch.ones(length, keys, dtype=torch.bool, device=self.unembedding.device).tril(start)
        return seen if attention_mask_BL is None else seen & attention_mask_BL[:, None, None, :]

    def _rope_at(self, position_ids: Positions, device: torch.device, dtype: torch.dtype) -> Rope:
        """cos and sin at the positions, from tables (max_length, 1, E/2) computed in float64 once per device."""
        key = (device, dtype)
        if key not in self._rope:
            half = self.head_dim // 2
            with torch.inference_mode(False):  # kept tensors must serve a later training step too, whoever asks first
                frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
                angles = torch.arange(self.max_length, dtype=torch.float64)[:, None, None] * frequencies
                self._rope[key] = (angles.cos().to(device, dtype), angles.sin().to(device, dtype))
        cos, sin = self._rope[key]
        return cos[position_ids], sin[position_ids]

    def parameters_count(self, embeddings: bool = False) -> int:
        """Parameters, by default without embedding and unembedding."""
        tables = self.embedding.weight.numel() + (0 if self.untied is None else self.untied.numel())
        return sum(p.numel() for p in self.parameters()) - (0 if embeddings else tables)

    def flops_per_token(self, length: int, logits: bool = True) -> float:
        """Of one forward pass: 2 per weight of a matrix (of the unembedding, if `logits`), 4 L D for the attention of a
        block.
        """
        matrices = sum(p.numel() for block in self.blocks for p in block.parameters() if p.ndim == 2)
        return 2 * (matrices + logits * self.unembedding.numel()) + self.layers * 4 * length * self.dim


class _Rotation(Function):
    """Rotary positions without the six intermediate tensors and their backward passes: its gradient is the inverse
    turn.
    """

    @staticmethod
    def forward(ctx: Any, x_BLHE: Tensor, cos_L1E: Tensor, sin_L1E: Tensor) -> Tensor:
        ctx.save_for_backward(cos_L1E, sin_L1E)
        return rotated(x_BLHE, cos_L1E, sin_L1E)

    @staticmethod
    def backward(ctx: Any, grad_BLHE: Tensor) -> tuple[Tensor, None, None]:
        cos_L1E, sin_L1E = ctx.saved_tensors
        return rotated(grad_BLHE, cos_L1E, -sin_L1E), None, None


def rotated(x_BLHE: Tensor, cos_L1E: Tensor, sin_L1E: Tensor) -> Tensor:
    """The pairs (first half, second half) of each head turned by the position's angles."""
    half = x_BLHE.shape[-1] // 2
    a, b, out = x_BLHE[..., :half], x_BLHE[..., half:], torch.empty_like(x_BLHE)
    torch.mul(a, cos_L1E, out=out[..., :half]).addcmul_(b, sin_L1E, value=-1)
    torch.mul(b, cos_L1E, out=out[..., half:]).addcmul_(a, sin_L1E)
    return out


def rotate(x_BLHE: Tensor, rope_L1E: Rope | None) -> Tensor:
    """Rotary positions (Su et al. 2021), differentiable in x; None turns nothing."""
    if rope_L1E is None:
        return x_BLHE
    cos, sin = (table.to(x_BLHE.dtype) for table in rope_L1E)
    if torch.compiler.is_compiling():  # which fuses the plain form, and cannot write into parts of a tensor
        a, b = x_BLHE.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return _Rotation.apply(x_BLHE, cos, sin) if torch.is_grad_enabled() else rotated(x_BLHE, cos, sin)


def sinusoids(t_B: Tensor) -> Tensor:
    """(B, TIME_FEATURES) sines and cosines of a level in [0, 1], periods from 1/1000 of the interval to all of it."""
    half = TIME_FEATURES // 2
    rates = 1000.0 ** torch.linspace(0, 1, half, device=t_B.device)
    angles = t_B.float()[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)

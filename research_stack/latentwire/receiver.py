"""How a reader is given something to read, and how it answers: all that touches a key-value cache.

`prefill_latents` and `prefill_text` fill a cache with latents or with a text; `forward_cached` and `greedy` go on from
it. Latents enter as input embeddings, as keys and values of every layer (deep prefix, Li & Liang 2021), as changes of
the keys and values that the embeddings left (coprocessor, Liu et al. 2024) and as changes of hidden states between
layers; a text enters as tokens. What follows stands at the positions behind it.

Shapes: B rows, P positions of the latents or the text with the begin tokens, L tokens of this pass, D width, K
key/value heads, E width of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from research_stack.backbones.pretrained import PretrainedCache
from research_stack.latentwire.reader import FrozenReader, padded

KeysValues = Sequence[tuple[Tensor, Tensor]]  # of each layer: (B, K, P, E) twice
Change = Callable[[Tensor], Tensor]  # hidden states (B, L, D) to others


@dataclass
class Condition:
    """What the latents are to one reader: either vectors or a prefix, and changes on top.

    - vectors_BPD: read as input embeddings behind the begin tokens.
    - prefix: keys (rotated to their positions) and values of every layer, in the vectors' place.
    - deltas: added to the keys and values that the vectors left in the cache.
    - changes: {layer: change of the hidden states behind it}, at every position that is read after the latents.
    """

    vectors_BPD: Tensor | None = None
    prefix: KeysValues | None = None
    deltas: KeysValues | None = None
    changes: Mapping[int, Change] = field(default_factory=dict)


@dataclass
class Prefilled:
    """A cache with something in it. Reading on grows it, so it serves once.

    - mask_BP: bool, False at padding. changes: as in `Condition`.
    """

    cache: PretrainedCache
    mask_BP: Tensor
    changes: Mapping[int, Change] = field(default_factory=dict)


def prefill_latents(reader: FrozenReader, condition: Condition, rows: int) -> Prefilled:
    """The begin tokens, and behind them the latents of `rows` rows."""
    cache, start = _bos_cache(reader, rows), len(reader.bos_ids)
    if condition.prefix is not None:
        _, like, _ = next(filled_layers(cache))
        for layer, (keys, values) in enumerate(condition.prefix):
            cache.held.update(keys.to(like), values.to(like), layer)
    elif condition.vectors_BPD is not None:
        vectors_BPD = condition.vectors_BPD.to(reader.embeddings.weight)
        position_ids_BP = start + torch.arange(vectors_BPD.shape[1], device=vectors_BPD.device).expand(rows, -1)
        reader.model.read(
            vectors_BPD,
            position_ids_BP,
            _causal(torch.ones(position_ids_BP.shape, dtype=torch.bool, device=position_ids_BP.device), start),
            cache,
        )
    if condition.deltas is not None:
        for (layer, held_keys, held_values), (keys, values) in zip(filled_layers(cache), condition.deltas, strict=True):
            layer.keys = torch.cat((held_keys[:, :, :start], held_keys[:, :, start:] + keys.to(held_keys)), dim=2)
            layer.values = torch.cat(
                (held_values[:, :, :start], held_values[:, :, start:] + values.to(held_values)), dim=2
            )
    return Prefilled(cache, torch.ones(rows, cache.length, dtype=torch.bool, device=reader.device), condition.changes)


def filled_layers(cache: PretrainedCache) -> Iterator[tuple[DynamicLayer, Tensor, Tensor]]:
    """Each layer of a cache into which something was read, with its keys and values (B, K, P, E)."""
    for layer in cache.held.layers:
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        yield layer, layer.keys, layer.values


def prefill_text(reader: FrozenReader, texts: Sequence[Sequence[int]]) -> Prefilled:
    """The begin tokens, and behind them the tokens of a text for each row; rows may be empty."""
    tokens_BP, mask_BP = padded(
        [[*reader.bos_ids, *ids] for ids in texts], reader.eos_id, left=True, device=reader.device
    )
    position_ids_BP = (mask_BP.cumsum(1) - 1).clamp_min(0)
    cache = reader.model.new_cache()
    reader.model.read(tokens_BP, position_ids_BP, _causal(mask_BP, 0), cache)
    return Prefilled(cache, mask_BP)


def forward_cached(reader: FrozenReader, prefilled: Prefilled, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Hidden states (B, L, D) of the tokens that follow; padding on either side, where mask_BL is False, changes
    nothing.
    """
    position_ids_BL = prefilled.mask_BP.sum(1, keepdim=True) + (mask_BL.cumsum(1) - 1).clamp_min(0)
    before_BLP = prefilled.mask_BP.unsqueeze(1).expand(-1, tokens_BL.shape[1], -1)
    mask_BLS = torch.cat((before_BLP, _causal(mask_BL, 0)), dim=2)
    with changed_hidden_states(reader, prefilled.changes):
        return reader.model.read(tokens_BL, position_ids_BL, mask_BLS, prefilled.cache)


@torch.no_grad()
def greedy(
    reader: FrozenReader, prefilled: Prefilled, prompts: Sequence[Sequence[int]], length: int
) -> tuple[list[list[int]], Tensor]:
    """The likeliest tokens one after another, up to and with the end token or `length` of them, and the logits (B, V)
    of the first.
    """
    tokens_BL, mask_BL = padded(prompts, reader.eos_id, left=True, device=reader.device)
    hidden_BD = forward_cached(reader, prefilled, tokens_BL, mask_BL)[:, -1]
    first_BV, answers = reader.model.head(hidden_BD).float(), []
    logits_BV, going_B = first_BV, torch.ones(len(tokens_BL), dtype=torch.bool, device=reader.device)
    mask_BP = torch.cat((prefilled.mask_BP, mask_BL), dim=1)
    for step in range(length):
        next_B = torch.where(going_B, logits_BV.argmax(-1), reader.eos_id)
        answers.append(next_B)
        going_B = going_B & (next_B != reader.eos_id)
        if step == length - 1 or not bool(going_B.any()):
            break
        one_B1 = torch.ones(len(next_B), 1, dtype=torch.bool, device=reader.device)
        hidden_BD = forward_cached(
            reader, Prefilled(prefilled.cache, mask_BP, prefilled.changes), next_B.unsqueeze(1), one_B1
        )[:, -1]
        mask_BP, logits_BV = torch.cat((mask_BP, one_B1), dim=1), reader.model.head(hidden_BD)
    return torch.stack(answers, dim=1).tolist(), first_BV


@contextmanager
def changed_hidden_states(reader: FrozenReader, changes: Mapping[int, Change]) -> Iterator[None]:
    """Within it, the hidden states behind these layers are changed."""
    blocks = reader.blocks() if changes else []
    handles = [blocks[layer].register_forward_hook(_hook(change)) for layer, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(change: Change) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], Tensor | tuple[Tensor, ...]]:
    """As torch calls it; some architectures give a tuple that opens with the hidden states."""

    def hook(module: nn.Module, inputs: object, out: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return hook


def _bos_cache(reader: FrozenReader, rows: int) -> PretrainedCache:
    """The cache of the begin tokens, for so many rows; it is read once for all of them."""
    cache = reader.model.new_cache()
    reader.model.read(torch.tensor([reader.bos_ids], device=reader.device), cache=cache)
    return cache.select(torch.zeros(rows, dtype=torch.long, device=reader.device))


def _causal(mask_BL: Tensor, before: int) -> Tensor:
    """(B, L, before + L) bool: all that is before, and of these tokens the seen ones up to itself; each also sees
    itself, so no row is empty.
    """
    length = mask_BL.shape[1]
    up_to_itself_LL = torch.ones(length, length, dtype=torch.bool, device=mask_BL.device).tril()
    itself_LL = torch.eye(length, dtype=torch.bool, device=mask_BL.device)
    own_BLL = (up_to_itself_LL & mask_BL.unsqueeze(1)) | itself_LL
    return torch.cat(
        (torch.ones(len(mask_BL), length, before, dtype=torch.bool, device=mask_BL.device), own_BLL), dim=2
    )

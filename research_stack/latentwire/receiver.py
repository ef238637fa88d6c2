"""How a reader is given something to read, and how it answers: all that touches a key-value cache.

`opened` and `told` fill a cache with latents or with a text; `read` and `greedy` go on from it. Latents enter as input
embeddings, as keys and values of every layer (deep prefix, Li & Liang 2021), as changes of the keys and values that the
embeddings left (coprocessor, Liu et al. 2024) and as changes of hidden states between layers; a text enters as tokens.
What follows stands at the positions behind it.

Shapes: B rows, P positions of the latents or the text with the lead, L tokens of this pass, D width, K key/value heads,
E width of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from research_stack.backbones.pretrained import PretrainedCache
from research_stack.latentwire.reader import Reader, padded

KeysValues = Sequence[tuple[Tensor, Tensor]]  # of each layer: (B, K, P, E) twice
Change = Callable[[Tensor], Tensor]  # hidden states (B, L, D) to others


@dataclass
class Condition:
    """What the latents are to one reader: either vectors or a prefix, and changes on top.

    - vectors_BPD: read as input embeddings behind the lead.
    - prefix: keys (rotated to their positions) and values of every layer, in the vectors' place.
    - deltas: added to the keys and values that the vectors left in the cache.
    - changes: {layer: change of the hidden states behind it}, at every position that is read after the latents.
    """

    vectors_BPD: Tensor | None = None
    prefix: KeysValues | None = None
    deltas: KeysValues | None = None
    changes: Mapping[int, Change] = field(default_factory=dict)


@dataclass
class Opened:
    """A cache with something in it. Reading on grows it, so it serves once.

    - seen_BP: bool, False at padding. changes: as in `Condition`.
    """

    cache: PretrainedCache
    seen_BP: Tensor
    changes: Mapping[int, Change] = field(default_factory=dict)


def opened(reader: Reader, condition: Condition, rows: int) -> Opened:
    """The lead, and behind it the latents of `rows` rows."""
    cache, lead = _lead(reader, rows), len(reader.lead)
    if condition.prefix is not None:
        like = cache.held.layers[0].keys
        for layer, (keys, values) in enumerate(condition.prefix):
            cache.held.update(keys.to(like), values.to(like), layer)
    elif condition.vectors_BPD is not None:
        vectors_BPD = condition.vectors_BPD.to(reader.embeddings.weight)
        places_BP = lead + torch.arange(vectors_BPD.shape[1], device=vectors_BPD.device).expand(rows, -1)
        reader.model.read(
            vectors_BPD,
            places_BP,
            _causal(torch.ones(places_BP.shape, dtype=torch.bool, device=places_BP.device), lead),
            cache,
        )
    if condition.deltas is not None:
        for layer, (keys, values) in zip(cache.held.layers, condition.deltas, strict=True):
            layer.keys = torch.cat((layer.keys[:, :, :lead], layer.keys[:, :, lead:] + keys.to(layer.keys)), dim=2)
            layer.values = torch.cat(
                (layer.values[:, :, :lead], layer.values[:, :, lead:] + values.to(layer.values)), dim=2
            )
    return Opened(cache, torch.ones(rows, cache.length, dtype=torch.bool, device=reader.device), condition.changes)


def told(reader: Reader, texts: Sequence[Sequence[int]]) -> Opened:
    """The lead, and behind it the tokens of a text for each row; rows may be empty."""
    tokens_BP, seen_BP = padded([[*reader.lead, *ids] for ids in texts], reader.end, left=True, device=reader.device)
    places_BP = (seen_BP.cumsum(1) - 1).clamp_min(0)
    cache = reader.model.new_cache()
    reader.model.read(tokens_BP, places_BP, _causal(seen_BP, 0), cache)
    return Opened(cache, seen_BP)


def read(reader: Reader, given: Opened, tokens_BL: Tensor, seen_BL: Tensor) -> Tensor:
    """Hidden states (B, L, D) of the tokens that follow; padding on either side, where seen_BL is False, changes
    nothing.
    """
    places_BL = given.seen_BP.sum(1, keepdim=True) + (seen_BL.cumsum(1) - 1).clamp_min(0)
    before_BLP = given.seen_BP.unsqueeze(1).expand(-1, tokens_BL.shape[1], -1)
    seen_BLS = torch.cat((before_BLP, _causal(seen_BL, 0)), dim=2)
    with changed(reader, given.changes):
        return reader.model.read(tokens_BL, places_BL, seen_BLS, given.cache)


@torch.no_grad()
def greedy(
    reader: Reader, given: Opened, prompts: Sequence[Sequence[int]], length: int
) -> tuple[list[list[int]], Tensor]:
    """The likeliest tokens one after another, up to and with the end token or `length` of them, and the logits (B, V)
    of the first.
    """
    tokens_BL, seen_BL = padded(prompts, reader.end, left=True, device=reader.device)
    hidden_BD = read(reader, given, tokens_BL, seen_BL)[:, -1]
    first_BV, answers = reader.model.head(hidden_BD).float(), []
    logits_BV, going_B = first_BV, torch.ones(len(tokens_BL), dtype=torch.bool, device=reader.device)
    seen_BP = torch.cat((given.seen_BP, seen_BL), dim=1)
    for step in range(length):
        next_B = torch.where(going_B, logits_BV.argmax(-1), reader.end)
        answers.append(next_B)
        going_B = going_B & (next_B != reader.end)
        if step == length - 1 or not bool(going_B.any()):
            break
        one_B1 = torch.ones(len(next_B), 1, dtype=torch.bool, device=reader.device)
        hidden_BD = read(reader, Opened(given.cache, seen_BP, given.changes), next_B.unsqueeze(1), one_B1)[:, -1]
        seen_BP, logits_BV = torch.cat((seen_BP, one_B1), dim=1), reader.model.head(hidden_BD)
    return torch.stack(answers, dim=1).tolist(), first_BV


@contextmanager
def changed(reader: Reader, changes: Mapping[int, Change]) -> Iterator[None]:
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

    def hook(module: nn.Module, given: object, out: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return hook


def _lead(reader: Reader, rows: int) -> PretrainedCache:
    """The cache of the lead, for so many rows; it is read once for all of them."""
    cache = reader.model.new_cache()
    reader.model.read(torch.tensor([reader.lead], device=reader.device), cache=cache)
    return cache.select(torch.zeros(rows, dtype=torch.long, device=reader.device))


def _causal(seen_BL: Tensor, before: int) -> Tensor:
    """(B, L, before + L) bool: all that is before, and of these tokens the seen ones up to itself; each also sees
    itself, so no row is empty.
    """
    length = seen_BL.shape[1]
    up_to_itself_LL = torch.ones(length, length, dtype=torch.bool, device=seen_BL.device).tril()
    itself_LL = torch.eye(length, dtype=torch.bool, device=seen_BL.device)
    own_BLL = (up_to_itself_LL & seen_BL.unsqueeze(1)) | itself_LL
    return torch.cat(
        (torch.ones(len(seen_BL), length, before, dtype=torch.bool, device=seen_BL.device), own_BLL), dim=2
    )

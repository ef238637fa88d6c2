"""What is done to a model's logits before a token is drawn: special tokens ruled out, temperature, top-p and min-p.

The names are those of the logits processors of Hugging Face transformers. Causal samplers hold logits, denoising ones
probabilities (after guidance and conversions), so that each has the form it needs.

Shapes: n rows, V tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from research_stack.data.vocabulary import Vocabulary


def special_token_bias(vocab: Vocabulary, rows: int | None = None) -> Tensor:
    """(V,) float32 to be added to logits: 0 at real tokens, -inf at special ones and behind the vocabulary.

    - rows: of the unembedding, V, where it has more than the vocabulary has tokens; None: as many.
    """
    bias_V = torch.zeros(vocab.size if rows is None else rows)
    bias_V[vocab.size :] = -torch.inf
    bias_V[list(vocab.special)] = -torch.inf
    return bias_V


def scale_by_temperature(logits_nV: Tensor, temperature: float | Tensor) -> Tensor:
    """(n, V) logits / temperature, the largest of each row 0; where the temperature is 0 the (first) likeliest token
    alone is left.

    - temperature: one for all, or (n,).
    """
    over_nV = logits_nV - logits_nV.amax(-1, keepdim=True)
    t_n1 = torch.as_tensor(temperature, dtype=over_nV.dtype, device=over_nV.device).expand(len(over_nV)).unsqueeze(1)
    likeliest_nV = torch.full_like(over_nV, -torch.inf).scatter_(1, over_nV.argmax(-1, keepdim=True), 0.0)
    return torch.where(t_n1 > 0, over_nV / t_n1.clamp_min(torch.finfo(over_nV.dtype).tiny), likeliest_nV)


def sharpen(p_nV: Tensor, temperature: float) -> Tensor:
    """(n, V) probabilities p^(1 / temperature), normalised; the temperature is above 0."""
    return p_nV if temperature == 1 else (p_nV.log() / temperature).softmax(1)


def sort_by_top_p(p_nV: Tensor, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """(probabilities in descending order, their ids, bool: outside the nucleus), each (n, V).

    The nucleus is the fewest tokens that together have probability `top_p` (Holtzman et al. 2020); the likeliest token
    is always in it.
    """
    sorted_nV, ids_nV = p_nV.sort(dim=-1, descending=True, stable=True)
    return sorted_nV, ids_nV, sorted_nV.cumsum(-1) - sorted_nV >= top_p


def keep_top_p(logits_nV: Tensor, top_p: float) -> Tensor:
    """The logits of the nucleus, -inf elsewhere."""
    if top_p == 1:
        return logits_nV
    _, ids_nV, outside_nV = sort_by_top_p(logits_nV.softmax(-1), top_p)
    return logits_nV.masked_fill(torch.zeros_like(outside_nV).scatter(1, ids_nV, outside_nV), -torch.inf)


def keep_min_p(logits_nV: Tensor, min_p: float) -> Tensor:
    """The logits of the tokens with at least `min_p` of the likeliest one's probability, -inf elsewhere.

    - logits_nV: the largest of each row 0, as `scale_by_temperature` gives them.
    """
    smallest = math.log(min_p) if min_p > 0 else -math.inf
    return logits_nV.masked_fill(logits_nV < smallest, -torch.inf)

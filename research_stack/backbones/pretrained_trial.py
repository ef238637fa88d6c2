"""Whether a loaded model keeps what `CausalBackbone` promises, tried out on a few tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from research_stack.backbones.pretrained_loading import weight_of
from research_stack.streams import generator

if TYPE_CHECKING:
    from research_stack.backbones.pretrained import PretrainedCausal

TOKENS = 8
EXACT, ROUNDED = 1e-4, 1e-1  # mean deviation that passes as a share of the mean magnitude, in float32 and in fewer bits


@torch.no_grad()
def try_out(model: PretrainedCausal, own: PreTrainedModel) -> None:
    """Raise ValueError, naming path and architecture, unless reading is causal, maskable, cacheable and gives the
    model's own logits.

    - own: the Hugging Face model within, in eval mode and without adapters.
    """
    limit = EXACT if model.unembedding.dtype == torch.float32 and not model.quantized else ROUNDED
    lead = f"path={model.path}: {type(own).__name__}"
    length = min(TOKENS, model.max_length)
    cut, table = length // 2, weight_of(own.get_input_embeddings())
    tokens_1L = torch.randint(min(model.vocab_rows, len(table)), (1, length), generator=generator(0, "trial")).to(
        table.device
    )
    try:
        whole_1LD, start_1LD, end_1LD = (
            model.read(tokens_1L),
            model.read(tokens_1L[:, :cut]),
            model.read(tokens_1L[:, cut:]),
        )
        packed_1LD = model.read(tokens_1L, *_packed(cut, length, table.device))
        cache = model.new_cache()
        stepwise_1LD = torch.cat(
            (model.read(tokens_1L[:, :cut], cache=cache), model.read(tokens_1L[:, cut:], cache=cache)), dim=1
        )
    except (AttributeError, TypeError, RuntimeError, IndexError) as error:
        raise ValueError(
            f"{lead} cannot be read as a causal language model ({type(error).__name__}:"
            f" {str(error).splitlines()[0][:120]})"
        ) from error
    if not _near(whole_1LD[:, :cut], start_1LD, limit):
        raise ValueError(f"{lead} does not read from left to right (an encoder?)")
    if not _near(packed_1LD, torch.cat((start_1LD, end_1LD), dim=1), limit):
        raise ValueError(f"{lead} does not keep packed texts apart by mask and positions")
    if not _near(stepwise_1LD, whole_1LD, limit):
        raise ValueError(f"{lead} reads otherwise from a key-value cache than at once")
    _try_head(model, own, tokens_1L, whole_1LD, limit / 10, lead)


def _try_head(
    model: PretrainedCausal, own: PreTrainedModel, tokens_1L: Tensor, whole_1LD: Tensor, limit: float, lead: str
) -> None:
    """Whether the logits are a product."""
    output = own.get_output_embeddings()
    if output is None or getattr(output, "bias", None) is not None:
        raise ValueError(
            f"{lead} has {'no unembedding' if output is None else 'a bias on its unembedding'}: its logits are no"
            " product with a matrix"
        )
    logits_1LV = own(input_ids=tokens_1L).logits[..., : model.vocab_rows]
    if whole_1LD.shape[-1] != output.weight.shape[-1] or not _near(
        model.head(whole_1LD), logits_1LV.to(whole_1LD.dtype), limit
    ):
        raise ValueError(f"{lead} makes other logits than the product of its hidden states with its unembedding")


def _packed(cut: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions (1, L) and what is seen (1, L, L) of two texts in one row."""
    order_L = torch.arange(length, device=device)
    second_L = order_L >= cut
    same_LL = second_L.unsqueeze(1) == second_L
    return (order_L - cut * second_L).unsqueeze(0), (same_LL & (order_L <= order_L.unsqueeze(1))).unsqueeze(0)


def _near(found: Tensor, wanted: Tensor, limit: float) -> bool:
    return bool((found - wanted).abs().float().mean() <= limit * wanted.abs().float().mean())

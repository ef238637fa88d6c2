"""task=export: a trained model as a folder that transformers (or PEFT, for adapters) reads, with its tokenizer.

What is written is read back before the folder gets its name, and must give the same logits on held-out text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from research_stack.backbones.as_llama import as_llama
from research_stack.backbones.causal import CausalBackbone
from research_stack.backbones.pretrained_loading import without_progress_bars
from research_stack.backbones.transformer import Transformer
from research_stack.data.vocabulary import Vocabulary
from research_stack.evaluation.context import Context
from research_stack.records.files import atomic_folder

ROWS = 4  # held-out rows on which the logits are compared
CLOSE = 1e-3  # nats; float32 sums in another order differ by a hundredth of it


@runtime_checkable
class Exportable(Protocol):
    """A backbone, other than our `Transformer`, that transformers has a class for."""

    def to_transformers(self, vocab: Vocabulary) -> PreTrainedModel:
        """The model that transformers or PEFT saves."""
        ...


@torch.inference_mode()
def export(context: Context, folder: Path) -> float:
    """Write the run's model and tokenizer to `folder`; the largest difference of a logit between the run and what is
    read back, in nats.

    Raises ValueError in one line for a model without a counterpart in transformers, and when what is read back says
    something else.
    """
    codec = context.data.codec
    own = to_transformers(context.method.model, codec.vocab)
    with without_progress_bars(), atomic_folder(folder) as unfinished:
        own.save_pretrained(unfinished)
        codec.to_transformers().save_pretrained(unfinished)
        return difference(context, unfinished)


def to_transformers(model: nn.Module, vocab: Vocabulary) -> PreTrainedModel:
    """The model as one that transformers or PEFT saves. Raises ValueError in one line where there is none."""
    try:
        if isinstance(model, Transformer):
            return as_llama(model, vocab)
        if isinstance(model, Exportable):
            return model.to_transformers(vocab)
    except ValueError as error:
        raise ValueError(f"task=export: model.{error}") from error
    raise ValueError(f"task=export: model={type(model).__name__} has no counterpart among the models of transformers")


def difference(context: Context, folder: Path) -> float:
    """The largest difference of a logit of a real token, in nats. Raises ValueError where it is not rounding, or where
    texts get other ids.
    """
    ids_BL = next(iter(context.data.val_dataloader()))["tokens"][:ROWS].to(context.device)
    text = context.data.codec.decode(ids_BL[0].tolist())
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer(text, add_special_tokens=False)["input_ids"] != context.data.codec.encode(text):
        raise ValueError("task=export: the tokenizer that was written gives other ids; nothing is kept")
    own = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    again = nn.Module.to(own.eval(), context.device)
    real = torch.from_numpy(context.data.codec.vocab.real).to(context.device)
    found = (
        (again(ids_BL).logits[..., real] - logits(cast(CausalBackbone, context.method.model), ids_BL)[..., real])
        .abs()
        .max()
        .item()
    )
    if not found <= CLOSE:
        raise ValueError(f"task=export: what was written gives logits that differ by {found:.3g}; nothing is kept")
    return found


def logits(model: CausalBackbone, ids_BL: Tensor) -> Tensor:
    """(B, L, V) of a causal backbone."""
    return model.head(model.read(ids_BL)).float()

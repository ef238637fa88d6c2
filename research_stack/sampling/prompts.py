"""What every sampler is asked for: texts behind prompts. One vector of ids a sequence, and whether it can be done at
all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from research_stack.data.vocabulary import Vocabulary
from research_stack.sampling.denoiser import HasMaxLength


def prompt_ids(
    prompts: Sequence[Tensor | Sequence[int]] | None, count: int | None, device: torch.device | str
) -> list[Tensor]:
    """One int64 vector of ids per sequence, empty without prompts. Raises ValueError when `count` is not their number.

    - prompts: one per sequence, or one for all `count`; None: none.
    """
    given = [[]] if prompts is None else list(prompts)
    if prompts is None or len(given) == 1:
        given = given * (1 if count is None else count)
    if not given or (count is not None and count != len(given)):
        raise ValueError(f"count={count} must be the number of prompts ({len(given)}), and at least 1")
    return [torch.as_tensor(prompt, dtype=torch.int64, device=device).reshape(-1) for prompt in given]


def check_fit(model: object, vocab: Vocabulary, prompts: Sequence[Tensor], length: int) -> None:
    """Raise ValueError, with what would fit, unless the model can take `length` tokens behind these prompts."""
    if length < 0:
        raise ValueError(f"length={length} must be at least 0")
    longest, size = max(len(prompt) for prompt in prompts), vocab.size
    if any(bool(((prompt < 0) | (prompt >= size)).any()) for prompt in prompts):
        raise ValueError(f"prompts=... must hold token ids in [0, {size})")
    if isinstance(model, HasMaxLength) and longest + length > model.max_length:
        room = model.max_length - longest
        near = (
            f"length can be at most {room}"
            if room > 0
            else f"the prompt can have at most {model.max_length - 1} tokens"
        )
        raise ValueError(
            f"length={length} after a prompt of {longest} tokens exceeds the model's max_length={model.max_length}:"
            f" {near}"
        )

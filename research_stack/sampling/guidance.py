"""Classifier-free guidance: push predictions away from those made without the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from research_stack.sampling.denoiser import Denoiser


def calls_per_step(scale: float, prompted_B: Tensor) -> Tensor:
    """(B,) model calls a step takes: two for a sequence with a prompt, unless the scale needs one of them only."""
    return 1 + (prompted_B & (scale not in (0.0, 1.0))).long()


def guided_logits(
    denoiser: Denoiser,
    scale: float,
    z_BL: Tensor,
    attention_mask_BL: Tensor | None,
    t_B: Tensor,
    where_BL: Tensor,
    prompt_BL: Tensor,
) -> Tensor:
    """(n, V) logits: without + scale * (with - without), where "without" has masks for its prompt (Nie et al. 2025,
    section 2.4).

    - scale: 1 is the model itself, 0 the model without the prompt. LLaDA's cfg_scale is this minus 1.
    - prompt_BL: bool, True at prompts. Both passes go through the model as one batch. Half precision becomes float32.
    """
    if scale == 0:
        z_BL = z_BL.masked_fill(prompt_BL, denoiser.vocab.mask)
    twice_B = prompt_BL.any(1) & (scale not in (0.0, 1.0))
    if not bool(twice_B.any()):
        return _float(denoiser.logits(z_BL, attention_mask_BL, t_B, where_BL))
    bare_BL = z_BL[twice_B].masked_fill(prompt_BL[twice_B], denoiser.vocab.mask)
    attend = None if attention_mask_BL is None else torch.cat([attention_mask_BL, attention_mask_BL[twice_B]])
    both_nV = _float(
        denoiser.logits(
            torch.cat([z_BL, bare_BL]), attend, torch.cat([t_B, t_B[twice_B]]), torch.cat([where_BL, where_BL[twice_B]])
        )
    )
    count = int(where_BL.sum())
    logits_nV, without_nV = both_nV[:count].clone(), both_nV[count:]
    guided_n = twice_B[where_BL.nonzero()[:, 0]]
    with_nV = logits_nV[guided_n]
    finite_nV = torch.isfinite(with_nV) & torch.isfinite(without_nV)
    logits_nV[guided_n] = torch.where(finite_nV, without_nV + scale * (with_nV - without_nV), with_nV)
    return logits_nV


def _float(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

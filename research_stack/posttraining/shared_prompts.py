"""Hidden states behind which completions are scored, with each prompt read once for all its completions.

The completions of a group begin with the same prompt. It is read once, and its keys and values serve the completions
with their graph: the gradients that reach them from all completions add up before they go back through the prompt.
Numbers are those of reading each text whole, up to rounding; work falls from B (W + T) tokens to P W + B T.

Shapes: B texts, L columns (prompt, completion, padding), P different prompts one after another, W tokens of the longest
prompt, T tokens of the longest completion, S = W + T - 1 tokens that a completion's last query may see, n tokens of
completions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from research_stack.backbones.causal import CausalBackbone

WORTH = 0.8  # share of the tokens that may be left to read; above it, one plain pass is faster


def hidden_before(
    model: CausalBackbone, tokens_BL: Tensor, prompt_length_B: Tensor, completion_length_B: Tensor, share: bool = True
) -> Tensor:
    """(n, D) the hidden state before each token of each completion, in row-major order.

    - tokens_BL: prompt, completion, padding. prompt_length_B, completion_length_B: tokens of the prompt and of the
      completion, at least 1 each.
    - share: whether prompts may be read apart from their completions; not by a model that recomputes its blocks, which
      would fill a cache twice.
    """
    begins_B = _begins(tokens_BL, prompt_length_B)
    first_P, copies_B = begins_B.nonzero()[:, 0], begins_B.cumsum(0) - 1
    width, length = int(prompt_length_B.max()), int(completion_length_B.max())
    left, whole = len(first_P) * width + len(tokens_BL) * (length - 1), len(tokens_BL) * (width + length - 1)
    step_T = torch.arange(length, device=tokens_BL.device)
    row_n, step_n = (step_T < completion_length_B.unsqueeze(1)).nonzero(as_tuple=True)
    if not share or left > WORTH * whole or length == 1:
        hidden_BLD = model.read(tokens_BL[:, :-1])
        return hidden_BLD[row_n, prompt_length_B[row_n] + step_n - 1]
    return _shared(model, tokens_BL, prompt_length_B, first_P, copies_B, length)[row_n, step_n]


def _begins(tokens_BL: Tensor, prompt_length_B: Tensor) -> Tensor:
    """(B,) whether a text's prompt is another one than that of the text before it."""
    outside_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device) >= prompt_length_B.unsqueeze(1)
    same_B = ((tokens_BL[1:] == tokens_BL[:-1]) | outside_BL[1:]).all(1) & (prompt_length_B[1:] == prompt_length_B[:-1])
    return torch.cat((torch.ones_like(same_B[:1]) if len(same_B) else prompt_length_B > 0, ~same_B))


def _shared(
    model: CausalBackbone, tokens_BL: Tensor, prompt_length_B: Tensor, first_P: Tensor, copies_B: Tensor, length: int
) -> Tensor:
    """(B, T, D): the prompts end in one column, what stands before the shorter ones is seen by nobody."""
    width, device = int(prompt_length_B.max()), tokens_BL.device
    before_P = width - prompt_length_B[first_P]
    order_S, step_T = torch.arange(width + length - 1, device=device), torch.arange(length - 1, device=device)
    column_PW = (order_S[:width] - before_P.unsqueeze(1)).clamp_min(0)
    tokens_BT = tokens_BL.gather(1, (prompt_length_B.unsqueeze(1) + step_T).clamp_max(tokens_BL.shape[1] - 1))
    seen_PSS = (order_S >= before_P[:, None, None]) & (order_S <= order_S.unsqueeze(1))
    cache = model.new_cache()
    prompt_PWD = model.read(tokens_BL[first_P].gather(1, column_PW), column_PW, seen_PSS[:, :width, :width], cache)
    hidden_BTD = model.read(
        tokens_BT, prompt_length_B.unsqueeze(1) + step_T, seen_PSS[:, width:][copies_B], cache.select(copies_B)
    )
    return torch.cat((prompt_PWD[:, -1:][copies_B], hidden_BTD), dim=1)

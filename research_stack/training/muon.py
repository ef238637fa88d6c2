"""Muon for the hidden matrices beside AdamW for the rest, as one optimizer with one schedule and one state.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes the momentum of a matrix nearly orthogonal, so
that an update moves all its directions alike. That means something for a matrix between two hidden spaces only: tables of
tokens, biases, norms and single outputs stay with AdamW.
"""
from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import nn


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices that Muon takes, each once: those held by an `nn.Linear`, both dimensions above 1.

    Left out: a matrix that is an `nn.Embedding`'s too, and the unembedding of a Hugging Face model, which is an `nn.Linear`
    that `get_output_embeddings()` names. Parameters outside an `nn.Linear`, such as our own unembedding, are never taken.
    """
    tables = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    heads = [m.get_output_embeddings() for m in module.modules() if hasattr(m, "get_output_embeddings")]
    tables |= {id(p) for head in heads if head is not None for p in head.parameters()}
    held = {id(p): p for m in module.modules() if isinstance(m, nn.Linear) for p in m.parameters(recurse=False)}
    return [p for key, p in held.items() if key not in tables and p.requires_grad and p.ndim == 2 and min(p.shape) > 1]


class Together(torch.optim.Optimizer):
    """Optimizers of different parameters that step as one.

    Lightning counts a training step for every optimizer that steps; a schedule and a checkpoint want one too. So
    `param_groups` are the very groups of the parts, one part after another, and `state` is one dictionary for all.

    - parts: optimizers without a parameter in common (ValueError otherwise).
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], defaults={})
        self._link()

    def _link(self) -> None:
        """Hand each part its groups and the common state."""
        groups = iter(self.param_groups)
        for part in self.parts:
            mine = list(islice(groups, len(part.param_groups)))
            part.__setstate__({"state": self.state, "param_groups": mine})  # also adds settings that an older torch did not save

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every part once; returns what the closure returns, which is called once, before them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave. Raises ValueError when its groups are not of these sizes."""
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self._link()

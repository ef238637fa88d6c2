"""Coprocessor: changes of the keys and values that the latents' vectors left in the reader's cache (after Liu et al.
2024, arXiv 2412.17747).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from research_stack.latentwire.features.base import AdapterOutput, Feature
from research_stack.latentwire.features.deep_prefix import keys_values_of
from research_stack.latentwire.module_dict import TypedModuleDict
from research_stack.latentwire.reader import FrozenReader
from research_stack.latentwire.receiver import Condition
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire


class Coprocessor(Feature):
    """Added to the keys and values of each layer and position: a linear map of the latents' states, 0 at the start, in
    units of their spread in text.

    - texts: contexts whose keys and values are read for the spread; 0: unit 1.
    """

    conflicts = ("deep_prefix",)

    def __init__(self, texts: int = 64) -> None:
        require(texts >= 0, f"texts={texts} must not be negative")
        require(texts <= 1_000_000, f"texts={texts} must be at most 1,000,000")
        super().__init__()
        self.texts = texts

    def build_modules(self, method: LatentWire) -> None:
        """A linear map for each reader."""
        self.maps = TypedModuleDict(
            {name: _Deltas(name, reader, method, self.texts) for name, reader in method.readers.items()}
        )

    def condition(self, reader: str, adapted: AdapterOutput, condition: Condition) -> Condition:
        """Changes of keys and values on top of the vectors."""
        return replace(condition, deltas=self.maps[reader](adapted.states_BPH))

    def metrics_snapshot(self) -> dict[str, float]:
        """Root mean square of the maps' weights, by reader."""
        return {f"rms_{name}": float(own.out.weight.detach().square().mean().sqrt()) for name, own in self.maps.items()}


class _Deltas(nn.Module):
    """States (B, P, H) to what is added to the keys and values of one reader."""

    deviation: Tensor

    def __init__(self, name: str, reader: FrozenReader, method: LatentWire, texts: int) -> None:
        super().__init__()
        self.shape = (reader.num_layers, 2, reader.num_kv_heads, reader.head_dim)
        self.out = nn.Linear(
            method.adapter_dim, 2 * reader.num_layers * reader.num_kv_heads * reader.head_dim, bias=False
        )
        nn.init.zeros_(self.out.weight)
        positions = method.adapters[name].position_PH.shape[0]
        self.register_buffer(
            "deviation",
            keys_values_of(reader, method.some_contexts(texts), positions)[1] if texts else torch.ones(self.shape),
        )

    def forward(self, states_BPH: Tensor) -> list[tuple[Tensor, Tensor]]:
        both_BPLtKE = self.deviation * self.out(states_BPH).unflatten(-1, self.shape)
        return [(layer[0], layer[1]) for layer in both_BPLtKE.permute(2, 3, 0, 4, 1, 5)]

"""Latent adapters at several depths: between a reader's layers, what is read after the latents looks at their states
again.

Gated cross-attention as in Flamingo (Alayrac et al. 2022, section 2.2): x + tanh(g) attention(x, states), g = 0 at the
start.

Shapes: B rows, L positions after the latents, P positions of the latents, D width of the reader, H width of the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from research_stack.latentwire.features.base import AdapterOutput, Feature
from research_stack.latentwire.features.cross_attention import CrossAttention
from research_stack.latentwire.module_dict import TypedModuleDict
from research_stack.latentwire.receiver import Change, Condition
from research_stack.require import require
from research_stack.streams import generator

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire


class LayerAdapters(Feature):
    """Cross-attention behind some layers of each reader; at the start it changes nothing.

    - depths: so many layers, spread evenly, or a list of layers, the first one 0.
    - width, heads: of the attention. dropout: of what it adds, in training.
    """

    def __init__(self, depths: int | list[int] = 2, width: int = 64, heads: int = 4, dropout: float = 0.0) -> None:
        require(width >= 1, f"width={width} must be at least 1")
        require(width <= 100_000, f"width={width} must be at most 100,000")
        require(heads >= 1 and width >= 1 and width % heads == 0, f"heads={heads} must divide width={width}")
        require(0 <= dropout < 1, f"dropout={dropout} must lie in [0, 1)")
        super().__init__()
        self.depths, self.width, self.heads, self.dropout = depths, width, heads, dropout

    def build_modules(self, method: LatentWire) -> None:
        """An adapter for each reader and depth."""
        self.layers = {name: chosen_layers(self.depths, reader.num_layers) for name, reader in method.readers.items()}
        self.maps = TypedModuleDict(
            {
                name: TypedModuleDict(
                    {
                        str(layer): _Gated(
                            self,
                            method.readers[name].hidden_size,
                            method.adapter_dim,
                            generator(method.seed, "layer_adapters", name, layer),
                        )
                        for layer in layers
                    }
                )
                for name, layers in self.layers.items()
            }
        )

    def condition(self, reader: str, adapted: AdapterOutput, condition: Condition) -> Condition:
        """The changes behind the chosen layers, after those that are there already."""
        changes = dict(condition.changes)
        for layer in self.layers[reader]:
            change = partial(self.maps[reader][str(layer)], states_BPH=adapted.states_BPH)
            changes[layer] = partial(_both, changes[layer], change) if layer in changes else change
        return replace(condition, changes=changes)

    def metrics_snapshot(self) -> dict[str, float]:
        """How far the gates are open on average, |tanh g|."""
        gates = [torch.tanh(own.gate.detach()).abs() for of_reader in self.maps.values() for own in of_reader.values()]
        return {"open": float(torch.stack(gates).mean())}


class _Gated(nn.Module):
    """x + tanh(g) attention(x, states)."""

    def __init__(self, feature: LayerAdapters, dim: int, states_dim: int, stream: torch.Generator) -> None:
        super().__init__()
        self.attention = CrossAttention(dim, states_dim, feature.width, feature.heads, feature.dropout, stream)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x_BLD: Tensor, states_BPH: Tensor) -> Tensor:
        own_BLD = x_BLD.to(self.gate)  # the reader may compute in another precision, or elsewhere
        return x_BLD + (torch.tanh(self.gate) * self.attention(own_BLD, states_BPH)).to(x_BLD)


def chosen_layers(depths: int | Sequence[int], layers: int) -> list[int]:
    """The layers that `depths` names: of n evenly spread ones the middles of n equal parts. Raises ValueError for more
    or others than there are.
    """
    if isinstance(depths, int):
        require(1 <= depths <= layers, f"depths={depths} must lie in 1 .. {layers}, the layers of the reader")
        return [(2 * i + 1) * layers // (2 * depths) for i in range(depths)]
    found = sorted(set(depths))
    require(
        bool(found) and len(found) == len(depths) and 0 <= found[0] and found[-1] < layers,
        f"depths={list(depths)} must be different layers from 0 to {layers - 1}",
    )
    return found


def _both(first: Change, then: Change, x_BLD: Tensor) -> Tensor:
    return then(first(x_BLD))

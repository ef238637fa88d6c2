"""Deep prefix: the latents as keys and values of every layer instead of input embeddings (Li & Liang 2021, P-tuning v2:
Liu et al. 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from research_stack.latentwire.features.base import AdapterOutput, Feature, ParameterGroup
from research_stack.latentwire.module_dict import TypedModuleDict
from research_stack.latentwire.reader import FrozenReader
from research_stack.latentwire.receiver import Condition, filled_layers, prefill_text
from research_stack.require import require
from research_stack.streams import generator

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire


class DeepPrefix(Feature):
    """Keys and values of each layer and position: the mean of real text's, plus its deviation times what a linear map
    of the state says.

    - texts: contexts whose keys and values are read for mean and deviation; 0 starts from zero mean and unit deviation.
    - gate: initial factor of what the latents say; it is learned for each layer, keys and values apart.
    """

    conflicts = ("coprocessor",)
    replaces_vectors = True

    def __init__(self, texts: int = 64, gate: float = 1.0) -> None:
        require(texts >= 0, f"texts={texts} must not be negative")
        require(texts <= 1_000_000, f"texts={texts} must be at most 1,000,000")
        require(
            gate > 0,
            f"gate={gate} must be positive: with 0 the latents would say nothing, and nothing would be learned",
        )
        require(gate <= 1000, f"gate={gate} must be at most 1,000")
        super().__init__()
        self.texts, self.gate = texts, float(gate)  # a whole number would make a tensor of integers

    def build_modules(self, method: LatentWire) -> None:
        """A linear map, a mean and a deviation for each reader."""
        self.maps = TypedModuleDict({name: _Prefix(reader, method, self) for name, reader in method.readers.items()})

    def on_optimizer_build(self) -> list[ParameterGroup]:
        """The maps; and, without weight decay, means and gates, which do not start near 0."""
        kept = [p for own in self.maps.values() for p in (own.mean, own.gate)]
        return [
            ParameterGroup("weights", [p for own in self.maps.values() for p in own.out.parameters()]),
            ParameterGroup("starts", kept, decay=False),
        ]

    def condition(self, reader: str, adapted: AdapterOutput, condition: Condition) -> Condition:
        """Keys and values in the place of the vectors."""
        return Condition(
            prefix=self.maps[reader](adapted.states_BPH, adapted.position_ids_P), changes=condition.changes
        )


class _Prefix(nn.Module):
    """States (B, P, H) to the keys and values of one reader."""

    deviation: Tensor

    def __init__(self, reader: FrozenReader, method: LatentWire, feature: DeepPrefix) -> None:
        super().__init__()
        self.shape = (reader.num_layers, 2, reader.num_kv_heads, reader.head_dim)
        numbers = 2 * reader.num_layers * reader.num_kv_heads * reader.head_dim
        positions = method.adapters[method.name_of(reader)].position_PH.shape[0]
        self.out = nn.Linear(method.adapter_dim, numbers, bias=False)
        nn.init.normal_(
            self.out.weight,
            std=method.adapter_dim**-0.5,
            generator=generator(method.seed, "deep_prefix", method.name_of(reader)),
        )
        mean, deviation = (
            keys_values_of(reader, method.some_contexts(feature.texts), positions)
            if feature.texts
            else (torch.zeros(self.shape), torch.ones(self.shape))
        )
        self.mean = nn.Parameter(mean.unsqueeze(0).repeat(positions, 1, 1, 1, 1))
        self.register_buffer("deviation", deviation)
        self.gate = nn.Parameter(torch.full((reader.num_layers, 2, 1, 1), feature.gate))

    def forward(self, states_BPH: Tensor, position_ids_P: Tensor) -> list[tuple[Tensor, Tensor]]:
        said = self.out(states_BPH).unflatten(-1, self.shape)
        both_BPLtKE = self.mean[position_ids_P] + self.gate * self.deviation * said
        return [(layer[0], layer[1]) for layer in both_BPLtKE.permute(2, 3, 0, 4, 1, 5)]


@torch.no_grad()
def keys_values_of(reader: FrozenReader, texts: list[str], positions: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (layers, 2, K, E), of the reader's keys and values of texts, behind the begin
    tokens.

    Keys are those of the first `positions` tokens, so that they are turned to the positions the latents will stand at.
    """
    read = [reader.token_ids(text)[:positions] for text in texts]
    given = prefill_text(reader, read)
    lengths_B1, width = torch.tensor([[len(ids)] for ids in read], device=reader.device), given.mask_BP.shape[1]
    text_BP = (
        torch.arange(width, device=reader.device) >= width - lengths_B1
    )  # padding stands on the left, and the begin tokens before the text
    kept = [
        torch.stack((keys, values)).permute(1, 3, 0, 2, 4)[text_BP].float()
        for _, keys, values in filled_layers(given.cache)
    ]
    stacked = torch.stack(kept)  # (layers, n, 2, K, E)
    return stacked.mean(1).cpu(), stacked.std(1, correction=0).clamp_min(1e-4).cpu()

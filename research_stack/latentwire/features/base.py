"""What a feature of LatentWire is: parameters, losses or knobs that the config adds, with five hooks and what it gives
a reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from research_stack.latentwire.receiver import Condition
from research_stack.training.optimization import ParameterGroup

if TYPE_CHECKING:
    from research_stack.latentwire.losses import LossInputs
    from research_stack.latentwire.module import LatentWire


@dataclass
class StepSettings:
    """What is known when a batch starts; features may change it.

    - number: of the optimizer step; None when nothing is trained (validation, evaluation). total: of all steps.
    - num_latents: that are sent, the private ones included. tokens: of an answer that carry loss (K).
    """

    number: int | None
    total: int
    num_latents: int
    tokens: int


@dataclass
class AdapterOutput:
    """The latents of a batch on their way to one reader.

    - latents_BMd: as the reader gets them, index_M: which latents they are. states_BPH: of its adapter, position_ids_P:
      which of its positions.
    - bytes_BN, mask_BN: what was encoded (None at a receiver, who has not got it); extra: further tensors of the batch.
    """

    latents_BMd: Tensor
    index_M: Tensor
    states_BPH: Tensor
    position_ids_P: Tensor
    bytes_BN: Tensor | None = None
    mask_BN: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class Feature(nn.Module):
    """Something that is off unless the config lists it under `method.features`.

    - conflicts: names of features it cannot be used with.
    """

    conflicts: tuple[str, ...] = ()
    replaces_vectors: bool = False  # whether the reader gets something else in the place of input embeddings

    def build_modules(self, method: LatentWire) -> None:
        """Make the parameters, once readers, adapters and the wire are there. Raises ValueError, opening with a key of
        the feature.
        """

    def on_optimizer_build(self) -> list[ParameterGroup]:
        """The feature's trained parameters; all of them must be in one of its groups."""
        own = [p for p in self.parameters() if p.requires_grad]
        return [ParameterGroup("weights", own)] if own else []

    def on_batch_start(self, step: StepSettings) -> None:
        """Change what the step does."""

    def condition(self, reader: str, adapted: AdapterOutput, condition: Condition) -> Condition:
        """What the reader of this name is given, beside or instead of what it would be given."""
        return condition

    def on_loss_aggregate(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """Further losses of what one reader read: {name: sum over its rows, with gradient}, to be divided by rows;
        weights are `weights()`.
        """
        return {}

    def weights(self) -> Mapping[str, float]:
        """The weight of each loss that `on_loss_aggregate` gives."""
        return {}

    def after_update(self) -> None:
        """Called after each optimizer step on every device; a feature that learns from the batch as a whole changes its
        buffers here.
        """

    def reset_step(self) -> None:
        """Drop what `on_loss_aggregate` has kept for `after_update`: the step begins again."""

    def metrics_snapshot(self) -> dict[str, float]:
        """Numbers to log after a step."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Parameters and status, listed when a run starts and kept with it."""
        return {
            "parameters": sum(p.numel() for p in self.parameters()),
            "trained": sum(p.numel() for p in self.parameters() if p.requires_grad),
        }

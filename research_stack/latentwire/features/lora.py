"""LoRA on the readers (Hu et al. 2021): their weights stay frozen, and low-rank adapters beside them learn to read
latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import PeftModel
from torch import nn

from research_stack.backbones.pretrained import LoRA
from research_stack.latentwire.features.base import Feature, ParameterGroup, StepSettings
from research_stack.latentwire.reader import FrozenReader
from research_stack.require import require
from research_stack.streams import seed_of

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire


class ReaderLoRA(Feature):
    """Adapters W + s B A on the linear maps of readers; at the start B is 0 and a reader what it was.

    They work wherever the reader reads latents; teachers and text baselines are read within `plain(reader)`.

    - rank, alpha, dropout, targets, rslora: as in `research_stack.backbones.pretrained.LoRA`.
    - readers: names of those that get adapters; null: all.
    - lr_factor: of the learning rate, for these adapters.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: list[str] | Literal["all-linear"] = "all-linear",
        rslora: bool = False,
        readers: list[str] | None = None,
        lr_factor: float = 1.0,
    ) -> None:
        require(rank >= 1, f"rank={rank} must be at least 1")
        require(rank <= 100_000, f"rank={rank} must be at most 100,000")
        require(alpha > 0, f"alpha={alpha} must be positive")
        require(0 <= dropout < 1, f"dropout={dropout} must lie in [0, 1)")
        require(lr_factor > 0, f"lr_factor={lr_factor} must be positive")
        super().__init__()
        self.lora, self.wanted, self.lr_factor = LoRA(rank, alpha, dropout, targets, rslora), readers, lr_factor
        self.register_buffer("rank", torch.tensor(rank))  # in a checkpoint: that there were adapters, and of which rank
        self.adapted: dict[str, list[nn.Parameter]] = {}
        self.ups: dict[str, list[nn.Parameter]] = {}
        self.dropouts: list[nn.Module] = []

    def build_modules(self, method: LatentWire) -> None:
        """Adapters on each reader, drawn from the stream (seed, "lora", reader)."""
        known = list(method.readers)
        wanted = known if self.wanted is None else list(self.wanted)
        require(bool(wanted) and set(wanted) <= set(known), f"readers={wanted} must be some of {', '.join(known)}")
        for name in wanted:
            reader = method.readers[name]
            reader.model.adapt(self.lora, seed_of(method.seed, "lora", name))
            reader.eval()  # PEFT's new modules come in training mode
            self.adapted[name] = [p for p in reader.parameters() if p.requires_grad]
            self.ups[name] = [p for place, p in reader.named_parameters() if ".lora_B." in place]
            self.dropouts += [own for place, own in reader.named_modules() if ".lora_dropout." in place]

    def on_optimizer_build(self) -> list[ParameterGroup]:
        """A group for each reader."""
        return [ParameterGroup(name, parameters, self.lr_factor) for name, parameters in self.adapted.items()]

    def on_batch_start(self, step: StepSettings) -> None:
        """A reader is never in training mode, but the dropout of its adapters is while they are trained."""
        for dropout in self.dropouts:
            dropout.train(step.number is not None)

    def metrics_snapshot(self) -> dict[str, float]:
        """Root mean square of B, 0 at the start, by reader."""
        return {
            f"rms_{name}": float(torch.cat([p.detach().flatten() for p in ups]).square().mean().sqrt())
            for name, ups in self.ups.items()
        }

    def describe(self) -> dict[str, Any]:
        """The adapters, which are kept in the readers."""
        count = sum(p.numel() for p in self.own_parameters())
        return {"parameters": count, "trained": count}

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """All adapters of all readers."""
        return (p for parameters in self.adapted.values() for p in parameters)


def plain(reader: FrozenReader) -> AbstractContextManager[None]:
    """Within it the reader is as it was before it got adapters, if it has any: for teachers and text baselines."""
    return reader.model.without_adapters() if isinstance(reader.model.model, PeftModel) else nullcontext()

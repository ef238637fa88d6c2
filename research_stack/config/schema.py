"""What a whole config holds: the keys of config.yaml, annotated as the parameters of a constructor are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from research_stack.require import require

if TYPE_CHECKING:
    from lightning import Callback, Trainer
    from lightning.pytorch.loggers import Logger

    from research_stack.corruption.base import Corruption
    from research_stack.evaluation.context import Evaluation
    from research_stack.running.hardware import Hardware
    from research_stack.training.module import TrainingModule
    from research_stack.training.optimization import Optimization


class Backbone(Protocol):
    """What a method trains."""

    def forward(self, *arguments: Any) -> Any:
        """What it computes."""
        ...


class Corpus(Protocol):
    """What a run reads."""

    def prepare(self) -> None:
        """Read and encode."""

    def for_model(self) -> dict[str, Any]:
        """Constructor arguments that a model may take from the data."""
        ...

    def for_method(self) -> dict[str, Any]:
        """Constructor arguments that a method may take from the data."""
        ...


class Decoder(Protocol):
    """What writes texts."""

    def unsuited(self, method: type) -> str | None:
        """Why it cannot write with methods of this class; None if it can."""
        ...


@dataclass
class Experiment:
    """The keys of a config. The check reads this class as it reads every constructor; nothing builds it.

    A key without a default must be there; a class means a node with `_target_`, a mapping of classes named nodes.
    """

    name: str
    task: str
    seed: int
    init_from: str | None
    run: str | None
    runs: list[str]
    prompt: str | None
    dry_run: bool
    method: TrainingModule
    model: Backbone
    corruption: Corruption
    data: Corpus
    sampler: Decoder
    optimization: Optimization
    trainer: Trainer
    hardware: Hardware
    callbacks: Mapping[str, Callback]
    eval: Mapping[str, Evaluation] | None
    logger: Mapping[str, Logger] | None = field(default_factory=dict)
    format: Literal["hf"] = "hf"
    smoke: bool = False

    def __post_init__(self) -> None:
        require(self.name != "", f"name={self.name!r} must not be empty: it names the folder")
        require(0 <= self.seed < 2**63, f"seed={self.seed} must lie in [0, 2^63)")

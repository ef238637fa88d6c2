"""A curriculum: how many latents are sent and what each loss counts, stage after stage, as a function of the step
alone.

Latents are ordered, and a stage sends the first shared ones and the private ones, so no weight changes its shape from
stage to stage, and a run goes on at any step, also across the end of a stage, as if it had not been interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research_stack.config.hints import did_you_mean
from research_stack.require import require

KEYS = ("share", "num_latents", "losses")


class Stage:
    """A part of the training.

    - share: of all optimizer steps, in (0, 1]. latents: that are sent, the private ones included; null: all of the
      method's.
    - losses: weights by the names of the losses, in the place of their own; losses that are not named keep theirs.
    """

    def __init__(self, share: float, num_latents: int | None = None, losses: dict[str, float] | None = None) -> None:
        require(0 < share <= 1, f"share={share} must lie in (0, 1]")
        require(num_latents is None or num_latents >= 1, f"num_latents={num_latents} must be at least 1")
        self.share, self.num_latents, self.losses = share, num_latents, dict(losses or {})
        for name, weight in self.losses.items():
            require(weight >= 0, f"losses.{name}={weight} must not be negative")


class Curriculum:
    """Stages in their order; none: everything stays as the method says.

    Raises ValueError, opening with `stages`, for shares that do not add up to 1.
    """

    def __init__(self, stages: Sequence[Stage | Mapping[str, Any]] | None = None) -> None:
        self.stages = [_stage(stage_index, stage) for stage_index, stage in enumerate(stages or ())]
        total = sum(stage.share for stage in self.stages)
        require(
            not self.stages or abs(total - 1) < 1e-6,
            f"stages={[stage.share for stage in self.stages]} must have shares that add up to 1, not {total:g}",
        )

    def __len__(self) -> int:
        return len(self.stages)

    def bind(self, losses: Mapping[str, float], num_latents: int, num_private: int) -> Curriculum:
        """Itself, checked against the method: the losses' names, latents at most and how many of them are private."""
        for stage_index, stage in enumerate(self.stages):
            for name in stage.losses:
                require(
                    name in losses,
                    f"stages.{stage_index}.losses.{name} is no loss{did_you_mean(name, list(losses), 'the losses')}",
                )
            sent = num_latents if stage.num_latents is None else stage.num_latents
            require(
                num_private < sent <= num_latents,
                f"stages.{stage_index}.num_latents={sent} must be more than num_private={num_private} and at most"
                f" num_latents={num_latents}",
            )
            require(
                any((dict(losses) | stage.losses).values()),
                f"stages.{stage_index}.losses={stage.losses} must leave a loss with a weight above 0",
            )
        return self

    def ends(self, total: int) -> list[int]:
        """The step at which each stage is done, of `total` steps. Raises ValueError when a stage would have no step."""
        sums = [sum(stage.share for stage in self.stages[: i + 1]) for i in range(len(self))]
        ends = [round(share * total) for share in sums[:-1]] + [total] * bool(sums)
        short = [i for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)) if end <= start]
        if short:
            raise ValueError(
                f"stages.{short[0]}.share={self.stages[short[0]].share} is less than one of trainer.max_steps={total}"
            )
        return ends

    def stage_index(self, step: int | None, total: int) -> int:
        """The stage of a step (0-based); the last one for None and for steps behind the end. Raises ValueError without
        stages.
        """
        require(len(self) > 0, "stages=null: there is no stage")
        return len(self) - 1 if step is None else min(sum(step >= end for end in self.ends(total)), len(self) - 1)

    def num_latents(self, step: int | None, total: int, default: int) -> int:
        """How many are sent in a step; None: at the end of the training."""
        own = self.stages[self.stage_index(step, total)].num_latents if self.stages else None
        return default if own is None else own

    def weights(self, step: int | None, total: int, default: Mapping[str, float]) -> dict[str, float]:
        """What each loss counts in a step, in the order of `default`; None: at the end of the training."""
        own = self.stages[self.stage_index(step, total)].losses if self.stages else {}
        return {name: own.get(name, weight) for name, weight in default.items()}

    def uses(self, loss: str) -> bool:
        """Whether a stage gives the loss a weight above 0."""
        return any(stage.losses.get(loss, 0) > 0 for stage in self.stages)


def _stage(stage_index: int, stage: Stage | Mapping[str, Any]) -> Stage:
    if isinstance(stage, Stage):
        return stage
    for key in stage:
        require(
            key in KEYS, f"stages.{stage_index}.{key} is no key of a stage{did_you_mean(key, list(KEYS), 'the keys')}"
        )
    require("share" in stage, f"stages.{stage_index}.share must be given")
    try:
        return Stage(**stage)
    except ValueError as error:
        raise ValueError(f"stages.{stage_index}.{error}") from error

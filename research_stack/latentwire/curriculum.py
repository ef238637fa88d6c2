"""A curriculum: how many slots are sent and what each loss counts, stage after stage, as a function of the step alone.

Slots are ordered, and a stage sends the first shared ones and the private ones, so no weight changes its shape from
stage to stage, and a run goes on at any step, also across the end of a stage, as if it had not been interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research_stack.config.hints import did_you_mean
from research_stack.require import require

KEYS = ("share", "slots", "losses")


class Stage:
    """A part of the training.

    - share: of all optimizer steps, in (0, 1]. slots: that are sent, the private ones included; null: all of the
      method's.
    - losses: weights by the names of the losses, in the place of their own; losses that are not named keep theirs.
    """

    def __init__(self, share: float, slots: int | None = None, losses: dict[str, float] | None = None) -> None:
        require(0 < share <= 1, f"share={share} must lie in (0, 1]")
        require(slots is None or slots >= 1, f"slots={slots} must be at least 1")
        self.share, self.slots, self.losses = share, slots, dict(losses or {})
        for name, weight in self.losses.items():
            require(weight >= 0, f"losses.{name}={weight} must not be negative")


class Curriculum:
    """Stages in their order; none: everything stays as the method says.

    Raises ValueError, opening with `stages`, for shares that do not add up to 1.
    """

    def __init__(self, stages: Sequence[Stage | Mapping[str, Any]] | None = None) -> None:
        self.stages = [_stage(number, stage) for number, stage in enumerate(stages or ())]
        total = sum(stage.share for stage in self.stages)
        require(
            not self.stages or abs(total - 1) < 1e-6,
            f"stages={[stage.share for stage in self.stages]} must have shares that add up to 1, not {total:g}",
        )

    def __len__(self) -> int:
        return len(self.stages)

    def bind(self, losses: Mapping[str, float], slots: int, private: int) -> Curriculum:
        """Itself, checked against the method: the losses' names, slots at most and how many of them are private."""
        for number, stage in enumerate(self.stages):
            for name in stage.losses:
                require(
                    name in losses,
                    f"stages.{number}.losses.{name} is no loss{did_you_mean(name, list(losses), 'the losses')}",
                )
            sent = slots if stage.slots is None else stage.slots
            require(
                private < sent <= slots,
                f"stages.{number}.slots={sent} must be more than private={private} and at most slots={slots}",
            )
            require(
                any((dict(losses) | stage.losses).values()),
                f"stages.{number}.losses={stage.losses} must leave a loss with a weight above 0",
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

    def number(self, step: int | None, total: int) -> int:
        """The stage of a step (0-based); the last one for None and for steps behind the end. Raises ValueError without
        stages.
        """
        require(len(self) > 0, "stages=null: there is no stage")
        return len(self) - 1 if step is None else min(sum(step >= end for end in self.ends(total)), len(self) - 1)

    def slots(self, step: int | None, total: int, default: int) -> int:
        """How many are sent in a step; None: at the end of the training."""
        own = self.stages[self.number(step, total)].slots if self.stages else None
        return default if own is None else own

    def weights(self, step: int | None, total: int, default: Mapping[str, float]) -> dict[str, float]:
        """What each loss counts in a step, in the order of `default`; None: at the end of the training."""
        own = self.stages[self.number(step, total)].losses if self.stages else {}
        return {name: own.get(name, weight) for name, weight in default.items()}

    def uses(self, loss: str) -> bool:
        """Whether a stage gives the loss a weight above 0."""
        return any(stage.losses.get(loss, 0) > 0 for stage in self.stages)


def _stage(number: int, stage: Stage | Mapping[str, Any]) -> Stage:
    if isinstance(stage, Stage):
        return stage
    for key in stage:
        require(key in KEYS, f"stages.{number}.{key} is no key of a stage{did_you_mean(key, list(KEYS), 'the keys')}")
    require("share" in stage, f"stages.{number}.share must be given")
    try:
        return Stage(**stage)
    except ValueError as error:
        raise ValueError(f"stages.{number}.{error}") from error

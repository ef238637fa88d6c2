"""Several rewards as one: a weighted sum whose parts can be told apart in the logs. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from research_stack.posttraining.rewards.base import Reward, call_reward
from research_stack.require import require


class Composite:
    """The weighted sum of named rewards.

    - rewards: by name; the names are those of the logs. weights: {name: weight}, 1 where there is none; negative ones
      penalise.
    """

    name = "composite"

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float] | None = None) -> None:
        weights = dict(weights or {})
        require(len(rewards) > 0, "rewards={} must hold at least one reward")
        require(set(weights) <= set(rewards), f"weights={weights} must name rewards; there are {', '.join(rewards)}")
        require(all(math.isfinite(weight) for weight in weights.values()), f"weights={weights} must be finite")
        self.rewards = dict(rewards)
        self.weights = {name: float(weights.get(name, 1.0)) for name in rewards}

    def check(self) -> None:
        """Each reward's own check, with its name in front of what it says."""
        for name, reward in self.rewards.items():
            try:
                reward.check()
            except ValueError as error:
                raise ValueError(f"rewards.{name}.{error}") from error

    def parts(self, prompts: Sequence[str], completions: Sequence[str]) -> dict[str, np.ndarray]:
        """{name: (n,) float64} what each reward says, unweighted. Raises RewardError as `call_reward` does."""
        return {name: call_reward(reward, prompts, completions) for name, reward in self.rewards.items()}

    def total(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n,) float64: the weighted sum of what `parts` gave."""
        return np.asarray(sum((self.weights[name] * values_n for name, values_n in parts.items()), start=np.float64(0)))

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """(n,) float64: the weighted sum."""
        return self.total(self.parts(prompts, completions))


def score(
    reward: Reward, prompts: Sequence[str], completions: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """((n,) float64 rewards, {name: (n,)} of the parts), each part computed once; a reward without parts is its own
    only part.

    Raises RewardError as `call_reward` does.
    """
    if isinstance(reward, Composite):
        parts = reward.parts(prompts, completions)
        return reward.total(parts), parts
    values_n = call_reward(reward, prompts, completions)
    return values_n, {reward.name: values_n}


def mean_of_parts(parts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{name: mean} of each part, for the log; NaN without a completion."""
    return {name: float(values_n.mean()) if len(values_n) else math.nan for name, values_n in parts.items()}

"""What a policy's answers to fixed prompts are like: how often correct, how many unique correct ones, how diverse, how
sure the policy is.

Numbers are per prompt first and then averaged with an interval over prompts. Diversity is measured over all answers and
over the correct ones, since garbage is diverse. What is not defined (the diversity of fewer than two correct answers,
say) is left out and counted, never taken for 0; a measure that fails raises.

Shapes: P prompts, N answers to each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from research_stack.data.sources.arithmetic import OPERATORS, operators
from research_stack.data.tokenizers import Codec
from research_stack.metrics import diversity
from research_stack.metrics.passk import EVERYWHERE, SHARE, Band, over_prompts, pass_at_k
from research_stack.posttraining.rewards.base import Reward
from research_stack.posttraining.rollout import Rollouts
from research_stack.posttraining.scored_completions import ScoredCompletions, generate_and_score
from research_stack.require import require
from research_stack.streams import generator

if TYPE_CHECKING:
    from research_stack.backbones.sentence import SentenceEncoder
    from research_stack.posttraining.policy import Policy

CORRECT = 1.0  # an answer whose reward is at least that is correct
MAX_BATCH = 1024  # answers that are drawn at once
#: where a mean can lie, so that no interval goes further; by the metric's name without `@k` and `_correct`
BOUNDS = {
    "pass": SHARE,
    "preference_pass": SHARE,
    "distinct": (0.0, np.inf),
    "self_bleu": (0.0, 100.0),
    "semantic_distance": (0.0, 2.0),
    "entropy": (0.0, np.inf),
    **{f"distinct_{n}": SHARE for n in (1, 2, 3)},
}


@dataclass
class Measurement:
    """Numbers of a policy.

    - bands: mean over prompts with its interval, by name. per_prompt: the values themselves, (P,) each, NaN where
      undefined.
    - texts, correct_PN: the answers by prompt, and which are correct.
    """

    bands: dict[str, Band]
    per_prompt: dict[str, np.ndarray]
    texts: list[list[str]] = field(default_factory=list)
    correct_PN: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))

    def as_json(self) -> dict[str, Any]:
        """Bands and values as JSON's own types; NaN is null."""
        return {
            "metrics": {
                name: {key: _plain(value) for key, value in band._asdict().items()} for name, band in self.bands.items()
            },
            "per_prompt": {name: [_plain(value) for value in values] for name, values in self.per_prompt.items()},
        }


def bounds_of(name: str) -> tuple[float, float]:
    """Where the mean of a metric can lie."""
    return BOUNDS.get(name.partition("@")[0].removesuffix("_correct"), EVERYWHERE)


def _plain(value: float) -> float | int | None:
    return None if not np.isfinite(value) else int(value) if isinstance(value, int | np.integer) else float(value)


class OperatorSets:
    """A hidden preference among correct expressions: that they use exactly these operators; every set of at most
    `max_operators` of them is asked for.
    """

    def __init__(self, max_operators: int = 2) -> None:
        require(1 <= max_operators <= 4, f"max_operators={max_operators} must lie in 1 .. 4")
        self.wanted = [
            frozenset(chosen) for count in range(1, max_operators + 1) for chosen in combinations(OPERATORS, count)
        ]

    def __call__(self, text: str) -> Hashable:
        """What the text would satisfy."""
        return operators(text)


class AnswerMetrics:
    """What is measured of N answers to each prompt.

    - reward: an answer is correct when it gets at least 1. rollouts: how answers are drawn; they are drawn alike at
      every call.
    - num_generations: N. ks: of pass@k, at most N. unit: of n-grams, `word` or `char` (for texts without spaces).
    - encoder: of texts, for the distance of meanings; None: not measured.
    - preference: a hidden one among correct answers: the chance that max(ks) answers hold a correct one that satisfies
      it, mean over all of its kind.
    """

    #: See research_stack.config.smoke.
    smoke = {"num_generations": 8, "ks": [1, 8]}

    def __init__(
        self,
        reward: Reward,
        rollouts: Rollouts,
        num_generations: int = 32,
        ks: Sequence[int] = (1, 8, 32),
        unit: Literal["word", "char"] = "word",
        encoder: SentenceEncoder | None = None,
        preference: OperatorSets | None = None,
    ) -> None:
        require(num_generations >= 2, f"num_generations={num_generations} must be at least 2")
        require(num_generations <= 100_000, f"num_generations={num_generations} must be at most 100,000")
        require(
            len(ks) >= 1 and min(ks) >= 1 and max(ks) <= num_generations,
            f"ks={ks} must lie in 1 .. num_generations={num_generations}",
        )
        reward.check()
        self.reward, self.rollouts, self.num_generations, self.ks = reward, rollouts, num_generations, list(ks)
        self.unit: Literal["word", "char"] = unit
        self.encoder, self.preference = encoder, preference

    def __call__(self, policy: Policy, codec: Codec, prompts: Sequence[Tensor], seed: int) -> Measurement:
        """Draw and measure; the same seed and policy give the same answers.

        Raises ValueError in one line without prompts, for a prompt that does not fit, and when the reward breaks its
        contract.
        """
        require(len(prompts) >= 1, "prompts must hold at least one prompt")
        u_PNT = torch.rand(
            (len(prompts), self.num_generations, self.rollouts.max_completion_length),
            generator=generator(seed, "measures"),
        ).to(policy.device)
        at_once = max(1, MAX_BATCH // self.num_generations)
        parts = [
            self._answered(policy, codec, prompts[start : start + at_once], u_PNT[start : start + at_once])
            for start in range(0, len(prompts), at_once)
        ]
        texts = [group for found, _ in parts for group in found.texts]
        reward_PN = np.concatenate([found.reward_PN.cpu().numpy() for found, _ in parts])
        entropy_P = np.concatenate([entropy for _, entropy in parts])
        values = self.values(texts, reward_PN) | {"entropy": entropy_P}
        return Measurement(
            {name: over_prompts(value_P, bounds_of(name)) for name, value_P in values.items()},
            values,
            texts,
            reward_PN >= CORRECT,
        )

    def _answered(
        self, policy: Policy, codec: Codec, prompts: Sequence[Tensor], u_PNT: Tensor
    ) -> tuple[ScoredCompletions, np.ndarray]:
        """ScoredCompletions, and per prompt the mean entropy in nats of the distribution of a token, exact from the
        logits, over the tokens of its answers.
        """
        found = generate_and_score(policy, codec, self.rollouts, self.reward, prompts, u_PNT)
        rows = found.rollout
        with policy.eval_mode():
            scores = policy.completion_logps(
                rows.tokens_BL, rows.prompt_length_B, rows.completion_length_B, self.rollouts.temperature
            )
        sums_PN = scores.entropy_BT.sum(1).view(len(prompts), -1)
        entropy_P = sums_PN.sum(1) / rows.completion_length_B.view(len(prompts), -1).sum(1)
        return found, entropy_P.double().cpu().numpy()

    def values(self, texts: Sequence[Sequence[str]], reward_PN: np.ndarray) -> dict[str, np.ndarray]:
        """{name: (P,)} of given answers."""
        correct_PN = reward_PN >= CORRECT
        correct = [
            [text for text, good in zip(group, flags, strict=True) if good]
            for group, flags in zip(texts, correct_PN, strict=True)
        ]
        count_P = correct_PN.sum(1)
        found = {f"pass@{k}": pass_at_k(self.num_generations, count_P, k) for k in self.ks}
        k = max(self.ks)
        found |= {
            "reward": reward_PN.mean(1),
            f"unique_correct@{k}": np.array([self.unique_among(group, k) for group in correct]),
        }
        found |= {f"unique@{k}": np.array([self.unique_among(group, k) for group in texts])}
        found |= {
            f"{name}{suffix}": _each(measure, of)
            for suffix, of in (("", texts), ("_correct", correct))
            for name, measure in self._ngrams().items()
        }
        if self.encoder is not None:
            found["semantic_distance"] = self._semantic(texts)
        if self.preference is not None:
            found[f"preference_pass@{k}"] = np.array([self._satisfied(group, k) for group in correct])
        return found

    def unique_among(self, texts: Sequence[str], k: int) -> float:
        """How many different ones of these texts k of the N answers hold on average: sum over unique answers of the
        chance that one is there.
        """
        times = np.bincount(diversity.kinds(texts)) if texts else np.zeros(0, dtype=np.int64)
        return float(pass_at_k(self.num_generations, times, k).sum())

    def _ngrams(self) -> Mapping[str, Callable[[Sequence[str]], float]]:
        unit = self.unit
        return {
            "self_bleu": lambda texts: diversity.self_bleu(texts, unit),
            "distinct_1": lambda texts: diversity.distinct_n(texts, 1, unit),
            "distinct_2": lambda texts: diversity.distinct_n(texts, 2, unit),
            "distinct_3": lambda texts: diversity.distinct_n(texts, 3, unit),
        }

    def _semantic(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Mean cosine distance of the meanings of two answers."""
        assert self.encoder is not None
        vectors = self.encoder.embed([text for group in texts for text in group])
        return _each(diversity.mean_cosine_distance, np.split(vectors, np.cumsum([len(group) for group in texts])[:-1]))

    def _satisfied(self, correct: Sequence[str], k: int) -> float:
        """The chance that k answers hold a correct one that satisfies a preference, mean over the preferences."""
        assert self.preference is not None
        times = Counter(self.preference(text) for text in correct)
        return float(np.mean(pass_at_k(self.num_generations, [times[wanted] for wanted in self.preference.wanted], k)))


def _each(measure: Callable[[Any], float], groups: Sequence[Sized], min_texts: int = 2) -> np.ndarray:
    """(P,): the measure of each group; NaN where it has fewer than `min_texts`."""
    return np.array([float(measure(group)) if len(group) >= min_texts else np.nan for group in groups])

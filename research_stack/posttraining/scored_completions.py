"""Completions of prompts with their texts and their rewards: the one way that training, validation and
measurement get them.

Shapes: P prompts, N completions of each, T tokens of a completion at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from research_stack.data.packing import PackedRows
from research_stack.data.tokenizers import Codec
from research_stack.metrics.diversity import cosine_distances, kinds
from research_stack.posttraining.rewards.base import Reward
from research_stack.posttraining.rewards.composite import score
from research_stack.posttraining.rollout import Completions, Rollouts

if TYPE_CHECKING:
    from research_stack.backbones.sentence import SentenceEncoder
    from research_stack.posttraining.policy import Policy


@dataclass
class ScoredCompletions:
    """N completions of each of P prompts: their ids, their texts by prompt, and their rewards.

    - parts: what the parts of a composite reward give, float64 arrays by name; those of groups that were replaced
      included.
    """

    rollout: Completions
    texts: list[list[str]]
    reward_PN: Tensor
    parts: dict[str, np.ndarray]

    @property
    def zero_std_P(self) -> Tensor:
        """(P,) whether all rewards of a group are equal."""
        return (self.reward_PN == self.reward_PN[:, :1]).all(1)

    def replaced(self, out: Sequence[int], new: ScoredCompletions, into: Sequence[int], pad: int) -> ScoredCompletions:
        """These groups with those at `out` replaced by the groups of `new` at `into`."""
        group, count = self.reward_PN.shape[1], len(self.texts)
        order = list(range(count))
        for index, source in zip(out, into, strict=True):
            order[index] = count + source
        index_P = torch.tensor(order, device=self.reward_PN.device)
        index_B = (index_P.unsqueeze(1) * group + torch.arange(group, device=index_P.device)).flatten()
        both = ScoredCompletions.joined([self, new], pad)
        texts = [both.texts[index] for index in order]
        return ScoredCompletions(both.rollout.take(index_B), texts, both.reward_PN[index_P], both.parts)

    @staticmethod
    def joined(parts: Sequence[ScoredCompletions], pad: int) -> ScoredCompletions:
        """ScoredCompletions to some prompts and to others, as one."""
        if len(parts) == 1:
            return parts[0]
        return ScoredCompletions(
            Completions.joined([part.rollout for part in parts], pad),
            [group for part in parts for group in part.texts],
            torch.cat([part.reward_PN for part in parts]),
            {name: np.concatenate([part.parts[name] for part in parts]) for name in parts[0].parts},
        )

    def answer_ids(self) -> Tensor:
        """(P, N) int64: which answers of a group are the same text."""
        return torch.from_numpy(np.stack([kinds(group) for group in self.texts])).to(self.reward_PN.device)


def generate_and_score(
    policy: Policy, codec: Codec, rollouts: Rollouts, reward: Reward, prompts: Sequence[Tensor], u_PNT: Tensor
) -> ScoredCompletions:
    """Draw completions from the policy, without gradients and dropout, and reward them.

    - prompts: P vectors of ids. u_PNT: uniform numbers in [0, 1).

    Raises ValueError in one line when a prompt does not fit the model or the reward breaks its contract.
    """
    with policy.writing(), policy.eval_mode():
        rollout = rollouts(policy.model, policy.vocab, policy.bias_V, prompts, u_PNT)
    count = u_PNT.shape[1]
    flat = [codec.decode(ids) for ids in rollout.completions(policy.vocab)]
    asked = [text for text in (codec.decode(prompt.tolist()) for prompt in prompts) for _ in range(count)]
    values, parts = score(reward, asked, flat)
    reward_PN = torch.from_numpy(values).to(u_PNT.device).view(len(prompts), count)
    return ScoredCompletions(
        rollout, [flat[start : start + count] for start in range(0, len(flat), count)], reward_PN, parts
    )


def distances(texts: Sequence[Sequence[str]], encoder: SentenceEncoder) -> Tensor:
    """(P, N, N) cosine distances of the meanings of the answers of each group."""
    vectors = encoder.embed([text for group in texts for text in group])
    return torch.from_numpy(np.stack([cosine_distances(group) for group in np.split(vectors, len(texts))]))


def prompts_of(batch: dict[str, Tensor]) -> list[Tensor]:
    """The prompt of each row as ids; of a packed row that of its first pair."""
    given = batch["prompt"] & (batch["seq_idx"] == 0) if "seq_idx" in batch else batch["prompt"]
    return [tokens[mask] for tokens, mask in zip(batch["tokens"], given, strict=True)]


def unique_prompts(rows: PackedRows, max_prompts: int | None = None) -> list[Tensor]:
    """The different prompts of some rows as int64 ids, in the order they come, at most so many of them, spread
    evenly.
    """
    arrays = rows.arrays()
    batch = {name: torch.from_numpy(arrays[name]) for name in ("tokens", "prompt", "seq_idx") if name in arrays}
    found = list({tuple(prompt.tolist()): prompt for prompt in prompts_of(batch) if len(prompt)}.values())
    if max_prompts is None or max_prompts >= len(found):
        return found
    return [found[index * len(found) // max_prompts] for index in range(max_prompts)]

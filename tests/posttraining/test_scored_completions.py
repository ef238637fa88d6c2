"""Completions with their texts and rewards: by prompt, in order, and with groups replaced by others."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from research_stack.data.batches import batch_of
from research_stack.data.module import TokenData
from research_stack.data.sources.expressions import Expressions
from research_stack.data.tokenizers import Bytes
from research_stack.posttraining.policy import Policy
from research_stack.posttraining.rollout import Completions, Rollouts
from research_stack.posttraining.scored_completions import (
    ScoredCompletions,
    distances,
    generate_and_score,
    prompts_of,
    unique_prompts,
)
from research_stack.training.optimization import Optimization

PROMPTS = [torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3, 4, 5])]


class Asked:
    """Remembers what it was given; the worth is the number of letters, plus a hundred per letter of the prompt."""

    name = "asked"

    def __call__(self, prompts, completions):
        self.pairs = list(zip(prompts, completions, strict=True))
        return np.array([len(text) + 100.0 * len(prompt) for prompt, text in self.pairs])


@pytest.fixture
def policy(backbone, codec, alone):
    return alone(Policy(backbone(), codec.vocab, Optimization(), seed=1))


def drawn(policy, codec, prompts=PROMPTS, count=4, seed=0):
    reward = Asked()
    u = torch.rand(len(prompts), count, 5, generator=torch.Generator().manual_seed(seed))
    return generate_and_score(policy, codec, Rollouts(5), reward, prompts, u), reward


def test_each_prompt_has_its_own_completions_and_their_rewards(policy, codec):
    found, reward = drawn(policy, codec)
    assert [prompt for prompt, _ in reward.pairs] == ["ab"] * 4 + ["c"] * 4 + ["def"] * 4
    assert [text for _, text in reward.pairs] == [text for group in found.texts for text in group]
    assert found.reward_PN.tolist() == [
        [len(text) + 100.0 * len(prompt) for text in group]
        for prompt, group in zip(("ab", "c", "def"), found.texts, strict=True)
    ]
    for row, (prompt, text) in enumerate(reward.pairs):
        width, made = int(found.rollout.prompt_length_B[row]), int(found.rollout.completion_length_B[row])
        assert (
            codec.decode(found.rollout.tokens_BL[row, :width].tolist()) == prompt
            and codec.decode(found.rollout.tokens_BL[row, width : width + made].tolist()) == text
        )
    assert not found.rollout.tokens_BL.requires_grad and set(found.parts) == {"asked"} or len(found.parts) <= 1


def test_kinds_are_equal_texts_within_a_prompt(policy, codec):
    found, _ = drawn(policy, codec, count=12)
    answer_id_PN = found.answer_ids()
    for group, kinds in zip(found.texts, answer_id_PN.tolist(), strict=True):
        assert [[a == b for b in kinds] for a in kinds] == [[a == b for b in group] for a in group]


def test_distances_are_within_a_prompt(policy, codec):
    class Lengths:
        def embed(self, texts):
            return np.array([[np.cos(len(text)), np.sin(len(text))] for text in texts])

    found, _ = drawn(policy, codec)
    distance_PNN = distances(found.texts, Lengths())
    expected = [[[1 - np.cos(len(a) - len(b)) for b in group] for a in group] for group in found.texts]
    assert (
        distance_PNN.shape == (3, 4, 4)
        and np.allclose(distance_PNN.numpy(), expected, atol=1e-12)
        and distance_PNN.any()
    )


def test_replaced_groups_carry_everything_of_theirs(policy, codec):
    old, _ = drawn(policy, codec)
    new, _ = drawn(policy, codec, [torch.tensor([6, 7, 8, 6]), torch.tensor([8])], seed=1)
    found = old.replaced([2, 0], new, [0, 1], pad=codec.vocab.pad)
    assert found.texts == [new.texts[1], old.texts[1], new.texts[0]]
    assert torch.equal(found.reward_PN, torch.stack([new.reward_PN[1], old.reward_PN[1], new.reward_PN[0]]))
    spelled = [
        codec.decode(row[:width].tolist())
        for row, width in zip(found.rollout.tokens_BL, found.rollout.prompt_length_B.tolist(), strict=True)
    ]
    assert spelled == ["i"] * 4 + ["c"] * 4 + ["ghig"] * 4
    assert [codec.decode(ids) for ids in found.rollout.completions(codec.vocab)] == [
        text for group in found.texts for text in group
    ]
    assert old.replaced([], new, [], pad=codec.vocab.pad).texts == old.texts


def test_groups_whose_rewards_are_all_equal():
    rollout = Completions(*(torch.zeros(6, dtype=torch.int64) for _ in range(4)))
    found = ScoredCompletions(rollout, [["a"] * 2] * 3, torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), {})
    assert found.zero_std_P.tolist() == [True, False, True]


# ------------------------------------------------------------------------------------------------------- prompts
def test_different_prompts_come_once_in_their_order(tmp_path_factory):
    for pack in (False, True):
        tmp_path = tmp_path_factory.mktemp("case")
        data = TokenData(
            Expressions(high=12, answers=4),
            Bytes(),
            28 if pack else 14,
            batch_size=4,
            cache_dir=str(tmp_path),
            pack=pack,
        )
        data.prepare()
        texts = [data.codec.decode(prompt.tolist()) for prompt in unique_prompts(data.train)]
        first = [data.codec.decode(prompt.tolist()) for prompt in prompts_of(batch_of(data.train.take(slice(None))))]
        assert (
            texts == list(dict.fromkeys(first))
            and len(texts) == len(set(texts))
            and all(text.endswith("=") and text.count("=") == 1 for text in texts)
        )
        if not pack:
            assert len(texts) + len(unique_prompts(data.validation)) == 12
            few = [data.codec.decode(prompt.tolist()) for prompt in unique_prompts(data.train, 4)]
            assert few == [texts[place * len(texts) // 4] for place in range(4)] and len(set(few)) == 4
            assert [len(unique_prompts(data.train, most)) for most in (1, len(texts), 1000)] == [
                1,
                len(texts),
                len(texts),
            ]


def test_rows_without_a_prompt_have_none():
    rows = SimpleNamespace(
        arrays=lambda: {"tokens": np.ones((5, 4), dtype=np.int64), "prompt": np.zeros((5, 4), dtype=bool)}
    )
    assert unique_prompts(rows) == [] == unique_prompts(rows, 3)

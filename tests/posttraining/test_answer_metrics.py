"""What is measured of answers, against enumeration over subsets, texts whose numbers are known, and laws written
out.
"""

import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from research_stack.metrics import diversity
from research_stack.posttraining import answer_metrics
from research_stack.posttraining.answer_metrics import AnswerMetrics, OperatorSets
from research_stack.posttraining.policy import Policy
from research_stack.posttraining.rewards.base import RewardError
from research_stack.posttraining.rollout import Rollouts
from research_stack.training.optimization import Optimization

T = ["the cat sat on the mat", "the cat sat on the mat", "a dog ran in the park", "the cat lay on the mat"]
SUMS = ["1+1", "2*1", "1+1", "4-2", "3", "2+2", "1+0+1", "8/4"]  # of "2=": which are right is said by hand below
RIGHT = np.array([1, 1, 1, 1, 0, 0, 1, 1], dtype=float)


class Vowels:
    """1 for a text that has an a and an e, else the share of them that it has."""

    name = "vowels"

    def check(self):
        """Nothing."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        return np.array([("a" in text) / 2 + ("e" in text) / 2 for text in completions])


class Encoder:
    """Vectors of the first letter."""

    def embed(self, texts):
        at = {"a": [1.0, 0], "b": [0, 1.0], "c": [-1.0, 0]}
        return np.array([at[text[0]] for text in texts])


def made(num_generations=8, ks=(1, 2, 4), **options):
    return AnswerMetrics(
        options.pop("reward", Vowels()), options.pop("rollouts", Rollouts(5)), num_generations, ks, **options
    )


def subsets(measure, items, k):
    """The mean of a measure over all subsets of k."""
    return float(
        np.mean([measure([items[i] for i in chosen]) for chosen in itertools.combinations(range(len(items)), k)])
    )


# ------------------------------------------------------------------------------------------------- known values
@pytest.mark.exact
def test_every_number_of_given_answers():
    """Two prompts, one of which has no right answer."""
    found = made(preference=OperatorSets(2)).values([SUMS, ["7"] * 8], np.stack([RIGHT, np.zeros(8)]))
    right = [text for text, good in zip(SUMS, RIGHT, strict=True) if good]
    assert found["reward"].tolist() == [0.75, 0] and found["pass@1"].tolist() == [0.75, 0]
    flags = list(RIGHT > 0)
    assert found["pass@2"] == pytest.approx([subsets(any, flags, 2), 0], abs=1e-12) and found[
        "pass@4"
    ] == pytest.approx([1, 0], abs=1e-12)
    pairs = list(zip(SUMS, flags, strict=True))
    assert found["unique_correct@4"] == pytest.approx(
        [subsets(lambda chosen: len({t for t, good in chosen if good}), pairs, 4), 0], abs=1e-12
    )
    assert found["unique@4"] == pytest.approx([subsets(lambda chosen: len(set(chosen)), SUMS, 4), 1], abs=1e-12)
    wanted = OperatorSets(2).wanted
    assert len(wanted) == 10 and set(map(len, wanted)) == {1, 2}

    def satisfied(chosen):
        return np.mean(
            [any(good and frozenset(text) & set("+-*/") == set(sign) for text, good in chosen) for sign in wanted]
        )

    assert (
        found["preference_pass@4"] == pytest.approx([subsets(satisfied, pairs, 4), 0], abs=1e-12)
        and 0 < found["preference_pass@4"][0] < 0.4
    )
    assert found["self_bleu_correct"][0] == diversity.self_bleu(right, "word") and math.isnan(
        found["self_bleu_correct"][1]
    )
    assert (
        found["distinct_1"] == pytest.approx([7 / 8, 1 / 8])
        and math.isnan(found["distinct_1_correct"][1])
        and found["distinct_1_correct"][0] == pytest.approx(5 / 6)
    )


@pytest.mark.exact
def test_the_vectors_of_the_definitions():
    found = made(4, (1, 4)).values([T], np.ones((1, 4)))
    for suffix in ("", "_correct"):
        assert found[f"self_bleu{suffix}"][0] == pytest.approx(61.527120542, abs=1e-8)
        assert [found[f"distinct_{n}{suffix}"][0] for n in (1, 2, 3)] == pytest.approx(
            [0.458333, 0.6, 0.6875], abs=1e-6
        )
    assert found["unique@4"][0] == found["unique_correct@4"][0] == 3
    assert made(4, (1, 4), unit="char").values([T], np.ones((1, 4)))["distinct_1"][0] == pytest.approx(
        len(set("".join(T))) / len("".join(T))
    )
    vectors = made(4, (1, 4), encoder=Encoder()).values([["a", "a", "b", "c"]], np.ones((1, 4)))["semantic_distance"]
    assert vectors == pytest.approx([1.1666667], abs=1e-7)


@pytest.mark.exact
def test_unique_correct_is_unbiased():
    """Over all samples of 4 answers the estimate from 4 has the mean of what 2 fresh ones hold."""
    law, worth = {"ae": 0.5, "aei": 0.3, "x": 0.2}, {"ae": True, "aei": True, "x": False}
    m, total = made(4, (1, 2)), 0.0
    for sample in itertools.product(law, repeat=4):
        found = m.values([list(sample)], np.array([[float(worth[text]) for text in sample]]))
        total += math.prod(law[text] for text in sample) * found["unique_correct@2"][0]
    assert total == pytest.approx(sum(1 - (1 - p) ** 2 for text, p in law.items() if worth[text]), abs=1e-12)


def test_what_one_correct_answer_or_none_leaves_open_is_not_taken_for_zero():
    texts = [["a b", "c d", "e f", "g h"]] * 3
    found = made(4, (1, 2)).values(texts, np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0.0] * 4]))
    for name in ("self_bleu_correct", "distinct_1_correct", "distinct_2_correct", "distinct_3_correct"):
        assert np.isnan(found[name][1:]).all(), name
    assert (
        found["distinct_1_correct"][0] == 1 and np.isnan(found["distinct_3_correct"]).all()
    )  # two words have no three-gram
    assert found["unique_correct@2"].tolist() == pytest.approx([1, 0.5, 0]) and found[
        "pass@2"
    ].tolist() == pytest.approx([5 / 6, 0.5, 0])
    assert not np.isnan(found["self_bleu"]).any()


def test_an_answer_is_correct_from_one_on():
    found = made(4, (1,)).values([["a", "b", "c", "d"]], np.array([[0.999, 1.0, 1.5, -3.0]]))
    assert (
        found["pass@1"][0] == 0.5
        and found["reward"][0] == pytest.approx((0.999 + 1 + 1.5 - 3) / 4)
        and found["unique_correct@1"][0] == 0.5
    )


# ------------------------------------------------------------------------------------------------------ a policy
@pytest.fixture
def policy(backbone, codec, alone):
    """A policy over letters, in float64."""
    return alone(Policy(backbone(), codec.vocab, Optimization(), seed=1))


PROMPTS = [torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3, 4, 5])]


@pytest.mark.exact
def test_the_entropy_is_that_of_the_laws_of_the_tokens_that_were_written(policy, codec, naive_laws):
    for temperature in (1.0, 0.6):
        with pytest.MonkeyPatch.context() as monkeypatch:
            kept, generate_and_score = [], answer_metrics.generate_and_score
            monkeypatch.setattr(
                answer_metrics, "generate_and_score", lambda *a: kept.append(generate_and_score(*a)) or kept[-1]
            )
            found = made(num_generations=4, rollouts=Rollouts(5, temperature=temperature))(policy, codec, PROMPTS, 3)
            rows = kept[0].rollout
            entropies = [
                entropy
                for _, entropy in naive_laws(
                    policy.model, rows.tokens_BL, rows.prompt_length_B, rows.completion_length_B, temperature
                )
            ]
            expected = [float(torch.cat(entropies[start : start + 4]).mean().detach()) for start in (0, 4, 8)]
            assert (
                found.per_prompt["entropy"] == pytest.approx(expected, abs=1e-6)
                and 0 < min(expected)
                and max(expected) < math.log(10)
            )
            assert len({len(entropy) for entropy in entropies}) > 1, (
                "answers differ in length, so that a mean over tokens is not one over answers"
            )
            assert found.bands["entropy"].value == pytest.approx(np.mean(expected), abs=1e-6)


def test_rewards_texts_and_flags_belong_together(policy, codec):
    found = made(num_generations=16)(policy, codec, PROMPTS, 3)
    assert found.correct_PN.shape == (3, 16) and [len(group) for group in found.texts] == [16] * 3
    expected = np.array([Vowels()([], group) for group in found.texts])
    assert (
        np.array_equal(found.correct_PN, expected >= 1)
        and np.allclose(found.per_prompt["reward"], expected.mean(1))
        and expected.any()
    )
    assert all(band.n + band.undefined == 3 for band in found.bands.values())


def test_the_same_seed_gives_the_same_answers_however_many_are_drawn_at_once(policy, codec, monkeypatch):
    first = made()(policy, codec, PROMPTS, 3)
    again, other = made()(policy, codec, PROMPTS, 3), made()(policy, codec, PROMPTS, 4)
    assert first.texts == again.texts and first.as_json() == again.as_json() and first.texts != other.texts
    for together in (1, 16):
        monkeypatch.setattr(answer_metrics, "MAX_BATCH", together)
        cut = made()(policy, codec, PROMPTS, 3)
        assert cut.texts == first.texts and np.allclose(
            cut.per_prompt["entropy"], first.per_prompt["entropy"], atol=1e-9
        )
    torch.manual_seed(0)
    assert made()(policy, codec, PROMPTS, 3).texts == first.texts


def test_the_policy_is_left_as_it_was(policy, codec):
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    policy.train()
    made()(policy, codec, PROMPTS, 3)
    assert policy.training and all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_a_reward_that_fails_or_breaks_its_contract_raises(policy, codec):
    class Breaks(Vowels):
        def __init__(self, how):
            self.how = how

        def __call__(self, prompts, completions):
            return self.how(completions)

    for how, message in (
        (lambda texts: 1 / 0, "reward=vowels failed on prompt 'ab' and completion .*: ZeroDivisionError"),
        (lambda texts: np.full(len(texts), np.nan), "reward=vowels gave nan"),
        (lambda texts: np.ones(2), r"reward=vowels returned shape \(2,\)"),
    ):
        with pytest.raises(RewardError, match=message):
            made(reward=Breaks(how))(policy, codec, PROMPTS, 3)


def test_a_failing_measure_raises(policy, codec, monkeypatch):
    monkeypatch.setattr(diversity, "self_bleu", lambda texts, unit: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made()(policy, codec, PROMPTS, 3)


def test_no_prompts_and_prompts_without_room_are_one_line(policy, codec):
    with pytest.raises(ValueError, match="^prompts must hold at least one prompt$"):
        made()(policy, codec, [], 3)
    with pytest.raises(
        ValueError, match="^max_completion_length=5 behind a prompt of 14 tokens exceeds model.max_length=16$"
    ):
        made()(policy, codec, [torch.zeros(14, dtype=torch.int64)], 3)


def test_as_json_has_null_where_nothing_is_known():
    m = made(4, (1, 2))
    values = m.values([["a", "b", "c", "d"]], np.zeros((1, 4)))
    found = answer_metrics.Measurement(
        {name: answer_metrics.over_prompts(value) for name, value in values.items()}, values
    ).as_json()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["per_prompt"]["self_bleu_correct"] == [None] and again["metrics"]["self_bleu_correct"] == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
        "undefined": 1,
    }
    assert again["metrics"]["reward"]["value"] == 0.0 and again["metrics"]["reward"]["n"] == 1


# ------------------------------------------------------------------------------------------------------- options
def test_options_that_cannot_be():
    for options, message in (
        ({"num_generations": 1, "ks": (1,)}, "num_generations=1 must be at least 2"),
        ({"ks": (1, 9)}, r"ks=\(1, 9\) must lie in 1 .. num_generations=8"),
        ({"ks": ()}, r"ks=\(\) must lie in 1 .. num_generations=8"),
        ({"ks": (0, 1)}, r"ks=\(0, 1\) must lie in"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            made(**options)


def test_a_reward_that_cannot_work_is_refused_when_it_is_named():
    class Missing(Vowels):
        def check(self):
            raise FileNotFoundError("run=nowhere is no run")

    with pytest.raises(FileNotFoundError, match="run=nowhere"):
        made(reward=Missing())


def test_sets_of_operators():
    assert [len(OperatorSets(most).wanted) for most in (1, 2, 3, 4)] == [4, 10, 14, 15]
    assert OperatorSets()("3*(4+1)") == frozenset("*+") and OperatorSets()("3") == frozenset()
    for most in (0, 5):
        with pytest.raises(ValueError, match=f"^max_operators={most} must lie in 1 .. 4$"):
            OperatorSets(most)

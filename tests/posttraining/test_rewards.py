"""Rewards: the contract, exact expressions, formulas that a batch cannot change, weighted sums."""

import math

import numpy as np
import pytest
import yaml

from research_stack.config.build import build
from research_stack.posttraining.rewards.base import RewardError, call_reward, quoted
from research_stack.posttraining.rewards.composite import Composite, mean_of_parts, score
from research_stack.posttraining.rewards.expressions import ExpressionReward
from research_stack.posttraining.rewards.heuristic import Format, Length, Relevance, Repetition
from research_stack.records.paths import CONF


class Given:
    """Returns what it was given, or calls it."""

    name = "given"

    def __init__(self, result):
        self.result = result

    def check(self):
        raise ValueError("path=nowhere is no folder")

    def __call__(self, prompts, completions):
        return self.result(prompts, completions) if callable(self.result) else self.result


PROMPTS, TEXTS = ["a", "b", "c"], ["x", "y", "z"]


# ------------------------------------------------------------------------------------------------- the contract
@pytest.mark.parametrize(
    "result, message",
    [
        (np.zeros(2), r"returned shape \(2,\) for 3 completions, it must be \(3,\)"),
        (np.zeros((3, 1)), r"returned shape \(3, 1\) for 3 completions"),
        (
            np.array([0.0, np.nan, 1.0]),
            r"gave nan to 1 of 3 completions, the first one 'y' to the prompt 'b'; rewards must be finite",
        ),
        (np.array([0.0, 1.0, -np.inf]), r"gave -inf to 1 of 3 completions, the first one 'z'"),
        ([0.0, 1.0, 2.0], "returned a list, it must return a numpy array"),
        (None, "returned a NoneType"),
        (0.5, "returned a float"),
        (np.array(["1", "2", "3"]), "returned an array of <U1, it must hold real numbers"),
        (np.zeros(3, dtype=complex), "returned an array of complex128"),
        (np.array([1, 2, 3], dtype=object), "returned an array of object"),
    ],
)
def test_a_broken_contract_is_one_line(result, message):
    with pytest.raises(ValueError, match=message) as caught:
        call_reward(Given(result), PROMPTS, TEXTS)
    assert str(caught.value).startswith("reward=given") and "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool])
def test_real_numbers_of_any_type_come_out_as_float64(dtype):
    found = call_reward(Given(np.array([1, 0, 1], dtype=dtype)), PROMPTS, TEXTS)
    assert found.dtype == np.float64 and found.tolist() == [1, 0, 1]


def test_what_is_returned_is_a_copy():
    kept = np.zeros(3)
    call_reward(Given(kept), PROMPTS, TEXTS)[0] = 5
    assert kept[0] == 0


def test_an_error_inside_names_the_pair_it_came_from_and_keeps_its_cause():
    def fails(prompts, completions):
        return np.array([1 / (text != "y") for text in completions])

    with pytest.raises(
        RewardError, match="reward=given failed on prompt 'b' and completion 'y': ZeroDivisionError: division by zero"
    ) as caught:
        call_reward(Given(fails), PROMPTS, TEXTS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_error_of_the_batch_alone_names_the_first_pair():
    def fails(prompts, completions):
        if len(prompts) > 1:
            raise RuntimeError("out of\nmemory")
        return np.zeros(1)

    with pytest.raises(RewardError, match="failed on prompt 'a' and completion 'x': RuntimeError: out of memory"):
        call_reward(Given(fails), PROMPTS, TEXTS)


def test_a_key_press_is_no_failure_of_the_reward():
    def stopped(prompts, completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_reward(Given(stopped), PROMPTS, TEXTS)


def test_prompts_and_completions_must_be_as_many():
    with pytest.raises(RewardError, match="reward=given: 2 prompts came with 3 completions"):
        call_reward(Given(np.zeros(3)), PROMPTS[:2], TEXTS)


def test_no_completions_have_no_rewards():
    assert call_reward(ExpressionReward(), [], []).shape == (0,)
    assert score(Composite({"a": Relevance()}), [], [])[0].shape == (0,)


def test_long_and_broken_texts_are_shown_in_one_short_line():
    assert quoted("a\nb") == r"'a\nb'" and len(quoted("x" * 1000)) == 60 and quoted("x" * 1000).endswith("…")


# -------------------------------------------------------------------------------------------------- expressions
@pytest.mark.parametrize(
    "n, text, worth",
    [
        (13, "3*4+1", 1),
        (13, "13", 0),
        (13, "(13)", 0),
        (13, "12+1+0", 1),
        (13, "1/3*39", 1),
        (13, "(1+12", 0),
        (13, "3*4+2", 0),
        (13, "", 0),
        (13, "13+", 0),
        (13, "12++1", 0),
        (13, "14-1 ", 0),
        (13, "13/0", 0),
        (13, "013+0", 0),
        (13, "1e1+3", 0),
        (13, "__import__('os')", 0),
        (8, "2**3", 0),
        (7, "(15-1)/2", 1),
        (7, "15/2", 0),
        (0, "1-1", 1),
        (3, "2-5", 0),
        (1, "3*(1/3)", 1),
    ],
)
def test_only_a_true_expression_is_worth_something(n, text, worth):
    assert ExpressionReward()([f"{n}="], [text]).tolist() == [worth]


@pytest.mark.parametrize("prompt", ["12", "=", "x=", "12= ", "1.5=", "٣="])
def test_a_prompt_that_asks_for_no_number_is_refused(prompt):
    with pytest.raises(
        RewardError,
        match=r"reward=expressions failed on prompt .* must be a whole number and an equals sign.*data=expressions",
    ):
        call_reward(ExpressionReward(), ["3=", prompt], ["1+2", "1+2"])


# --------------------------------------------------------------------------------------------------- heuristics
@pytest.mark.parametrize("reward, prompt, text, worth", [
    # bake, bread | bake, bread, slowly
    (Relevance(), "How do I bake bread?", "Bake the bread slowly", 2 / math.sqrt(2 * 3)),
    (Relevance(), "How do I bake bread?", "It is what it is", 0),
    (Relevance(), "bread", "BREAD bread bread", 1),
    (Relevance(), "", "bread", 0),
    (Relevance(), "crème brûlée", "Crème!", 1 / math.sqrt(2)),
    (Length(2, 4, 6, 10), "", "a b c", 0.5),
    (Length(2, 4, 6, 10), "", "a b", 0),
    (Length(2, 4, 6, 10), "", "a b c d", 1),
    (Length(2, 4, 6, 10), "", " ".join("abcdefgh"), 0.5),
    (Length(2, 4, 6, 10), "", " ".join("abcdefghijk"), 0),
    (Length(3, 3, 3, 3), "", "a b c", 1),
    (Length(3, 3, 3, 3), "", "a b", 0),
    (Length(0, 5, 5, 10, unit="characters"), "", "3*4", 0.6),
    (Repetition(2), "", "a b a b a", 0.5),  # ab ba ab ba
    (Repetition(1), "", "a a a a", 0.25),
    (Repetition(3), "", "a b", 1),
    (Repetition(1, unit="characters"), "", "aab", 2 / 3),
    (Format(r"[0-9]+"), "", " 12\n", 1),
    (Format(r"[0-9]+"), "", "12 and", 0),
    (Format(r"<a>.*</a>"), "", "<a>two\nlines</a>", 1),
])  # fmt: skip
def test_each_heuristic_is_its_formula(reward, prompt, text, worth):
    assert reward([prompt], [text]) == pytest.approx([worth], abs=1e-12)


@pytest.mark.parametrize(
    "reward",
    [Relevance(), Length(1, 3, 4, 9), Repetition(2), Format("[a-c ]*"), ExpressionReward()],
    ids=lambda reward: reward.name,
)
def test_a_pair_is_worth_the_same_alone_and_in_any_batch(reward):
    rng = np.random.default_rng(0)
    if isinstance(reward, ExpressionReward):
        prompts = [f"{n}=" for n in rng.integers(1, 9, 200)]
        texts = [
            f"{a}{sign}{b}"
            for a, b, sign in zip(
                rng.integers(1, 6, 200), rng.integers(1, 6, 200), rng.choice(list("+-*"), 200), strict=True
            )
        ]
    else:
        prompts, texts = (
            [" ".join(rng.choice(list("abcdef"), rng.integers(0, 12))) for _ in range(200)] for _ in range(2)
        )
    together = call_reward(reward, prompts, texts)
    alone = np.array([call_reward(reward, [p], [t])[0] for p, t in zip(prompts, texts, strict=True)])
    order = rng.permutation(200)
    shuffled = call_reward(reward, [prompts[i] for i in order], [texts[i] for i in order])
    assert np.array_equal(together, alone) and np.array_equal(together[order], shuffled)
    assert together.min() >= 0 and together.max() <= 1 and len(np.unique(together)) > 1


@pytest.mark.parametrize("make, message", [
    (lambda: Length(min_length=5, low=4), "min_length=5 must be at most low=4"),
    (lambda: Length(low=90, high=80), "low=90 must be at most high=80"),
    (lambda: Length(high=200), "high=200 must be at most max_length=160"),
    (lambda: Length(min_length=-1), "min_length=-1 must not be negative"),
    (lambda: Repetition(n=0), "n=0 must be at least 1"),
    (lambda: Repetition(n=10**18), f"n={10**18} must be at most 1000"),
    (lambda: Format("("), r"pattern='\(' must be a regular expression: missing \)"),
    (lambda: Format(""), "pattern='' must not be empty"),
    (lambda: Composite({}), "rewards={} must hold at least one reward"),
    (lambda: Composite({"a": Relevance()}, {"b": 1.0}), "weights={'b': 1.0} must name rewards; there are a"),
    (lambda: Composite({"a": Relevance()}, {"a": math.nan}), "must be finite"),
])  # fmt: skip
def test_wrong_settings_are_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------------------------------- the sum
def test_a_composite_is_the_weighted_sum_and_each_part_is_computed_once():
    calls = []

    def counted(prompts, completions):
        calls.append(len(prompts))
        return np.array([1.0, 2.0, 3.0])

    reward = Composite({"own": Given(counted), "length": Length(0, 1, 1, 2, unit="characters")}, {"own": -2.0})
    total, parts = score(reward, PROMPTS, ["x", "yy", ""])
    assert calls == [3] and list(parts) == ["own", "length"]
    assert parts["own"].tolist() == [1, 2, 3] and parts["length"].tolist() == [1, 0, 0]
    assert total.tolist() == [-1, -4, -6] == reward(PROMPTS, ["x", "yy", ""]).tolist()
    assert mean_of_parts(parts) == {"own": 2.0, "length": pytest.approx(1 / 3)}


def test_a_reward_without_parts_is_its_own_only_part():
    total, parts = score(ExpressionReward(), ["3="], ["1+2"])
    assert total.tolist() == [1] and list(parts) == ["expressions"] and parts["expressions"].tolist() == [1]


def test_a_failure_inside_a_composite_names_the_part_once():
    with pytest.raises(RewardError, match="^reward=expressions failed on prompt 'b'") as caught:
        call_reward(Composite({"sum": Composite({"right": ExpressionReward()})}), ["3=", "b"], ["1+2", "1+2"])
    assert str(caught.value).count("reward=") == 1


def test_the_check_of_a_part_says_where_it_stands():
    with pytest.raises(ValueError, match="^rewards.own.path=nowhere is no folder"):
        Composite({"fine": Relevance(), "own": Given(None)}).check()


def test_the_presets_build_and_work():
    heuristic = build(yaml.safe_load((CONF / "method" / "reward" / "heuristic.yaml").read_text()), "reward")
    heuristic.check()
    good, bad = heuristic(
        ["How do I bake bread?"] * 2,
        [
            "Bake bread slowly in a hot oven, and let it cool on a rack for a while.",
            "no no no no no no no no no no no no",
        ],
    )
    assert good > bad + 0.3
    assert build(yaml.safe_load((CONF / "method" / "reward" / "expressions.yaml").read_text()), "reward")(
        ["3="], ["1+2"]
    ).tolist() == [1]

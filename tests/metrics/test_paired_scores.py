"""Paired comparisons: against enumeration, against scipy."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from research_stack.metrics.paired import compare, over_runs, paired, ratio, sign_flip

numbers = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.25, 0.3, 1.0]), min_size=1, max_size=9)


def scores_of(n=400, seed=0):
    """Two ways with the same hard questions."""
    rng = np.random.default_rng(seed)
    hard_n = rng.random(n)
    return np.clip(hard_n + 0.1 * rng.random(n) + 0.1, 0, 1), hard_n


# ----------------------------------------------------------------------------------------------------- sign flips
@pytest.mark.exact
@given(numbers)
@settings(max_examples=150, deadline=None)
def test_sign_flips_by_enumeration(differences):
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = np.mean([total >= observed - 1e-9 for total in sums])
    assert sign_flip(differences) == pytest.approx(expected, abs=1e-12)


@pytest.mark.exact
def test_right_and_wrong_answers_alone_are_a_binomial_test():
    differences = np.array([1.0] * 11 + [-1.0] * 3 + [0.0] * 400)  # zeros have no sign: exact for any number of them
    assert sign_flip(differences) == pytest.approx(scipy.stats.binomtest(11, 14).pvalue, abs=1e-12)
    many = np.array([1.0] * 40 + [-1.0] * 20)
    assert sign_flip(many, flips=100_000) == pytest.approx(scipy.stats.binomtest(40, 60).pvalue, abs=0.002)


def test_random_flips_are_those_of_scipy_and_repeatable():
    difference_n = np.random.default_rng(0).normal(0.12, 1, size=300)
    expected = scipy.stats.permutation_test(
        (difference_n,), np.mean, permutation_type="samples", n_resamples=10_000, rng=1
    ).pvalue
    found = sign_flip(difference_n, flips=10_000)
    assert found == pytest.approx(expected, abs=0.015) and 0.01 < found < 0.2
    assert sign_flip(difference_n, seed=3) == sign_flip(difference_n, seed=3) != sign_flip(difference_n, seed=4)
    assert sign_flip(np.full(100, 0.1)) == 1 / 10_000  # never 0


def test_flips_in_blocks_are_all_made(monkeypatch):
    monkeypatch.setattr("research_stack.metrics.paired.BLOCK", 7 * 40)
    assert sign_flip(np.full(40, 1.0), flips=100) == 1 / 101
    assert sign_flip(np.resize([1.0, -1.0], 40), flips=100) == 1  # a sum of 0 is never the farther one


def test_questions_of_one_group_flip_together():
    difference_n, group_n = np.array([1.0, 1, 1, -1, 1, 1]), [0, 0, 1, 1, 2, 2]
    assert sign_flip(difference_n, group_n) == 0.5  # totals 2, 0, 2
    assert sign_flip([1.0, -1.0]) == 1 and sign_flip([0.0, 0.0]) == 1


# ------------------------------------------------------------------------------------------------------ intervals
def test_the_difference_is_paired():
    a_n, b_n = scores_of()
    found = paired(a_n, b_n)
    assert found.value == pytest.approx((a_n - b_n).mean()) and found.low < found.value < found.high
    error = (a_n - b_n).std(ddof=1) / math.sqrt(len(a_n))
    assert found.high - found.low == pytest.approx(2 * scipy.stats.t.ppf(0.975, 399) * error)
    assert found[1:] == pytest.approx(tuple(scipy.stats.ttest_rel(a_n, b_n).confidence_interval()))
    apart = math.sqrt(a_n.var() / len(a_n) + b_n.var() / len(b_n))
    assert error < apart / 4  # what the pairing gains here
    assert paired(b_n, a_n) == pytest.approx((-found.value, -found.high, -found.low))


def test_the_ratio_by_hand_and_its_interval():
    a_n, b_n = scores_of()
    found = ratio(a_n, b_n)
    assert found.value == pytest.approx(a_n.mean() / b_n.mean(), rel=1e-12) and found.low < found.value < found.high
    rest_n = a_n - found.value * b_n
    error = rest_n.std(ddof=1) / math.sqrt(len(a_n)) / b_n.mean()  # delta method
    assert (found.high - found.low) / (2 * 1.966 * error) == pytest.approx(1, abs=0.01)
    assert ratio(3 * b_n, b_n) == pytest.approx((3, 3, 3), rel=1e-6)
    turned = ratio(b_n, a_n)
    assert (1 / turned.high, 1 / turned.low) == pytest.approx((found.low, found.high), rel=1e-9)


@pytest.mark.exact
def test_the_ends_of_a_ratio_are_where_the_difference_is_just_told_from_zero():
    a_n, b_n = scores_of(n=40, seed=3)
    group_n = np.arange(40) // 5
    for end in ratio(a_n, b_n, group_n)[1:]:
        assert min(map(abs, paired(a_n, end * b_n, group_n)[1:])) == pytest.approx(0, abs=1e-9)


def test_ratios_with_nothing_below():
    assert ratio(np.ones(9), np.zeros(9)) == (math.inf, math.inf, math.inf)
    assert ratio([1.0, 0.5], [0.0, 0.0]) == (math.inf, 0, math.inf)  # of two questions: who knows
    assert all(map(math.isnan, ratio([0.0, 0.0], [0.0, 0.0])))
    assert ratio(np.zeros(9), 1 + np.arange(9.0)) == (0, 0, 0)
    rare = ratio(np.ones(20), np.eye(20)[0])  # the mean of b may be 0: no ratio is too high
    assert (
        rare.value == pytest.approx(20)
        and rare.low == pytest.approx(20 / (1 + scipy.stats.t.ppf(0.975, 19)))
        and rare.high == math.inf
    )


def test_groups_widen_the_interval():
    a_n, b_n = scores_of(n=100)
    plain = paired(a_n, b_n)
    copies = paired(np.repeat(a_n, 9), np.repeat(b_n, 9), np.repeat(np.arange(100), 9))
    assert copies == pytest.approx(plain, abs=1e-9)  # copies of a question say nothing new
    blind = paired(np.repeat(a_n, 9), np.repeat(b_n, 9))
    assert (plain.high - plain.low) / (blind.high - blind.low) == pytest.approx(3, rel=0.02)


def test_all_at_once_is_each_on_its_own():
    a_n, b_n = scores_of(50)
    group_n = np.arange(50) // 2
    found = compare(a_n, b_n, group_n, seed=5)
    assert found == (paired(a_n, b_n, group_n), ratio(a_n, b_n, group_n), sign_flip(a_n - b_n, group_n, seed=5), 50)


def test_one_question_has_no_interval():
    assert paired([1.0], [0.5]).value == 0.5 and math.isnan(paired([1.0], [0.5]).low)
    assert ratio([1.0], [0.5]).value == 2 and math.isnan(ratio([1.0], [0.5]).high)


def test_a_mistake_is_named():
    for call, said in (
        (lambda: paired([1.0], [1.0, 2.0]), "a_n.*b_n.* must be of one shape"),
        (lambda: paired([], []), "must be of one shape"),
        (lambda: ratio([1.0, math.nan], [1.0, 2.0]), "^a_n: 1 of 2 values are not finite"),
        (lambda: ratio([-1.0], [1.0]), "^a_n=-1.0"),
        (lambda: paired([1.0, 2.0], [1.0, 2.0], [0]), r"^group_n=\(1,\) must"),
        (lambda: sign_flip([1.0], flips=0), "^flips=0 must"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


# ------------------------------------------------------------------------------------------------ several runs
def group(question):
    return question[0]


@pytest.mark.exact
def test_runs_are_compared_question_by_question_over_their_seeds():
    rng = np.random.default_rng(4)
    questions = [(i, "q") for i in range(200)]
    pairs = [
        ({q: float(rng.random()) for q in questions}, {q: float(rng.random()) for q in questions}) for _ in range(3)
    ]
    found, count = over_runs(pairs, group)
    mean_n = np.mean([[a[q] - b[q] for q in questions] for a, b in pairs], axis=0)
    half = scipy.stats.t.ppf(0.975, 199) * mean_n.std(ddof=1) / math.sqrt(200)
    assert count == 200 and found == pytest.approx((mean_n.mean(), mean_n.mean() - half, mean_n.mean() + half))
    first = {q: 1.0 for q in questions[:50]}
    assert over_runs([(first, dict.fromkeys(questions[40:], 0.25))], group)[1] == 10  # what both were asked
    assert over_runs([], group)[1] == over_runs([(first, {})], group)[1] == 0


@pytest.mark.exact
def test_questions_of_a_group_are_drawn_together():
    """A group of k equal answers tells as much as one: the interval is that of the groups."""
    rng = np.random.default_rng(5)
    value_g = 0.1 + rng.normal(0, 0.3, 40)
    alone = {(g, 0): float(value) for g, value in enumerate(value_g)}
    copies = {(g, copy): float(value) for g, value in enumerate(value_g) for copy in range(5)}
    zeros = dict.fromkeys([*alone, *copies], 0.0)
    assert over_runs([(copies, zeros)], group)[0] == pytest.approx(over_runs([(alone, zeros)], group)[0])
    mean, low, high = over_runs(
        [({("one", q): 0.1 * q for q in range(3)}, {("one", q): 0.0 for q in range(3)})], group
    )[0]
    assert mean == pytest.approx(0.1) and math.isnan(low) and math.isnan(high)


@pytest.mark.exact
def test_the_interval_of_uneven_groups_covers_the_mean_over_questions():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(400):
        scores = {
            (g, q): 0.1 + shift + rng.normal(0, 0.1)
            for g, shift in enumerate(rng.normal(0, 0.2, 60))
            for q in range(rng.integers(1, 7))
        }
        (_, low, high), _ = over_runs([(scores, dict.fromkeys(scores, 0.0))], group)
        covered += low <= 0.1 <= high
    assert 0.92 <= covered / 400 <= 0.98

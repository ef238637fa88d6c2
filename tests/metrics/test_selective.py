"""Risk and coverage against all orders by brute force; Learn then Test against exact laws and by simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from research_stack.metrics import selective
from research_stack.metrics.selective import (
    aurc,
    binomial_tail,
    excess_aurc,
    learn_then_test,
    least_accepted,
    one_per_group,
    p_value,
    risk_coverage,
    threshold_grid,
)

small = st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=6)


# -------------------------------------------------------------------------------------------- risk and coverage
def test_risk_coverage_by_hand():
    coverage, risk = risk_coverage(np.array([2.0, 1, 2, 9]), np.array([3.0, 1, 5, 7]))
    assert coverage.tolist() == [0.25, 0.75, 1.0]  # the two of score 2 come together
    assert risk.tolist() == [1.0, 3.0, 4.0]
    # One position after the other, 4 expected for each of the tie: 1, 5/2, 9/3, 16/4.
    assert aurc(np.array([2.0, 1, 2, 9]), np.array([3.0, 1, 5, 7])) == pytest.approx((1 + 2.5 + 3 + 4) / 4)
    # The best order is 1 3 5 7: 1, 2, 3, 4.
    assert excess_aurc(np.array([2.0, 1, 2, 9]), np.array([3.0, 1, 5, 7])) == pytest.approx(0.125)


def area(order, loss_n):
    return np.mean([loss_n[list(order[:k])].mean() for k in range(1, len(order) + 1)])


@given(small)
@settings(max_examples=80, deadline=None)
def test_aurc_is_the_mean_over_all_orders_of_ties(pairs):
    score_n, loss_n = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))
    orders = list(itertools.permutations(range(len(pairs))))
    allowed = [order for order in orders if (np.diff(score_n[list(order)]) >= 0).all()]
    assert aurc(score_n, loss_n) == pytest.approx(np.mean([area(order, loss_n) for order in allowed]), abs=1e-9)
    best = min(area(order, loss_n) for order in orders)
    assert excess_aurc(score_n, loss_n) == pytest.approx(aurc(score_n, loss_n) - best, abs=1e-9)
    assert excess_aurc(loss_n, loss_n) == 0


@given(small, st.randoms())
@settings(max_examples=80, deadline=None)
def test_the_curve_does_not_depend_on_the_order_of_the_input(pairs, random):
    score_n, loss_n = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))
    shuffled = random.sample(range(len(pairs)), len(pairs))
    coverage, risk = risk_coverage(score_n, loss_n)
    for found, expected in zip(risk_coverage(score_n[shuffled], loss_n[shuffled]), (coverage, risk), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    for score, share, value in zip(np.unique(score_n), coverage, risk, strict=True):
        assert share == (score_n <= score).mean() and value == pytest.approx(loss_n[score_n <= score].mean(), abs=1e-12)
    assert aurc(score_n[shuffled], loss_n[shuffled]) == pytest.approx(aurc(score_n, loss_n), abs=1e-12)


def test_a_score_that_says_nothing_has_the_mean_loss():
    loss_n = np.random.default_rng(0).normal(size=50)
    assert aurc(np.zeros(50), loss_n) == pytest.approx(loss_n.mean())
    assert aurc(loss_n, loss_n) < loss_n.mean() < aurc(-loss_n, loss_n)
    with pytest.raises(ValueError, match="score_n: 1 of 2"):
        aurc(np.array([np.nan, 1.0]), np.ones(2))


# --------------------------------------------------------------------------------------------------- p-values
@given(st.integers(1, 120), st.integers(-1, 121), st.floats(1e-4, 0.9999))
@settings(max_examples=100, deadline=None)
def test_the_binomial_tail_is_that_of_rational_numbers(n, errors, p):
    chance = Fraction(p)
    exact = sum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(errors + 1)) if errors < n else 1
    assert binomial_tail(errors, n, p) == pytest.approx(float(exact), rel=1e-9, abs=0)


def test_hoeffding_bentkus_by_hand():
    # Mean 0.05 of 100 against 0.1: Hoeffding exp(-100 kl) = 0.188..., Bentkus e P(Bin(100, 0.1) <= 5) = 0.156...
    kl = 0.05 * np.log(0.5) + 0.95 * np.log(0.95 / 0.9)
    bentkus = np.e * scipy.stats.binom.cdf(5, 100, 0.1)
    assert bentkus < np.exp(-100 * kl) and p_value(5.0, 100, 0.1, binary=False) == pytest.approx(bentkus)
    kl = 0.041 * np.log(0.41) + 0.959 * np.log(
        0.959 / 0.9
    )  # a sum of 4.1 is rounded up to 5 by Bentkus: Hoeffding is smaller
    assert np.exp(-100 * kl) < bentkus and p_value(4.1, 100, 0.1, binary=False) == pytest.approx(np.exp(-100 * kl))
    assert p_value(0.0, 30, 0.2, binary=False) == pytest.approx(0.8**30)
    assert p_value(20.0, 30, 0.2, binary=False) == pytest.approx(1.0)
    assert p_value(5.0, 100, 0.1, binary=True) == pytest.approx(bentkus / np.e)


@pytest.mark.exact
def test_p_values_are_valid_under_the_exact_law():
    """Losses 0, 1/2, 1 of mean `risk`: P(p <= u) <= u at every u, over the exact law of the sum."""
    for risk, half, n in itertools.product((0.1, 0.3, 0.5), (0.0, 0.05, 0.2, 1.0), (5, 30)):
        middle = half * 2 * min(risk, 1 - risk)
        law = np.array([1 - middle / 2 - risk, middle, risk - middle / 2])
        sums = np.ones(1)
        for _ in range(n):
            sums = np.convolve(sums, law)
        p = np.array([p_value(k / 2, n, risk, binary=False) for k in range(2 * n + 1)])
        assert (np.diff(p) >= -1e-12).all()
        assert (np.cumsum(sums) <= p + 1e-12).all()
        if half == 0:
            exact = [p_value(float(k), n, risk, binary=True) for k in range(n + 1)]
            np.testing.assert_allclose(np.cumsum(sums[::2]), exact, atol=1e-12)


@given(st.floats(0.005, 0.9), st.floats(0.01, 0.5), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_least_accepted_is_the_least(risk, delta, errors):
    n = least_accepted(risk, delta, errors)
    assert binomial_tail(errors, n, risk) <= delta < binomial_tail(errors, n - 1, risk)


# ----------------------------------------------------------------------------------------------- Learn then Test
def test_learn_then_test_by_hand():
    # risk 0.5, delta 0.1. Zero errors: 4 points (1/16). Errors at scores 6 and 9 on.
    score_n, loss_n = np.arange(1.0, 13), np.array([0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1])
    tails = {t: scipy.stats.binom.cdf(loss_n[:t].sum(), t, 0.5) for t in range(1, 13)}
    assert [t for t in range(1, 13) if tails[t] <= 0.1] == [4, 5, 7, 8, 9]
    found = {
        tuple(grid): learn_then_test(score_n, loss_n, 0.5, 0.1, np.array(grid))
        for grid in [
            (1, 2, 3, 4, 5, 6),
            (4, 5, 6, 7, 8),
            (5, 8, 9, 12),
            (12, 9, 8, 5),
            (3, 6, 8),
            (1, 2, 3),
            (4.5, 8.5, 100),
            (5, 10, 9.9),
        ]
    }
    assert list(found.values()) == [
        5.0,  # the first three accept too few to be tested
        5.0,  # 6 fails: 7 and 8 are not looked at
        9.0, 9.0,  # 12 fails; the order of the input does not matter
        None,  # 6 is the first with enough points, and fails
        None, 8.5, 9.9,
    ]  # fmt: skip
    shuffled = np.random.default_rng(0).permutation(12)
    assert learn_then_test(score_n[shuffled], loss_n[shuffled], 0.5, 0.1, np.array([5, 8, 9, 12])) == 9.0


def test_ties_are_accepted_together():
    score_n, loss_n = np.repeat([1.0, 2.0], 20), np.repeat([0.0, 1.0], 20)
    assert learn_then_test(score_n, loss_n, 0.2, 0.1, np.array([1, 2])) == 1.0
    mixed = np.tile([0.0, 1.0], 20)
    assert learn_then_test(np.ones(40), np.sort(mixed), 0.2, 0.1, np.array([1])) is None


def test_fractional_losses_use_the_bound():
    score_n = np.arange(60.0)
    binary, fractional = np.zeros(60), np.zeros(60)
    binary[20:23], fractional[20:23] = 1, 0.999  # exact tail 0.053; Hoeffding-Bentkus above 0.1
    assert learn_then_test(score_n, binary, 0.12, 0.1, np.array([59])) == 59
    assert p_value(2.997, 60, 0.12, binary=False) > 0.1
    assert learn_then_test(score_n, fractional, 0.12, 0.1, np.array([59])) is None


def test_what_learn_then_test_refuses():
    score_n, loss_n = np.arange(3.0), np.array([0.0, 1, 0])
    for loss in (loss_n * 1.1, loss_n - 0.1):
        with pytest.raises(ValueError, match=r"losses in \[0, 1\]"):
            learn_then_test(score_n, loss, 0.1, 0.1)
    for risk, delta in [(0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 1.0), (float("nan"), 0.1)]:
        with pytest.raises(ValueError, match="above 0 and below 1"):
            learn_then_test(score_n, loss_n, risk, delta)
    assert learn_then_test(score_n, loss_n, 0.1, 0.1) is None  # too few points for anything
    assert learn_then_test(score_n[:1], loss_n[:1], 0.9, 0.9) is None


def test_the_grid_starts_where_errors_are_borne():
    score_m = np.random.default_rng(1).permutation(np.arange(1000.0))
    grid = threshold_grid(score_m, 200, risk=0.1, delta=0.1, count=11, errors=2)
    start = least_accepted(0.1, 0.1, 2) / 200  # 52 of 200
    assert grid[0] == np.ceil(1000 * start) - 1 and grid[-1] == 999 and len(grid) == 11
    np.testing.assert_allclose(np.diff(grid), (999 - grid[0]) / 10, atol=1)
    assert len(threshold_grid(score_m, 51, 0.1, 0.1, errors=2)) == 0
    assert len(threshold_grid(score_m, 52, 0.1, 0.1, errors=2)) == 1
    assert len(threshold_grid(score_m[:0], 200, 0.1, 0.1)) == len(threshold_grid(score_m, 0, 0.1, 0.1)) == 0
    assert threshold_grid(np.ones(50), 200, 0.1, 0.1).tolist() == [1.0]


RISK, DELTA, RUNS = 0.1, 0.1, 2000
SLACK = 3 * np.sqrt(DELTA * (1 - DELTA) / RUNS)


def any_order(score_n, loss_n, thresholds):
    """The mutant: the most lax threshold that passes, whatever failed before it."""
    passed = [
        t for t in thresholds if p_value(loss_n[score_n <= t].sum(), int((score_n <= t).sum()), RISK, True) <= DELTA
    ]
    return max(passed, default=None)


def test_the_guarantee_at_the_edge():
    """Every threshold has a risk just above the limit: anything but None is an error, at most delta of them are
    allowed.
    """
    rng, errors, of_mutant = np.random.default_rng(2), 0, 0
    thresholds = np.linspace(0.1, 1, 25)
    for run in range(RUNS):
        score_n, loss_n = rng.random(400), (rng.random(400) < RISK + 1e-6).astype(float)
        errors += learn_then_test(score_n, loss_n, RISK, DELTA, thresholds) is not None
        if run < 400:
            of_mutant += any_order(score_n, loss_n, thresholds) is not None
    assert errors / RUNS <= DELTA + SLACK
    assert errors / RUNS > 0.03  # the level is used, not wasted
    assert of_mutant / 400 > DELTA + 0.1


def test_the_guarantee_where_the_risk_grows():
    """Scores uniform, E[loss | score] = 0.3 score: the risk of score <= t is 0.15 t, above the limit from t = 2/3
    on.
    """
    for binary, split in ((True, True), (True, False), (False, True)):
        rng, found = np.random.default_rng(3), []
        for seed in range(RUNS):
            score_n = rng.random(600)
            loss_n = (rng.random(600) < 0.3 * score_n) if binary else 0.6 * score_n * rng.random(600)
            thresholds = None if split else np.linspace(0.01, 1, 60)
            found.append(learn_then_test(score_n, loss_n.astype(float), RISK, DELTA, thresholds, seed=seed))
        coverage = np.array([0.0 if t is None else t for t in found])  # of a uniform score it is the threshold itself
        assert (0.15 * coverage > RISK).mean() <= DELTA + SLACK
        assert np.median(coverage) > 0.35
        assert (coverage == 0).mean() < (
            0.12 if split else 0.4
        )  # a grid from few points on often ends at its first error


def test_a_grid_chosen_by_the_labels_breaks_the_guarantee():
    """Why thresholds are fixed beforehand: placed at the longest run without an error they pass far too often."""
    rng, errors = np.random.default_rng(4), 0
    for _ in range(300):
        score_n, loss_n = np.sort(rng.random(400)), (rng.random(400) < RISK + 1e-6).astype(float)
        risks = np.cumsum(loss_n)[50:] / np.arange(51, 401)
        errors += learn_then_test(score_n, loss_n, RISK, DELTA, score_n[[50 + risks.argmin()]]) is not None
    assert errors / 300 > DELTA + 0.1


def test_the_split_tests_no_point_of_the_grid(monkeypatch):
    seen = {}

    def grid(score_m, n, *_):
        seen["other"], seen["n"] = score_m, n
        return np.array([1e9])

    monkeypatch.setattr(selective, "threshold_grid", grid)
    monkeypatch.setattr(selective, "p_value", lambda loss, n, *_: seen.update(loss=loss, tested=n) or 0.0)
    loss_n = np.eye(100)[7]
    assert learn_then_test(np.arange(100.0), loss_n, 0.1, 0.1) == 1e9
    assert len(seen["other"]) == 20 and seen["n"] == seen["tested"] == 80
    assert seen["loss"] == (7 not in seen["other"])


# ------------------------------------------------------------------------------------------------ one per group
def test_one_position_of_each_document():
    group_n = np.array([5, 2, 2, 9, 5, 2, 2, 9])
    drawn = np.array([one_per_group(group_n, seed) for seed in range(2000)])
    assert (group_n[drawn] == [2, 5, 9]).all()
    for k, group in enumerate([2, 5, 9]):
        members = np.flatnonzero(group_n == group)
        shares = (drawn[:, k, None] == members).mean(0)
        np.testing.assert_allclose(shares, 1 / len(members), atol=0.05)
    np.testing.assert_array_equal(one_per_group(group_n, 3), one_per_group(group_n, 3))
    assert len(one_per_group(group_n[:0], 0)) == 0


# ------------------------------------------------------------------------------------------------- conformal risk
# control
def test_conformal_threshold_by_hand():
    # two documents of 2 and 4 positions; at t = 0.3: losses 1/2 and 1/4, (3/4 + 1) / 3 = 0.5833
    score, loss, group = (
        np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.8]),
        np.array([1, 1, 0, 1, 1, 0]),
        np.array([0, 0, 7, 7, 7, 7]),
    )
    assert selective.conformal_threshold(score, loss, group, 0.59) == 0.3
    assert selective.conformal_threshold(score, loss, group, 0.58) == 0.2
    assert selective.conformal_threshold(score, loss, group, 0.49) is None
    assert selective.conformal_threshold(score, loss, group, 0.84) == 0.9  # (3/2 + 1) / 3


def test_conformal_threshold_accepts_ties_together():
    score, loss, group = np.array([0.5, 0.5, 0.5]), np.array([0, 0, 1]), np.array([0, 1, 2])
    assert selective.conformal_threshold(score, loss, group, 0.4) is None  # (1 + 1) / 4
    assert selective.conformal_threshold(score, loss, group, 0.5) == 0.5


def test_conformal_threshold_keeps_its_promise_on_documents_of_many_kinds():
    rng, risk, lost = np.random.default_rng(0), 0.2, []
    for _ in range(600):
        level = rng.uniform(0, 0.8, size=31)  # documents differ: positions of one are not independent
        group = np.repeat(np.arange(31), 20)
        score = np.clip(level[group] + rng.normal(0, 0.2, size=group.size), 0, 1)
        loss = (rng.random(group.size) < level[group]).astype(float)
        known = group < 30
        threshold = selective.conformal_threshold(score[known], loss[known], group[known], risk)
        lost.append(0.0 if threshold is None else (loss * (score <= threshold))[~known].mean())
    error = np.std(lost) / np.sqrt(len(lost))
    assert np.mean(lost) <= risk + 3 * error and np.mean(lost) > risk - 0.06, "neither broken nor trivial"

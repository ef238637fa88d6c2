"""pass@k and selectors against enumeration of all subsets, the vectors of the definitions, and the laws of the
ratios.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from research_stack.metrics.passk import (
    SHARE,
    collapse_point,
    der,
    der_band,
    normalised_der,
    over_prompts,
    pass_at_k,
    pass_curve,
    pass_hat_k,
    picked,
    selection,
)

PASS = {
    (10, 3, 1): 0.3,
    (10, 3, 5): 0.9166666667,
    (10, 3, 10): 1,
    (5, 0, 3): 0,
    (5, 1, 5): 1,
    (100, 1, 10): 0.1,
    (200, 10, 100): 0.9992289739,
    (4, 2, 2): 0.8333333333,
}


# ---------------------------------------------------------------------------------------------------- pass@k
@pytest.mark.exact
def test_the_vectors():
    np.testing.assert_allclose([pass_at_k(*case) for case in PASS], list(PASS.values()), atol=1e-10)
    n, c, k = np.array(list(PASS)).T
    np.testing.assert_allclose(pass_at_k(n, c, k), list(PASS.values()), atol=1e-10)
    assert pass_hat_k(10, 3, 2) == pytest.approx(0.0666667, abs=1e-7)


@pytest.mark.exact
def test_all_subsets():
    for n in (1, 4, 6):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([i < c for i in range(n)], k))
            assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]), abs=1e-14)
            assert pass_hat_k(n, c, k) == pytest.approx(np.mean([all(s) for s in subsets]), abs=1e-14)


def test_large_counts_against_exact_fractions():
    for n, c, k in [(10_000, 3, 5000), (10_000, 5000, 17), (100_000, 1, 1), (2000, 1999, 1)]:
        exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
        assert pass_at_k(n, c, k) == pytest.approx(float(exact), abs=1e-12)
        assert pass_hat_k(n, c, k) == pytest.approx(float(Fraction(math.comb(c, k), math.comb(n, k))), abs=1e-12)


def test_it_broadcasts():
    table = pass_at_k(np.array([10, 20])[:, None], 3, np.array([1, 2, 5]))
    assert table.shape == (2, 3)
    np.testing.assert_allclose(table, [[pass_at_k(n, 3, k) for k in (1, 2, 5)] for n in (10, 20)])


def test_counts_that_cannot_be():
    for n, c, k, name in (
        (5, 6, 1, "c"),
        (5, -1, 1, "c"),
        (5, 2, 6, "k"),
        (5, 2, 0, "k"),
        (5.0, 2, 1, "n"),
        (5, 2, 1.5, "k"),
    ):
        for function in (pass_at_k, pass_hat_k):
            with pytest.raises(ValueError, match=f"^{name}=.* must"):
                function(n, c, k)
        with pytest.raises(ValueError, match=f"^{name}=.* must"):
            pass_at_k([9, n], [1, c], [1, k])


def test_a_curve_over_prompts():
    n, c = np.array([8, 8, 16]), np.array([0, 4, 8])
    curve = pass_curve(n, c, [1, 2, 8])
    assert list(curve) == [1, 2, 8] and curve[1].value == pytest.approx(1 / 3)
    assert curve[2].value == pytest.approx(np.mean([0, 1 - 6 / 28, 1 - 28 / 120])) and curve[2].n == 3
    assert pass_curve(n, c, [2], all_right=True)[2].value == pytest.approx(np.mean([0, 6 / 28, 28 / 120]))
    with pytest.raises(ValueError, match="k="):
        pass_curve(n, c, [9])


# ------------------------------------------------------------------------------------------------------ the band
def test_the_interval_over_prompts():
    values = np.random.default_rng(0).normal(3, 2, 200)
    band = over_prompts(np.append(values, [np.nan, np.nan]))
    assert (band.n, band.undefined) == (200, 2) and band.value == pytest.approx(values.mean())
    assert (band.low, band.high) == pytest.approx(tuple(scipy.stats.ttest_1samp(values, 0).confidence_interval()))
    assert band == over_prompts(np.append([np.nan, np.nan], values))
    assert over_prompts([1, 1, 0.9, 1], SHARE).high == 1 < over_prompts([1, 1, 0.9, 1]).high


def test_too_few_prompts_have_no_interval():
    alone = over_prompts([0.5, np.nan])
    assert alone.value == 0.5 and np.isnan([alone.low, alone.high]).all() and alone[3:] == (1, 1)
    nothing = over_prompts([np.nan, np.nan])
    assert np.isnan(nothing[:3]).all() and nothing[3:] == (0, 2)
    for wrong in ([np.inf, 1.0], [[1.0]]):
        with pytest.raises(ValueError, match="values_P="):
            over_prompts(wrong)


# ---------------------------------------------------------------------------------------- what the curve says
@pytest.mark.exact
def test_efficiency_by_hand():
    found = der({1: 0.4, 5: 0.6, 10: 0.7})
    assert list(found) == [1, 5, 10]
    np.testing.assert_allclose(list(found.values()), [1, 0.30, 0.175])
    normed = normalised_der({1: 0.4, 2: 0.6, 5: 0.6, 10: 0.7})
    assert np.isnan(normed.pop(1))
    np.testing.assert_allclose(list(normed.values()), [0.5, 1 / 3, 0.5])


def test_a_collapsed_curve_and_a_full_one():
    collapsed = {1: 0.3, 4: 0.3, 16: 0.3}
    np.testing.assert_allclose(list(der(collapsed).values()), [1, 1 / 4, 1 / 16])
    assert [normalised_der(collapsed)[k] for k in (4, 16)] == [0, 0]
    full = {1: 0.3, 2: 0.6, 4: 1.0}
    np.testing.assert_allclose([normalised_der(full)[k] for k in (2, 4)], 1)
    for first in (0.0, 1.0):
        assert np.isnan(normalised_der({1: first, 4: first})[4])
    assert np.isnan(der({1: 0.0, 4: 0.0})[4])


def test_what_is_no_curve():
    for at in ({2: 0.5}, {1: 0.5, 2: 0.4}, {1: 0.2, 2: 0.5}, {1: 0.5, 4: 1.1}, {1: -0.1, 2: -0.1}, {1: float("nan")}):
        for function in (der, normalised_der):
            with pytest.raises(ValueError, match="^at="):
                function(at)


def test_efficiency_over_prompts_is_of_the_mean_curve():
    n, c = np.full(50, 16), np.random.default_rng(0).integers(0, 17, 50)
    curve = {k: float(pass_at_k(n, c, k).mean()) for k in (1, 4)}
    for normalised, of in [(True, normalised_der), (False, der)]:
        band = der_band(n, c, 4, normalised)
        assert band.value == pytest.approx(of(curve)[4]) and band.low < band.value < band.high and band.n == 50
    same = der_band(n, np.where(c > 8, 16, 0), 4)
    assert same[:3] == pytest.approx((0, 0, 0), abs=1e-12)


@pytest.mark.exact
def test_the_collapse_point():
    at = {1: 0.40, 3: 0.50, 5: 0.60, 10: 0.62, 20: 0.63}
    assert collapse_point(at) == 10
    assert collapse_point(dict(reversed(at.items()))) == 10
    assert collapse_point(at, 0.002) == 20 and collapse_point(at, 0.0005) is None
    assert collapse_point({1: 0.4, 2: 0.5}) is None
    assert collapse_point({1: 0.4, 11: 0.48}) == 11  # .008 per attempt, though .08 in all
    for wrong in ({}, {1: 0.4}):
        with pytest.raises(ValueError, match="at least 2"):
            collapse_point(wrong)
    with pytest.raises(ValueError, match="threshold=0"):
        collapse_point(at, 0)


# --------------------------------------------------------------------------------------------------- selectors
def by_enumeration(score, quality, k):
    """Exact: over all subsets, the mean quality of those with the highest score."""
    means = []
    for subset in itertools.combinations(range(len(score)), k):
        best = max(score[i] for i in subset)
        means.append(np.mean([quality[i] for i in subset if score[i] == best]))
    return np.mean(means)


@pytest.mark.exact
@settings(max_examples=60, deadline=None)
@given(pool=st.lists(st.tuples(st.integers(0, 2), st.floats(-5, 5)), min_size=1, max_size=6))
def test_the_pick_against_all_subsets(pool):
    score, quality = [s for s, _ in pool], [q for _, q in pool]
    for k in range(1, len(pool) + 1):
        assert picked(score, quality, k) == pytest.approx(by_enumeration(score, quality, k), abs=1e-12)
        assert picked(quality, quality, k) == pytest.approx(by_enumeration(quality, quality, k), abs=1e-12)
    assert picked(score, quality, 1) == pytest.approx(np.mean(quality))


def test_the_oracle_of_right_and_wrong_is_pass_at_k():
    right = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0])
    for k in (1, 5, 8, 10):
        assert picked(right, right, k) == pytest.approx(pass_at_k(10, 3, k))
        assert picked(-right, right, k) == pytest.approx(pass_hat_k(10, 3, k))  # the worst selector


def test_selectors_over_prompts():
    rng = np.random.default_rng(0)
    quality = [rng.normal(size=size) for size in rng.integers(8, 20, 40)]
    noisy = [of + rng.normal(size=len(of)) for of in quality]
    table = selection(noisy, quality, 4)
    assert list(table) == ["picked", "oracle", "random", "regret"]
    assert table["random"].value + 0.3 < table["picked"].value < table["oracle"].value - 0.1
    assert table["oracle"].value == pytest.approx(
        np.mean([np.sort(q) @ [math.comb(i, 3) / math.comb(len(q), 4) for i in range(len(q))] for q in quality])
    )
    assert table["regret"].value == pytest.approx(table["oracle"].value - table["picked"].value)
    width = {name: band.high - band.low for name, band in table.items()}
    assert width["regret"] < 0.8 * width["oracle"]  # paired
    constant = selection([np.zeros(len(q)) for q in quality], quality, 4)
    assert constant["picked"].value == pytest.approx(constant["random"].value)
    assert selection(quality, quality, 4)["regret"][:3] == (0, 0, 0)


def test_what_a_selector_may_not_hand_in():
    one = np.arange(3.0)
    for score, quality, k, text in [
        (one[:2], one, 1, "score_n="),
        ([0, np.nan, 1], one, 1, "must score every attempt"),
        (one, [0, np.inf, 1], 1, "quality_n="),
        (one, one, 4, "k=4"),
        (one, one, 0, "k=0"),
    ]:
        with pytest.raises(ValueError, match=text):
            picked(score, quality, k)
    assert picked([-np.inf, 0, np.inf], one, 3) == 2
    with pytest.raises(ValueError):
        selection([one], [one, one], 1)

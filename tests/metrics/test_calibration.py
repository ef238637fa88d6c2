"""Agreement, intervals over documents, noise ceiling, calibration errors and controls: by hand, against peers, as
laws.
"""

import time
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_calibration_error

from research_stack.metrics import calibration
from research_stack.metrics.calibration import (
    agreement,
    brier,
    calibration_error,
    expected_calibration_error,
    fit_curve,
    fit_ridge,
    noise_ceiling,
    r2_difference,
    r2_interval,
    reliability,
)
from research_stack.metrics.interval import EXPLAINED, MOST_LEFT_OUT, jackknife, per_token

NAN = float("nan")


def documents(rng, groups=60, longest=12, noise=1.0):
    """Dependent positions: (predicted, actual, group), with an effect of the document on both."""
    length_g = rng.integers(1, longest + 1, groups)
    group_n = np.repeat(np.arange(groups), length_g)
    shared_n = rng.normal(size=groups)[group_n]
    predicted_n = shared_n + rng.normal(size=len(group_n))
    actual_n = predicted_n + noise * (rng.normal(size=groups)[group_n] + rng.normal(size=len(group_n)))
    return predicted_n, actual_n, group_n


# ------------------------------------------------------------------------------------------------ agreement
def test_agreement_by_hand():
    # actual 1 2 6: mean 3, SST 4 + 1 + 9 = 14. predicted 1 3 2: SSE 0 + 1 + 16 = 17; Sxy = 2 - 1 = 1, Sxx = 2.
    found = agreement(np.array([1.0, 3, 2]), np.array([1.0, 2, 6]))
    assert found.r2 == pytest.approx(1 - 17 / 14)
    assert found.slope == pytest.approx(0.5) and found.intercept == pytest.approx(2.0)
    assert found.pearson == pytest.approx(1 / np.sqrt(28))
    assert found.spearman == pytest.approx(0.5)  # ranks 1 3 2 against 1 2 3
    assert found.bias == pytest.approx(-1.0)
    assert found.n == 3


@given(st.integers(0, 10_000), st.integers(3, 60), st.sampled_from([1, 3, 1000]))
@settings(max_examples=60, deadline=None)
def test_correlations_and_regression_are_scipys(seed, n, levels):
    rng = np.random.default_rng(seed)
    predicted_n = np.concatenate([[0.0, 1.0], rng.integers(0, levels + 1, n)]) * 0.3 + 7  # ties, never constant
    actual_n = predicted_n + rng.normal(size=n + 2).round(1) + np.linspace(0, 1e-3, n + 2)
    found, line = agreement(predicted_n, actual_n), scipy.stats.linregress(predicted_n, actual_n)
    assert found.pearson == pytest.approx(scipy.stats.pearsonr(predicted_n, actual_n).statistic, abs=1e-9)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(predicted_n, actual_n).statistic, abs=1e-9)
    assert (found.slope, found.intercept) == pytest.approx((line.slope, line.intercept), abs=1e-7)
    assert found.r2 <= found.pearson**2 + 1e-9  # equal only for a calibrated prediction
    refit = agreement(found.intercept + found.slope * predicted_n, actual_n)
    assert refit.r2 == pytest.approx(found.pearson**2, abs=1e-9)


def test_constants_are_nan_without_a_warning():
    tenth = np.full(7, 0.1)  # its mean is not 0.1
    rising = np.arange(7.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant_prediction, constant_actual = agreement(tenth, rising), agreement(rising, tenth)
        single = agreement([2.0], [3.0])
    assert constant_prediction.r2 == pytest.approx(1 - (28 + 7 * 2.9**2) / 28)
    assert np.isnan(
        [
            constant_prediction.pearson,
            constant_prediction.spearman,
            constant_prediction.slope,
            constant_prediction.intercept,
        ]
    ).all()
    assert np.isnan([constant_actual.r2, constant_actual.pearson, constant_actual.spearman]).all()
    assert (constant_actual.slope, constant_actual.intercept) == (0.0, pytest.approx(0.1))
    assert single.bias == -1.0 and single.n == 1 and np.isnan([single.r2, single.pearson, single.slope]).all()


def test_records_that_do_not_fit_are_refused():
    for predicted, actual, message in (
        ([1.0, 2.0], [1.0], "one shape"),
        ([], [], "n > 0"),
        ([[1.0]], [[1.0]], "one shape"),
        ([1.0, NAN], [1.0, 2.0], "predicted_n: 1 of 2"),
        ([1.0, 2.0], [np.inf, 2.0], "actual_n: 1 of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            agreement(np.array(predicted), np.array(actual))


# --------------------------------------------------------------------------------------------- noise ceiling
def test_noise_ceiling_by_hand():
    # within: 2, 0, 2 -> 4/3. Columns 0 4 8 and 2 4 10: variances 16 and 52/3 -> 50/3. 1 - (4/3) / (50/3) = 0.92.
    assert noise_ceiling(np.array([[0.0, 2], [4, 4], [8, 10]])) == pytest.approx(0.92)


@pytest.mark.exact
def test_the_parts_of_the_noise_ceiling_are_unbiased():
    """All 2^6 equally likely outcomes of 3 rows x 2 samples: mean parts against the variances of the law."""
    low_i, high_i = np.array([0.0, 1, 5]), np.array([2.0, 1, 6])
    within, total = [], []
    for code in range(64):
        bits = np.array([code >> k & 1 for k in range(6)]).reshape(3, 2)
        actual_nm = np.where(bits, high_i[:, None], low_i[:, None])
        within.append(actual_nm.var(axis=1, ddof=1).mean())
        total.append(within[-1] / (1 - noise_ceiling(actual_nm)) if within[-1] else actual_nm[:, 0].var(ddof=1))
    noise = np.square((high_i - low_i) / 2)
    assert np.mean(within) == pytest.approx(noise.mean())
    assert np.mean(total) == pytest.approx(((low_i + high_i) / 2).var(ddof=1) + noise.mean())


def test_the_mean_of_the_law_reaches_the_noise_ceiling():
    for m in (2, 5):
        rng = np.random.default_rng(m)
        mean_n = rng.normal(size=40_000)
        scale_n = np.where(mean_n > 0, 2.0, 0.5)  # noise that differs from row to row: 2.125 on average
        actual_nm = mean_n[:, None] + scale_n[:, None] * rng.normal(size=(40_000, m))
        assert noise_ceiling(actual_nm) == pytest.approx(1 / (1 + 2.125), abs=0.015)
        assert noise_ceiling(actual_nm) == pytest.approx(agreement(mean_n, actual_nm[:, 0]).r2, abs=0.02)


def test_noise_ceiling_ends():
    assert noise_ceiling(np.array([[1.0, 1], [2, 2]])) == 1.0
    assert np.isnan(noise_ceiling(np.array([[1.0, 2]])))
    assert np.isnan(noise_ceiling(np.full((3, 2), 0.1)))
    for actual_nm in (np.ones((3, 1)), np.ones(3)):
        with pytest.raises(ValueError, match="m >= 2"):
            noise_ceiling(actual_nm)
    with pytest.raises(ValueError, match="not finite"):
        noise_ceiling(np.array([[1.0, NAN], [2, 2]]))


# ------------------------------------------------------------------------------------------ R2 and its interval
def r2_of(predicted_n, actual_n):
    return lambda kept_n: agreement(predicted_n[kept_n], actual_n[kept_n]).r2


def test_the_fast_path_is_the_jackknife():
    predicted_n, actual_n, group_n = documents(np.random.default_rng(0))
    shuffled = np.random.default_rng(1).permutation(len(group_n))
    predicted_n, actual_n, group_n = predicted_n[shuffled], actual_n[shuffled] + 1e6, group_n[shuffled] * 3 - 50
    predicted_n += 1e6  # a mean far from 0 costs no digits
    found = r2_interval(predicted_n, actual_n, group_n)
    assert found.value == pytest.approx(agreement(predicted_n, actual_n).r2)
    assert found[1:] == pytest.approx(jackknife(r2_of(predicted_n, actual_n), group_n, EXPLAINED), abs=1e-8)
    assert found.low < found.value < found.high < 1

    other_n = predicted_n + np.random.default_rng(2).normal(size=len(group_n))
    pair = [r2_of(values_n, actual_n) for values_n in (predicted_n, other_n)]
    difference = r2_difference(predicted_n, other_n, actual_n, group_n)
    everything = np.ones(len(group_n), dtype=bool)
    assert difference.value == pytest.approx(pair[0](everything) - pair[1](everything))
    assert difference[1:] == pytest.approx(
        jackknife(lambda kept_n: pair[0](kept_n) - pair[1](kept_n), group_n), abs=1e-8
    )


def test_whole_documents_are_left_out():
    group_n, seen = np.array([7, 7, 7, 2, 2, 9]), []
    jackknife(lambda kept_n: seen.append(kept_n) or 0.0, group_n)
    assert seen[0].all() and [set(group_n[~kept_n]) for kept_n in seen[1:]] == [{2}, {7}, {9}]
    seen.clear()
    jackknife(lambda kept_n: seen.append(kept_n) or 0.0, np.arange(3 * MOST_LEFT_OUT))
    assert len(seen) == 1 + MOST_LEFT_OUT and all((~kept_n).sum() == 3 for kept_n in seen[1:])


def test_the_interval_of_a_mean_is_students():
    actual_n = np.random.default_rng(3).normal(size=30)
    expected = tuple(scipy.stats.ttest_1samp(actual_n, 0).confidence_interval())
    assert jackknife(lambda kept_n: actual_n[kept_n].mean(), np.arange(30)) == pytest.approx(expected)
    assert per_token(actual_n, np.ones(30))[1:] == pytest.approx(expected)
    _, actual_n, group_n = documents(np.random.default_rng(3), groups=300)
    of_documents, of_rows = (per_token(actual_n, np.ones(len(actual_n)), of) for of in (group_n, None))
    assert jackknife(lambda kept_n: actual_n[kept_n].mean(), group_n) == pytest.approx(
        of_documents[1:], abs=0.02 * (of_documents.high - of_documents.low)
    )
    assert of_documents.high - of_documents.low > 1.5 * (of_rows.high - of_rows.low)


def test_intervals_over_rows_do_not_cover_the_truth():
    rng, of_rows = np.random.default_rng(5), 0
    truth = 1 - 2 / (2 + 2)  # Var(actual - predicted) over Var(actual)
    for _ in range(150):
        predicted_n, actual_n, group_n = documents(rng, groups=80, longest=9)
        rows = r2_interval(predicted_n, actual_n, np.arange(len(group_n)))
        of_rows += rows.low <= truth <= rows.high
    assert of_rows / 150 < 0.86


def test_pairing_narrows_the_difference():
    rng = np.random.default_rng(6)
    predicted_n, actual_n, group_n = documents(rng, noise=3.0)
    other_n = predicted_n + 0.05 * rng.normal(size=len(group_n))
    difference, single = (
        r2_difference(predicted_n, other_n, actual_n, group_n),
        r2_interval(predicted_n, actual_n, group_n),
    )
    assert difference.high - difference.low < 0.3 * (single.high - single.low)
    assert r2_difference(predicted_n, predicted_n, actual_n, group_n) == pytest.approx((0, 0, 0), abs=1e-12)


def test_ends_of_the_jackknife():
    same = np.zeros(3, dtype=int)
    assert np.isnan(jackknife(lambda kept_n: 1.0, same)).all()
    found = r2_interval(np.array([1.0, 2, 4]), np.array([1.0, 2, 3]), same)
    assert found.value == 0.5 and np.isnan(found[1:]).all()
    # Two documents, each of equal values: without one there is no spread but for rounding, and no interval.
    for low, high in np.random.default_rng(0).random((50, 2)):
        found = r2_interval(np.repeat([low, high + (high - low)], 7), np.repeat([low, high], 7), np.repeat([0, 1], 7))
        assert found.value == pytest.approx(-1) and np.isnan(found[1:]).all()
    assert r2_interval(np.arange(6.0), np.arange(6.0), np.arange(6)) == pytest.approx((1, 1, 1))  # a perfect prediction
    with pytest.raises(ValueError, match="group_n names 2"):
        r2_interval(np.ones(3), np.arange(3.0), np.arange(2))


def test_fifty_thousand_positions_take_a_moment():
    rng = np.random.default_rng(7)
    predicted_n, actual_n, group_n = rng.normal(size=50_000), rng.normal(size=50_000), rng.integers(0, 5000, 50_000)
    started = time.process_time()
    r2_difference(predicted_n, -predicted_n, actual_n, group_n)
    assert time.process_time() - started < 2


# ---------------------------------------------------------------------------------------------- calibration
def test_reliability_by_hand():
    predicted_n, actual_n = np.array([3.0, 1, 2, 4]), np.array([5.0, 0, 2, 6])
    low, high = reliability(predicted_n, actual_n, bins=2)
    assert (low.predicted, low.actual, low.count) == (1.5, 1.0, 2)
    assert (high.predicted, high.actual, high.count) == (3.5, 5.5, 2)
    assert low[1:4] == tuple(per_token(np.array([0.0, 2]), np.ones(2)))
    assert calibration_error(predicted_n, actual_n, bins=2) == pytest.approx((0.5 * 2 + 2.0 * 2) / 4)
    assert calibration_error(predicted_n, actual_n, bins=4) == pytest.approx((2 + 1 + 0 + 2) / 4)


def test_reliability_intervals_are_of_documents():
    predicted_n, actual_n, group_n = documents(np.random.default_rng(8))
    for row, alone in zip(
        reliability(predicted_n, actual_n, 3, group_n), reliability(predicted_n, actual_n, 3), strict=True
    ):
        assert (row.predicted, row.actual, row.count) == pytest.approx((alone.predicted, alone.actual, alone.count))
        assert row.high - row.low > 1.05 * (alone.high - alone.low)
    (one,) = reliability(predicted_n, actual_n, 1, group_n)
    assert one[1:4] == tuple(per_token(actual_n, np.ones(len(actual_n)), group_n))
    assert np.isnan(reliability(predicted_n, actual_n, 1, np.zeros(len(actual_n)))[0].low)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=50), st.integers(1, 15), st.randoms())
@settings(max_examples=150, deadline=None)
def test_bins_with_ties(values, bins, random):
    predicted_n, actual_n = np.array(values) / 7, np.array([random.random() for _ in values])
    rows = reliability(predicted_n, actual_n, bins)
    assert len(rows) <= bins and all(row.count > 0 for row in rows) and sum(row.count for row in rows) == len(values)
    means = [row.predicted for row in rows]
    assert means == sorted(means) and len(set(means)) == len(means)  # no value lies in two bins
    assert sum(row.actual * row.count for row in rows) == pytest.approx(actual_n.sum())
    by_rows = sum(abs(row.predicted - row.actual) * row.count for row in rows) / len(values)
    assert calibration_error(predicted_n, actual_n, bins) == pytest.approx(by_rows, abs=1e-12)
    shuffled = random.sample(range(len(values)), len(values))
    assert calibration_error(predicted_n[shuffled], actual_n[shuffled], bins) == pytest.approx(by_rows, abs=1e-12)


@given(st.integers(1, 60), st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_bins_without_ties_are_of_equal_mass(n, bins):
    counts = [row.count for row in reliability(np.random.default_rng(n).permutation(n) * 1.5, np.zeros(n), bins)]
    assert len(counts) == min(n, bins) and max(counts) - min(counts) <= 1


@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_expected_calibration_error_is_torchmetrics(seed, n, bins):
    rng = np.random.default_rng(seed)
    confidence_n = np.minimum(rng.beta(0.5, 0.5, n), 1 - 1e-6)  # torchmetrics gives 1.0 a bin of its own
    correct_n = rng.random(n) < confidence_n**2
    peer = binary_calibration_error(torch.tensor(confidence_n), torch.tensor(correct_n).long(), n_bins=bins, norm="l1")
    assert expected_calibration_error(confidence_n, correct_n, bins) == pytest.approx(peer.item(), abs=1e-9)


def test_expected_calibration_error_by_hand():
    confidence_n, correct_n = np.array([0.0, 0.4, 0.5, 0.9, 1.0]), np.array([False, True, True, True, False])
    # [0, .5): 0.2 against 0.5 (2); [.5, 1]: 0.8 against 2/3 (3); the two ends are in.
    assert expected_calibration_error(confidence_n, correct_n, bins=2) == pytest.approx((0.6 + 0.4) / 5)
    # By quantile, ties in one bin: {0, .4} and {.5}, with rank 3 in the upper half.
    assert expected_calibration_error(confidence_n, correct_n, bins=5, equal_mass=True) == pytest.approx(
        (0 + 0.6 + 0.5 + 0.1 + 1) / 5
    )
    assert expected_calibration_error(np.array([0.1, 0.2]), np.array([0, 0]), 2, equal_mass=True) == pytest.approx(0.15)
    for bad in ([-0.1, 0.5], [0.5, 1.1]):
        with pytest.raises(ValueError, match="probabilities"):
            expected_calibration_error(np.array(bad), np.array([0, 1]))
    for equal_mass in (False, True):
        with pytest.raises(ValueError, match="bins=0"):
            expected_calibration_error(np.array([0.5]), np.array([1]), 0, equal_mass)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_brier_is_the_sum_over_the_vocabulary(seed):
    rng = np.random.default_rng(seed)
    p_nV, y_n = rng.dirichlet(np.full(5, 0.5), size=20), rng.integers(0, 5, 20)
    expected = np.square(p_nV - np.eye(5)[y_n]).sum(1).mean()
    assert brier(p_nV[np.arange(20), y_n], np.square(p_nV).sum(1)) == pytest.approx(expected)
    assert brier(np.array([1.0]), np.array([1.0])) == 0 and brier(np.array([0.0]), np.array([1.0])) == 2


# ------------------------------------------------------------------------------------------------- controls
def test_a_curve_finds_the_function_it_can_express():
    x_n = np.random.default_rng(9).permutation(np.arange(101.0))
    curve = fit_curve(x_n, np.where(x_n < 50, 3 * x_n, 150 - 2 * (x_n - 50)), knots=3)
    np.testing.assert_allclose(curve.knots_K, [0, 50, 100])
    np.testing.assert_allclose(curve.values_K, [0, 150, 50], atol=1e-9)
    np.testing.assert_allclose(curve.predict([-7, 0, 25, 75, 100, 1e9]), [0, 0, 75, 100, 50, 50], atol=1e-9)
    assert curve.predict(np.zeros((2, 3))).shape == (2, 3)


def test_a_curve_is_the_least_squares_one():
    rng = np.random.default_rng(10)
    x_n = rng.exponential(size=300)
    y_n = np.sin(x_n) + rng.normal(size=300)
    curve = fit_curve(x_n, y_n, knots=6)
    error = np.square(curve.predict(x_n) - y_n).sum()
    for k in range(6):
        for step in (-0.05, 0.05):
            other = calibration.PiecewiseLinear(curve.knots_K, curve.values_K + step * np.eye(6)[k])
            assert np.square(other.predict(x_n) - y_n).sum() > error
    assert abs((curve.predict(x_n) - y_n).sum()) < 1e-8  # constants are among the functions
    mass = np.histogram(x_n, curve.knots_K)[0]
    assert mass.min() >= 55  # knots at quantiles, not evenly spaced


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 20))
@settings(max_examples=80, deadline=None)
def test_a_curve_on_few_distinct_values(values, knots):
    x_n = np.array(values) * 0.7
    y_n = np.arange(len(values)) % 3 + x_n
    curve = fit_curve(x_n, y_n, knots)
    assert (
        (np.diff(curve.knots_K) > 0).all() and np.isin(curve.knots_K, x_n).all() and np.abs(curve.values_K).max() < 100
    )
    if knots >= 2 * len(values):  # a knot at every value: their means
        np.testing.assert_allclose(curve.predict(x_n), [y_n[x_n == x].mean() for x in x_n], atol=1e-9)
    with pytest.raises(ValueError, match="knots=0"):
        fit_curve(x_n, y_n, 0)


def test_ridge_is_least_squares_with_rows_for_the_penalty():
    for penalty in (1e-6, 1.0, 30.0):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(calibration, "ROWS", 17)  # several blocks, the last one short
            rng = np.random.default_rng(11)
            features_nD = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) * [1, 10, 1e-3, 1, 1] + [0, 3, 0, 100, -2]
            y_n = features_nD @ rng.normal(size=5) + rng.normal(size=60) + 5
            z_nD = (features_nD - features_nD.mean(0)) / features_nD.std(0)
            rows = np.concatenate([z_nD, np.sqrt(penalty) * np.eye(5)])
            weight_D = np.linalg.lstsq(rows, np.concatenate([y_n - y_n.mean(), np.zeros(5)]), rcond=None)[0]
            probe = fit_ridge(features_nD, y_n, penalty)
            np.testing.assert_allclose(probe.predict(features_nD), y_n.mean() + z_nD @ weight_D, rtol=1e-8)
            other = features_nD * [1e4, 1, 1, -1, 1] + [5, 0, 0, 0, 1]  # units do not matter
            np.testing.assert_allclose(
                fit_ridge(other, y_n, penalty).predict(other), probe.predict(features_nD), rtol=1e-6
            )


def test_ridge_shrinks_as_documented_and_ignores_constants():
    x_n = np.tile([-1.0, 1.0], 50)
    features_nD = np.stack([x_n, np.full(100, 0.1)], axis=1).astype(np.float32)
    probe = fit_ridge(features_nD, 3 * x_n + 2, penalty=25.0)
    np.testing.assert_allclose(probe.weight_D, [3 * 100 / 125, 0], atol=1e-12)
    assert probe.intercept == pytest.approx(2)
    assert probe.predict(features_nD[:3]).dtype == np.float64


def test_ridge_refuses_what_it_cannot_fit():
    features_nD, y_n = np.eye(3), np.arange(3.0)
    for features, penalty, message in [
        (features_nD[:2], 1, "one row of features"),
        (y_n, 1, "one row"),
        (features_nD, 0, "penalty=0"),
        (features_nD * NAN, 1, "not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_ridge(features, y_n, penalty)

"""How well a predicted loss agrees with the loss that came, and how well probabilities are calibrated.

The records are positions of texts. Positions of one document depend on one another and documents do not, so every
interval here is over whole documents (the groups), of the kinds in `interval`. What to do with a good prediction is
in `selective`.

Shapes: n positions, g groups, m samples per position, P predictions, D features, K knots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from research_stack.metrics.interval import EXPLAINED, Estimate, from_left_out, per_token

ROWS = 8192  # rows of features that are held in float64 at a time


def columns(**named: ArrayLike) -> list[np.ndarray]:
    """The arrays as float64 (n,). Raises ValueError unless all are of one length n > 0 and finite."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in named.items()}
    shapes = {name: values.shape for name, values in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 or shape == (0,) for shape in shapes.values()):
        raise ValueError(f"{shapes} must be of one shape (n,) with n > 0")
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(values))} of {len(values)} values are not finite")
    return list(arrays.values())


# ------------------------------------------------------------------------------------------------ agreement
@dataclass(frozen=True)
class Agreement:
    """How a prediction and the actual values agree; NaN where a constant input leaves a number undefined.

    - r2: 1 - sum (actual - predicted)^2 / sum (actual - mean)^2, of the prediction as it is: below 0 where it is worse
      than the constant mean. pearson, spearman: correlations, blind to scale; their gap to r2 is miscalibration.
    - slope, intercept: of actual regressed on predicted; a calibrated prediction has 1 and 0.
    - bias: mean of predicted - actual, in the unit of both. n: positions.
    """

    r2: float
    pearson: float
    spearman: float
    slope: float
    intercept: float
    bias: float
    n: int


def agreement(predicted_n: np.ndarray, actual_n: np.ndarray) -> Agreement:
    """The `Agreement` of a prediction with what came, both float (n,) in one unit. Raises ValueError as `columns`
    does.
    """
    predicted_n, actual_n = columns(predicted_n=predicted_n, actual_n=actual_n)
    p_n, a_n = _centred(predicted_n), _centred(actual_n)
    slope = _ratio(float(p_n @ a_n), float(p_n @ p_n))
    return Agreement(
        r2=1 - _ratio(np.square(predicted_n - actual_n).sum(), float(a_n @ a_n)),
        pearson=_correlation(p_n, a_n),
        spearman=_correlation(_centred(rankdata(predicted_n)), _centred(rankdata(actual_n))),
        slope=slope,
        intercept=float(actual_n.mean() - slope * predicted_n.mean()),
        bias=float((predicted_n - actual_n).mean()),
        n=len(actual_n),
    )


def _centred(values_n: np.ndarray) -> np.ndarray:
    """Values less their mean; exactly 0 for a constant, whose mean is off by a rounding error."""
    shifted_n = values_n - values_n[0]
    return shifted_n - shifted_n.mean()


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0 else float("nan")


def _correlation(x_n: np.ndarray, y_n: np.ndarray) -> float:
    """Of centred values; rounding may not take it past 1."""
    return float(np.clip(_ratio(float(x_n @ y_n), float(np.sqrt(x_n @ x_n) * np.sqrt(y_n @ y_n))), -1, 1))


def noise_ceiling(actual_nm: np.ndarray) -> float:
    """The R2 that E[actual | row] would reach against a single sample; no predictor of the row's mean can pass it.

    A sample is y = E[y | row] + e, and E[y | row] leaves the error E[Var(y | row)]: R2 = 1 - E[Var(y | row)] / Var(y).
    The mean over rows of the variance within a row is unbiased for the numerator, the variance over rows of one column
    (single samples), averaged over columns, for the denominator (both ddof=1); their ratio is off by O(1 / n) only.

    - actual_nm: float (n, m), m samples of each of n rows, independent given the row. Whatever is held fixed between
      the samples of a row is taken as known: a predictor that does not see all of it has a lower ceiling.

    Returns NaN for fewer than 2 rows or where nothing varies. Raises ValueError for m < 2 or values that are not
    finite.
    """
    actual_nm = np.asarray(actual_nm, dtype=np.float64)
    if actual_nm.ndim != 2 or actual_nm.shape[1] < 2:
        raise ValueError(
            f"actual_nm has shape {actual_nm.shape}: a noise ceiling needs m >= 2 samples of each position"
        )
    if not np.isfinite(actual_nm).all():
        raise ValueError("actual_nm has values that are not finite")
    if len(actual_nm) < 2 or np.ptp(actual_nm) == 0:
        return float("nan")
    return 1 - _ratio(actual_nm.var(axis=1, ddof=1).mean(), actual_nm.var(axis=0, ddof=1).mean())


# ------------------------------------------------------------------------------------------ R2 and its interval
def r2_interval(predicted_n: np.ndarray, actual_n: np.ndarray, group_n: np.ndarray) -> Estimate:
    """R2 of a prediction (as in `Agreement`) with its `jackknife` interval over groups, on the scale of ln(1 - R2)."""
    predicted_n, actual_n = columns(predicted_n=predicted_n, actual_n=actual_n)
    r2_GP, size_g = _r2_left_out([predicted_n], actual_n, group_n)
    r2, *without_g = r2_GP[:, 0]
    return Estimate(float(r2), *from_left_out(r2, np.array(without_g), size_g, EXPLAINED))


def r2_difference(predicted_n: np.ndarray, other_n: np.ndarray, actual_n: np.ndarray, group_n: np.ndarray) -> Estimate:
    """R2 of a prediction less R2 of another one of the same positions, with the interval of the paired jackknife over
    groups.
    """
    predicted_n, other_n, actual_n = columns(predicted_n=predicted_n, other_n=other_n, actual_n=actual_n)
    r2_GP, size_g = _r2_left_out([predicted_n, other_n], actual_n, group_n)
    difference, *without_g = r2_GP[:, 0] - r2_GP[:, 1]
    return Estimate(float(difference), *from_left_out(difference, np.array(without_g), size_g))


def _r2_left_out(
    predictions: list[np.ndarray], actual_n: np.ndarray, group_n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """((1 + g, P) R2 of each prediction: of all positions, then without each group; (g,) sizes of the groups)."""
    _, index_n = np.unique(np.asarray(group_n), return_inverse=True)
    if index_n.shape != actual_n.shape:
        raise ValueError(f"group_n names {len(index_n)} positions, the records have {len(actual_n)}")
    a_n = _centred(actual_n)  # so that the difference of sums below does not cancel
    moments = [np.ones_like(a_n), a_n, a_n * a_n, *(np.square(predicted_n - actual_n) for predicted_n in predictions)]
    sums_gK = np.stack([np.bincount(index_n, weights=moment_n) for moment_n in moments], axis=1)
    totals_GK = np.concatenate([sums_gK.sum(0)[None], sums_gK.sum(0) - sums_gK])
    n_G, a_G, aa_G = totals_GK[:, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):  # without the only group nothing is left
        spread_G = aa_G - a_G * a_G / n_G
        spread_G[spread_G <= 1e-12 * aa_G] = np.nan  # equal values: what is left is rounding
        return 1 - totals_GK[:, 3:] / spread_G[:, None], sums_gK[:, 0]


# ---------------------------------------------------------------------------------------------- calibration
class ReliabilityBin(NamedTuple):
    """One bin of a prediction: means of predicted and actual, the 95 % interval of the latter, and how many
    positions.
    """

    predicted: float
    actual: float
    low: float
    high: float
    count: int


def reliability(
    predicted_n: np.ndarray, actual_n: np.ndarray, bins: int = 10, group_n: np.ndarray | None = None
) -> list[ReliabilityBin]:
    """Predicted against actual mean in bins of equal mass of the prediction, from low to high.

    Equal predictions share a bin, so there may be fewer than `bins`, and none is empty. The interval is that of
    `per_token` over groups (None: every position is a group of its own), NaN in a bin with a single group.
    Raises ValueError as `columns` does and for bins < 1.
    """
    predicted_n, actual_n = columns(predicted_n=predicted_n, actual_n=actual_n)
    group_n = np.arange(len(actual_n)) if group_n is None else np.asarray(group_n)
    index_n, rows = _equal_mass(predicted_n, bins), []
    for which in range(index_n.max() + 1):
        in_n = index_n == which
        estimate = per_token(actual_n[in_n], np.ones(in_n.sum()), group_n[in_n])
        rows.append(ReliabilityBin(float(predicted_n[in_n].mean()), *estimate, int(in_n.sum())))
    return rows


def calibration_error(predicted_n: np.ndarray, actual_n: np.ndarray, bins: int = 10) -> float:
    """Mean over positions of |mean predicted - mean actual| of their `reliability` bin: an expected calibration error
    for regression, in the unit of both. Noise of the bin means adds to it: with few positions a bin it is too high.
    """
    predicted_n, actual_n = columns(predicted_n=predicted_n, actual_n=actual_n)
    return _gap(predicted_n - actual_n, _equal_mass(predicted_n, bins))


def expected_calibration_error(
    confidence_n: np.ndarray, correct_n: np.ndarray, bins: int = 15, equal_mass: bool = False
) -> float:
    """Mean over positions of |mean confidence - share correct| of their bin (Guo et al. 2017, equation 3).

    - confidence_n: probabilities (n,). correct_n: bool or 0 / 1 (n,).
    - equal_mass: bins by quantile of the confidence. Otherwise [0, 1/bins), ..., [1 - 1/bins, 1] with both ends in.

    Raises ValueError as `columns` does, for bins < 1 and for confidences outside of [0, 1].
    """
    confidence_n, correct_n = columns(confidence_n=confidence_n, correct_n=correct_n)
    if confidence_n.min() < 0 or confidence_n.max() > 1:
        raise ValueError(
            f"confidence_n lies in [{confidence_n.min()}, {confidence_n.max()}]: probabilities are expected"
        )
    if equal_mass:
        return _gap(confidence_n - correct_n, _equal_mass(confidence_n, bins))
    edges = np.linspace(0, 1, _checked(bins) + 1)[1:-1]
    return _gap(confidence_n - correct_n, np.searchsorted(edges, confidence_n, side="right"))


def brier(p_true_n: np.ndarray, sum_p2_n: np.ndarray) -> float:
    """Multiclass Brier score, mean of sum_v (p_v - [v = y])^2 = sum_v p_v^2 - 2 p_y + 1 (Brier 1950): 0 best, 2 worst.

    - p_true_n: probability of the true token (n,). sum_p2_n: sum over the vocabulary of squared probabilities (n,).
    """
    p_true_n, sum_p2_n = columns(p_true_n=p_true_n, sum_p2_n=sum_p2_n)
    return float((sum_p2_n - 2 * p_true_n + 1).mean())


def _checked(bins: int) -> int:
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1")
    return bins


def _equal_mass(values_n: np.ndarray, bins: int) -> np.ndarray:
    """(n,) bin of each value, 0 and up without gaps: by its mean rank, so that equal values meet in one bin."""
    bin_n = (rankdata(values_n) - 0.5) * _checked(bins) // len(values_n)
    return np.unique(bin_n, return_inverse=True)[1]


def _gap(difference_n: np.ndarray, index_n: np.ndarray) -> float:
    """Count-weighted mean over bins of |mean difference|: the counts cancel."""
    return float(np.abs(np.bincount(index_n, weights=difference_n)).sum() / len(difference_n))


# ------------------------------------------------------------------------------------------------- controls
@dataclass(frozen=True)
class PiecewiseLinear:
    """A continuous piecewise-linear function through (knots_K, values_K), constant beyond the ends."""

    knots_K: np.ndarray
    values_K: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Its values at x, of the same shape."""
        return np.interp(x, self.knots_K, self.values_K)


def fit_curve(x_n: np.ndarray, y_n: np.ndarray, knots: int = 20) -> PiecewiseLinear:
    """The least-squares `PiecewiseLinear` with knots at evenly spaced quantiles of x (fewer where they coincide).

    The control of a predicted loss: what the entropy of the model (x) says about it through any smooth function.
    Fit it on other documents than it is judged on. Raises ValueError as `columns` does and for knots < 1.
    """
    x_n, y_n = columns(x_n=x_n, y_n=y_n)
    if knots < 1:
        raise ValueError(f"knots={knots} must be at least 1")
    # Quantiles that are data points: each hat function is 1 at some position, so the system has full rank.
    knots_K = np.unique(np.quantile(x_n, np.linspace(0, 1, knots), method="inverted_cdf"))
    hats_nK = np.stack([np.interp(x_n, knots_K, hat_K) for hat_K in np.eye(len(knots_K))], axis=1)
    return PiecewiseLinear(knots_K, np.linalg.lstsq(hats_nK, y_n, rcond=None)[0])


@dataclass(frozen=True)
class Ridge:
    """A linear function of features: features @ weight_D + intercept."""

    weight_D: np.ndarray
    intercept: float

    def predict(self, features_nD: np.ndarray) -> np.ndarray:
        """(n,) float64 values."""
        return np.asarray(features_nD) @ self.weight_D + self.intercept


def fit_ridge(features_nD: np.ndarray, y_n: np.ndarray, penalty: float = 1.0) -> Ridge:
    """Ridge regression on standardised features: a linear probe on frozen hidden states.

    Minimises sum_n (y - b - z w)^2 + penalty |w|^2 with z of mean 0 and variance 1, b free (Hoerl and Kennard 1970).
    Per position the penalty is penalty / n: a feature on its own is shrunk by n / (n + penalty). Constant features get
    no weight. Solved by normal equations in float64, without a float64 copy of the features. Fit it on other documents
    than it is judged on.

    Raises ValueError for shapes that do not match, values that are not finite and penalty <= 0.
    """
    features_nD, (y_n,) = np.asarray(features_nD), columns(y_n=y_n)
    if features_nD.ndim != 2 or len(features_nD) != len(y_n):
        raise ValueError(
            f"features_nD has shape {features_nD.shape}, y_n {y_n.shape}: one row of features per value is expected"
        )
    if penalty <= 0:
        raise ValueError(f"penalty={penalty} must be above 0")
    mean_D = features_nD.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean_D).all():
        raise ValueError("features_nD has values that are not finite")
    gram_DD, right_D = _cross_products(features_nD, mean_D, _centred(y_n))
    scale_D = np.sqrt(np.diag(gram_DD) / len(y_n))
    constant_D = features_nD.min(axis=0) == features_nD.max(axis=0)  # their scale is a rounding error
    scale_D[constant_D], right_D[constant_D] = 1.0, 0.0
    standard_DD = gram_DD / np.outer(scale_D, scale_D) + penalty * np.eye(len(mean_D))
    weight_D = np.linalg.solve(standard_DD, right_D / scale_D) / scale_D
    return Ridge(weight_D, float(y_n.mean() - mean_D @ weight_D))


def _cross_products(features_nD: np.ndarray, mean_D: np.ndarray, y_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred features times themselves (D, D) and times y (D,), summed over positions a block of rows at a time."""
    gram_DD, right_D = np.zeros((len(mean_D), len(mean_D))), np.zeros(len(mean_D))
    for start in range(0, len(y_n), ROWS):
        block = features_nD[start : start + ROWS] - mean_D
        gram_DD += block.T @ block
        right_D += block.T @ y_n[start : start + ROWS]
    return gram_DD, right_D

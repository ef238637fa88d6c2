"""Answering only where the predicted loss is low: what that costs, and a threshold whose risk is guaranteed.

A score is predicted badness: low ones are accepted first. Shapes: n positions, m other positions, T thresholds.
"""

from __future__ import annotations

import bisect

import numpy as np
from scipy.special import bdtr

from research_stack.metrics.calibration import columns


# -------------------------------------------------------------------------------------------- risk and coverage
def risk_coverage(score_n: np.ndarray, loss_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coverage, risk) of accepting all positions up to a score, one point for each distinct score, from low to high.

    Coverage is the accepted share, risk the mean loss of the accepted (Geifman and El-Yaniv 2017). Equal scores
    are accepted together: the curve does not depend on the order of the input. Raises ValueError as `columns` does.
    """
    counts, sums = _ties(*columns(score_n=score_n, loss_n=loss_n))
    accepted = np.cumsum(counts)
    return accepted / accepted[-1], np.cumsum(sums) / accepted


def aurc(score_n: np.ndarray, loss_n: np.ndarray) -> float:
    """Area under the risk-coverage curve, the mean risk at coverages 1/n, 2/n, ..., 1, in the unit of the loss.

    For any real loss (Geifman, Uziel and El-Yaniv 2018 have it for 0 / 1). Equal scores are taken in random
    order, in expectation: within a tie each position then adds the mean loss of the tie.
    """
    counts, sums = _ties(*columns(score_n=score_n, loss_n=loss_n))
    expected_n = np.repeat(sums / counts, counts)
    return float((np.cumsum(expected_n) / np.arange(1, len(expected_n) + 1)).mean())


def excess_aurc(score_n: np.ndarray, loss_n: np.ndarray) -> float:
    """`aurc` less that of the best score there can be, the loss itself (Geifman et al. 2018, E-AURC); 0 is perfect."""
    return aurc(score_n, loss_n) - aurc(loss_n, loss_n)


def _ties(score_n: np.ndarray, loss_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each distinct score from low to high: how many positions have it, and the sum of their losses."""
    _, index_n, counts = np.unique(score_n, return_inverse=True, return_counts=True)
    return counts, np.bincount(index_n, weights=loss_n)


# ----------------------------------------------------------------------------------- abstention with a guarantee
def one_per_group(group_n: np.ndarray, seed: int) -> np.ndarray:
    """(g,) indices: one position of each group, uniformly drawn, in the order of the groups' names.

    Positions of independent documents are independent; those of one document are not. What is then said about the risk
    is about a random position of a random document: every document counts the same, however long it is.
    """
    group_n = np.asarray(group_n)
    shuffled_n = np.random.default_rng(seed).permutation(len(group_n))
    return shuffled_n[np.unique(group_n[shuffled_n], return_index=True)[1]]


def binomial_tail(errors: int, n: int, p: float) -> float:
    """P(Bin(n, p) <= errors)."""
    return float(errors >= 0) if errors < 0 or errors >= n else float(bdtr(errors, n, p))


def p_value(loss: float, n: int, risk: float, binary: bool) -> float:
    """A p-value of the hypothesis that the mean of n i.i.d. losses in [0, 1] that sum to `loss` is above `risk`.

    - binary: losses are 0 or 1, and the binomial tail is exact. Otherwise Hoeffding-Bentkus (Bates et al. 2021,
      section 3.1; Angelopoulos et al. 2021, "Learn then Test"): the smaller of exp(-n kl(mean, risk)) and
      e P(Bin(n, risk) <= ceil(loss)). At loss 0 both are (1 - risk)^n.
    """
    if binary:
        return binomial_tail(round(loss), n, risk)
    mean = min(loss / n, risk)
    kl = (mean * np.log(mean / risk) if mean > 0 else 0.0) + (1 - mean) * (np.log1p(-mean) - np.log1p(-risk))
    return float(min(np.exp(-n * kl), np.e * binomial_tail(int(np.ceil(loss)), n, risk)))


def least_accepted(risk: float, delta: float, errors: int = 0) -> int:
    """How many 0 / 1 losses it takes to reject a mean above `risk` at level `delta` in spite of that many errors.

    With errors=0 this holds for any loss in [0, 1]: with fewer accepted points nothing can be rejected.
    """
    _check(risk, delta)
    enough = errors + 1
    while binomial_tail(errors, enough, risk) > delta:
        enough *= 2
    return bisect.bisect_left(range(enough), True, key=lambda n: binomial_tail(errors, n, risk) <= delta)


def threshold_grid(
    score_m: np.ndarray, n: int, risk: float, delta: float, count: int = 50, errors: int = 3
) -> np.ndarray:
    """(T,) thresholds for `learn_then_test` on n other points: quantiles of the scores of m points that it does not
    test.

    The first one is to accept, of n, as many as can bear some errors (see `least_accepted`): where a single error at
    the first threshold ends the sequence, a rule that is good enough often gets nothing. The last one accepts about
    all. None where n is too small. `count` thresholds at most, at even steps of coverage.
    """
    start = least_accepted(risk, delta, errors) / max(n, 1)
    levels = np.linspace(start, 1, count) if start <= 1 and len(score_m) else np.empty(0)
    return np.unique(np.quantile(score_m, levels, method="inverted_cdf")) if len(levels) else levels


def learn_then_test(
    score_n: np.ndarray,
    loss_n: np.ndarray,
    risk: float,
    delta: float,
    thresholds: np.ndarray | None = None,
    seed: int = 0,
) -> float | None:
    """The most lax threshold t with P(E[loss | score <= t] > risk) <= delta over calibration sets; None if there is
    none.

    Learn then Test with fixed-sequence testing (Angelopoulos et al. 2021): from strict to lax, each
    hypothesis "the risk of accepting score <= t is above `risk`" is tested at level delta on the accepted points, and
    the first that is not rejected ends the sequence. A false rejection has to reject the first true hypothesis, so
    delta is not divided by the number of thresholds. That is why the thresholds may not depend on the labels:
    a grid that was placed where the losses turned out low would be tested on the luck that chose it.

    - score_n, loss_n: i.i.d. calibration points (n,), losses in [0, 1] (see `one_per_group`). If every loss is 0 or 1
      the loss is taken to be binary.
    - risk, delta: in (0, 1). The guarantee is for accepting a new point of the same distribution if its score <= t.
    - thresholds: fixed beforehand, say by `threshold_grid` on other points. Those that accept too few points for any
      rejection are passed over. Where that happens the guarantee needs a risk that does not fall as t grows (points
      above t are no better than those below): the count of accepted points then says nothing good about their losses.
      None: a random fifth of the points, drawn with `seed`, sets the grid and is not tested.

    Raises ValueError as `columns` does, for losses outside of [0, 1], and for risk or delta outside of (0, 1).
    """
    score_n, loss_n = columns(score_n=score_n, loss_n=loss_n)
    if loss_n.min() < 0 or loss_n.max() > 1:
        raise ValueError(f"loss_n lies in [{loss_n.min()}, {loss_n.max()}]: the test needs losses in [0, 1]")
    least, binary = least_accepted(risk, delta), bool(np.isin(loss_n, (0, 1)).all())
    if thresholds is None:
        other, tested = np.split(np.random.default_rng(seed).permutation(len(score_n)), [len(score_n) // 5])
        thresholds = threshold_grid(score_n[other], len(tested), risk, delta)
        score_n, loss_n = score_n[tested], loss_n[tested]
    order = np.argsort(score_n)
    thresholds = np.unique(thresholds)  # sorted: from strict to lax
    accepted_T = np.searchsorted(score_n[order], thresholds, side="right")
    sums = np.concatenate([[0.0], np.cumsum(loss_n[order])])
    passed = None
    for threshold, n in zip(thresholds, accepted_T, strict=True):
        if n < least:
            continue
        if p_value(float(sums[n]), int(n), risk, binary) > delta:
            break
        passed = float(threshold)
    return passed


def conformal_threshold(score_n: np.ndarray, loss_n: np.ndarray, group_n: np.ndarray, risk: float) -> float | None:
    """The most lax threshold t for which a new document is expected to lose at most `risk` on accepted positions.

    Conformal risk control (Angelopoulos et al. 2022, theorem 1): the loss of a document is the mean over all its
    positions of loss * [score <= t], which lies in [0, 1] and grows with t; with g exchangeable documents E[loss of the
    next one] <= risk for the largest t at which g / (g + 1) * mean + 1 / (g + 1) <= risk. In expectation over
    calibration sets, and as a share of all positions, accepted or not: with coverage q the risk among the accepted may
    be up to risk / q. None if no t serves.

    - score_n, loss_n: positions (n,), losses in [0, 1]. group_n: their documents.

    Raises ValueError as `columns` does, and for losses outside of [0, 1].
    """
    score_n, loss_n = columns(score_n=score_n, loss_n=loss_n)
    if loss_n.min() < 0 or loss_n.max() > 1:
        raise ValueError(
            f"loss_n lies in [{loss_n.min()}, {loss_n.max()}]: conformal risk control needs losses in [0, 1]"
        )
    _, index_n, count_g = np.unique(np.asarray(group_n), return_inverse=True, return_counts=True)
    groups, order = len(count_g), np.argsort(score_n, kind="stable")
    upto_n = (np.cumsum((loss_n / count_g[index_n])[order]) + 1) / (groups + 1)
    last_n = np.append(score_n[order][1:] != score_n[order][:-1], True)  # equal scores are accepted together
    passed = np.flatnonzero(last_n & (upto_n <= risk))
    return float(score_n[order][passed[-1]]) if len(passed) else None


def _check(risk: float, delta: float) -> None:
    if not (0 < risk < 1 and 0 < delta < 1):
        raise ValueError(f"risk={risk} and delta={delta} must be above 0 and below 1")

"""Answering only where the model is sure: what a threshold promises beforehand, and what it keeps on fresh documents.

Two promises, both about the own token being wrong. `conformal` bounds the share of all positions that are accepted and
wrong, in expectation over documents. `learn-then-test` bounds the share of wrong ones among the accepted, with
probability 1 - delta, at a random position of a random document: it sees one position a document, so it needs many
documents.

Shapes: n positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from research_stack.metrics.selective import conformal_threshold, learn_then_test, one_per_group

Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, float, int], float | None]


def conformal_rule(
    score_n: np.ndarray, wrong_n: np.ndarray, document_n: np.ndarray, target: float, seed: int
) -> float | None:
    """Threshold by conformal risk control."""
    return conformal_threshold(score_n, wrong_n, document_n, target)


def learn_then_test_rule(delta: float) -> Rule:
    """Threshold by Learn then Test at level delta, from one random position of each document."""

    def rule(
        score_n: np.ndarray, wrong_n: np.ndarray, document_n: np.ndarray, target: float, seed: int
    ) -> float | None:
        at = one_per_group(document_n, seed)
        return learn_then_test(score_n[at], wrong_n[at], target, delta, seed=seed)

    return rule


def try_rule(
    rule: Rule,
    of_all: bool,
    score_n: np.ndarray,
    wrong_n: np.ndarray,
    document_n: np.ndarray,
    target: float,
    splits: int,
    seed: int,
) -> dict[str, Any]:
    """Coverage and risk on the documents that a random half was not calibrated on, over many splits.

    - of_all: the risk is the share of all positions that are accepted and wrong (mean over documents); else of the
      accepted.

    {"coverage", "risk", "low", "high": mean over splits and its 2.5 and 97.5 % quantiles over splits, "violations":
    share of the splits in which the risk was above the target, "splits"}; NaN risk where nothing was ever accepted.
    """
    names, index_n = np.unique(document_n, return_inverse=True)
    draws = np.random.default_rng(seed)
    coverages, risks = [], []
    for split in range(splits):
        known_n = (draws.permutation(len(names)) < len(names) // 2)[index_n]
        threshold = rule(score_n[known_n], wrong_n[known_n], document_n[known_n], target, seed + split)
        accepted_n = (score_n <= threshold) & ~known_n if threshold is not None else np.zeros(len(score_n), dtype=bool)
        coverages.append(accepted_n.sum() / max(1, (~known_n).sum()))
        risks.append(_risk(accepted_n, wrong_n, index_n, known_n, of_all))
    known = np.array([risk for risk in risks if np.isfinite(risk)])
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
    return {
        "coverage": float(np.mean(coverages)),
        "risk": float(known.mean()) if len(known) else float("nan"),
        "low": float(low),
        "high": float(high),
        "violations": float(np.sum(known > target) / splits),
        "splits": splits,
    }


def _risk(accepted_n: np.ndarray, wrong_n: np.ndarray, index_n: np.ndarray, known_n: np.ndarray, of_all: bool) -> float:
    if not of_all:
        return float(wrong_n[accepted_n].mean()) if accepted_n.any() else float("nan")
    fresh = ~known_n
    lost_g = np.bincount(index_n[fresh], weights=(accepted_n & (wrong_n > 0))[fresh])
    size_g = np.bincount(index_n[fresh])
    return float((lost_g[size_g > 0] / size_g[size_g > 0]).mean())

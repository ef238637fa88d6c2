"""Judging a reward model on prompts it has not seen, and its card: what it was made of and what it is good for.

Writes tables/reward_heldout.csv (the model beside its controls), reward_reliability.csv (deciles), reward_points.csv
(single pairs, for the figure) and reward_card.md.

Shapes: n held-out pairs, g prompts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from research_stack.data.scored import ScoredPairs, ScoredRows
from research_stack.data.sources.replies import Replies
from research_stack.metrics import calibration
from research_stack.metrics.interval import CORRELATION, Estimate, clip_interval, jackknife, per_token, warn_few
from research_stack.posttraining.reward_card import card
from research_stack.posttraining.reward_model import RewardModel
from research_stack.records.csv_tables import write_table
from research_stack.records.files import atomic_write
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.evaluation.context import Context

log = logging.getLogger(__name__)

MODEL, LINEAR, LENGTH, CEILING = (
    "reward model",
    "linear, same embeddings",
    "length of the reply alone",
    "planted preference",
)
KINDS = {MODEL: "model", CEILING: "ceiling"}  # all others are controls
MAX_BATCH = 8192  # pairs per pass


@dataclass(frozen=True)
class RewardScores:
    """How a prediction of log(1 + engagement) agrees with what came, on n pairs; intervals are over prompts.

    - pairwise_accuracy: of two replies to one prompt that earned differently, how often the better one is predicted
      higher (ties: half).
    - calibration_error: mean gap between predicted and actual over deciles. slope: of actual on predicted; 1 where
      calibrated.
    """

    pearson: Estimate
    spearman: Estimate
    r2: Estimate
    pairwise_accuracy: Estimate
    slope: float
    calibration_error: float


class RewardEvaluation:
    """Held-out correlation, R2, ranking within a prompt and calibration of a reward model, beside two controls.

    The controls are fitted on the training side: a smooth function of the reply's length, and a ridge regression on the
    same embeddings. Of synthetic replies the planted preference is known too: a smooth function of it is the ceiling.
    Intervals are 95 %, over prompts (`evaluation.interval`); they do not cover a new training run.

    - bins: of reliability. ridge: penalty of the linear control. points: of the scatter plot, at most.
    """

    #: See research_stack.config.smoke.
    smoke = {"points": 100}

    def __init__(self, bins: int = 10, ridge: float = 300.0, points: int = 600) -> None:
        require(bins >= 2, f"bins={bins} must be at least 2")
        require(bins <= 10_000, f"bins={bins} must be at most 10,000")
        require(ridge > 0, f"ridge={ridge} must be positive")
        require(ridge < math.inf, f"ridge={ridge} must be finite")
        require(points >= 1, f"points={points} must be at least 1")
        self.bins, self.ridge, self.points = bins, ridge, points

    def unsuited(self, method: type) -> str | None:
        """Only reward models predict engagement."""
        return None if issubclass(method, RewardModel) else "it judges reward models; choose the eval of this method"

    def __call__(self, context: Context) -> dict[str, float]:
        """The numbers of the model, those of the controls, and `r2_over_length` with its interval."""
        method, data = context.method, context.data
        assert isinstance(method, RewardModel) and isinstance(data, ScoredPairs)
        train, rows = data.train, data.validation
        assert isinstance(train, ScoredRows) and isinstance(rows, ScoredRows)
        predictions = {MODEL: predicted(method, rows, context.device), **self._controls(train, rows), **ceiling(data)}
        warn_few(rows.group_N, "prompts")
        judged = {name: self._judged(predicted_n, rows) for name, predicted_n in predictions.items()}
        over = calibration.r2_difference(predictions[MODEL], predictions[LENGTH], rows.target_N, rows.group_N)
        prompts = len(np.unique(rows.group_N))
        self._tables(context.folder, predictions, judged, rows, prompts)
        model = judged[MODEL]
        spread = {
            f"{name}{end}": value
            for name in ("pearson", "spearman", "r2", "pairwise_accuracy")
            for end, value in zip(("", "_low", "_high"), getattr(model, name), strict=True)
        }
        metrics = {
            **spread,
            "slope": model.slope,
            "calibration_error": model.calibration_error,
            "pearson_length": judged[LENGTH].pearson.value,
            "r2_length": judged[LENGTH].r2.value,
            "r2_linear": judged[LINEAR].r2.value,
            "r2_over_length": over.value,
            "r2_over_length_low": over.low,
            "r2_over_length_high": over.high,
            "pairs": float(len(rows)),
            "prompts": float(prompts),
        }
        if CEILING in judged:
            metrics |= {"pearson_ceiling": judged[CEILING].pearson.value, "r2_ceiling": judged[CEILING].r2.value}
        atomic_write(context.folder / "reward_card.md", card(data.describe(), method, judged, over, len(rows), prompts))
        log.info(
            "held-out Pearson %.3f (%.3f to %.3f), length alone %.3f; %d pairs of %d prompts",
            *model.pearson,
            judged[LENGTH].pearson.value,
            len(rows),
            prompts,
        )
        return metrics

    def _controls(self, train: ScoredRows, rows: ScoredRows) -> dict[str, np.ndarray]:
        """(n,) predictions by what needs no reward model."""
        line = calibration.fit_ridge(train.features.astype(np.float64), train.target_N, self.ridge)
        curve = calibration.fit_curve(np.log1p(train.length_N), train.target_N, knots=10)
        return {LINEAR: line.predict(rows.features.astype(np.float64)), LENGTH: curve.predict(np.log1p(rows.length_N))}

    def _judged(self, predicted_n: np.ndarray, rows: ScoredRows) -> RewardScores:
        found = calibration.agreement(predicted_n, rows.target_N)

        def interval(of: Callable[[calibration.Agreement], float]) -> tuple[float, float]:
            def statistic(kept_n: np.ndarray) -> float:
                return of(calibration.agreement(predicted_n[kept_n], rows.target_N[kept_n]))

            return jackknife(statistic, rows.group_N, CORRELATION)

        return RewardScores(
            pearson=Estimate(found.pearson, *interval(lambda a: a.pearson)),
            spearman=Estimate(found.spearman, *interval(lambda a: a.spearman)),
            r2=calibration.r2_interval(predicted_n, rows.target_N, rows.group_N),
            pairwise_accuracy=pairwise_accuracy(predicted_n, rows.target_N, rows.group_N),
            slope=found.slope,
            calibration_error=calibration.calibration_error(predicted_n, rows.target_N, self.bins),
        )

    def _tables(
        self,
        folder: Path,
        predictions: Mapping[str, np.ndarray],
        judged: Mapping[str, RewardScores],
        rows: ScoredRows,
        prompts: int,
    ) -> None:
        table = [
            {
                "name": name,
                "kind": KINDS.get(name, "control"),
                **{
                    f"{key}{end}": value
                    for key in ("pearson", "spearman", "r2", "pairwise_accuracy")
                    for end, value in zip(("", "_low", "_high"), getattr(one, key), strict=True)
                },
                "slope": one.slope,
                "calibration_error": one.calibration_error,
                "pairs": len(rows),
                "prompts": prompts,
            }
            for name, one in judged.items()
        ]
        write_table(folder, "reward_heldout", table)
        deciles = calibration.reliability(predictions[MODEL], rows.target_N, self.bins, rows.group_N)
        write_table(
            folder, "reward_reliability", [{"bin": index, **one._asdict()} for index, one in enumerate(deciles)]
        )
        at = np.arange(min(self.points, len(rows))) * len(rows) // min(self.points, len(rows))
        write_table(
            folder,
            "reward_points",
            [{"predicted": p, "actual": a} for p, a in zip(predictions[MODEL][at], rows.target_N[at], strict=True)],
        )


def ceiling(data: ScoredPairs) -> dict[str, np.ndarray]:
    """{CEILING: (n,)} what one who knows the planted preference would predict; nothing for replies whose preference
    nobody knows.
    """
    if not (isinstance(data.source, Replies) and data.source.synthetic):
        return {}
    planted = np.array([reply.log_mean for reply in data.source.truth])
    train, rows = data.train, data.validation
    return {
        CEILING: (
            calibration.fit_curve(planted[train.number_N], train.target_N, knots=10).predict(planted[rows.number_N])
        )
    }


def predicted(method: RewardModel, rows: ScoredRows, device: torch.device | str = "cpu") -> np.ndarray:
    """(n,) float64: predicted log(1 + engagement) of the pairs."""
    method.eval()
    with torch.inference_mode():
        parts = [
            method.predict(torch.from_numpy(rows.take(slice(i, i + MAX_BATCH)).features).to(device)).double().cpu()
            for i in range(0, len(rows), MAX_BATCH)
        ]
    return torch.cat(parts).numpy()


def pairwise_accuracy(predicted_n: np.ndarray, actual_n: np.ndarray, group_n: np.ndarray) -> Estimate:
    """The share of pairs of one group with different actual values that the prediction orders rightly (ties: half),
    with its interval over groups.

    Every such pair counts the same. NaN where no group has two different values.
    """
    right, count = [], []
    for group in np.unique(group_n):
        p, a = predicted_n[group_n == group], actual_n[group_n == group]
        first, second = np.triu_indices(len(a), 1)
        differ = a[first] != a[second]
        agree = np.sign(p[first] - p[second]) * np.sign(a[first] - a[second])
        right.append(((agree[differ] + 1) / 2).sum())
        count.append(differ.sum())
    return (
        clip_interval(per_token(np.array(right), np.array(count)), 0.0, 1.0)
        if any(count)
        else Estimate(np.nan, np.nan, np.nan)
    )

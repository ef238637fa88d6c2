"""Judging a run: the next token, the predicted future loss against its controls, selective prediction, abstention.

Writes tables/next_token.csv, future_loss.csv, reliability.csv, risk_coverage.csv and abstention.csv, and every record
of every position to records/lookahead.parquet. A model without a head gets all but the rows that need one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from research_stack.data.batches import batch_of
from research_stack.data.packing import PackedRows
from research_stack.evaluation.likelihood import baseline_nats
from research_stack.lookahead.abstention import conformal_rule, learn_then_test_rule, try_rule
from research_stack.lookahead.controls import cross_fit, fit_probe, hidden_states, scores
from research_stack.lookahead.module import Lookahead, MiniGPT
from research_stack.lookahead.records import Records, batches, records
from research_stack.metrics import calibration, selective
from research_stack.metrics.interval import per_token, warn_few
from research_stack.records.csv_tables import write_table
from research_stack.records.files import atomic_path
from research_stack.records.run_folder import RunFolder
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.evaluation.context import Context

log = logging.getLogger(__name__)

COVERAGES = 50  # points of a curve
MAX_POSITIONS = 16384  # positions on which the promises of abstention are tried, spread evenly
HEAD = "confidence head"


class LookaheadCalibration:
    """How well a run predicts text, and how well it knows what its choices will cost.

    - samples: own tokens drawn at each position; the future loss behind each is one sample of what the head predicts.
    - max_sequences: at most so many validation rows, spread evenly; None for all.
    - probe_sequences: training rows on whose frozen states the linear probe is trained.
    - bins: of reliability and of both calibration errors of the next token.
    - targets: promised shares of wrong own tokens. delta: of Learn then Test. splits: random halves of the documents.
    - rollout_sequences: rows on which the confidences are also fed in token by token, as generation does; 0: none.

    Intervals are by document, and cover neither a new training run nor, for R2, the fit of the controls.
    """

    #: See research_stack.config.smoke.
    smoke = {"samples": 2, "max_sequences": 16, "probe_sequences": 16, "splits": 10, "rollout_sequences": 1}

    def __init__(
        self,
        samples: int = 8,
        max_sequences: int | None = None,
        probe_sequences: int = 512,
        bins: int = 15,
        targets: Sequence[float] = (0.05, 0.1, 0.2, 0.3),
        delta: float = 0.1,
        splits: int = 200,
        rollout_sequences: int = 8,
    ) -> None:
        require(samples >= 2, f"samples={samples} must be at least 2: the noise ceiling needs several at each position")
        require(samples <= 10_000, f"samples={samples} must be at most 10,000")
        require(
            max_sequences is None or max_sequences >= 2,
            f"max_sequences={max_sequences} must be at least 2, or null for all",
        )
        require(probe_sequences >= 1, f"probe_sequences={probe_sequences} must be at least 1")
        require(bins >= 2, f"bins={bins} must be at least 2")
        require(bins <= 1_000_000, f"bins={bins} must be at most 1,000,000")
        require(all(0 < target < 1 for target in targets), f"targets={list(targets)} must lie between 0 and 1")
        require(0 < delta < 1, f"delta={delta} must lie between 0 and 1")
        require(splits >= 1, f"splits={splits} must be at least 1")
        require(splits <= 1_000_000, f"splits={splits} must be at most 1,000,000")
        require(rollout_sequences >= 0, f"rollout_sequences={rollout_sequences} must not be negative")
        self.samples, self.max_sequences, self.probe_sequences, self.bins = (
            samples,
            max_sequences,
            probe_sequences,
            bins,
        )
        self.targets, self.delta, self.splits, self.rollout_sequences = tuple(targets), delta, splits, rollout_sequences

    def unsuited(self, method: type) -> str | None:
        """Only MiniGPT and Lookahead branch."""
        return (
            None
            if issubclass(method, MiniGPT)
            else "it judges MiniGPT and Lookahead, models of the next token; choose eval=likelihood"
        )

    def __call__(self, context: Context) -> dict[str, float]:
        """The numbers: see the tables' columns; `r2_over_entropy` is the head's R2 less that of the entropy fit."""
        validation = context.data.validation
        taken = validation.evenly_spaced_indices(self.max_sequences or len(validation))
        rows, document_B = validation.take(taken), context.data.validation_document[taken]
        warn_few(document_B, "documents")
        found = records(context, rows, document_B, self.samples)
        self._write_records(context.folder, found)
        metrics = self._next_token(context, rows, document_B, found)
        predictors = self._predictors(context, rows, found)
        metrics |= self._future_loss(context.folder, found, predictors)
        self._reliability(context.folder, found, predictors)
        metrics |= self._risk_coverage(context.folder, found)
        metrics |= self._abstention(context.folder, found, context.seed)
        metrics |= self._rollout(context, rows)
        log.info(
            "%.3f nats per token; R2 of the future loss: %s",
            metrics["nats"],
            ", ".join(
                f"{name} {calibration.agreement(p, found.future_nm[:, 0]).r2:.3f}" for name, p in predictors.items()
            ),
        )
        return metrics

    # The next token ------------------------------------------------------------------------------------------------

    def _next_token(
        self, context: Context, rows: PackedRows, document_B: np.ndarray, found: Records
    ) -> dict[str, float]:
        nats_B, scored_BS = held_out(context, rows)
        tokens_B = scored_BS.sum(1)
        all_nats = {"this run": nats_B} | baseline_nats(context, rows, scored_BS)
        estimates = {name: per_token(values_B, tokens_B, document_B) for name, values_B in all_nats.items()}
        gain = per_token(all_nats["trigram"] - nats_B, tokens_B, document_B)
        per_byte = 1 / math.log(2) / context.data.bytes_per_token
        largest_n = found.largest.astype(np.float64)
        quality = {
            "accuracy": float(found.correct.mean()),
            "ece": calibration.expected_calibration_error(largest_n, found.correct, self.bins),
            "ece_equal_mass": calibration.expected_calibration_error(
                largest_n, found.correct, self.bins, equal_mass=True
            ),
            "brier": calibration.brier(found.probability, found.square),
        }
        table = [
            {
                "name": name,
                "nats": e.value,
                "low": e.low,
                "high": e.high,
                "bits_per_byte": e.value * per_byte,
                "tokens": int(tokens_B.sum()),
                "documents": len(np.unique(document_B)),
                **(quality if name == "this run" else {}),
            }
            for name, e in estimates.items()
        ]
        columns = ("name", "nats", "low", "high", "bits_per_byte", *quality, "tokens", "documents")
        write_table(context.folder, "next_token", table, columns)
        nats, low, high = estimates["this run"]
        return {
            "nats": nats,
            "nats_low": low,
            "nats_high": high,
            "bits_per_byte": nats * per_byte,
            "unigram": estimates["unigram"].value,
            "trigram": estimates["trigram"].value,
            "gain_over_trigram": gain.value,
            "gain_low": gain.low,
            "gain_high": gain.high,
            **quality,
        }

    # The future loss -----------------------------------------------------------------------------------------------

    def _predictors(self, context: Context, rows: PackedRows, found: Records) -> dict[str, np.ndarray]:
        """(n,) predicted future losses in nats by name, the head first."""
        future_n = found.future_nm.mean(1)
        curves = {
            f"{name} fit": cross_fit(score_n, future_n, found.document)
            for name, score_n in scores(found).items()
            if name != HEAD
        }
        train = context.data.train.evenly_spaced(self.probe_sequences)
        line = fit_probe(context, train, records(context, train, train.document, 2))
        head = {HEAD: found.confidence} if HEAD in scores(found) else {}
        return head | curves | {"linear probe": line.predict(hidden_states(context, rows))}

    def _future_loss(self, folder: Path, found: Records, predictors: Mapping[str, np.ndarray]) -> dict[str, float]:
        """R2 and the like against single samples of the future loss, all of them."""
        samples, actual = self.samples, found.future_nm.ravel()
        document = np.repeat(found.document, samples)
        table = [
            self._predictor(name, np.repeat(predicted_n, samples), actual, document)
            for name, predicted_n in predictors.items()
        ]
        ceiling = calibration.noise_ceiling(found.future_nm)
        write_table(
            folder,
            "future_loss",
            [*table, {"name": "noise ceiling", "kind": "ceiling", "r2": ceiling, "n": len(found)}],
        )
        by_name = {row["name"]: row for row in table}
        metrics = {
            "r2_entropy": by_name["entropy fit"]["r2"],
            "r2_probe": by_name["linear probe"]["r2"],
            "r2_ceiling": ceiling,
            "future": float(actual.mean()),
            "future_std": float(actual.std()),
            "own_accuracy": float(found.own_correct_nm.mean()),
        }
        if HEAD not in by_name:
            return metrics
        head, correct = by_name[HEAD], found.own_correct_nm.ravel()
        over = calibration.r2_difference(
            np.repeat(predictors[HEAD], samples), np.repeat(predictors["entropy fit"], samples), actual, document
        )
        by_correctness = {
            name: calibration.agreement(np.repeat(predictors[HEAD], samples)[at], actual[at]).r2
            for name, at in (("correct", correct), ("wrong", ~correct))
        }
        mean = calibration.agreement(predictors[HEAD], found.future_nm.mean(1)).r2
        return {
            "r2": head["r2"],
            "r2_low": head["low"],
            "r2_high": head["high"],
            "r2_over_entropy": over.value,
            "r2_over_entropy_low": over.low,
            "r2_over_entropy_high": over.high,
            "r2_of_mean": mean,
            "r2_own_correct": by_correctness["correct"],
            "r2_own_wrong": by_correctness["wrong"],
            **{key: head[key] for key in ("pearson", "spearman", "slope", "bias", "calibration_error")},
            **metrics,
        }

    def _predictor(
        self, name: str, predicted_n: np.ndarray, actual_n: np.ndarray, document_n: np.ndarray
    ) -> dict[str, Any]:
        """A row of future_loss.csv."""
        interval = calibration.r2_interval(predicted_n, actual_n, document_n)
        found = calibration.agreement(predicted_n, actual_n)
        return {
            "name": name,
            "kind": "head" if name == HEAD else "control",
            "r2": found.r2,
            "low": interval.low,
            "high": interval.high,
            "pearson": found.pearson,
            "spearman": found.spearman,
            "slope": found.slope,
            "bias": found.bias,
            "calibration_error": calibration.calibration_error(predicted_n, actual_n),
            "n": found.n // self.samples,
        }

    def _reliability(self, folder: Path, found: Records, predictors: Mapping[str, np.ndarray]) -> None:
        """Bins of each predictor against the mean of the samples; the head's also by whether the (first) own token was
        correct.
        """
        future_n, correct_n = found.future_nm.mean(1), found.own_correct_nm[:, 0]
        drawn = [(name, p, future_n, slice(None)) for name, p in predictors.items()]
        if HEAD in predictors:
            first_n = found.future_nm[:, 0]
            drawn += [
                (f"{HEAD}, own token {word}", predictors[HEAD], first_n, at)
                for word, at in (("correct", correct_n), ("wrong", ~correct_n))
            ]
        table = [
            {"name": name, "bin": index, **row._asdict()}
            for name, predicted_n, actual_n, at in drawn
            for index, row in enumerate(calibration.reliability(predicted_n[at], actual_n[at], 10, found.document[at]))
        ]
        write_table(folder, "reliability", table, ("name", "bin", "predicted", "actual", "low", "high", "count"))

    # Using it ------------------------------------------------------------------------------------------------------

    def _risk_coverage(self, folder: Path, found: Records) -> dict[str, float]:
        losses = {
            "future loss": found.future_nm.mean(1).astype(np.float64),
            "next-token loss": found.nats.astype(np.float64),
        }
        table, metrics = [], {}
        for loss, loss_n in losses.items():
            for score, score_n in (scores(found) | {"oracle": loss_n}).items():
                coverage, risk = selective.risk_coverage(score_n, loss_n)
                area, best = selective.aurc(score_n, loss_n), selective.aurc(loss_n, loss_n)
                at = np.unique(
                    np.searchsorted(coverage, np.linspace(1 / COVERAGES, 1, COVERAGES)).clip(max=len(coverage) - 1)
                )
                table += [
                    {"score": score, "loss": loss, "coverage": c, "risk": r, "aurc": area, "excess": area - best}
                    for c, r in zip(coverage[at], risk[at], strict=True)
                ]
                key = f"{score.replace(' ', '_')}_{loss.split()[0].split('-')[0]}"
                metrics |= {f"aurc_{key}": area} if score in (HEAD, "entropy") else {}
        write_table(folder, "risk_coverage", table, ("score", "loss", "coverage", "risk", "aurc", "excess"))
        return metrics

    def _abstention(self, folder: Path, found: Records, seed: int) -> dict[str, float]:
        """Both promises for the confidence head (entropy where there is none) and the entropy."""
        found = found.take(
            np.arange(min(MAX_POSITIONS, len(found))) * len(found) // min(MAX_POSITIONS, len(found))
        )  # documents, not positions, are what counts
        wrong_n, table = 1.0 - found.own_correct_nm[:, 0], []
        names = [name for name in scores(found) if name in (HEAD, "entropy")]
        for promise, rule, of_all in (
            ("conformal", conformal_rule, True),
            ("learn-then-test", learn_then_test_rule(self.delta), False),
        ):
            for name in names:
                for target in self.targets:
                    row = try_rule(
                        rule, of_all, scores(found)[name], wrong_n, found.document, target, self.splits, seed
                    )
                    delta = "" if of_all else self.delta
                    table.append({"promise": promise, "score": name, "target": target, "delta": delta, **row})
        columns = ("promise", "score", "target", "delta", "coverage", "risk", "low", "high", "violations", "splits")
        write_table(folder, "abstention", table, columns)
        return {
            f"coverage_at_{row['target']:g}": row["coverage"]
            for row in table
            if row["promise"] == "conformal" and row["score"] == names[0]
        }

    def _rollout(self, context: Context, rows: PackedRows) -> dict[str, float]:
        """`rollout_gap`: next-token nats with confidences fed token by token, less those with the run's own way."""
        method = context.method
        if not (isinstance(method, Lookahead) and method.model.condition_dim and self.rollout_sequences):
            return {}
        few, previous_mode = rows.evenly_spaced(self.rollout_sequences), method.previous_mode
        usual, _ = held_out(context, few)
        try:
            method.previous_mode = "rollout"
            rolled, scored = held_out(context, few)
        finally:
            method.previous_mode = previous_mode
        return {"rollout_gap": float((rolled.sum() - usual.sum()) / scored.sum())}

    def _write_records(self, folder: Path, found: Records) -> None:
        """records/lookahead.parquet."""
        import pyarrow
        from pyarrow import parquet

        with atomic_path(RunFolder(folder).path / "records" / "lookahead.parquet") as temporary:
            parquet.write_table(pyarrow.table(found.columns()), temporary)


def held_out(context: Context, rows: PackedRows) -> tuple[np.ndarray, np.ndarray]:
    """((rows,) nats of each row's next tokens, (rows, S) bool which tokens are counted)."""
    method: MiniGPT = context.method  # type: ignore[assignment]
    nats, scored = [], np.zeros(rows.tokens.shape, dtype=bool)
    for at, piece in batches(rows):
        batch = {name: tensor.to(context.device) for name, tensor in batch_of(piece).items()}
        counts_BL = method.next_counts(batch)
        length = counts_BL.shape[1]
        tokens_BL = batch["tokens"][:, :length]
        hidden_BLD = method.read(tokens_BL, method.previous(tokens_BL)).hidden_BLD
        _, nats_BL, _ = method.next_token(hidden_BLD, batch["tokens"][:, 1 : length + 1], counts_BL)
        nats.append(nats_BL.double().sum(1).cpu().numpy())
        scored[at, 1 : length + 1] = counts_BL.cpu().numpy() > 0
    return np.concatenate(nats), scored

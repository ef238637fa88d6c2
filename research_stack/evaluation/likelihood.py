"""How well a run models held-out text: an upper bound on -ln p, beside n-gram baselines on the same tokens.

The bound comes from `corruption.bound`, which is unbiased and cuts nothing off; the training loss is a surrogate and
plays no part here. Any process gives a valid bound for any denoiser. The headline is the first one asked for: to take
the smallest of several estimates would make it too small.

Which one is tight depends on the training loss. One with substitutions asks at visible positions for p(x_i given z
without z_i); a model trained with cross entropy there has learned p(x_i given z), and dividing the token's own weight
out again magnifies its errors by up to N. Its absorbing bound needs no such division.

The bound is one of the model, the chain of infinitely many small steps. A sampler of few steps has another
distribution, which it does not bound: tokens written in one step are drawn independently, and a text may be less likely
under it than the bound says (of the 27 texts of three tokens that a test enumerates, 11 with an ancestral sampler of
one step, 3 with two, 1 with four and none from 8 steps on).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from research_stack.corruption.bound import fixed_k_by_level, nelbo_by_level
from research_stack.corruption.process import Absorbing, Hybrid, Process, Uniform
from research_stack.data.batches import batch_of
from research_stack.data.packing import PackedRows
from research_stack.evaluation.context import Context
from research_stack.metrics.interval import Estimate, per_token, warn_few
from research_stack.metrics.ngram import Baseline
from research_stack.metrics.stratification import balanced_part
from research_stack.records.csv_tables import as_csv
from research_stack.records.files import atomic_write
from research_stack.records.run_folder import RunFolder
from research_stack.require import require
from research_stack.streams import Draws

log = logging.getLogger(__name__)

BATCH = 64  # validation rows per call
MAX_TRAIN = 20_000_000  # tokens the n-gram models are trained on, the first of the training rows
NAMES = {Absorbing: "absorbing", Uniform: "uniform", Hybrid: "hybrid"}
COLUMNS = (
    "name",
    "kind",
    "nats_per_token",
    "low",
    "high",
    "perplexity",
    "bits_per_byte",
    "sequences",
    "tokens",
    "documents",
)


class Bound(NamedTuple):
    """The NELBO of each row in nats, and the part of it that stratified levels balance out over all rows."""

    nats_B: np.ndarray
    balanced_B: np.ndarray


class Likelihood:
    """The bound in nats per token with its 95 % interval, and unigram and trigram models of the same tokens.

    - processes: noise processes to bound with: `matched` (the one of the run's corruption, or nearest to it),
      `absorbing`, `uniform`, `hybrid` (with p_u). The first is the headline.
    - samples: noise levels per sequence; more narrow the interval.
    - max_sequences: at most so many validation rows, spread evenly; None for all.
    - p_u: uniform share of `hybrid` at t = 1/2.

    The interval treats documents as independent and is meant for 5 of them or more (`interval`); it covers their
    choice and the Monte-Carlo noise, less what stratified levels balance out (`levels`), not a new training run.
    Writes tables/likelihood.csv.
    """

    #: See research_stack.config.smoke.
    smoke = {"max_sequences": 16, "samples": 1}

    def __init__(
        self,
        processes: Sequence[str] = ("absorbing",),
        samples: int = 4,
        max_sequences: int | None = 256,
        p_u: float = 0.1,
    ) -> None:
        require(samples >= 1, f"samples={samples} must be at least 1")
        require(samples <= 100_000, f"samples={samples} must be at most 100,000")
        require(
            max_sequences is None or max_sequences >= 2,
            f"max_sequences={max_sequences} must be at least 2, or null for all",
        )
        require(0 < p_u < 1, f"p_u={p_u} must lie between 0 and 1")
        known = {"absorbing": Absorbing(), "uniform": Uniform(), "hybrid": Hybrid(p_u=p_u), "matched": None}
        require(len(processes) > 0, "processes=[] must name at least one process")
        for name in processes:
            require(name in known, f"processes={name} must be among {', '.join(known)}")
        self.processes: dict[str, Process | None] = {name: known[name] for name in processes}
        self.samples, self.max_sequences = samples, max_sequences

    def unsuited(self, method: type) -> str | None:
        """Only a denoiser under a corruption has a bound."""
        fits = hasattr(method, "logits")
        return None if fits else "the bound needs a denoiser: choose an evaluation of models of the next token"

    def __call__(self, context: Context) -> dict[str, float]:
        """bound, bound_low, bound_high, perplexity, bits_per_byte, unigram, trigram, gain_over_trigram and its
        interval.
        """
        validation = context.data.validation
        taken = validation.evenly_spaced_indices(self.max_sequences or len(validation))
        rows, document_B = validation.take(taken), context.data.validation_document[taken]
        eligible_BL = rows.eligible
        count_B = eligible_BL.sum(1)
        warn_few(document_B, "documents")
        bounds = {
            self._label(name, process): self._bound(context, rows, process)
            for name, process in self._asked(context).items()
        }
        best = next(iter(bounds))
        baselines = baseline_nats(context, rows)
        estimates = {
            label: per_token(bound.nats_B, count_B, document_B, bound.balanced_B) for label, bound in bounds.items()
        }
        estimates |= {label: per_token(nats_B, count_B, document_B) for label, nats_B in baselines.items()}
        gain = per_token(baselines["trigram"] - bounds[best].nats_B, count_B, document_B, -bounds[best].balanced_B)
        bytes_per_token = context.data.bytes_per_token
        sizes = len(rows), int(count_B.sum()), len(np.unique(document_B))
        self._write(context, estimates, best, bytes_per_token, sizes)
        value, low, high = estimates[best]
        log.info("bound %.3f nats per token under %s (trigram %.3f)", value, best, estimates["trigram"].value)
        return {
            "bound": value,
            "bound_low": low,
            "bound_high": high,
            "perplexity": math.exp(value),
            "bits_per_byte": value / math.log(2) / bytes_per_token,
            "unigram": estimates["unigram"].value,
            "trigram": estimates["trigram"].value,
            "gain_over_trigram": gain.value,
            "gain_low": gain.low,
            "gain_high": gain.high,
        }

    def _asked(self, context: Context) -> dict[str, Process]:
        """The processes by name; `matched` falls away where it is one that is asked for by name too."""
        found: dict[str, Process] = {}
        for name, process in self.processes.items():
            bound = (process or context.method.corruption.process).bind(context.data.vocab.n_real)
            if bound not in found.values():
                found[name] = bound
        return found

    def _label(self, name: str, process: Process) -> str:
        """What the table calls a bound: the process, its uniform share, and whether it is the run's own."""
        kind = NAMES.get(type(process), type(process).__name__.lower())
        share = f" p_u={process.p_u:.3g}" if isinstance(process, Hybrid) else ""
        return f"{kind}{share}{' (matched)' if name == 'matched' else ''}"

    def _bound(self, context: Context, rows: PackedRows, process: Process) -> Bound:
        """The NELBO of each row."""
        parts, label = [], NAMES.get(type(process), type(process).__name__)
        for start in range(0, len(rows), BATCH):
            piece = rows.take(slice(start, start + BATCH))
            batch = {name: tensor.to(context.device) for name, tensor in batch_of(piece).items()}
            draws = Draws(context.seed, "likelihood", label, start, total=len(piece), device=context.device)
            scored_BL = torch.from_numpy(piece.eligible).to(
                context.device
            )  # the texts' own tokens, not the ends behind a response
            given = (batch["tokens"], scored_BL, draws, batch["attention_mask"], self.samples)
            # Without substitutions, exact counts of masks give the same bound with less variance.
            parts.append(
                nelbo_by_level(context.method, process, *given)
                if process.has_uniform
                else fixed_k_by_level(context.method, *given)
            )
        nats_BS, t_BS = (np.concatenate([part[i].cpu().numpy() for part in parts]) for i in range(2))
        return Bound(np.concatenate([part.nats_B.cpu().numpy() for part in parts]), balanced_part(nats_BS, t_BS))

    def _write(
        self,
        context: Context,
        estimates: dict[str, Estimate],
        best: str,
        bytes_per_token: float,
        sizes: tuple[int, int, int],
    ) -> None:
        rows: list[list[Any]] = []
        for name, (value, low, high) in estimates.items():
            kind = (
                "baseline"
                if name in ("unigram", "trigram")
                else "upper bound, headline"
                if name == best
                else "upper bound"
            )
            rows.append(
                [
                    name,
                    kind,
                    f"{value:.6f}",
                    f"{low:.6f}",
                    f"{high:.6f}",
                    f"{math.exp(value):.4f}",
                    f"{value / math.log(2) / bytes_per_token:.6f}",
                    *sizes,
                ]
            )
        atomic_write(RunFolder(context.folder).tables / "likelihood.csv", as_csv(COLUMNS, rows))


def baseline_nats(context: Context, rows: PackedRows, scored_BL: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """{"unigram", "trigram": (rows,) nats of each row}, trained on the run's training rows (the first 20 million
    tokens).

    - scored_BL: bool, the tokens that count; None: all eligible ones.
    """
    scored_BL = rows.eligible if scored_BL is None else scored_BL
    train = context.data.train.take(slice(0, -(-MAX_TRAIN // context.data.sequence_length)))
    stream = np.asarray(train.tokens)[train.attention_mask].astype(np.int64)
    target = train.eligible[train.attention_mask]
    trigram = Baseline(3, stream, context.data.vocab, target)
    unigram = Baseline(1, stream, context.data.vocab, target)
    return {name: model.nats(rows.tokens, scored_BL) for name, model in (("unigram", unigram), ("trigram", trigram))}

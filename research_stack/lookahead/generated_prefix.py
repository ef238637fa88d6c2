"""How well a model goes on from its own words: the loss on real text behind tokens that a decoder wrote in the middle
of it.

    real text          P prompt tokens | G real tokens              | S real tokens, which are scored
    generated prefix   P prompt tokens | G tokens the decoder writes | the same S real tokens, which are scored

The own tokens take the positions of the real ones, so that the scored tokens keep theirs. A decoder whose choices lead
the model astray pays for it here; one that only plays safe shows in repetition, distinct_2 and entropy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from research_stack.data.packing import PackedRows
from research_stack.evaluation.samples import describe, write_samples
from research_stack.lookahead.module import MiniGPT
from research_stack.lookahead.records import batches
from research_stack.metrics.decoding import distinct, repetition, token_entropy
from research_stack.metrics.interval import Estimate, per_token, warn_few
from research_stack.records.csv_tables import write_table
from research_stack.records.run_folder import RunFolder
from research_stack.require import require
from research_stack.sampling.autoregressive import Autoregressive

if TYPE_CHECKING:
    from research_stack.evaluation.context import Context

log = logging.getLogger(__name__)

COLUMNS = ("decoder", "setting", "future_nats", "low", "high", "repetition", "distinct_2", "entropy", "calls", "texts")
REAL_TEXT = "real_text"
SHOWN = 4  # texts of each decoder in samples.jsonl


@dataclass
class Written:
    """What one decoder did to the rows: summed nats and scored tokens of each, the texts, their calls, rows for
    samples.jsonl.
    """

    nats_B: np.ndarray
    scored_B: np.ndarray
    texts: list[np.ndarray]
    calls_B: np.ndarray
    shown: list[dict[str, Any]] = field(default_factory=list)


class GeneratedPrefix:
    """The loss behind own tokens, and what texts from each decoder are like.

    - samplers: by name; each continues the same prompts from the same streams. One that needs a confidence is left out
      for a model that has none.
    - count: validation rows, spread evenly.
    - prompt_tokens: real tokens before. generated_tokens: those the decoder writes. scored_tokens: real tokens after
      them, whose loss is measured; none beyond the end of the document that the decoder continues.
    - text_tokens: length of the texts that repetition (share of 4-grams that occurred earlier in the text), distinct_2,
      entropy (nats, of the tokens of a text) and calls are measured on; they begin with the generated tokens.

    The real text is measured beside them. Intervals (95 %) are by document; they do not cover a new training run.
    Writes tables/generated_prefix.csv, and some texts to samples.jsonl.
    """

    #: See research_stack.config.smoke.
    smoke = {"count": 2, "text_tokens": 24}

    def __init__(
        self,
        samplers: Mapping[str, Autoregressive],
        count: int = 64,
        prompt_tokens: int = 32,
        generated_tokens: int = 8,
        scored_tokens: int = 16,
        text_tokens: int = 96,
    ) -> None:
        require(count >= 1, f"count={count} must be at least 1")
        require(prompt_tokens >= 1, f"prompt_tokens={prompt_tokens} must be at least 1")
        require(generated_tokens >= 1, f"generated_tokens={generated_tokens} must be at least 1")
        require(generated_tokens <= 1_000_000, f"generated_tokens={generated_tokens} must be at most 1,000,000")
        require(scored_tokens >= 1, f"scored_tokens={scored_tokens} must be at least 1")
        require(
            text_tokens >= generated_tokens,
            f"text_tokens={text_tokens} must be at least generated_tokens={generated_tokens}: they are its first ones",
        )
        require(text_tokens <= 1_000_000, f"text_tokens={text_tokens} must be at most 1,000,000")
        self.samplers, self.count, self.prompt_tokens, self.generated_tokens, self.scored_tokens, self.text_tokens = (
            dict(samplers),
            count,
            prompt_tokens,
            generated_tokens,
            scored_tokens,
            text_tokens,
        )

    def unsuited(self, method: type) -> str | None:
        """Only models of the next token write from left to right."""
        return (
            None
            if issubclass(method, MiniGPT)
            else "it judges MiniGPT and Lookahead, models of the next token; choose eval=samples"
        )

    def __call__(self, context: Context) -> dict[str, float]:
        """`<decoder>/<metric>`: future_nats with its interval, excess_nats (future_nats less that of the real text,
        paired) with its interval, repetition, distinct_2, entropy, calls."""
        rows, document_B = self._rows(context)
        warn_few(document_B, "documents")
        real = self._real(context, rows)
        written = {
            name: self._written(context, rows, name, sampler) for name, sampler in self._fitting(context).items()
        }
        table, metrics = [], {}
        for name, found in ({REAL_TEXT: real} | written).items():
            setting = "" if name == REAL_TEXT else repr(self.samplers[name].chooser)
            row, estimates = self._measured(found, real, document_B)
            table.append(
                {
                    "decoder": name,
                    "setting": setting,
                    **row,
                    "low": estimates["future_nats"].low,
                    "high": estimates["future_nats"].high,
                }
            )
            numbers = named(estimates) | {
                key: value for key, value in row.items() if key not in ("future_nats", "texts")
            }
            metrics |= {
                f"{name}/{key}": value
                for key, value in numbers.items()
                if name != REAL_TEXT or not key.startswith("excess_nats")
            }
            log.info(
                "%s: %.3f nats behind own tokens, %.1f %% of the 4-grams repeated",
                name,
                row["future_nats"],
                100 * row["repetition"],
            )
        write_table(context.folder, "generated_prefix", table, COLUMNS)
        write_samples(
            RunFolder(context.folder), [row for found in written.values() for row in found.shown], self.samplers
        )
        return metrics

    def _fitting(self, context: Context) -> dict[str, Autoregressive]:
        """The decoders that the model can serve."""
        lacking = [
            name for name, sampler in self.samplers.items() if sampler.lacks_confidence(method_of(context).reader())
        ]
        if lacking:
            log.info("%s has no confidence head: left out %s", type(context.method).__name__, ", ".join(lacking))
        return {name: sampler for name, sampler in self.samplers.items() if name not in lacking}

    def _rows(self, context: Context) -> tuple[PackedRows, np.ndarray]:
        """The validation rows that reach behind the own tokens, and the document of each."""
        data, needed = context.data, self.prompt_tokens + self.generated_tokens + self.scored_tokens
        require(
            needed <= data.sequence_length,
            f"prompt_tokens={self.prompt_tokens}, generated_tokens={self.generated_tokens} and "
            f"scored_tokens={self.scored_tokens} are {needed} tokens, and a row has "
            f"data.sequence_length={data.sequence_length}: shorten one of them",
        )
        taken = data.validation.evenly_spaced_indices(self.count)
        rows, document_B = data.validation.take(taken), data.validation_document[taken]
        whole_B = rows.attention_mask.sum(1) > self.prompt_tokens + self.generated_tokens
        require(
            bool(whole_B.any()),
            f"prompt_tokens={self.prompt_tokens} and generated_tokens={self.generated_tokens} leave nothing to score: "
            "no validation row is that long; shorten them",
        )
        return rows.take(np.flatnonzero(whole_B)), document_B[whole_B]

    # One decoder ---------------------------------------------------------------------------------------------------

    def _real(self, context: Context, rows: PackedRows) -> Written:
        """The real text in place of a decoder's."""
        span = slice(self.prompt_tokens, self.prompt_tokens + self.text_tokens)
        texts = [
            row[span][eligible[span]].astype(np.int64) for row, eligible in zip(rows.tokens, rows.eligible, strict=True)
        ]
        own_BO = rows.tokens[:, self.prompt_tokens : self.prompt_tokens + self.generated_tokens].astype(np.int64)
        nats_B, scored_B = self._scored(context, rows, own_BO)
        return Written(nats_B, scored_B, texts, np.zeros(len(rows)))

    def _written(self, context: Context, rows: PackedRows, name: str, sampler: Autoregressive) -> Written:
        """What the decoder writes behind the prompts, and how the model goes on from it."""
        prompts = [torch.from_numpy(tokens[: self.prompt_tokens].astype(np.int64)) for tokens in rows.tokens]
        texts, calls, shown = [], [], []
        for at, _ in batches(rows):
            trace = sampler.sample(
                method_of(context),
                prompts[at],
                length=self.text_tokens,
                seed=context.seed,
                record=not texts,
                device=context.device,
                first_row=at.start,
            )
            if not texts:
                shown = describe(
                    trace, [context.data.codec.decode(prompt.tolist()) for prompt in prompts[at][:SHOWN]], context, name
                )
            texts += [
                tokens[generated].cpu().numpy()
                for tokens, generated in zip(trace.tokens_BL, trace.generated_BL, strict=True)
            ]
            calls.append(trace.calls_B.cpu().numpy())
        whole_B = np.array(
            [len(text) >= self.generated_tokens for text in texts]
        )  # behind one that ended early nothing is scored
        own_BO = np.stack(
            [
                text[: self.generated_tokens] if whole else np.zeros(self.generated_tokens, np.int64)
                for text, whole in zip(texts, whole_B, strict=True)
            ]
        )
        nats_B, scored_B = self._scored(context, rows, own_BO)
        return Written(nats_B * whole_B, scored_B * whole_B, texts, np.concatenate(calls), shown)

    def _scored(self, context: Context, rows: PackedRows, own_BO: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((B,) summed nats, (B,) number) of the scored tokens behind these own ones, from one parallel pass a
        batch.
        """
        method, start, stop = (
            method_of(context),
            self.prompt_tokens + self.generated_tokens,
            self.prompt_tokens + self.generated_tokens + self.scored_tokens,
        )
        ended_BA = (
            np.cumsum(rows.tokens[:, self.prompt_tokens : stop] == context.data.vocab.end, axis=1)[
                :, self.generated_tokens :
            ]
            > 0
        )
        scored_BA, nats = rows.eligible[:, start:stop] & ~ended_BA, []
        for at, piece in batches(rows):
            tokens_BS = torch.from_numpy(piece.tokens[:, :stop].astype(np.int64))
            tokens_BS[:, self.prompt_tokens : start] = torch.from_numpy(own_BO[at])
            tokens_BS = tokens_BS.to(context.device)
            read_BL, target_BA = tokens_BS[:, :-1], tokens_BS[:, start:]
            hidden_BAD = method.read(read_BL, method.previous(read_BL)).hidden_BLD[:, start - 1 :]
            _, nats_BA, _ = method.next_token(
                hidden_BAD, target_BA, torch.from_numpy(scored_BA[at]).float().to(context.device)
            )
            nats.append(nats_BA.double().sum(1).cpu().numpy())
        return np.concatenate(nats), scored_BA.sum(1)

    def _measured(
        self, found: Written, real: Written, document_B: np.ndarray
    ) -> tuple[dict[str, float], Mapping[str, Estimate]]:
        """A row of the table, and the numbers that have an interval; NaN where nothing is scored."""
        estimates: dict[str, Estimate] = dict.fromkeys(("future_nats", "excess_nats"), Estimate(*[float("nan")] * 3))
        if found.scored_B.any():
            excess_B = (found.nats_B - real.nats_B) * (found.scored_B > 0)
            estimates = {
                key: per_token(nats_B, found.scored_B, document_B)
                for key, nats_B in (("future_nats", found.nats_B), ("excess_nats", excess_B))
            }
        row = {
            "future_nats": estimates["future_nats"].value,
            "repetition": repetition(found.texts),
            "distinct_2": distinct(found.texts),
            "entropy": token_entropy(found.texts),
            "calls": float(found.calls_B.mean()),
            "texts": len(found.texts),
        }
        return row, estimates


def method_of(context: Context) -> MiniGPT:
    """The method, whose class `unsuited` has checked."""
    return context.method  # type: ignore[return-value]


def named(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """{name, name_low, name_high: number} of each estimate."""
    return {
        f"{key}{end}": value
        for key, estimate in estimates.items()
        for end, value in zip(("", "_low", "_high"), estimate, strict=True)
    }

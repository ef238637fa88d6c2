"""Texts decoded by several samplers, how each came about, and what it cost.

Writes samples.jsonl (one line per text) and films/<sampler>.json (the first text step by step).

The bound of `likelihood` is of the model's own distribution, that of infinitely many small steps. A sampler of few
steps draws the tokens of a step independently and so has another distribution: what it writes may be likelier or less
likely under it than the bound says.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from research_stack.evaluation.context import Context
from research_stack.metrics.decoding import STATES, changed_after_fill, distinct, idle_steps, states, token_entropy
from research_stack.records.files import atomic_write, read_jsonl, to_json
from research_stack.records.run_folder import RunFolder
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.data.tokenizers import Codec
    from research_stack.sampling.sampler import Sampler
    from research_stack.sampling.trace import Trace

log = logging.getLogger(__name__)

BARE = 32  # tokens of a text behind a bare prompt: rows of prompts alone say nothing of how long an answer is


class Samples:
    """Decodes with each sampler and measures the decoding.

    - samplers: by name; each decodes the same prompts from the same stream.
    - count: texts per sampler, when prompts is None.
    - length: tokens to generate; None for what is left of the sequence length after the longest prompt.
    - prompts: texts to continue; None takes the prompts of validation rows, or where the data has none, the first
      `lead` tokens of each.

    Metrics per sampler: calls (model calls per text), distinct_2, entropy (nats, of the tokens of a text), changed
    (share of tokens changed after they were first filled), idle (share of steps that changed nothing).
    """

    #: See research_stack.config.smoke.
    smoke = {"count": 1, "length": 16}

    def __init__(
        self,
        samplers: Mapping[str, Sampler],
        count: int = 4,
        length: int | None = None,
        prompts: Sequence[str] | None = None,
        lead: int = 0,
    ) -> None:
        require(count >= 1, f"count={count} must be at least 1")
        require(count <= 100_000, f"count={count} must be at most 100,000")
        require(length is None or length >= 1, f"length={length} must be at least 1, or null for the sequence length")
        require(length is None or length <= 1_000_000, f"length={length} must be at most 1,000,000")
        require(prompts is None or len(prompts) > 0, "prompts=[] must hold at least one text, or be null")
        require(lead >= 0, f"lead={lead} must be at least 0")
        self.samplers, self.count, self.length, self.prompts, self.lead = dict(samplers), count, length, prompts, lead

    def unsuited(self, method: type) -> str | None:
        """Every sampler must fit the method."""
        return next((reason for sampler in self.samplers.values() if (reason := sampler.unsuited(method))), None)

    def __call__(self, context: Context) -> dict[str, float]:
        """`<sampler>/<metric>` for every sampler."""
        run_folder, rows, metrics = RunFolder(context.folder), [], {}
        for name, sampler in self.samplers.items():
            trace, prompts = self.trace(context, sampler)
            found = measure(trace, context.data.vocab.mask)
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
            rows += describe(trace, prompts, context, name)
            write_film(
                run_folder.films / f"{name}.json", film(trace, context.data.codec, name, rows[-len(trace.tokens_BL)])
            )
            log.info(
                "%s: %.1f model calls a text, %.1f %% of the tokens changed after they were filled",
                name,
                found["calls"],
                100 * found["changed"],
            )
        write_samples(run_folder, rows, self.samplers)
        return metrics

    def decode(self, context: Context, name: str, sampler: Sampler) -> list[dict[str, Any]]:
        """Rows (sampler, prompt, text, calls, steps, seed) of one sampler; writes nothing."""
        trace, prompts = self.trace(context, sampler)
        return describe(trace, prompts, context, name)

    def trace(self, context: Context, sampler: Sampler) -> tuple[Trace, list[str]]:
        """What the sampler did, and the prompts ("" without)."""
        data, ids = context.data, self.prompt_ids(context)
        longest = max(map(len, ids))
        length = self.length or (BARE if data.prompts_only else data.sequence_length - longest)
        if length < 1:
            raise ValueError(
                f"prompts={longest} tokens leave no room in a sequence of {data.sequence_length}; shorten them"
            )
        trace = sampler.sample(
            context.method,
            prompts=ids,
            count=len(ids),
            length=length,
            seed=context.seed,
            record=True,
            device=context.device,
        )
        return trace, [data.codec.decode(prompt.tolist()) for prompt in ids]

    def prompt_ids(self, context: Context) -> list[Tensor]:
        """Token ids of each prompt, (P,) int64; empty ones without."""
        begin = list(context.data.codec.begin)
        if self.prompts is not None:
            return [
                torch.tensor([*begin, *context.data.codec.encode(text)], dtype=torch.int64) for text in self.prompts
            ]
        rows = context.data.validation.evenly_spaced(self.count)
        if rows.prompt.any():
            given = [row[prompt] for row, prompt in zip(rows.tokens, rows.prompt, strict=True)]
        else:
            given = [
                row[attend][: self.lead] if self.lead else begin
                for row, attend in zip(rows.tokens, rows.attention_mask, strict=True)
            ]
        return [torch.from_numpy(np.asarray(ids, dtype=np.int64)) for ids in given]


def recorded(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """(history (S + 1, B, L), generated (B, L)) as numpy arrays; the trace must have been recorded."""
    assert trace.history is not None
    return _numpy(trace.history), _numpy(trace.generated_BL)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def measure(trace: Trace, mask: int) -> dict[str, float]:
    """The metrics of one sampler, see `Samples`."""
    history_SBL, generated_BL = recorded(trace)
    texts = [row[generated] for row, generated in zip(_numpy(trace.tokens_BL), generated_BL, strict=True)]
    return {
        "calls": float(_numpy(trace.calls_B).mean()),
        "distinct_2": distinct(texts),
        "entropy": token_entropy(texts),
        "changed": changed_after_fill(history_SBL, generated_BL, mask),
        "idle": idle_steps(history_SBL, generated_BL),
    }


def describe(trace: Trace, prompts: Sequence[str], context: Context, name: str) -> list[dict[str, Any]]:
    """One row per text."""
    tokens_BL, generated_BL, calls_B = _numpy(trace.tokens_BL), _numpy(trace.generated_BL), _numpy(trace.calls_B)
    steps = len(recorded(trace)[0]) - 1
    return [
        {
            "sampler": name,
            "prompt": prompt,
            "text": context.data.codec.decode(tokens_BL[b][generated_BL[b]]),
            "calls": int(calls_B[b]),
            "steps": steps,
            "seed": context.seed,
        }
        for b, prompt in enumerate(prompts)
    ]


def write_samples(run_folder: RunFolder, rows: Sequence[Mapping[str, Any]], names: Container[str]) -> None:
    """Put rows into samples.jsonl, before those of decoders that are not among the names; of these the old ones go."""
    kept = [row for row in read_jsonl(run_folder.samples_jsonl) if row["sampler"] not in names]
    atomic_write(run_folder.samples_jsonl, "".join(to_json(row) + "\n" for row in [*rows, *kept]))


def film(trace: Trace, codec: Codec, name: str, row: Mapping[str, Any], b: int = 0) -> dict[str, Any]:
    """Sequence b step by step: pieces are the distinct printable tokens, a frame has their numbers and the states.

    {"sampler", "prompt", "text", "calls", "seed", "states": names of the codes, "pieces": [str],
     "frames": [{"tokens": [index into pieces], "states": [code], "confidence": [probability of the token in place]}]}
    """
    history_SBL, generated_BL = recorded(trace)
    used = _numpy(trace.tokens_BL)[b] != codec.vocab.pad
    history_SL = history_SBL[:, b][:, used]
    codes_SL = states(history_SBL[:, b : b + 1], generated_BL[b : b + 1], codec.vocab.mask)[:, 0][:, used]
    ids, index = np.unique(history_SL, return_inverse=True)
    index_SL = index.reshape(history_SL.shape)
    frames = [
        {"tokens": tokens.tolist(), "states": codes.tolist()} for tokens, codes in zip(index_SL, codes_SL, strict=True)
    ]
    if trace.confidence is not None:
        for frame, confidence in zip(frames, _numpy(trace.confidence)[:, b][:, used], strict=True):
            frame["confidence"] = confidence.round(3).tolist()
    return {
        **row,
        "sampler": name,
        "states": list(STATES),
        "pieces": codec.token_strings(ids.tolist()),
        "frames": frames,
    }


def write_film(path: Path, value: Mapping[str, Any]) -> None:
    """Save a film as compact JSON, atomically."""
    atomic_write(path, to_json(value) + "\n")

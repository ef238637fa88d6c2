"""Time to the first token of an answer: a context as latents, from text to message to reader, against the reader
reading the text itself.

Both ways end in the same code: what was read lies in a cache, the prompt is read behind it, and the likeliest token is
taken. Latents: the text to a message (`encode`), the message to keys and values or vectors (`adapt`), begin tokens,
latents and prompt through the reader (`prefill`). Text: its tokens (`encode`), then begin tokens, text and prompt
through the reader (`prefill`). A batch of one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from research_stack.latentwire import wire
from research_stack.latentwire.features.lora import plain
from research_stack.latentwire.module import LatentWire
from research_stack.latentwire.path_names import LATENT, LONG, TEXT
from research_stack.latentwire.reader import FrozenReader
from research_stack.latentwire.receiver import Prefilled, filled_layers, forward_cached, prefill_latents, prefill_text
from research_stack.latentwire.text_baselines import head
from research_stack.metrics.crossover import always_below_from, value_at
from research_stack.require import require

log = logging.getLogger(__name__)

SHORTEST = 32  # bytes


class Timing(NamedTuple):
    """Seconds of one pass and where it ended.

    - positions: at the reader, begin tokens and prompt included. memory: bytes of its key-value cache. pack: to write
      and read the message, a part of encode and adapt.
    """

    encode: float
    adapt: float
    prefill: float
    total: float
    positions: int
    memory: int
    pack: float = 0.0


class Latency:
    """Milliseconds to the first token for contexts of several lengths.

    - lengths: of contexts in bytes, each at most what the encoder reads; None: doubled from 32 up to that. Contexts of
      the data are joined.
    - warmup: passes before those that count, at least 3. repeats: those that count; the two ways take turns.
    """

    def __init__(self, lengths: list[int] | None = None, warmup: int = 3, repeats: int = 15) -> None:
        require(warmup >= 3, f"warmup={warmup} must be at least 3")
        require(warmup <= 10_000, f"warmup={warmup} must be at most 10,000")
        require(repeats >= 1, f"repeats={repeats} must be at least 1")
        require(repeats <= 100_000, f"repeats={repeats} must be at most 100,000")
        if lengths is not None and (not lengths or min(lengths) < 1):
            raise ValueError(f"lengths={lengths} must be numbers of bytes above 0, or null")
        self.lengths, self.warmup, self.repeats = lengths, warmup, repeats

    def __call__(self, method: LatentWire, contexts: Sequence[str], question: str) -> list[dict[str, Any]]:
        """A row for each reader, length and way: medians, the 90th percentile of the whole, and the cache's MiB.

        `receiver_ms` is what the receiver alone takes, without `encode`; `pack_ms` is writing and reading the message,
        within encode and adapt.
        """
        texts = contexts_of_length(
            contexts, self.lengths or doubling_lengths(method.model.max_length), method.model.max_length
        )
        table = []
        for name, reader in method.readers.items():
            prompt = reader.prompt_ids(question)
            for text in texts:
                ways = {LATENT: partial(from_latents, method, name, text, prompt)}
                if len(reader.token_ids(text)) + len(reader.bos_ids) + len(prompt) <= reader.model.max_length:
                    ways[TEXT] = partial(from_text, reader, text, prompt)
                table += [
                    self._row(name, method.final_num_latents, way, text, taken)
                    for way, taken in self._measured(ways).items()
                ]
            spoken = {
                row["path"]: row["total_ms"]
                for row in table
                if (row["reader"], row["context_bytes"]) == (name, len(texts[-1].encode()))
            }
            log.info(
                "%s: %s ms to the first token of %d bytes",
                name,
                ", ".join(f"{way} {ms:.1f}" for way, ms in spoken.items()),
                len(texts[-1].encode()),
            )
        return table

    def _measured(self, ways: dict[str, Callable[[], Timing]]) -> dict[str, list[Timing]]:
        found: dict[str, list[Timing]] = {way: [] for way in ways}
        for number in range(self.warmup + self.repeats):
            for way, take in ways.items():  # in turn, so that drifts of the machine hit both
                found[way] += [take()] if number >= self.warmup else [take()][:0]
        return found

    @staticmethod
    def _row(reader: str, num_latents: int, way: str, text: str, taken: Sequence[Timing]) -> dict[str, Any]:
        def median(values: list[float]) -> float:
            return 1000 * float(np.median(values))

        return {
            "reader": reader,
            "context_bytes": len(text.encode()),
            "num_latents": num_latents if way == LATENT else None,
            "path": way,
            "encode_ms": median([one.encode for one in taken]),
            "adapt_ms": median([one.adapt for one in taken]),
            "prefill_ms": median([one.prefill for one in taken]),
            "total_ms": median([one.total for one in taken]),
            "total_p90_ms": 1000 * float(np.quantile([one.total for one in taken], 0.9)),
            "prefill_tokens": taken[-1].positions,
            "memory_mib": taken[-1].memory / 2**20,
            "receiver_ms": median([one.total - one.encode for one in taken]),
            "pack_ms": median([one.pack for one in taken]),
        }


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the rows of one `Latency` say of each reader: where latents are faster than the text.

    - faster_from_bytes: the shortest context that was measured from which on latents are always faster; None if they
      are not at the longest. faster_somewhere: whether they are at any. shortest_bytes, longest_bytes: measured.
    - long_context_bytes: of a context of LONG times as many tokens as there are latents, between the measured lengths;
      None beyond them. latent_ms, text_ms: to the first token there.
    """
    found = []
    for reader in dict.fromkeys(row["reader"] for row in rows):
        own = sorted((row for row in rows if row["reader"] == reader), key=lambda row: row["context_bytes"])
        latent, text = ([row for row in own if row["path"] == path] for path in (LATENT, TEXT))
        if text:
            found.append({"reader": reader, "num_latents": latent[0]["num_latents"], **_compared(latent, text)})
    return found


def _compared(latent: Sequence[Mapping[str, Any]], text: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def column(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
        return [float(row[key]) for row in rows]

    length_n, latent_n = column(latent, "context_bytes"), column(latent, "total_ms")
    text_length_n, text_n = column(text, "context_bytes"), column(text, "total_ms")
    both = [row for row in latent if float(row["context_bytes"]) in text_length_n]
    pairs = column(both, "total_ms"), text_n
    # The tokens of a context are the positions of the text less those that are there beside the latents: the question.
    num_latents = float(latent[0]["num_latents"])
    beside = max(0.0, min(column(latent, "prefill_tokens")) - num_latents)
    tokens_n = [count - beside for count in column(text, "prefill_tokens")]
    long_bytes = value_at(LONG * num_latents, tokens_n, text_length_n)
    return {
        "faster_from_bytes": always_below_from(column(both, "context_bytes"), *pairs),
        "faster_somewhere": int(any(own < other for own, other in zip(*pairs, strict=True))),
        "shortest_bytes": text_length_n[0],
        "longest_bytes": text_length_n[-1],
        "long_context_bytes": long_bytes,
        "latent_ms": value_at(long_bytes, length_n, latent_n),
        "text_ms": value_at(long_bytes, text_length_n, text_n),
    }


def from_latents(method: LatentWire, name: str, text: str, prompt: Sequence[int]) -> Timing:
    """One pass from the text through a message to the first token."""
    reader, device = method.readers[name], method.device
    start = now(device)
    message = method.encode([text], name)
    sent = now(device)
    condition = method.condition(name, method.decode(message, name))
    adapted = now(device)
    prefilled = prefill_latents(reader, condition, 1)
    first_token(reader, prefilled, prompt)
    end = now(device)
    found = wire.decode(message[0], method.salt(name))
    wire.encode(found, method.salt(name))
    return Timing(
        sent - start,
        adapted - sent,
        end - adapted,
        end - start,
        prefilled.cache.length,
        cache_bytes(prefilled),
        now(device) - end,
    )


def from_text(reader: FrozenReader, text: str, prompt: Sequence[int]) -> Timing:
    """One pass from the text to the first token, by the reader as it was before training."""
    with plain(reader):
        start = now(reader.device)
        ids = reader.token_ids(text)
        split = now(reader.device)
        prefilled = prefill_text(reader, [ids])
        first_token(reader, prefilled, prompt)
        end = now(reader.device)
    return Timing(split - start, 0.0, end - split, end - start, prefilled.cache.length, cache_bytes(prefilled))


@torch.no_grad()
def first_token(reader: FrozenReader, prefilled: Prefilled, prompt: Sequence[int]) -> int:
    """The likeliest token behind the prompt."""
    tokens_1L = torch.tensor([list(prompt)], device=reader.device)
    hidden_1LD = forward_cached(reader, prefilled, tokens_1L, torch.ones_like(tokens_1L, dtype=torch.bool))
    return int(reader.model.head(hidden_1LD[:, -1]).argmax())


def now(device: torch.device) -> float:
    """Seconds, when all that the device was given to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def cache_bytes(prefilled: Prefilled) -> int:
    """Of all keys and values that the reader holds."""
    return sum(
        part.numel() * part.element_size() for _, *keys_values in filled_layers(prefilled.cache) for part in keys_values
    )


def doubling_lengths(longest: int) -> list[int]:
    """32, 64, ... up to and with the longest."""
    return [*(SHORTEST << i for i in range(longest.bit_length()) if SHORTEST << i < longest), longest]


def contexts_of_length(contexts: Sequence[str], lengths: Sequence[int], longest: int) -> list[str]:
    """A text of each length in bytes, a character shorter where it would be cut: contexts one after another. Longer
    ones than the encoder reads are left out.
    """
    wanted, text = sorted({length for length in lengths if length <= longest}), ""
    require(
        bool(wanted),
        f"lengths={list(lengths)} must hold one that the encoder reads: at most model.max_length={longest}",
    )
    for number in range(max(wanted)):  # every context adds a byte at least
        if len(text.encode()) >= max(wanted):
            break
        text += f"{contexts[number % len(contexts)]} "
    return [head(text, length) for length in wanted]

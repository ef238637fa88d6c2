"""The opponents of a message: the same context as text of as many bytes, or of as many tokens."""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from research_stack.require import require

STRATEGIES = zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_FIXED  # any inflater reads all of them
SLACK = 64  # bytes by which the compressed size of a text may be below that of a beginning of it: a few in practice


def head(text: str, budget: int) -> str:
    """The longest beginning of at most `budget` bytes in UTF-8, cut between characters. Raises ValueError for budget <
    0.
    """
    return _between(text.encode(), 0, _checked(budget))


def tail(text: str, budget: int) -> str:
    """The longest end of at most `budget` bytes in UTF-8; otherwise as `head`."""
    data = text.encode()
    return _between(data, max(0, len(data) - _checked(budget)), len(data))


def _between(data: bytes, start: int, stop: int) -> str:
    return data[start:stop].decode("utf-8", "ignore")  # only the characters that are cut can be undecodable


def _checked(budget: int) -> int:
    require(budget >= 0, f"budget={budget} must be at least 0")
    return budget


def deflated(text: str) -> bytes:
    """The text in the fewest bytes that the standard library makes of so short a one: raw deflate, without zlib's 6
    bytes of header and checksum, by the best of three ways to look for repetitions.

    bz2 and lzma, raw too, take more for anything of up to a thousand bytes; a dictionary that both sides know would
    have to be counted.
    """
    return min((_deflated(text.encode(), strategy) for strategy in STRATEGIES), key=len)


def _deflated(data: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(level=9, method=zlib.DEFLATED, wbits=-15, memLevel=9, strategy=strategy)
    return packer.compress(data) + packer.flush()


def deflated_bytes(text: str) -> int:
    """Bytes of the text as `deflated`."""
    return len(deflated(text))


def deflated_fits(text: str, budget: int) -> str:
    """The longest beginning whose `deflated_bytes` are at most `budget`, cut between characters; empty where not even
    "" fits (2 bytes).

    Compressed sizes hardly ever fall as a text grows, so the search looks no further than to where they pass the budget
    by 64 bytes.
    """
    _checked(budget)
    beyond = bisect.bisect_right(range(len(text) + 1), budget + SLACK, key=lambda length: deflated_bytes(text[:length]))
    return next((text[:length] for length in range(beyond - 1, 0, -1) if deflated_bytes(text[:length]) <= budget), "")


def first_tokens(ids: Sequence[int], num_latents: int) -> list[int]:
    """The first M = `latents` tokens of a context, in the reader's own tokenizer: as many positions as a message takes
    there.
    """
    require(num_latents >= 0, f"num_latents={num_latents} must be at least 0")
    return list(ids[:num_latents])


class Ratio(NamedTuple):
    """How much smaller: total bytes of the texts over total bytes of the messages, and the mean of the ratios of
    each.
    """

    of_means: float
    mean: float


def ratio_of_bytes(text_bytes_n: ArrayLike, wire_bytes_n: ArrayLike) -> Ratio:
    """The `Ratio` of n contexts to their messages. Raises ValueError without any, or where a message has no bytes."""
    text_bytes_n, wire_bytes_n = np.asarray(text_bytes_n, dtype=np.float64), np.asarray(wire_bytes_n, dtype=np.float64)
    require(
        text_bytes_n.ndim == 1 and text_bytes_n.shape == wire_bytes_n.shape != (0,),
        f"text_bytes_n={text_bytes_n.shape} must be of the shape of wire_bytes_n={wire_bytes_n.shape}, (n,) with n > 0",
    )
    require(bool((wire_bytes_n > 0).all()), f"wire_bytes_n={wire_bytes_n.min():.0f} must be above 0")
    return Ratio(float(text_bytes_n.sum() / wire_bytes_n.sum()), float((text_bytes_n / wire_bytes_n).mean()))

"""What a model and a corruption must know of a tokenizer, and nothing else. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Vocabulary:
    """Sizes and special ids of a token space.

    - size: rows of the embedding, special tokens included.
    - mask, pad: ids of the mask and padding tokens.
    - end: id of the separator after each document.
    - special: every id that is no real token (mask, pad, end, unk, ...): it is never corrupted, never drawn as a
      substitute and never predicted. Without `end` in it (`with_end_written`) the separator is a token like others.
    """

    size: int
    mask: int
    pad: int
    end: int
    special: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, token in (("mask", self.mask), ("pad", self.pad)):
            if token not in self.special:
                raise ValueError(f"{name}={token} must be among special={self.special}")
        if not all(0 <= i < self.size for i in (*self.special, self.end)):
            raise ValueError(f"end={self.end} and special={self.special} must lie in [0, {self.size})")

    @cached_property
    def real(self) -> np.ndarray:
        """(N,) int64 ids of the real tokens, ascending. N is the V of the definitions."""
        return np.setdiff1d(np.arange(self.size), np.asarray(self.special))

    @property
    def n_real(self) -> int:
        """N, the number of real tokens."""
        return self.size - len(set(self.special))

    @property
    def writes_end(self) -> bool:
        """Whether the end token is corrupted and predicted as real tokens are."""
        return self.end not in self.special

    def with_end_written(self) -> Self:
        """The same tokens, the end token a real one: for a denoiser that learns where an answer ends."""
        return replace(self, special=tuple(token for token in self.special if token != self.end))

"""What a model and a corruption must know of a tokenizer, and nothing else. No torch."""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Vocabulary:
    """Sizes and special ids of a token space.

    - size: rows of the embedding, special tokens included.
    - mask, pad: ids of the mask and padding tokens.
    - end: id of the separator after each document.
    - special: every id that is no real token (mask, pad, end, unk, ...): it is never corrupted, never drawn as a
      substitute and never predicted.
    """

    size: int
    mask: int
    pad: int
    end: int
    special: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("mask", "pad", "end"):
            if getattr(self, name) not in self.special:
                raise ValueError(f"{name}={getattr(self, name)} must be among special={self.special}")
        if not all(0 <= i < self.size for i in self.special):
            raise ValueError(f"special={self.special} must lie in [0, {self.size})")

    @cached_property
    def real(self) -> np.ndarray:
        """(N,) int64 ids of the real tokens, ascending. N is the V of the definitions."""
        return np.setdiff1d(np.arange(self.size), np.asarray(self.special))

    @property
    def n_real(self) -> int:
        """N, the number of real tokens."""
        return self.size - len(set(self.special))

"""Rewards that need no model: on topic, of the right length, not repeating itself, in a given form. All lie in [0, 1].
No torch.

Each is a formula of one prompt and one completion, so the reward of a pair is the same alone and in any batch. All of
them can be satisfied by text that is no good: they are to be parts of a `Composite`, not goals.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np

from research_stack.require import require

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
#: Words that say nothing about the topic.
FUNCTION_WORDS = frozenset(
    "a an the and or but if so as of at by for from in into on onto to with about over under than then that this these"
    " those there here it its i me my you your he him his she her we us our they them their is am are was were be been"
    " being do does did have has had can could will would shall should may might must not no nor what which who whom"
    " whose when where why how any some".split()
)


def words(text: str) -> list[str]:
    """The words of a text in order, case folded; letters and digits of any script."""
    return WORD.findall(text.casefold())


class Heuristic:
    """A reward that is a formula of one pair."""

    name: str

    def check(self) -> None:
        """Nothing can be missing."""

    @abstractmethod
    def score(self, prompt: str, completion: str) -> float:
        """The reward, in [0, 1]."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """(n,) float64 in [0, 1]."""
        return np.array(
            [self.score(prompt, text) for prompt, text in zip(prompts, completions, strict=True)], dtype=np.float64
        )


class Relevance(Heuristic):
    """Cosine of the sets of content words of prompt and completion, |P and C| / sqrt(|P| |C|) (Ochiai 1957).

    Words are compared as they are written, case folded, without function words (English); the order and the number of
    their uses do not count. 0 where either text has none. A copy of the prompt has the reward 1.
    """

    name = "relevance"

    def score(self, prompt: str, completion: str) -> float:
        """The reward, in [0, 1]."""
        asked, said = set(words(prompt)) - FUNCTION_WORDS, set(words(completion)) - FUNCTION_WORDS
        return len(asked & said) / math.sqrt(len(asked) * len(said)) if asked and said else 0.0


class Length(Heuristic):
    """A trapezoid over the length of the completion: 1 from `low` to `high`, falling to 0 at `min_length` and at
    `max_length`.

    - min_length, low, high, max_length: in ascending order. Where two of them are equal the edge is upright, and the
      length itself has the reward 1.
    - unit: words, or characters.
    """

    name = "length"

    def __init__(
        self,
        min_length: int = 0,
        low: int = 10,
        high: int = 80,
        max_length: int = 160,
        unit: Literal["words", "characters"] = "words",
    ) -> None:
        require(0 <= min_length, f"min_length={min_length} must not be negative")
        require(min_length <= low, f"min_length={min_length} must be at most low={low}")
        require(low <= high, f"low={low} must be at most high={high}")
        require(high <= max_length, f"high={high} must be at most max_length={max_length}")
        self.min_length, self.low, self.high, self.max_length, self.unit = min_length, low, high, max_length, unit

    def score(self, prompt: str, completion: str) -> float:
        """The reward, in [0, 1]."""
        length = len(words(completion)) if self.unit == "words" else len(completion)
        if self.low <= length <= self.high:
            return 1.0
        edge, inside = (self.min_length, self.low) if length < self.low else (self.max_length, self.high)
        return max(0.0, (length - edge) / (inside - edge)) if inside != edge else 0.0


class Repetition(Heuristic):
    """1 less the share of the completion's n-grams that stood in it before: distinct n-grams / n-grams (distinct-n, Li
    et al. 2016).

    - n: words or characters of an n-gram. unit: words, or characters for texts without spaces.

    A completion that is too short for a single n-gram repeats nothing and has the reward 1: put `Length` beside this
    one.
    """

    name = "repetition"

    def __init__(self, n: int = 3, unit: Literal["words", "characters"] = "words") -> None:
        require(n >= 1, f"n={n} must be at least 1")
        require(n <= 1000, f"n={n} must be at most 1000")
        self.n, self.unit = n, unit

    def score(self, prompt: str, completion: str) -> float:
        """The reward, in [0, 1]."""
        pieces = words(completion) if self.unit == "words" else list(completion)
        grams = list(zip(*(pieces[start:] for start in range(self.n)), strict=False))
        return len(set(grams)) / len(grams) if grams else 1.0


class Format(Heuristic):
    """1 where the completion matches a regular expression as a whole, else 0.

    - pattern: Python's syntax; the dot matches line ends too. Blanks around the completion are left out.
    """

    name = "format"

    def __init__(self, pattern: str) -> None:
        require(len(pattern) > 0, "pattern='' must not be empty")
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"pattern={pattern!r} must be a regular expression: {error}") from error

    def score(self, prompt: str, completion: str) -> float:
        """The reward, 0 or 1."""
        return float(self.pattern.fullmatch(completion.strip()) is not None)

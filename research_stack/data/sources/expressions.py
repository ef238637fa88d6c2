"""The task "write an expression equal to N": many right answers to each prompt, and every answer can be checked. No
torch.

A prompt is `N=`, an answer an expression such as `3*(4+1)`. Answers are drawn at random and kept where their value is
one of the numbers asked for; all numbers have equally many, all different.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from research_stack.data.sources.arithmetic import OPERATORS, value
from research_stack.data.sources.base import Document
from research_stack.require import require

EXTRACTION = 1  # raise it when the answers change: it is part of the fingerprint
# expressions in a row that bring nothing new before the rest counts as out of reach; 10,000 happen with the defaults
PATIENCE = 100_000
PROMPT = re.compile(r"([0-9]+)=")
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}


def prompt_of(number: int) -> str:
    """How a number is asked for."""
    return f"{number}="


def number_of(prompt: str) -> int | None:
    """The whole number that a prompt asks for; None if it is no such prompt."""
    found = PROMPT.fullmatch(prompt)
    return int(found[1]) if found else None


class Expressions:
    """Pairs of a number and an expression equal to it; all pairs of a number stand on one side of the split.

    - low, high: the numbers asked for. answers: different expressions of each; 0: the prompts alone, for methods that
      make their own answers.
    - operations: most operators of an answer; each count from 1 on comes equally often. largest: numbers in an answer
      are 1, ..., largest.
    - longest: characters of an answer. seed: of the answers, not of the run.
    """

    def __init__(
        self,
        low: int = 1,
        high: int = 30,
        answers: int = 80,
        operations: int = 2,
        largest: int = 12,
        longest: int = 9,
        seed: int = 0,
    ) -> None:
        require(low >= 0, f"low={low} must be at least 0")
        require(high > low, f"high={high} must be greater than low={low}")
        require(high <= 1_000_000, f"high={high} must be at most 1,000,000")
        require(answers >= 0, f"answers={answers} must be at least 0")
        require(answers <= 100_000, f"answers={answers} must be at most 100,000")
        require(operations >= 1, f"operations={operations} must be at least 1")
        require(operations <= 8, f"operations={operations} must be at most 8")
        require(largest >= 2, f"largest={largest} must be at least 2")
        require(largest <= 1_000_000_000, f"largest={largest} must be at most 1,000,000,000")
        require(longest >= 3, f"longest={longest} must be at least 3")
        require(longest <= 1_000, f"longest={longest} must be at most 1,000")
        self.low, self.high, self.answers = low, high, answers
        self.operations, self.largest, self.longest, self.seed = operations, largest, longest, seed

    def check(self) -> None:
        """Always available."""

    def documents(self) -> Iterator[Document]:
        """The pairs, number by number."""
        for number, texts in self._all.items():
            prompt = prompt_of(number)
            for text in texts or [""]:
                yield Document(text, prompt, key=f"{prompt}{text}", group=prompt)

    @cached_property
    def _all(self) -> dict[int, list[str]]:
        found: dict[int, dict[str, None]] = {number: {} for number in range(self.low, self.high + 1)}
        missing, idle = len(found) * self.answers, 0
        draws = np.random.default_rng(self.seed)
        while missing:
            text = self._draw(draws)
            total = value(text) if len(text) <= self.longest else None
            texts = found.get(int(total)) if total is not None and total.denominator == 1 else None
            if texts is not None and len(texts) < self.answers and text not in texts:
                texts[text], missing, idle = None, missing - 1, 0
            elif (idle := idle + 1) > PATIENCE:
                number = min(found, key=lambda n: len(found[n]))
                raise ValueError(
                    f"source.answers={self.answers} cannot be had: {number} has {len(found[number])} expressions of at"
                    f" most {self.operations} operators, numbers up to {self.largest} and {self.longest} characters"
                    " within reach; lower it, or raise operations, largest or longest"
                )
        return {number: list(texts) for number, texts in found.items()}

    def _draw(self, draws: np.random.Generator) -> str:
        """A random expression."""
        return self._grow(int(draws.integers(1, self.operations + 1)), draws)[0]

    def _grow(self, count: int, draws: np.random.Generator) -> tuple[str, int]:
        """(a random expression of `count` operators, how tightly its outermost one binds), with the parentheses it
        needs and no others.
        """
        if count == 0:
            return str(draws.integers(1, self.largest + 1)), 3
        sign, left = OPERATORS[draws.integers(4)], int(draws.integers(count))
        (a, bound_a), (b, bound_b) = self._grow(left, draws), self._grow(count - 1 - left, draws)
        a = f"({a})" if bound_a < BINDS[sign] else a
        b = f"({b})" if bound_b < BINDS[sign] or (bound_b == BINDS[sign] and sign in "-/") else b
        return f"{a}{sign}{b}", BINDS[sign]

    def fingerprint(self) -> str:
        """Every option."""
        return (
            f"expressions-{EXTRACTION}-{self.low}-{self.high}-{self.answers}-{self.operations}-{self.largest}-"
            f"{self.longest}-{self.seed}"
        )

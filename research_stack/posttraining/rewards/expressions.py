"""The task "write an expression equal to N": correct or not, decided by exact arithmetic. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from research_stack.data.sources.arithmetic import is_answer
from research_stack.data.sources.expressions import number_of
from research_stack.posttraining.rewards.base import quoted


class ExpressionReward:
    """1 for an expression over whole numbers with + - * / and parentheses that is exactly N, 0 for anything else.

    The prompt is "N=", the completion the expression, as in "13=" and "3*4+1". N itself, written as a bare number, is
    reward 0: an answer has at least one operator. Values are fractions, so 1/3*3 is 1; nothing is ever handed to
    `eval`.
    """

    name = "expressions"

    def check(self) -> None:
        """Nothing can be missing."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """(n,) float64, 0 or 1. Raises ValueError for a prompt that asks for no number."""
        return np.array(
            [float(is_answer(text, number(prompt))) for prompt, text in zip(prompts, completions, strict=True)],
            dtype=np.float64,
        )


def number(prompt: str) -> int:
    """The N of a prompt "N=". Raises ValueError for any other text."""
    found = number_of(prompt)
    if found is None:
        raise ValueError(
            f"prompt={quoted(prompt)} must be a whole number and an equals sign, as in '12='; choose data=expressions"
        )
    return found

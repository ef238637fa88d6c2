"""Exact arithmetic on short expressions: what `3*(4+1)` is worth, and which expressions are worth N. No torch.

The grammar is that of school: integers without leading zeros, + - * / and parentheses, no sign in front. Nothing is
ever handed to `eval`.

    sum    := product (("+" | "-") product)*
    product := atom (("*" | "/") atom)*
    atom   := integer | "(" sum ")"
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

OPERATORS = "+-*/"
TOKEN = re.compile(r"\d+|[-+*/()]")
LONGEST = 200  # characters, and so parentheses within parentheses: the parser calls itself


class _Parser:
    """Recursive descent over the tokens of one expression; each method gives the value of what it has read."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def _next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self) -> Fraction:
        total = self.product()
        while self._next() in ("+", "-"):
            total = total + self.product() if self._take() == "+" else total - self.product()
        return total

    def product(self) -> Fraction:
        total = self.atom()
        while self._next() in ("*", "/"):
            total = total * self.atom() if self._take() == "*" else total / self.atom()
        return total

    def atom(self) -> Fraction:
        token = self._next()
        if token == "(":
            self._take()
            inside = self.sum()
            if self._next() != ")":
                raise ValueError("a parenthesis is not closed")
            self._take()
            return inside
        if not token.isdigit() or (len(token) > 1 and token[0] == "0"):
            raise ValueError(f"'{token}' stands where a number must stand")
        return Fraction(int(self._take()))


def value(text: str) -> Fraction | None:
    """The exact value of an expression; None for what is no expression, divides by zero, or is longer than LONGEST."""
    return _value(text) if len(text) <= LONGEST and text.isascii() and text.count("(") == text.count(")") else None


@lru_cache(maxsize=65536)  # completions of a group repeat one another
def _value(text: str) -> Fraction | None:
    tokens = TOKEN.findall(text)
    if not tokens or "".join(tokens) != text:
        return None
    parser = _Parser(tokens)
    try:
        total = parser.sum()
    except (ValueError, ZeroDivisionError):
        return None
    return total if parser.at == len(tokens) else None


def operators(text: str) -> frozenset[str]:
    """The operators that occur in a text."""
    return frozenset(text) & frozenset(OPERATORS)


def is_answer(text: str, number: int) -> bool:
    """Whether the text is an expression with an operator whose value is the number."""
    return bool(operators(text)) and value(text) == number

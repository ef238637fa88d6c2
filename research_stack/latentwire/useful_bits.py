"""How much of what a reader was asked for has provably come through the wire, in bits, beside the bits that were sent.
Numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log2

from research_stack.data.questions.facts import Facts
from research_stack.data.questions.question import QuestionSource
from research_stack.require import require


def fano_bits(exact: float, kinds: int) -> float:
    """The least information in bits that a guess carries about one of `kinds` equally likely values if it is right this
    often.

    max(0, log2 V - h(e) - e log2(V - 1)) with e = 1 - exact and the binary entropy h: Fano's inequality (Cover and
    Thomas 2006, 2.10). It is log2 V for exact = 1 and 0 for guessing, exact = 1 / V.
    """
    require(0 <= exact <= 1, f"exact={exact} must lie in [0, 1]")
    require(kinds >= 2, f"kinds={kinds} must be at least 2")
    wrong = 1 - exact
    if exact <= 1 / kinds:
        return 0.0
    entropy = -sum(share * log2(share) for share in (wrong, exact) if share > 0)
    return max(0.0, log2(kinds) - entropy - wrong * log2(kinds - 1))


def useful_bits(sources: Iterable[QuestionSource], dataset: str, exact: float) -> float | None:
    """A lower bound on the bits of its facts that a context's message carries to a reader which answers so many
    questions word for word.

    The F facts that can be asked for are drawn independently and uniformly among V values, so the information about all
    is at least the sum over them; the question says which one, drawn uniformly; and `fano_bits` is convex, so F times
    that of the mean is at most this sum. None for data sets that are no made-up facts: of others nobody knows the
    entropy.
    """
    facts = next((source for source in sources if isinstance(source, Facts) and source.name == dataset), None)
    return None if facts is None or facts.law.values < 2 else facts.law.facts * fano_bits(exact, facts.law.values)

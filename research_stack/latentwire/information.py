"""How many bits about the facts of a context have provably come through a message."""

from __future__ import annotations

from collections.abc import Iterable

from research_stack.data.questions.facts import Facts
from research_stack.data.questions.question import QuestionSource
from research_stack.metrics.information import fano_bits


def message_information(sources: Iterable[QuestionSource], dataset: str, exact: float) -> float | None:
    """A lower bound on the bits of its facts that a context's message carries to a reader which answers so many
    questions word for word.

    The F facts that can be asked for are drawn independently and uniformly among V values, so the information about all
    is at least the sum over them; the question says which one, drawn uniformly; and `fano_bits` is convex, so F times
    that of the mean is at most this sum. None for data sets that are no made-up facts: of others nobody knows the
    entropy.
    """
    facts = next((source for source in sources if isinstance(source, Facts) and source.name == dataset), None)
    return (
        None
        if facts is None or facts.distribution.values < 2
        else facts.distribution.facts * fano_bits(exact, facts.distribution.values)
    )

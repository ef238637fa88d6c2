"""Questions about contexts: what one is, and where they come from. No torch, no vocabulary: readers have their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

Scoring = Literal["squad", "squad_v2", "hotpotqa", "nq"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question that its context answers.

    - key: where it comes from, different for every question of a source.
    - dataset: whose results it counts among: squad, squad_v2, hotpotqa, nq, qa_facts, ...
    - context, question: the texts.
    - answers: the gold answers, at least one, each once; ("",) for "no answer".
    - scoring: the rule by which an answer is judged.
    - group: questions of one group stand on one side of the split; never empty.
    - start: the character of the context at which the first gold answer begins; -1 where it stands nowhere (yes, no, no
      answer) or where the data set does not say.
    """

    key: str
    dataset: str
    context: str
    question: str
    answers: tuple[str, ...]
    scoring: Scoring
    group: str
    start: int = -1


class QuestionSource(Protocol):
    """A data set of questions. Their order is always the same."""

    def check(self) -> None:
        """Raise ValueError or OSError with one line when the data set cannot be read; takes well under a second."""

    def questions(self) -> Iterator[Question]:
        """Every question, in order; may be called several times."""
        ...

    def fingerprint(self) -> str:
        """A text that changes whenever the questions may have changed."""
        ...

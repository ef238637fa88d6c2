"""QuestionData: questions about contexts, one data set or a mixture with weights, served by number.

A batch holds the numbers of its questions; whoever reads them turns texts into what its encoder and readers take. Which
question stands in which row of a step is a function of (seed, step) alone (`mixture`).

Shapes: N questions, B questions of a global batch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from research_stack.data.dropped import check_dropped, check_split
from research_stack.data.packing import DUPLICATE, TRAIN, VALIDATION, split
from research_stack.data.questions.files import QuestionFiles
from research_stack.data.questions.mixture import MixedBatches, QuestionRows
from research_stack.data.questions.question import Question, QuestionSource
from research_stack.data.questions.windows import window
from research_stack.data.sources.base import Described, Document
from research_stack.data.sources.record_reader import Selective
from research_stack.data.step_data import StepData
from research_stack.require import require

log = logging.getLogger(__name__)

LAYOUT = 1  # raise it when split, windows or numbering change: it is part of the fingerprint
LONG = "raise max_context_bytes, or set long=window or long=drop"


class QuestionData(StepData):
    """Questions about contexts, of one data set or a mixture, served in batches {"question": int64 (B,)}: numbers into
    `for_method()["questions"]`.

    - sources: the data sets by name. Those that read files and have no path are left out, so that a config can name
      what may be there.
    - weights: by the same names, the probability with which a row of a training batch is of each source (their ratios
      count); None: the same for all. Weights of sources that are left out do not count.
    - batch_size: B, questions per optimizer step over all devices.
    - validation_fraction: share of the groups (contexts; of SQuAD, articles) of each source kept for validation, in (0,
      1).
    - validation_rows: at most so many validation questions of each source, spread evenly over all; None for all.
    - max_context_bytes: the longest context, in bytes of UTF-8; None for no limit. long: what becomes of longer ones:
      `refuse`, `drop`, or `window`, a part that holds the answer, in training and validation alike (`windows`).
    - max_dropped: refuse a source of which more than this share is dropped, since its contexts are too long, or left
      out, since its records are odd; in [0, 1]. What is lost below it is told in one warning.
    - num_workers: loader processes. seed: of the order of the questions; the split does not depend on it.
    - path, squad, hotpotqa, nq: what the sources read, labels; the sources take them by interpolation, so that
      `data.path=FILE` works.

    `prepare()` must be called before the other attributes are used; it is idempotent, and Lightning calls it too. There
    is no vocabulary: readers have their own. `train` and `validation` are int64 arrays of question numbers.
    """

    #: See research_stack.config.smoke.
    smoke = {"batch_size": 4}

    def __init__(
        self,
        sources: dict[str, QuestionSource],
        weights: dict[str, float] | None = None,
        batch_size: int = 32,
        validation_fraction: float = 0.1,
        validation_rows: int | None = None,
        max_context_bytes: int | None = None,
        long: Literal["refuse", "window", "drop"] = "refuse",
        num_workers: int = 0,
        seed: int = 0,
        path: str | list[str] | None = None,
        squad: str | list[str] | None = None,
        hotpotqa: str | list[str] | None = None,
        nq: str | list[str] | None = None,
        max_dropped: float = 0.5,
    ) -> None:
        super().__init__(batch_size, validation_fraction, validation_rows, num_workers, seed, path, max_dropped)
        require(
            max_context_bytes is None or max_context_bytes >= 1,
            f"max_context_bytes={max_context_bytes} must be at least 1, or null for no limit",
        )
        require(
            long == "refuse" or max_context_bytes is not None,
            f"long={long} needs max_context_bytes: without a limit no context is too long",
        )
        self.absent = [
            name
            for name, source in sources.items()
            if source is None or (isinstance(source, QuestionFiles) and source.path is None)
        ]
        self.sources = {name: source for name, source in sources.items() if name not in self.absent}
        if not self.sources:
            raise ValueError(
                f"sources={', '.join(sources) or 'none'}: none of them has a path; set data.path=FILE, or the path of"
                " one of them"
            )
        self.weights = _weights(weights, list(sources), list(self.sources))
        self.max_context_bytes, self.long = max_context_bytes, long
        self.squad, self.hotpotqa, self.nq = squad, hotpotqa, nq
        self.train: np.ndarray
        self.validation: np.ndarray
        self._questions: list[Question] | None = None

    def check(self) -> None:
        """Raise ValueError or OSError with one line when a data set cannot be had; reads little."""
        for name, source in self.sources.items():
            with _named(name):
                source.check()

    def load(self) -> None:
        """Read, cut, split and number the questions. Raises ValueError (no question, too long a context, no validation
        side) or OSError in one line.
        """
        if self.absent:
            log.info("left out, since no path is given: %s", ", ".join(self.absent))
        kept: list[Question] = []
        self.parts: dict[str, dict[str, np.ndarray]] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        found = {name: self._read(name, source) for name, source in self.sources.items()}
        if self.long == "refuse" and self.max_context_bytes is not None:
            require_contexts(
                [q for questions in found.values() for q in questions],
                self.max_context_bytes,
                f"max_context_bytes={self.max_context_bytes}",
                LONG,
            )
        for name, questions in found.items():
            self.parts[name], facts = self._side(name, questions, kept)
            self._facts[name] |= facts
        self.train = np.concatenate([part["train"] for part in self.parts.values()])
        self.validation = _interleaved([part["validation"] for part in self.parts.values()])
        prints = {name: source.fingerprint() for name, source in self.sources.items()}
        parts = [LAYOUT, prints, self.validation_fraction, self.max_context_bytes, self.long]
        self.set_fingerprint(parts)
        self._questions = kept

    def _read(self, name: str, source: QuestionSource) -> list[Question]:
        """The questions of a source within the limit, and what it says of itself into `_facts`."""
        with _named(name):
            questions = list(source.questions())
            facts = source.describe() if isinstance(source, Described) else {}
        found = len(questions)
        if self.long != "refuse" and self.max_context_bytes is not None:
            cut = [_fitted(question, self.max_context_bytes, self.long) for question in questions]
            windows = sum(new is not None and new is not old for old, new in zip(questions, cut, strict=True))
            facts |= {
                "too_long": sum(new is not old for old, new in zip(questions, cut, strict=True)),
                **({"windows": windows} if self.long == "window" else {}),
            }
            questions = [question for question in cut if question is not None]
        if not questions:
            raise ValueError(
                f"sources.{name}: no question is left; of its contexts {facts.get('too_long', 0)} are longer than"
                f" max_context_bytes={self.max_context_bytes}"
            )
        odd = source.odd.summary() if isinstance(source, Selective) else {}
        why = f"their context is longer than max_context_bytes={self.max_context_bytes}"
        check_dropped(len(questions), found - len(questions), odd, self.max_dropped, why, of=name)
        self._facts[name] = facts
        return questions

    def _side(
        self, name: str, questions: list[Question], kept: list[Question]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(numbers of both sides, facts) of a source whose questions are appended to `kept`; copies of a question are
        left out.
        """
        with _named(name):
            sides = split(_AsDocuments(questions), self.validation_fraction)
        fresh = np.flatnonzero(sides != DUPLICATE)
        number_N = len(kept) + np.arange(len(fresh))
        kept += [questions[i] for i in fresh]
        train, validation = (number_N[sides[fresh] == side] for side in (TRAIN, VALIDATION))
        check_split(len(train), len(validation), self.validation_fraction, f"questions of {name}")
        count = min(self.validation_rows or len(validation), len(validation))
        contexts = {questions[i].context for i in fresh}
        facts = {
            "train": len(train),
            "validation": len(validation),
            "validation_rows_used": count,
            "duplicates": len(questions) - len(fresh),
            "contexts": len(contexts),
            "context_bytes": round(float(np.mean([len(questions[i].context.encode()) for i in fresh])), 2),
            "answer_bytes": round(float(np.mean([len(questions[i].answers[0].encode()) for i in fresh])), 2),
            "unanswerable": sum(questions[i].answers == ("",) for i in fresh),
            "weight": round(self.weights[name], 6),
        }
        return {"train": train, "validation": validation[np.arange(count) * len(validation) // max(count, 1)]}, facts

    @property
    def questions(self) -> list[Question]:
        """All questions that were kept, by number. Raises RuntimeError before `prepare()`."""
        if self._questions is None:
            raise RuntimeError("call prepare() first")
        return self._questions

    @property
    def sequence_length(self) -> int:
        """Bytes of the longest context."""
        return max(len(context.encode()) for context in {question.context for question in self.questions})

    @staticmethod
    def least_numbers(batch_size: int) -> int:
        """Of one batch at the very least; the check reads it."""
        return 16 * batch_size

    def for_model(self) -> dict[str, Any]:
        """Nothing: what a model takes does not depend on the texts."""
        return {}

    def for_method(self) -> dict[str, Any]:
        """Constructor arguments that a method may take from the data."""
        return {"questions": self.questions, "trained_on": self.train}

    def check_fit(self, model: Any, method: type) -> None:
        """Raise ValueError in one line when a context is longer than `model.max_length`, bytes of an encoder of bytes,
        where the model has such a limit.
        """
        most = getattr(model, "max_length", None)
        if most is not None:
            shown = "null" if self.max_context_bytes is None else self.max_context_bytes
            hint = f"raise it, or set data.max_context_bytes={most} and data.long=window or drop"
            require_contexts(
                self.questions, most, f"max_context_bytes={shown} is more than model.max_length={most}", hint
            )

    def describe(self) -> dict[str, Any]:
        """Fingerprint and sizes; of each source, under its name, questions of both sides, contexts, mean bytes, what
        was left out, and what it says of itself.
        """
        questions = self.questions
        facts = {f"{name}_{key}": value for name in self.sources for key, value in self._facts[name].items()}
        return {
            "fingerprint": self.fingerprint,
            "path": self.path,
            "sources": ", ".join(self.sources),
            "left_out": ", ".join(self.absent),
            "datasets": ", ".join(dict.fromkeys(question.dataset for question in questions)),
            "questions": len(questions),
            "train_questions": len(self.train),
            "validation_rows_used": len(self.validation),
            "sequence_length": self.sequence_length,
            "max_context_bytes": self.max_context_bytes,
            "long": self.long,
            **facts,
        }

    def train_batches(self, rank: int, world: int) -> MixedBatches:
        """Each source in epochs of its own, mixed by the weights."""
        return MixedBatches(
            [QuestionRows(part["train"]) for part in self.parts.values()],
            list(self.weights.values()),
            list(self.weights),
            self.batch_size,
            self.seed,
            self.start_step,
            rank,
            world,
            self.repeat,
        )

    def validation_table(self) -> QuestionRows:
        """The validation questions by number; the sources take turns."""
        return QuestionRows(self.validation)


def require_contexts(questions: Sequence[Question], most: int, what: str, hint: str) -> None:
    """Raise ValueError in one line, which names the first and counts them, when contexts are longer than `most` bytes
    of UTF-8.
    """
    long = [question for question in questions if len(question.context.encode()) > most]
    if long:
        length = len(long[0].context.encode())
        raise ValueError(
            f"{what}: the context of '{long[0].key}' has {length} bytes, and {len(long)} of {len(questions)} questions"
            f" have a longer one than {most}; {hint}"
        )


@dataclass(frozen=True)
class _AsDocuments:
    """Questions as the documents that `split` takes: a context asked a question once, on the side of its group."""

    items: list[Question]

    def check(self) -> None:
        """Nothing to look at."""

    def documents(self) -> Iterator[Document]:
        """One for each question."""
        return (Document(q.context, q.question, q.key, q.group) for q in self.items)

    def fingerprint(self) -> str:
        """Never asked for."""
        return ""


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What goes wrong in a source as an error that says which."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise (ValueError if isinstance(error, ValueError) else OSError)(f"sources.{name}.{error}") from error


def _fitted(question: Question, most: int, long: str) -> Question | None:
    """The question as it is, on a window of its context, or None where it is left out."""
    if long == "window":
        return window(question, most)
    return question if len(question.context.encode()) <= most else None


def _weights(weights: Mapping[str, float] | None, named: list[str], present: list[str]) -> dict[str, float]:
    """The weights of the sources that are present, summing to 1. Raises ValueError in one line that names the key."""
    given = dict.fromkeys(present, 1.0) if weights is None else weights
    for name, weight in given.items():
        require(
            name in named,
            f"weights.{name}={weight} must be of a source; the sources are {', '.join(named)}; a source that is taken"
            f" out takes its weight with it: ~data.weights.{name}",
        )
        require(
            math.isfinite(weight) and weight > 0,
            f"weights.{name}={weight} must be above 0; leave the source out instead",
        )
    for name in present:
        require(
            name in given,
            f"weights.{name} must be given: every source needs a weight, or weights=null for the same for all",
        )
    total = sum(given[name] for name in present)
    return {name: given[name] / total for name in present}


def _interleaved(parts: list[np.ndarray]) -> np.ndarray:
    """The parts in one row, each spread evenly over it."""
    place_N = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in parts])
    return np.concatenate(parts)[np.argsort(place_N, kind="stable")]

"""The ways in which a reader can be told a context, and what it answers along each of them.

    latent            the message of the context, as bytes that were written and read back
    shuffled, zeros   the message of another context; zeros in the latents' place: both must be worth no more than none
    text, none        the whole context; nothing
    text_bytes        the head of the context in as many bytes as the message has; text_bytes_tail its end; text_zlib
    the longest head that
                      raw deflate, of zlib, makes fit
    text_tokens       as many of its first tokens as a message has latents

All are answered by the same code: what was read lies in a cache, the prompt follows, and the likeliest token is taken
until the end token. The length of the answer is never given. Texts are read by the reader as it was before training:
without adapters.

Shapes: n questions, K cut-offs of FirstTok, M latents, d dimensions of a latent.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from research_stack.data.questions.question import Question
from research_stack.latentwire.features.lora import plain
from research_stack.latentwire.module import LatentWire
from research_stack.latentwire.path_names import FIRST, HEAD, LATENT, NONE, SHUFFLED, TAIL, TEXT, TOKENS, ZEROS, ZLIB
from research_stack.latentwire.reader import FrozenReader
from research_stack.latentwire.receiver import Prefilled, greedy, prefill_text
from research_stack.latentwire.text_baselines import deflated_bytes, deflated_fits, first_tokens, head, tail
from research_stack.metrics import qa
from research_stack.require import require
from research_stack.streams import seed_of

log = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class PathAnswers:
    """What one reader answers to n questions along one path.

    - latents: M of the messages, or of those whose size a text was cut to; None where there is no such size.
    - answers: texts. f1_n, exact_n: their scores. first_nK: FirstTok@1, 5, 10; NaN for questions without a first token.
    - bytes_n: what was sent: the message, the text in UTF-8, or compressed. positions_n: read up to the answer, lead
      and prompt included.
    - seconds: of all questions. beside: a part of the text that is not as large as a message: a point of its curve
      alone.
    """

    reader: str
    path: str
    num_latents: int | None
    answers: list[str]
    f1_n: np.ndarray
    exact_n: np.ndarray
    first_nK: np.ndarray
    bytes_n: np.ndarray
    positions_n: np.ndarray
    seconds: float
    curve_only: bool = False


class AnswerGenerator:
    """One reader and n questions.

    - method: in eval mode. name: of the reader. batch_size: questions that are read together.
    """

    def __init__(self, method: LatentWire, name: str, questions: Sequence[Question], batch_size: int) -> None:
        require(batch_size >= 1, f"batch_size={batch_size} must be at least 1")
        require(len(questions) > 0, f"questions={len(questions)} must be at least 1")
        self.method, self.name, self.questions, self.batch_size = method, name, questions, batch_size
        self.reader: FrozenReader = method.readers[name]
        self.prompts = [self.reader.prompt_ids(q.question) for q in questions]
        self.gold_ids = [first_ids(self.reader, q) for q in questions]

    def messages(self, num_latents: int) -> list[bytes]:
        """The message of each question's context; each context is encoded once."""
        contexts = sorted({q.context for q in self.questions}, key=lambda text: (len(text), text))
        found: dict[str, bytes] = {}
        for part in parts(contexts, self.batch_size):
            found |= zip(part, self.method.encode(list(part), self.name, num_latents), strict=True)
        return [found[q.context] for q in self.questions]

    def from_messages(self, path: str, num_latents: int, messages: Sequence[bytes]) -> PathAnswers:
        """The answers to one message for each question, own or another's."""

        def prefill(rows: Sequence[int]) -> Prefilled:
            return self.method.prefill(self.name, self.method.decode([messages[i] for i in rows], self.name))

        return self._asked(path, num_latents, prefill, range(len(messages)), [len(m) for m in messages])

    def from_zeros(self, num_latents: int, size: int) -> PathAnswers:
        """The answers to latents that are all 0, in messages of `size` bytes."""
        method = self.method

        def prefill(rows: Sequence[int]) -> Prefilled:
            zeros_BMd = torch.zeros(len(rows), num_latents, method.latent_dim, device=method.device)
            return method.prefill(
                self.name, method.adapt(self.name, zeros_BMd, method.latent_index(self.name, num_latents))
            )

        return self._asked(ZEROS, num_latents, prefill, range(len(self.questions)), [size] * len(self.questions))

    def from_texts(
        self, path: str, num_latents: int | None, texts: Sequence[Sequence[int]], sizes: Sequence[int]
    ) -> PathAnswers:
        """The answers to tokens of a text for each question; `sizes` are its bytes."""
        order = sorted(
            range(len(texts)), key=lambda i: len(texts[i]) + len(self.prompts[i])
        )  # little padding, and the longest come last
        return self._asked(
            path,
            num_latents,
            lambda rows: prefill_text(self.reader, [texts[i] for i in rows]),
            order,
            sizes,
            plain(self.reader),
        )

    def from_cut(
        self, path: str, cut: Callable[[str, int], str], num_latents: int, budgets: Sequence[int]
    ) -> PathAnswers:
        """The answers to each context cut by `cut(context, its budget of bytes)`."""
        kept = [cut(q.context, budget) for q, budget in zip(self.questions, budgets, strict=True)]
        sizes = [(deflated_bytes(text) if text else 0) if path == ZLIB else len(text.encode()) for text in kept]
        return self.from_texts(path, num_latents, [self.reader.token_ids(text) for text in kept], sizes)

    def whole(self) -> list[PathAnswers]:
        """Nothing and the whole text: the two ends between which all others should lie."""
        contexts, none = [q.context for q in self.questions], [[] for _ in self.questions]
        ids = [self.reader.token_ids(context) for context in contexts]
        self._warn_of_long(ids)
        return [
            self.from_texts(NONE, None, none, [0] * len(none)),
            self.from_texts(TEXT, None, ids, [len(context.encode()) for context in contexts]),
        ]

    def sent(self, num_latents: int, others: Sequence[int] | None = None, controls: bool = False) -> list[PathAnswers]:
        """Messages of so many latents and the texts that cost as much.

        - others: whose message a question gets for `shuffled`; None: nobody's. controls: whether to ask with them, and
          with zeros.
        """
        messages = self.messages(num_latents)
        sizes = [len(message) for message in messages]
        found = [self.from_messages(LATENT, num_latents, messages)]
        if controls:
            found += (
                [self.from_messages(SHUFFLED, num_latents, [messages[i] for i in others])] if others is not None else []
            )
            found += [self.from_zeros(num_latents, sizes[0])]
        found += [
            self.from_cut(path, cut, num_latents, sizes)
            for path, cut in ((HEAD, head), (TAIL, tail), (ZLIB, deflated_fits))
        ]
        positions = num_latents * self.method.adapters[self.name].positions_per_latent
        first = [first_tokens(self.reader.token_ids(q.context), positions) for q in self.questions]
        return [
            *found,
            self.from_texts(
                TOKENS, num_latents, first, [len(self.reader.tokenizer.decode(ids).encode()) for ids in first]
            ),
        ]

    def curve(self, num_latents: int, times: Sequence[float]) -> list[PathAnswers]:
        """Head and tail of the texts in so many times the bytes of their messages."""
        sizes = [len(message) for message in self.messages(num_latents)]
        budgets = [[round(factor * size) for size in sizes] for factor in times]
        return [
            replace(self.from_cut(path, cut, num_latents, budget), num_latents=None, curve_only=True)
            for budget in budgets
            for path, cut in ((HEAD, head), (TAIL, tail))
        ]

    def _asked(
        self,
        path: str,
        num_latents: int | None,
        prefill: Callable[[Sequence[int]], Prefilled],
        order: Sequence[int],
        sizes: Sequence[int],
        within: AbstractContextManager[None] | None = None,
    ) -> PathAnswers:
        started, count = time.monotonic(), len(self.questions)
        answers, positions_n, first_nK = [""] * count, np.zeros(count), np.zeros((count, len(FIRST)))
        with within or nullcontext():
            for rows in parts(order, self.batch_size):
                prefilled = prefill(rows)
                read_B = prefilled.mask_BP.sum(1).tolist()
                ids, first_BV = greedy(
                    self.reader, prefilled, [self.prompts[i] for i in rows], self.reader.max_answer_tokens
                )
                first_nK[list(rows)] = qa.first_token_at(
                    first_BV.cpu().numpy(), [self.gold_ids[i] for i in rows], FIRST
                )
                for i, own, before in zip(rows, ids, read_B, strict=True):
                    answers[i], positions_n[i] = self.reader.decode(own), before + len(self.prompts[i])
        scores = qa.scores(answers, [q.answers for q in self.questions], [q.scoring for q in self.questions])
        found = PathAnswers(
            self.name,
            path,
            num_latents,
            answers,
            scores.f1_n,
            scores.exact_n,
            first_nK,
            np.array(sizes, dtype=np.float64),
            positions_n,
            time.monotonic() - started,
        )
        log.info(
            "%s: %s%s, %.1f bytes: F1 %.3f, exact %.3f, %d questions in %.1f s",
            self.name,
            path,
            "" if num_latents is None else f" (M={num_latents})",
            found.bytes_n.mean(),
            found.f1_n.mean(),
            found.exact_n.mean(),
            count,
            found.seconds,
        )
        return found

    def _warn_of_long(self, ids: Sequence[Sequence[int]]) -> None:
        room = self.reader.model.max_length - len(self.reader.bos_ids) - self.reader.max_answer_tokens
        long = sum(len(own) + len(prompt) > room for own, prompt in zip(ids, self.prompts, strict=True))
        if long:
            log.warning(
                "%s: %d of %d questions do not fit with their whole context into the %d tokens that the reader was made"
                " for: its whole-text score is too low",
                self.name,
                long,
                len(ids),
                self.reader.model.max_length,
            )


def first_ids(reader: FrozenReader, question: Question) -> set[int]:
    """The tokens that the gold answers begin with, each as prompt and answer are tokenised together; none where they
    run into one another.
    """
    found = (reader.answer_ids(question.question, answer) for answer in question.answers)
    return {ids[0] for ids in found if ids}


def parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in their order, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def mismatched_contexts(questions: Sequence[Question], seed: int) -> list[int] | None:
    """For each question the number of another one of its data set, of another group and another context; each serves
    once.

    They are drawn by the seed. Of a data set of which one group holds more than half, as a single article does, another
    context is enough; None where one context holds more than half too.
    """
    partner, rng = [-1] * len(questions), np.random.default_rng(seed_of(seed, "strangers"))
    for dataset in dict.fromkeys(q.dataset for q in questions):
        own = [i for i, q in enumerate(questions) if q.dataset == dataset]
        for marks in (("group", "context"), ("context",)):
            label = _together([questions[i] for i in own], marks)
            largest = max(Counter(label).values())
            if 2 * largest <= len(own):
                break
        else:
            return None
        rank = {group: place for place, group in enumerate(rng.permutation(sorted(set(label))).tolist())}
        mixed = sorted(
            rng.permutation(len(own)).tolist(), key=lambda at: rank[label[at]]
        )  # group after group, both in random order
        for place, at in enumerate(mixed):  # further on by the largest group: past one's own, and not all the way round
            partner[own[at]] = own[mixed[(place + largest) % len(own)]]
    return partner


def _together(questions: Sequence[Question], marks: Sequence[str]) -> list[int]:
    """(n,) labels that questions share which a chain of common groups or contexts joins, or of those that `marks`
    names.
    """
    label, seen = list(range(len(questions))), {}

    def root(i: int) -> int:
        while label[i] != i:
            label[i] = label[label[i]]
            i = label[i]
        return i

    for i, question in enumerate(questions):
        named = {"group": question.group, "context": question.context}
        for mark in marks:
            label[root(i)] = root(seen.setdefault((mark, named[mark]), i))
    return [root(i) for i in range(len(questions))]

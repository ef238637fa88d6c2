"""What readers answer from latents, beside what they answer from as many bytes or tokens of text, the whole text and
nothing.

Writes tables/latentwire.csv (scores by path), latentwire_paired.csv (paths against one another on the same questions),
latentwire_scores.csv (single questions), latentwire_bytes.csv (parts of a message), latentwire_examples.csv,
latentwire_latency.csv and latentwire_speed.csv (where latents are faster than the text).

Shapes: n questions.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from research_stack.data.questions.module import QuestionData
from research_stack.data.questions.question import Question
from research_stack.latentwire import latency, paths, wire
from research_stack.latentwire.information import message_information
from research_stack.latentwire.latency import Latency
from research_stack.latentwire.module import LatentWire
from research_stack.latentwire.path_names import (
    FIRST,
    HEAD,
    LATENT,
    NONE,
    POOLED,
    SHUFFLED,
    TAIL,
    TEXT,
    TOKENS,
    ZEROS,
    ZLIB,
)
from research_stack.latentwire.paths import AnswerGenerator, PathAnswers
from research_stack.latentwire.text_baselines import ratio_of_bytes
from research_stack.latentwire.wire import MAX_LATENTS
from research_stack.metrics import paired
from research_stack.metrics.interval import clip_interval, warn_few
from research_stack.records.csv_tables import write_table
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.evaluation.context import Context

log = logging.getLogger(__name__)

COMPARED = (*((LATENT, path) for path in (HEAD, TAIL, ZLIB, TOKENS, SHUFFLED, TEXT, ZEROS)), (SHUFFLED, NONE))
SHOWN = (LATENT, SHUFFLED, NONE, TEXT, HEAD, TOKENS)  # answers of the examples
Table = list[dict[str, Any]]


class LatentWireEvaluation:
    """Exact match, F1 and FirstTok@k of every reader along every path (`paths`), bytes, ratio and time to the first
    token.

    Latents go through real bytes: the message is written, counted and read back. Intervals are 95 %, over the groups
    of questions that depend on one another (`evaluation.interval`); they do not cover a new training run.

    - max_questions: of each data set, spread evenly over the validation side; None for all. batch_size: questions read
      together.
    - num_latents: further M to send, of more than the method's private latents and at most all of its latents; others
      are left out. The first shared ones are sent. None: half and three quarters of those that were trained.
    - byte_factors: times the bytes of a message in which head and tail of the text are measured too, beside those in as
      many.
    - examples: questions of each data set whose answers are kept as texts.
    - latency: how times are taken; None: not at all.
    """

    #: See research_stack.config.smoke.
    smoke = {"max_questions": 8, "batch_size": 8, "num_latents": [], "byte_factors": [], "latency": None}

    def __init__(
        self,
        max_questions: int | None = 512,
        batch_size: int = 64,
        num_latents: list[int] | None = None,
        byte_factors: list[float] | None = None,
        examples: int = 6,
        latency: Latency | None = None,
    ) -> None:
        require(
            max_questions is None or max_questions >= 2,
            f"max_questions={max_questions} must be at least 2, or null for all",
        )
        require(batch_size >= 1, f"batch_size={batch_size} must be at least 1")
        require(examples >= 1, f"examples={examples} must be at least 1")
        if any(
            not 1 <= number <= 256 for number in num_latents or []
        ):  # wire.MOST, as a number: what is checked before anything is imported
            raise ValueError(f"num_latents={num_latents} must be numbers from 1 to 256")
        if any(factor <= 0 for factor in byte_factors or []):
            raise ValueError(f"byte_factors={byte_factors} must be numbers above 0")
        self.max_questions, self.batch_size, self.num_latents, self.byte_factors, self.examples, self.latency = (
            max_questions,
            batch_size,
            num_latents,
            byte_factors or [],
            examples,
            latency,
        )

    def unsuited(self, method: type) -> str | None:
        """Only LatentWire sends latents."""
        return (
            None if issubclass(method, LatentWire) else "it measures readers of latents; choose the eval of this method"
        )

    def __call__(self, context: Context) -> dict[str, float]:
        """The numbers of each reader as `<reader>/<name>`, on all questions; what is not defined (a ratio to 0) is left
        out.
        """
        method, data = context.method, context.data
        assert isinstance(method, LatentWire) and isinstance(data, QuestionData)
        validation = data.validation
        assert isinstance(validation, np.ndarray)
        questions = chosen([data.questions[i] for i in validation], self.max_questions)
        found = self._answers(method, questions, context.seed)
        scores = ScoreTables(questions, found, method, context.seed)
        warn_few(scores.group_n, "groups of questions")
        write_table(context.folder, "latentwire", scores.rows())
        write_table(context.folder, "latentwire_paired", scores.paired())
        write_table(context.folder, "latentwire_scores", scores.single())
        write_table(context.folder, "latentwire_bytes", bytes_table(method))
        write_table(context.folder, "latentwire_examples", self._examples(method, questions, found))
        if self.latency is not None:
            times = self.latency(method, [q.context for q in questions], questions[0].question)
            write_table(context.folder, "latentwire_latency", times)
            write_table(context.folder, "latentwire_speed", latency.summary(times))
        return {name: value for name, value in scores.metrics(data).items() if math.isfinite(value)}

    def _answers(self, method: LatentWire, questions: Sequence[Question], seed: int) -> list[PathAnswers]:
        """Every reader along every path."""
        others = paths.mismatched_contexts(questions, seed)
        if others is None:
            log.warning(
                "latents of another example are left out: more than half of a data set's questions are about one"
                " context"
            )
        found, wanted = [], settings(method, self.num_latents)
        for name in method.readers:
            generator = AnswerGenerator(method, name, questions, self.batch_size)
            found += generator.whole()
            for num_latents in wanted:
                found += generator.sent(num_latents, others, controls=num_latents == method.final_num_latents)
            found += generator.curve(method.final_num_latents, self.byte_factors)
        return found

    def _examples(self, method: LatentWire, questions: Sequence[Question], found: Sequence[PathAnswers]) -> Table:
        """The same questions for every reader, spread evenly over those of each data set."""
        table = []
        asked = chosen(questions, self.examples)
        for name in method.readers:
            given = {
                one.path: one
                for one in found
                if one.reader == name and one.num_latents in (None, method.final_num_latents) and not one.curve_only
            }
            messages = AnswerGenerator(method, name, asked, self.batch_size).messages(method.final_num_latents)
            for question, message in zip(asked, messages, strict=True):
                at = questions.index(question)
                texts = {path: given[path].answers[at] if path in given else "" for path in SHOWN}
                exact = [path for path in SHOWN if path in given and given[path].exact_n[at] == 1]
                table.append(
                    {
                        "dataset": question.dataset,
                        "reader": name,
                        "context": question.context,
                        "question": question.question,
                        "answers": " | ".join(question.answers),
                        **texts,
                        "exact": " ".join(exact),
                        "message_hex": message.hex(),
                    }
                )
        return table


class ScoreTables:
    """The answers of all readers as tables.

    - questions: n, in the order of the answers. seed: of random sign flips.
    """

    def __init__(
        self, questions: Sequence[Question], answered: Sequence[PathAnswers], method: LatentWire, seed: int
    ) -> None:
        self.questions, self.answered, self.method, self.seed = questions, answered, method, seed
        self.group_n = np.array(groups_of(questions))
        self.context_n = np.array([len(q.context.encode()) for q in questions], dtype=np.float64)
        names = list(dict.fromkeys(q.dataset for q in questions))
        dataset_n = np.array([q.dataset for q in questions])
        self.sides = {POOLED: np.arange(len(questions))} if len(names) > 1 else {}
        self.sides |= {name: np.flatnonzero(dataset_n == name) for name in names}

    def main(self, one: PathAnswers) -> bool:
        """Whether it is of the setting that was trained, or of none."""
        return one.num_latents in (None, self.method.final_num_latents) and not one.curve_only

    def rows(self) -> Table:
        """A row for each data set, reader, path and M."""
        return [self._row(dataset, at, one) for dataset, at in self.sides.items() for one in self.answered]

    def _row(self, dataset: str, at: np.ndarray, one: PathAnswers) -> dict[str, Any]:
        bytes_n, context_n = one.bytes_n[at], self.context_n[at]
        ratio = ratio_of_bytes(context_n, bytes_n) if (bytes_n > 0).all() else None
        means = {
            name: clip_interval(paired.mean(values_n[at], self.group_n[at]), 0.0, 1.0)
            for name, values_n in (("f1", one.f1_n), ("em", one.exact_n))
        }
        return {
            "dataset": dataset,
            "reader": one.reader,
            "path": one.path,
            "num_latents": one.num_latents,
            "bits": None if one.num_latents is None or one.path == TOKENS else self.method.quantizer.bits,
            "bytes": bytes_n.mean(),
            "ratio": ratio and ratio.of_means,
            "ratio_mean": ratio and ratio.mean,
            "prefill_tokens": one.positions_n[at].mean(),
            **{
                f"{name}{end}": value
                for name, mean in means.items()
                for end, value in zip(("", "_low", "_high"), mean, strict=True)
            },
            "share_of_text": share_of(one.f1_n[at], self.of(one.reader)[TEXT].f1_n[at]),
            **{f"first{k}": known_mean(one.first_nK[at, i]) for i, k in enumerate(FIRST)},
            "questions": len(at),
            "main": int(self.main(one)),
        }

    def of(self, reader: str) -> dict[str, PathAnswers]:
        """{path: the answers} of one reader at the trained setting."""
        return {one.path: one for one in self.answered if one.reader == reader and self.main(one)}

    def paired(self) -> Table:
        """F1 of two paths on the same questions, for the pairs of COMPARED."""
        table = []
        for dataset, at in self.sides.items():
            for reader in self.method.readers:
                answers = self.of(reader)
                for first, second in COMPARED:
                    if first in answers and second in answers:
                        found = paired.compare(
                            answers[first].f1_n[at], answers[second].f1_n[at], self.group_n[at], self.seed
                        )
                        table.append(
                            {
                                "dataset": dataset,
                                "reader": reader,
                                "comparison": f"{first}-{second}",
                                "difference": found.difference.value,
                                "low": found.difference.low,
                                "high": found.difference.high,
                                "p": found.p,
                                "ratio": found.ratio.value,
                                "ratio_low": found.ratio.low,
                                "ratio_high": found.ratio.high,
                            }
                        )
        return table

    def single(self) -> Table:
        """Every question at the trained setting."""
        return [
            {
                "dataset": q.dataset,
                "reader": one.reader,
                "path": one.path,
                "question": q.key,
                "group": group,
                "f1": f1,
                "em": exact,
            }
            for one in self.answered
            if self.main(one)
            for q, group, f1, exact in zip(self.questions, self.group_n, one.f1_n, one.exact_n, strict=True)
        ]

    def metrics(self, data: QuestionData) -> dict[str, float]:
        """The numbers of result.json, on the questions of all data sets together."""
        found = {}
        for reader in self.method.readers:
            answers = self.of(reader)
            mean, latent = {path: float(one.f1_n.mean()) for path, one in answers.items()}, answers[LATENT]
            over = paired.ratio(latent.f1_n, answers[HEAD].f1_n, self.group_n)
            own = {f"f1_{path}": mean[path] for path in (LATENT, TEXT, HEAD, NONE, SHUFFLED) if path in mean}
            own |= {
                "exact_latent": float(latent.exact_n.mean()),
                "first1": known_mean(latent.first_nK[:, 0]),
                "share_of_text": share_of(latent.f1_n, answers[TEXT].f1_n),
                "over_text_bytes": over.value,
                "over_text_bytes_low": over.low,
                "over_text_bytes_high": over.high,
                "bytes": float(latent.bytes_n.mean()),
                "ratio": ratio_of_bytes(self.context_n, latent.bytes_n).of_means,
            }
            own |= {"collapse": mean[LATENT] - mean[SHUFFLED]} if SHUFFLED in mean else {}
            bits = message_information(data.sources.values(), next(iter(self.sides)), own["exact_latent"])
            own |= {} if bits is None else {"information_bits": bits, "information_share": bits / (8 * own["bytes"])}
            found |= {f"{reader}/{name}": value for name, value in own.items()}
        return found


def chosen(questions: Sequence[Question], max_questions: int | None) -> list[Question]:
    """At most so many questions of each data set, spread evenly, data set by data set."""
    found: list[Question] = []
    for dataset in dict.fromkeys(q.dataset for q in questions):
        own = [q for q in questions if q.dataset == dataset]
        count = min(max_questions or len(own), len(own))
        found += [own[i * len(own) // count] for i in range(count)]
    return found


def groups_of(questions: Sequence[Question]) -> list[str]:
    """What a question belongs to, for the intervals: its group (an article, say), or its context where the whole data
    set is one group.
    """
    found = [q.group for q in questions]
    for dataset in dict.fromkeys(q.dataset for q in questions):
        own = [i for i, q in enumerate(questions) if q.dataset == dataset]
        if len({found[i] for i in own}) == 1:
            log.warning(
                "the %d questions of %s are all of one group: their intervals are over its contexts, and say nothing of"
                " others",
                len(own),
                dataset,
            )
            for i in own:
                found[i] = hashlib.sha256(questions[i].context.encode()).hexdigest()[:12]
    return [f"{q.dataset}:{group}" for q, group in zip(questions, found, strict=True)]


def settings(method: LatentWire, num_latents: Iterable[int] | None) -> list[int]:
    """M as training ended with it, then those of `latents` that the method can send; None: half and three quarters of
    it.
    """
    final = method.final_num_latents
    wanted = sorted(set((final // 2, 3 * final // 4) if num_latents is None else num_latents) - {final})
    known = [number for number in wanted if method.num_private < number <= method.num_latents]
    if known != wanted and num_latents is not None:
        log.warning(
            "num_latents=%s: only %d to %d can be sent, of more than the private part and at most what was trained",
            wanted,
            method.num_private + 1,
            method.num_latents,
        )
    return [final, *known]


def bytes_table(method: LatentWire) -> Table:
    """The parts of a message to one reader, and of one to all of them together."""
    together = method.final_num_latents + method.num_private * (len(method.readers) - 1)
    one = wire.parts_of(method.final_num_latents, method.latent_dim, method.quantizer.format, method.length_hint)
    # beyond what one message can hold there is none to all readers
    every = (
        wire.parts_of(together, method.latent_dim, method.quantizer.format, method.length_hint)
        if together <= MAX_LATENTS
        else {}
    )
    return [{"part": part, "reader_bytes": size, "broadcast_bytes": every.get(part)} for part, size in one.items()]


def share_of(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """mean(a) / mean(b); NaN where that is no number."""
    return float(a_n.mean() / b_n.mean()) if b_n.any() else math.nan


def known_mean(values_n: np.ndarray) -> float:
    """The mean of those that are no NaN; NaN without any."""
    known = values_n[~np.isnan(values_n)]
    return float(known.mean()) if len(known) else math.nan

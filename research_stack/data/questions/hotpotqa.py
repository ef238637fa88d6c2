"""HotpotQA: questions that need two paragraphs of Wikipedia, which stand among distracting ones. No torch.

Yang et al. 2018. Read are the official json files (a list of {_id, question, answer, supporting_facts, context}) and
the layout of the hub (context and supporting_facts as lists by name).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from research_stack.data.questions.files import QuestionFiles, require_context, rows_of, shown, text_of
from research_stack.data.questions.question import Question
from research_stack.data.sources.record_reader import Unfit
from research_stack.require import require

BARE = ("yes", "no")  # answers that need not stand in the context


class HotpotQA(QuestionFiles):
    """The questions of HotpotQA. A context is one line "title: sentences" for each of its paragraphs.

    - path: a .json, .jsonl, .jsonl.gz or .parquet file, a folder or a glob of them, or a name on the hub
      (`hotpotqa/hotpot_qa`).
    - distractors: `all` paragraphs, the `supporting` ones alone, or those and the first so many others; always in the
      order of the file.
    - limit: keep only the first so many questions; None for all.
    - strict: raise at an odd record, at an empty context, and at an answer other than yes and no that does not stand in
      the context; False leaves such questions out and counts them.
    - name, split, revision: of a data set of the hub; its name is `distractor` or `fullwiki`.
    """

    fields = ("question", "answer", "context", "supporting_facts")
    further = ("id", "_id")

    #: See research_stack.config.smoke.
    smoke = {"limit": 60}

    def __init__(
        self,
        path: str | list[str] | None,
        distractors: Literal["all", "supporting"] | int = "all",
        limit: int | None = None,
        strict: bool = True,
        name: str | None = "distractor",
        split: str = "train",
        revision: str | None = None,
    ) -> None:
        require(
            distractors in ("all", "supporting") or (isinstance(distractors, int) and distractors >= 0),
            f"distractors={distractors} must be all, supporting or a number of at least 0",
        )
        require(limit is None or limit > 1, f"limit={limit} must be at least 2, or null for all questions")
        super().__init__(path, name, split, revision, limit, strict)
        self.distractors = distractors

    def question(self, where: str, record: dict[str, Any]) -> Question:
        """The question of a record of either layout."""
        key = text_of(record, "_id" if "_id" in record else "id", where)
        answer = text_of(record, "answer", where).strip()
        context = "\n".join(f"{title}: {text}" for title, text in self._chosen(record, where))
        require_context(context, f"{where} question {key}")
        bare = answer.lower() in BARE
        if not answer or not (bare or answer in context):
            raise Unfit(
                f"path={where} question {key}: the answer {shown(answer)} does not stand in its context"
                f" (distractors={self.distractors}); set strict=false to leave such questions out",
                "answer not in its context",
            )
        return Question(
            f"hotpotqa:{key}",
            "hotpotqa",
            context,
            text_of(record, "question", where).strip(),
            (answer,),
            "hotpotqa",
            f"hotpotqa:{context}",
            -1 if bare else context.find(answer),
        )

    def _chosen(self, record: dict[str, Any], where: str) -> Iterator[tuple[str, str]]:
        """(title, text) of the paragraphs that make the context."""
        paragraphs = _named(record.get("context"), ("title", "sentences"), "context", where)
        supporting = {
            title
            for title, _ in _named(record.get("supporting_facts"), ("title", "sent_id"), "supporting_facts", where)
        }
        others = (
            len(paragraphs)
            if self.distractors == "all"
            else 0
            if self.distractors == "supporting"
            else int(self.distractors)
        )
        for title, sentences in paragraphs:
            if not (
                isinstance(title, str)
                and isinstance(sentences, list)
                and all(isinstance(sentence, str) for sentence in sentences)
            ):
                raise ValueError(
                    f"path={where} field 'context' must hold a title and a list of sentences for each paragraph"
                )
            others -= title not in supporting
            if title in supporting or others >= 0:
                yield title, " ".join(text for sentence in sentences if (text := " ".join(sentence.split())))

    def fingerprint(self) -> str:
        """The files' and every option."""
        return f"{super().fingerprint()}-{self.distractors}"


def _named(value: Any, names: tuple[str, str], field: str, where: str) -> list[tuple[str, Any]]:
    """Pairs of the official layout (lists of two) or of the hub's (fields by name). Raises ValueError in one line."""
    if isinstance(value, list) and all(isinstance(row, list) and len(row) == 2 for row in value):
        pairs = [(row[0], row[1]) for row in value]
    else:
        rows = rows_of(value, field, where)
        if not all(set(names) <= set(row) for row in rows):
            raise ValueError(f"path={where} field '{field}' must hold pairs of {' and '.join(names)}")
        pairs = [(row[names[0]], row[names[1]]) for row in rows]
    if not all(
        isinstance(first, str) and (names[1] != "sentences" or isinstance(second, list)) for first, second in pairs
    ):
        raise ValueError(f"path={where} field '{field}' must hold pairs of {' and '.join(names)}")
    return pairs

"""SQuAD: questions on paragraphs of Wikipedia whose answer is a stretch of the paragraph. No torch.

Rajpurkar et al. 2016 (v1.1) and 2018 (v2.0, with questions that the paragraph does not answer). Read are the official
json files and the layout of the hub (id, title, context, question, answers {text, answer_start}).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from research_stack.data.questions.files import QuestionFiles, require_context, rows_of, shown, text_of
from research_stack.data.questions.question import Question
from research_stack.data.sources.record_reader import Located, OddRecords, Unfit
from research_stack.require import require


class Squad(QuestionFiles):
    """The questions of SQuAD v1.1 or v2.0; which of the two the data say.

    - path: a .json, .jsonl, .jsonl.gz or .parquet file, a folder or a glob of them, or a name on the hub
      (`rajpurkar/squad`).
    - limit: keep only the first so many questions; None for all.
    - strict: raise at an odd record, at an empty context and at an answer that does not stand at its answer_start (or,
      without one, nowhere in the context); False leaves such questions out and counts them.
    - name, split, revision: of a data set of the hub.

    All questions of an article stand on one side of the split. Gold answers that stand several times count once.
    """

    fields = ("id", "context", "question", "answers")
    further = ("title", "is_impossible")

    #: See research_stack.config.smoke.
    smoke = {"limit": 60}

    def __init__(
        self,
        path: str | list[str] | None,
        limit: int | None = None,
        strict: bool = True,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
    ) -> None:
        require(limit is None or limit > 1, f"limit={limit} must be at least 2, or null for all questions")
        super().__init__(path, name, split, revision, limit, strict)

    def unpacked(self, file: Path, content: Any) -> Iterator[Located]:
        """The records of the official layout, laid out as on the hub; a list of records as it is."""
        articles = content.get("data") if isinstance(content, dict) else None
        if not (
            isinstance(articles, list)
            and all(isinstance(article, dict) and "paragraphs" in article for article in articles)
        ):
            return super().unpacked(file, content)
        return _official(file, articles, str(content.get("version", "")), self.odd)

    @cached_property
    def version(self) -> Literal["squad", "squad_v2"]:
        """squad_v2 when the data say so or leave a question unanswered, else squad."""
        alike = Squad(
            self.path, strict=False, name=self.name, split=self.split, revision=self.revision
        )  # which counts for itself
        return "squad_v2" if any(_says_v2(record) for _, record in alike.records()) else "squad"

    def question(self, where: str, record: dict[str, Any]) -> Question:
        """The question of a record of the hub's layout."""
        context, asked = sys.intern(text_of(record, "context", where)), text_of(record, "question", where).strip()
        key = text_of(record, "id", where)
        require_context(context, f"{where} question {key}")
        golds = [] if record.get("is_impossible") else _golds(record, where)
        if not golds and self.version == "squad":
            raise Unfit(
                f"path={where} question {key} has no answer; set strict=false to leave such questions out", "no answer"
            )
        for answer, start in golds:
            _require_answer(context, answer, start, f"{where} question {key}")
        answer, start = golds[0] if golds else ("", -1)
        title = record.get("title")
        return Question(
            f"{self.version}:{key}",
            self.version,
            context,
            asked,
            tuple(dict.fromkeys(text for text, _ in golds)) or ("",),
            self.version,
            f"squad:{title or context}",
            context.find(answer) if start is None else start,
        )


def _official(file: Path, articles: list[dict[str, Any]], version: str, odd: OddRecords) -> Iterator[Located]:
    """(file, record) of each question of the official layout; a malformed article is an odd record."""
    for article in articles:
        found: list[Located] = []
        with odd:
            for paragraph in rows_of(article["paragraphs"], "paragraphs", str(file)):
                own = {"title": article.get("title"), "context": paragraph.get("context"), "version": version}
                found += [(str(file), {**asked, **own}) for asked in rows_of(paragraph.get("qas"), "qas", str(file))]
        odd.read += len(found)
        yield from found


def _says_v2(record: dict[str, Any]) -> bool:
    version = str(record.get("version", ""))
    answers = record.get("answers")
    unanswered = not (answers.get("text") if isinstance(answers, dict) else answers)
    return "is_impossible" in record or version.startswith(("v2", "2")) or (unanswered and not version)


def _golds(record: dict[str, Any], where: str) -> list[tuple[str, int | None]]:
    """(text, answer_start) of each gold answer. Raises ValueError in one line for another layout."""
    golds = []
    for row in rows_of(record.get("answers"), "answers", where):
        start = row.get("answer_start")
        if not (start is None or (isinstance(start, int) and not isinstance(start, bool))):
            raise ValueError(f"path={where} field 'answer_start' must hold a whole number, not {start!r}")
        golds.append((text_of(row, "text", where), start))
    return golds


def _require_answer(context: str, answer: str, start: int | None, where: str) -> None:
    """Raise Unfit for an answer that is blank or does not stand in its context where it is said to stand."""
    stands = (
        context[start : start + len(answer)] == answer
        if start is not None and start >= 0
        else start is None and answer in context
    )
    if stands and answer.strip():
        return
    found = context.find(answer) if answer.strip() else -1
    at_start = "" if start is None else f" at answer_start={start}"
    there = (
        ""
        if start is None
        else (
            f", where {shown(context[start : start + len(answer)])} stands"
            if 0 <= start < len(context)
            else ", which lies outside of it"
        )
    )
    elsewhere = (
        f" (it stands at {found})"
        if found >= 0
        else " (it stands nowhere in it)"
        if answer.strip()
        else " (it is blank)"
    )
    raise Unfit(
        f"path={where}: the answer {shown(answer)} does not stand in its context{at_start}{there}{elsewhere}; set"
        " strict=false to leave such questions out",
        "answer not in its context",
    )

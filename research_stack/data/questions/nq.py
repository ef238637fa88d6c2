"""NaturalQuestions: questions asked of a search engine, on a page of Wikipedia. No torch.

Kwiatkowski et al. 2019. Read are the simplified jsonl files (`document_text`, or `document_tokens` in the development
set) and the layout of the hub (`document.tokens`). NQ-open, which has no context, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from research_stack.data.questions.files import QuestionFiles, require_context, rows_of, shown, text_of
from research_stack.data.questions.question import Question
from research_stack.data.sources.record_reader import Unfit
from research_stack.require import require

TAG = re.compile(r"</?[A-Za-z][^>]*>")
YES_NO = {"YES": "yes", "NO": "no", 1: "yes", 0: "no"}
PAGE = re.compile(r"[?&;]title=([^&]+)")
Span = tuple[int, int]  # tokens [start, end)


@dataclass(frozen=True)
class Annotation:
    """What one annotator marked: long answer, short answers, and yes or no."""

    long: Span | None
    short: tuple[Span, ...]
    yes_no: str | None


class NaturalQuestions(QuestionFiles):
    """The questions of NaturalQuestions that have a short answer, yes or no.

    - path: a .jsonl, .jsonl.gz, .json or .parquet file, a folder or a glob of them, or a name on the hub
      (`google-research-datasets/natural_questions`).
    - context: the `long` answer, a paragraph, list or table, or the whole `document`; tags are left out, words stand a
      blank apart.
    - unanswerable: also ask those without an answer ("" is then right), on the long answer, or the first paragraph that
      could be one.
    - limit: keep only the first so many questions; None for all.
    - strict: raise at an odd record, at an empty context or answer; False leaves such questions out and counts them.
    - name, split, revision: of a data set of the hub.

    With several annotators the long answer is that of the first who gives an answer, and the short answers within it of
    all count. Each stretch of a short answer is a right answer by itself, as in NQ-open. All questions on a page stand
    on one side of the split.
    """

    fields = ("document", "question", "annotations")
    further = ("id", "long_answer_candidates")

    #: See research_stack.config.smoke.
    smoke = {"limit": 60}

    def __init__(
        self,
        path: str | list[str] | None,
        context: Literal["long", "document"] = "long",
        unanswerable: bool = False,
        limit: int | None = None,
        strict: bool = True,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
    ) -> None:
        require(limit is None or limit > 1, f"limit={limit} must be at least 2, or null for all questions")
        super().__init__(path, name, split, revision, limit, strict)
        self.context, self.unanswerable = context, unanswerable

    def question(self, where: str, record: dict[str, Any]) -> Question:
        """The question of a record of either layout."""
        if "answer" in record and not {"document_text", "document_tokens", "document"} & set(record):
            raise ValueError(
                f"path={where} has a question and its answers and no context (NQ-open): there is nothing to compress;"
                " use the simplified files"
            )
        words, tags = _tokens(record, where)
        marked = [_annotation(row, where) for row in rows_of(record.get("annotations"), "annotations", where)]
        ends = [end for a in marked for _, end in (*a.short, *([a.long] if a.long else []))]
        if max(ends, default=0) > len(words):
            raise ValueError(f"path={where} has an answer that ends at token {max(ends)} of a page of {len(words)}")
        chosen = next((a for a in marked if a.long and (a.short or a.yes_no)), None)
        if chosen is None and not self.unanswerable:
            raise Unfit(f"path={where} has no short answer", "no short answer", expected=True)
        span = self._span(chosen, marked, record, len(words), where)
        if span[1] > len(words):
            raise ValueError(f"path={where} has a paragraph that ends at token {span[1]} of a page of {len(words)}")
        kept = [i for i in range(*span) if not tags[i]]
        context = " ".join(words[i] for i in kept)
        require_context(context, where)
        inside = [(s, e) for a in marked for s, e in a.short if span[0] <= s < e <= span[1]] if chosen else []
        golds = [" ".join(words[i] for i in range(s, e) if not tags[i]) for s, e in inside]
        golds = (
            [text for text in golds if text]
            or [a.yes_no for a in marked if a.yes_no and chosen]
            or ([""] if chosen is None else [])
        )
        if not golds:
            raise Unfit(
                f"path={where}: the short answer of {shown(context)} is empty; set strict=false to leave such"
                " questions out",
                "empty answer",
            )
        before = " ".join(words[i] for i in kept if inside and i < inside[0][0])
        start = len(before) + bool(before)
        return Question(
            f"nq:{record.get('example_id', record.get('id', where))}",
            "nq",
            context,
            _asked(record, where),
            tuple(dict.fromkeys(golds)),
            "nq",
            f"nq:{_page(record) or context}",
            start if inside and context.startswith(golds[0], start) else -1,
        )

    def _span(
        self, chosen: Annotation | None, marked: list[Annotation], record: dict[str, Any], length: int, where: str
    ) -> Span:
        """The tokens of the context."""
        if self.context == "document":
            return 0, length
        if chosen is not None and chosen.long is not None:
            return chosen.long
        candidates = rows_of(record.get("long_answer_candidates", []), "long_answer_candidates", where)
        spans = [a.long for a in marked if a.long] + [span for row in candidates if (span := _span_of(row, where))]
        if not spans:
            raise Unfit(f"path={where} has no paragraph that could hold an answer", "no paragraph", expected=True)
        return spans[0]

    def fingerprint(self) -> str:
        """The files' and every option."""
        return f"{super().fingerprint()}-{self.context}-{self.unanswerable}"


def _tokens(record: dict[str, Any], where: str) -> tuple[Sequence[str], Sequence[bool]]:
    """(words, whether each is a tag) of the page. The official files count tokens between single blanks."""
    if "document_text" in record:
        words = text_of(record, "document_text", where).split(" ")
        return words, [TAG.fullmatch(word) is not None for word in words]
    document = record.get("document")
    found = record.get("document_tokens") or (document.get("tokens") if isinstance(document, dict) else None)
    rows = rows_of(found, "document_tokens", where)
    words = [text_of(row, "token", where).replace(" ", "_") for row in rows]
    return words, [bool(row.get("html_token", row.get("is_html"))) for row in rows]


def _asked(record: dict[str, Any], where: str) -> str:
    """The question's text."""
    question = record.get("question")
    return text_of(
        question if isinstance(question, dict) else record,
        "text" if isinstance(question, dict) else "question_text",
        where,
    ).strip()


def _page(record: dict[str, Any]) -> str:
    """A name of the page that its revisions share, "" where none is known."""
    document = record.get("document")
    page = (
        document
        if isinstance(document, dict)
        else {"title": record.get("document_title"), "url": record.get("document_url")}
    )
    found = PAGE.search(str(page.get("url") or ""))
    return found[1] if found else str(page.get("title") or page.get("url") or "")


def _annotation(row: dict[str, Any], where: str) -> Annotation:
    """One annotator's marks. Raises ValueError in one line for another layout."""
    long = row.get("long_answer")
    short = [_span_of(span, where) for span in rows_of(row.get("short_answers", []), "short_answers", where)]
    yes_no = row.get("yes_no_answer", "NONE")
    if not isinstance(yes_no, str | int):
        raise ValueError(f"path={where} field 'yes_no_answer' holds a {type(yes_no).__name__}, not YES, NO or NONE")
    return Annotation(
        _span_of(long if isinstance(long, dict) else {}, where),
        tuple(span for span in short if span),
        YES_NO.get(yes_no),
    )


def _span_of(row: dict[str, Any], where: str) -> Span | None:
    """[start, end) in tokens; None for what is marked as absent. Raises ValueError in one line without the two
    numbers.
    """
    start, end = row.get("start_token"), row.get("end_token")
    if not (isinstance(start, int) and isinstance(end, int)):
        raise ValueError(f"path={where} has an answer without start_token and end_token")
    return (start, end) if 0 <= start < end else None

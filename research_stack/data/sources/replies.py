"""Replies to prompts and how they were received: prompt, reply and engagement counts, from files or SYNTHETIC. No
torch.

Without a path the replies are made up and their engagement follows a known formula with noise (`synthetic_replies`):
they show that a model can find a preference that is there, and say nothing of what people like.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from research_stack.data.sources import synthetic_replies
from research_stack.data.sources.base import PAIRS, Document
from research_stack.data.sources.prompts import ended
from research_stack.data.sources.record_reader import NoField, pick, records_of
from research_stack.data.sources.records import RecordFiles
from research_stack.data.sources.text import lenient
from research_stack.require import require

log = logging.getLogger(__name__)
EXTRACTION = 1  # raise it when the documents change: it is part of the fingerprint
MAX_COUNT = 10**15  # of likes and the like: whole numbers that a float holds exactly, a thousand times over
SEPARATOR = "\n"  # what a prompt ends with, as in the other sources of pairs


class Replies(RecordFiles):
    """Pairs of a prompt and a reply with its engagement (`Document.value`); all replies to a prompt stand on one side
    of the split.

    - path: jsonl or parquet: a file, a folder, a glob or a list of them. None: SYNTHETIC replies with a planted
      preference.
    - prompt_field, reply_field: the texts; a record in which either is blank is passed over and counted.
    - engagement_fields: counts that are summed; None for likes and shares.
    - limit: keep only the first so many pairs; None for all.
    - count, noise, seed: of the synthetic ones (see `synthetic_replies.replies`); without meaning for files.
    - strict: an odd record is an error; False leaves it out and counts it.
    """

    #: See research_stack.config.smoke.
    smoke = {"count": 200, "limit": 200}

    def __init__(
        self,
        path: str | list[str] | None = None,
        prompt_field: str = "prompt",
        reply_field: str = "reply",
        engagement_fields: list[str] | None = None,
        limit: int | None = None,
        count: int = 4000,
        noise: float = 0.5,
        seed: int = 0,
        strict: bool = True,
    ) -> None:
        require(
            engagement_fields is None or len(engagement_fields) > 0,
            f"engagement_fields={engagement_fields} must name at least one field",
        )
        require(limit is None or limit > 1, f"limit={limit} must be at least 2, or null for all pairs")
        require(2 <= count <= 20_000, f"count={count} must lie in [2, 20000]")
        require(0 <= noise <= 10, f"noise={noise} must lie in [0, 10]")
        super().__init__(path, limit, strict)
        self.prompt_field, self.reply_field = prompt_field, reply_field
        self.engagement_fields = engagement_fields or ["likes", "shares"]
        self.count, self.noise, self.seed = count, noise, seed
        self._told = False

    @property
    def synthetic(self) -> bool:
        """Whether the replies are made up and their engagement is drawn from a known law."""
        return self.path is None

    def check(self) -> None:
        """Raise ValueError or OSError in one line (first 4 MB); says in the log, once, that synthetic replies are
        synthetic.
        """
        if not self.synthetic:
            super().check()
        elif not self._told:
            self._told = True
            log.warning(
                "these replies are SYNTHETIC: made up, with engagement drawn from a planted preference; set"
                " data.path=FILE for real ones"
            )

    @cached_property
    def truth(self) -> list[synthetic_replies.Reply]:
        """The synthetic replies with the features they were made with, in the order of `documents()`.

        Raises ValueError where the replies come from files: of those nobody knows the preference.
        """
        require(self.synthetic, f"path={self.path} must be null: only synthetic replies have planted features")
        return synthetic_replies.replies(self.count, self.noise, self.seed)[: self.limit]

    def documents(self) -> Iterator[Document]:
        """The pairs, in order, with their engagement."""
        if not self.synthetic:
            yield from super().documents()
            return
        for number, reply in enumerate(self.truth, 1):
            yield Document(
                reply.reply,
                ended(reply.prompt, SEPARATOR),
                f"synthetic:{number}",
                reply.prompt,
                float(reply.engagement),
            )

    def read(self, file: Path) -> Iterator[Document]:
        """The pairs of one file. Raises ValueError with file and line for a missing field or what is no count."""
        for where, record in records_of(file, self.odd, [self.prompt_field, self.reply_field, *self.engagement_fields]):
            document = None
            with self.odd:
                document = self._pair(record, where)
            if document is not None and document.group.strip() and document.text.strip():
                yield document
            elif document is not None:
                self.odd.blank += 1

    def _pair(self, record: dict[str, Any], where: str) -> Document:
        prompt, reply = pick(record, self.prompt_field, where), pick(record, self.reply_field, where)
        missing = [field for field in self.engagement_fields if field not in record]
        if missing:
            raise NoField(
                f"path={where} has no field '{missing[0]}' (engagement_fields); the fields there: {', '.join(record)}"
            )
        blank = not (prompt.strip() and reply.strip())
        value = 0.0 if blank else sum(_count(record[field], field, where) for field in self.engagement_fields)
        return Document(reply, ended(prompt, SEPARATOR), where, prompt, value)

    def describe(self) -> dict[str, Any]:
        """Whether the replies are synthetic, and what their engagement is."""
        if not self.synthetic:
            return {"synthetic": False, "engagement": " + ".join(self.engagement_fields)}
        terms = " + ".join(f"{weight} {name}" for name, weight in synthetic_replies.WEIGHTS.items())
        return {
            "synthetic": True,
            "engagement": (
                f"SYNTHETIC: likes + shares of made-up replies, ln mean = {synthetic_replies.BASE} + {terms}, noise"
                f" {self.noise}"
            ),
        }

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes and the fields; of synthetic replies the recipe and its options, and that they
        are synthetic.
        """
        if self.synthetic:
            return (
                f"replies{EXTRACTION}-SYNTHETIC-{synthetic_replies.RECIPE}-{self.count}-{self.noise}-{self.seed}-{self.limit}-"
                f"{PAIRS}"
            )
        fields = [self.prompt_field, self.reply_field, *self.engagement_fields]
        return f"replies{EXTRACTION}-{fields}-{self.limit}{lenient(self.odd)}-{PAIRS}-{self.digest()}"


def _count(value: object, field: str, where: str) -> float:
    """The number in an engagement field."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"path={where} field '{field}' must hold a number, not {value!r:.60}")
    if value < 0:
        raise ValueError(f"path={where} field '{field}' must not be negative: {value:.6g}")
    if value > MAX_COUNT:
        raise ValueError(f"path={where} field '{field}' must be at most {MAX_COUNT:.0e}, which no count exceeds")
    return float(value)

"""Prompts without responses, for methods that make their own: from files, or those of any source of pairs. No torch.

A prompt is a `Document` whose text is "". Equal prompts are one prompt; its side of the split is decided by its group,
or by the prompt itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research_stack.data.sources.base import Described, Document, Source
from research_stack.data.sources.record_reader import Located, OddRecords, Selective, pick, read_lines, records_of
from research_stack.data.sources.records import RecordFiles, group_of
from research_stack.data.sources.text import lenient
from research_stack.require import require

EXTRACTION = 1  # raise it when the prompts that are extracted change: it is part of the fingerprint


class Prompts(RecordFiles):
    """The prompts of local files: a txt file's lines, or a field of jsonl and parquet records. Blank ones are passed
    over.

    - path: a file, a folder, a glob or a list of them.
    - field: of records, the prompt. group_field: a field whose equal values keep prompts on one side of the split; null
      for none.
    - separator: put after each prompt that does not end with it. What answers the prompts must have learned to answer
      them in this form: "\\n" for data=docstrings and data=replies.
    - limit: keep only the first so many; null for all.
    - strict: an odd record (or line that is no text) is an error; False leaves it out and counts it.
    """

    suffixes = (".txt", ".jsonl", ".parquet", ".jsonl.gz")

    def __init__(
        self,
        path: str | list[str],
        field: str = "prompt",
        group_field: str | None = None,
        separator: str = "",
        limit: int | None = None,
        strict: bool = True,
    ) -> None:
        require(limit is None or limit > 1, f"limit={limit} must be at least 2, or null for all prompts")
        super().__init__(path, limit, strict)
        self.field, self.group_field, self.separator = field, group_field, separator

    def read(self, file: Path) -> Iterator[Document]:
        """The prompts of one file."""
        for where, record in self._records(file):
            document = None
            with self.odd:
                prompt = pick(record, self.field, where)
                document = (
                    Document("", ended(prompt, self.separator), where, group_of(record, self.group_field, where))
                    if prompt.strip()
                    else None
                )
                self.odd.blank += (
                    document is None and file.suffix.lower() != ".txt"
                )  # a blank line of a text parts its prompts
            if document is not None:
                yield document

    def _records(self, file: Path) -> Iterator[Located]:
        if file.suffix.lower() != ".txt":
            return records_of(file, self.odd, [name for name in (self.field, self.group_field) if name is not None])
        if self.group_field is not None:
            raise ValueError(
                f"group_field={self.group_field} must be null for {file}: the lines of a text file have no fields"
            )
        return ((where, {self.field: line}) for where, line in read_lines(file, self.odd))

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes and the options."""
        return (
            f"prompts{EXTRACTION}-{self.field}-{self.group_field}-{self.separator!r}-{self.limit}{lenient(self.odd)}-"
            f"{self.digest()}"
        )


class PromptsOf:
    """The prompts of a source of pairs, each once, on the side of the split that its pairs' group has.

    - source: the pairs. Where they have no group, the prompt decides the side, as it does of the pairs.

    Raises ValueError in `documents()` where the source holds plain text.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    def odd(self) -> OddRecords:
        """The source's."""
        return self.source.odd if isinstance(self.source, Selective) else OddRecords()

    def check(self) -> None:
        """As the source's."""
        self.source.check()

    def documents(self) -> Iterator[Document]:
        """The prompts, in the order in which they first stand."""
        seen: set[bytes] = set()
        for document in self.source.documents():
            if document.prompt is None:
                raise ValueError(
                    f"source must hold pairs of a prompt and a response, and '{document.key[:200]}' is plain text"
                )
            identity = hashlib.sha256(document.prompt.encode()).digest()[:16]
            if identity not in seen:
                seen.add(identity)
                yield Document("", document.prompt, document.key, document.group)

    def describe(self) -> dict[str, Any]:
        """As the source's."""
        return self.source.describe() if isinstance(self.source, Described) else {}

    def fingerprint(self) -> str:
        """The source's."""
        return f"prompts_of{EXTRACTION}-{self.source.fingerprint()}"


def ended(prompt: str, separator: str) -> str:
    """The prompt with the separator at its end, once."""
    return prompt if prompt.endswith(separator) else prompt + separator

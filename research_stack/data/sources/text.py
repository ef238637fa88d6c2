"""Documents from files: txt, md, jsonl (gzipped or not) and parquet; single files, folders, globs and lists of them. No
torch.

What is a document:
- .txt, .md: a file is cut into stretches, each a document, so that one large file can be split by document too. A
  stretch ends at the first blank line after `document_chars` characters; where none comes before twice as many, it
  ends at a line's end; a line longer than that is cut after every `document_chars` characters.
- .jsonl, .jsonl.gz, .parquet: a record is a document: its `field`, and as its prompt its `prompt_field` if one is
  given.

CRLF is read as LF; a byte-order mark is dropped; records with an empty text are passed over and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from research_stack.data.sources.base import PAIRS, Document
from research_stack.data.sources.record_reader import (
    CHECK_CHARS,
    Located,
    OddRecords,
    digest_of,
    find_all,
    nearest,
    pick,
    read_lines,
    records_of,
    require_readable,
)
from research_stack.require import require

__all__ = ["Text", "nearest", "stretches"]
SUFFIXES = (".txt", ".md", ".jsonl", ".parquet", ".jsonl.gz")
EXTRACTION = 1  # raise it when the text that is extracted changes: it is part of the fingerprint


def stretches(lines: Iterable[str], chars: int) -> Iterator[str]:
    """Texts of about `chars` characters, at most twice as many, cut by the module's rules; some may be blank."""
    held: list[str] = []
    size = 0
    for line in lines:
        at_blank = size >= chars and not line.strip()
        if size and (at_blank or size + len(line) > 2 * chars):
            yield "\n".join(held).strip("\n")
            held, size = [], 0
        if len(line) > 2 * chars:
            yield from (line[start : start + chars] for start in range(0, len(line), chars))
        else:
            held.append(line)
            size += len(line) + 1
    yield "\n".join(held).strip("\n")


class Text:
    """Documents of local files.

    - path: a file, a folder, a glob (`**` goes into folders) or a list of them.
    - field: of jsonl and parquet records: the text; of pairs, the response.
    - prompt_field: the field of the prompt; null for plain text.
    - document_chars: about how many characters of a txt or md file make one document.
    - strict: an odd record (or line that is no text) is an error; False leaves it out and counts it.
    """

    def __init__(
        self,
        path: str | list[str],
        field: str = "text",
        prompt_field: str | None = None,
        document_chars: int = 2000,
        strict: bool = True,
    ) -> None:
        require(document_chars >= 1, f"document_chars={document_chars} must be at least 1")
        self.path, self.field, self.prompt_field, self.document_chars = path, field, prompt_field, document_chars
        self.odd = OddRecords(strict)

    def files(self) -> list[Path]:
        """The files, in order, each once. Raises ValueError or OSError as `find_files`."""
        return find_all(self.path, SUFFIXES)

    def check(self) -> None:
        """Raise ValueError or OSError in one line: missing, empty, binary, malformed, without the field (first 4
        MB).
        """
        files, read = self.files(), 0
        require_readable(files, self.odd)
        for document in self.documents():
            read += len(document.text)
            if read > CHECK_CHARS:
                return
        if not read:
            raise ValueError(f"path={self.path} holds no text{str(self.odd) or ': every document is empty'}")

    def documents(self) -> Iterator[Document]:
        """The documents, file by file. Raises ValueError at the first that cannot be read."""
        self.odd.restart()
        return chain.from_iterable(map(self._read, self.files()))

    def _read(self, file: Path) -> Iterator[Document]:
        if file.suffix.lower() in (".txt", ".md"):
            lines = (line for _, line in read_lines(file, self.odd))
            return (
                Document(t, key=f"{file}:{i}")
                for i, t in enumerate(stretches(lines, self.document_chars), 1)
                if t.strip()
            )
        fields = [name for name in (self.field, self.prompt_field) if name is not None]
        return self._documents(records_of(file, self.odd, fields))

    def _documents(self, records: Iterable[Located]) -> Iterator[Document]:
        for where, record in records:
            document = None
            with self.odd:
                document = document_of(record, self.field, self.prompt_field, where)
            if document is not None and document.text.strip():
                yield document
            self.odd.blank += document is not None and not document.text.strip()

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes, in order, and the options; where the files lie does not matter."""
        options = (
            f"{self.field}-{self.prompt_field}-{self.document_chars}{lenient(self.odd)}"
            f"{'' if self.prompt_field is None else f'-{PAIRS}'}"
        )
        return f"text{EXTRACTION}-{options}-{digest_of(self.files())}"


def document_of(record: dict[str, Any], field: str, prompt_field: str | None, where: str) -> Document:
    """The text, or the pair, of a record. Raises ValueError in one line where a field is missing or holds no text."""
    return Document(
        pick(record, field, where), None if prompt_field is None else pick(record, prompt_field, where), where
    )


def lenient(odd: OddRecords) -> str:
    """What a source that leaves odd records out adds to its fingerprint; fingerprints without it stay what they
    were.
    """
    return "" if odd.strict else "-lenient"

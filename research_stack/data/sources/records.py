"""What the sources that read records have in common: finding the files, judging them early, one line for each mistake.
No torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from research_stack.data.sources.base import Document
from research_stack.data.sources.record_reader import (
    CHECK_CHARS,
    NoField,
    OddRecords,
    digest_of,
    find_all,
    require_readable,
)


class RecordFiles(ABC):
    """Documents made from the records of local files.

    - path: a file, a folder, a glob or a list of them; of a folder or a glob the files with a known suffix.
    - limit: keep only the first so many documents; None for all.
    - strict: an odd record is an error; False leaves it out and counts it.
    """

    suffixes: tuple[str, ...] = (".jsonl", ".parquet", ".jsonl.gz")

    def __init__(self, path: str | list[str] | None, limit: int | None, strict: bool = True) -> None:
        self.path, self.limit, self.odd = path, limit, OddRecords(strict)

    def files(self) -> list[Path]:
        """The files, in order, each once. Raises ValueError or OSError in one line when there are none."""
        return find_all(self.path, self.suffixes)

    def check(self) -> None:
        """Raise ValueError or OSError in one line: missing, empty, not readable, malformed, nothing in it (first 4
        MB).
        """
        require_readable(self.files(), self.odd)
        read = 0
        for document in self.documents():
            read += len(document.text) + len(document.prompt or "")
            if read > CHECK_CHARS:
                return
        if not read:
            raise ValueError(f"path={self.path} holds no text{str(self.odd) or ': every record is empty'}")

    def documents(self) -> Iterator[Document]:
        """The documents, file by file. Raises ValueError with file and line at the first record that is wrong."""
        self.odd.restart()
        return islice((document for file in self.files() for document in self.read(file)), self.limit)

    @abstractmethod
    def read(self, file: Path) -> Iterator[Document]:
        """The documents of one file."""

    def digest(self) -> str:
        """SHA-256 of the files' bytes, in order; where the files lie does not matter."""
        return digest_of(self.files())


def group_of(record: dict[str, Any], field: str | None, where: str) -> str:
    """The name of the record's group, a text or a whole number; "" when no field is asked for. Raises ValueError in one
    line.
    """
    if field is None:
        return ""
    if field not in record:
        raise NoField(f"path={where} has no field '{field}'; the fields there: {', '.join(record)}")
    value = record[field]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"path={where} field '{field}' must hold the name or number of a group, not {value!r:.60}")
    return f"{field}={value}"

"""What the sources that read records have in common: finding the files, judging them early, one line for each mistake. No torch."""
from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from research_stack.data.sources import Document
from research_stack.data.sources_text import CHECK_CHARS, digest_of, expand, read_jsonl, read_parquet
from research_stack.require import require


class RecordFiles(ABC):
    """Documents made from the records of local files.

    - path: a file, a folder, a glob or a list of them; of a folder or a glob the files with a known suffix.
    - limit: keep only the first so many documents; None for all.
    """

    suffixes: tuple[str, ...] = (".jsonl", ".parquet")

    def __init__(self, path: str | list[str] | None, limit: int | None) -> None:
        self.path, self.limit = path, limit

    def files(self) -> list[Path]:
        """The files, in order, each once. Raises ValueError or OSError in one line when there are none."""
        paths = [self.path] if isinstance(self.path, str) else self.path or []
        require(len(paths) > 0, f"path={self.path} must name at least one file")
        found = {file: path for path in paths for file in expand(path)}
        fit = [file for file in found if file.suffix.lower() in self.suffixes]
        for path in paths:
            if not any(found[file] == path for file in fit):
                raise ValueError(f"path={path} holds no file that ends in {' '.join(self.suffixes)}")
        return fit

    def check(self) -> None:
        """Raise ValueError or OSError in one line: missing, empty, not readable, malformed, nothing in it (first 4 MB)."""
        files = self.files()
        for file in files:
            if not file.stat().st_size:
                raise ValueError(f"path={file} is an empty file")
            if not os.access(file, os.R_OK):
                raise PermissionError(f"path={file} cannot be read: permission denied")
        read = 0
        for document in self.documents():
            read += len(document.text) + len(document.prompt or "")
            if read > CHECK_CHARS:
                return
        if not read:
            raise ValueError(f"path={self.path} holds no text: every record is empty")

    def documents(self) -> Iterator[Document]:
        """The documents, file by file. Raises ValueError with file and line at the first record that is wrong."""
        return islice((document for file in self.files() for document in self.read(file)), self.limit)

    @abstractmethod
    def read(self, file: Path) -> Iterator[Document]:
        """The documents of one file."""

    def digest(self) -> str:
        """SHA-256 of the files' bytes, in order; where the files lie does not matter."""
        return digest_of(self.files())


def records(file: Path, fields: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of a jsonl or parquet file. Raises ValueError in one line where it is malformed."""
    return read_jsonl(file) if file.suffix.lower() == ".jsonl" else read_parquet(file, fields)


def group_of(record: dict[str, Any], field: str | None, where: str) -> str:
    """The name of the record's group, a text or a whole number; "" when no field is asked for. Raises ValueError in one line."""
    if field is None:
        return ""
    if field not in record:
        raise ValueError(f"path={where} has no field '{field}'; the fields there: {', '.join(record)}")
    value = record[field]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"path={where} field '{field}' must hold the name or number of a group, not {value!r}")
    return f"{field}={value}"

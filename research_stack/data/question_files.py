"""What the sources of questions have in common: local json, jsonl and parquet files or a data set of the hub, and what is wrong with a question. No torch."""
from __future__ import annotations

import glob
import gzip
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from research_stack.data.question import Question
from research_stack.data.sources import encodable
from research_stack.data.sources_hub import Hub
from research_stack.data.sources_text import (
    CHECK_CHARS,
    decode,
    digest_of,
    is_pattern,
    nearest,
    read_jsonl,
    read_parquet,
)
from research_stack.paths import expanded

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".parquet")
EXTRACTION = 1  # raise it when the questions that are read change: it is part of the fingerprint
Located = tuple[str, dict[str, Any]]  # where a record stands, and the record


class Unfit(ValueError):
    """A question that cannot be asked.

    - reason: under what it is counted where it is left out.
    - expected: whether the data set is known to have such questions, so that they are left out without being asked to.
    """

    def __init__(self, message: str, reason: str, expected: bool = False) -> None:
        super().__init__(message)
        self.reason, self.expected = reason, expected


class HubRecords(Hub):
    """The records of a data set that `datasets` can load, whatever their fields."""

    def records(self) -> Iterator[Located]:
        """(path:row, record), in order. Raises ValueError or OSError in one line when they cannot be had."""
        return ((f"{self.path}:row {row}", record) for row, record in enumerate(self._data))


class QuestionFiles(ABC):
    """Questions of local files, or of a data set of the Hugging Face hub.

    - path: a file that ends in .json, .jsonl, .jsonl.gz or .parquet, a folder or a glob of them, a list of such paths, a folder
      that `save_to_disk` wrote, or `owner/name` on the hub. None: nothing is there to read (a mixture leaves it out).
    - name, split, revision: of a data set of the hub: its configuration, which of its splits is read, and its commit or tag.
    - limit: keep only the first so many questions; None for all.
    - strict: raise at a question whose context is empty or does not hold its answer; False leaves it out and counts it.

    `dropped` counts what the last `questions()` left out, by reason.
    """

    fields: tuple[str, ...] = ()  # columns of a parquet file without which there is no question
    further: tuple[str, ...] = ()  # columns that are read where they are there

    def __init__(self, path: str | list[str] | None, name: str | None, split: str, revision: str | None, limit: int | None, strict: bool) -> None:
        self.path, self.name, self.split, self.revision, self.limit, self.strict = path, name, split, revision, limit, strict
        self.dropped: Counter[str] = Counter()

    @abstractmethod
    def question(self, where: str, record: dict[str, Any]) -> Question:
        """The question of a record. Raises Unfit for one that cannot be asked, ValueError for a record of another layout."""

    def unpacked(self, file: Path, content: Any) -> Iterator[Located]:
        """(where, record) of a json file's content: a list of records, or such a list under `data`."""
        content = content["data"] if isinstance(content, dict) and isinstance(content.get("data"), list) else content
        if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
            raise ValueError(f"path={file} must hold a list of records, or an object with such a list under 'data'")
        return ((f"{file}:record {number}", record) for number, record in enumerate(content, 1))

    def records(self) -> Iterator[Located]:
        """(where, record) of everything there is to read. Raises ValueError or OSError in one line."""
        if (hub := self._hub()) is not None:
            yield from hub.records()
        for file in self.files() if hub is None else ():
            yield from self._records(file)

    def _records(self, file: Path) -> Iterator[Located]:
        if file.name.endswith(".parquet"):
            return read_parquet(file, _columns(file, self.fields, self.further))
        if file.name.endswith(".jsonl.gz"):
            return _read_gzip(file)
        return read_jsonl(file) if file.name.endswith(".jsonl") or (content := _read_json(file)) is None else self.unpacked(file, content)

    def questions(self) -> Iterator[Question]:
        """The questions, in order. Raises ValueError in one line: a record of another layout, an id that stands twice, a question that cannot be asked."""
        self.dropped.clear()
        return islice(self._questions(), self.limit)

    def _questions(self) -> Iterator[Question]:
        seen: set[str] = set()
        for where, record in self.records():
            try:
                question = self.question(where, record)
            except Unfit as unfit:
                if self.strict and not unfit.expected:
                    raise
                self.dropped[unfit.reason] += 1
                continue
            if question.key in seen:
                raise ValueError(f"path={where}: the id of question '{question.key}' stands twice")
            seen.add(question.key)
            yield question

    def files(self) -> list[Path]:
        """The files, in order, each once. Raises ValueError or OSError in one line when there are none."""
        paths = [self.path] if isinstance(self.path, str) else self.path or []
        if not paths:
            raise ValueError(f"path={self.path} must name at least one file, or a data set of the hub")
        return list(dict.fromkeys(file for path in paths for file in _expand(path)))

    def _hub(self) -> HubRecords | None:
        """What reads a data set of the hub, or one that `save_to_disk` wrote; None where the path names files."""
        if not isinstance(self.path, str):
            return None
        place = expanded(self.path)
        saved = (place / "dataset_dict.json").exists() or (place / "state.json").exists()
        files = place.exists() or is_pattern(self.path) or place.is_absolute() or self.path.startswith((".", "~")) or self.path.endswith(SUFFIXES)
        return HubRecords(self.path, self.name, self.split, revision=self.revision) if saved or not files else None

    def check(self) -> None:
        """Raise ValueError or OSError in one line: missing, empty, not readable, another layout (first 4 MB; a json file only up to that size)."""
        if (hub := self._hub()) is not None:
            return hub.check()
        for file in self.files():
            if not file.stat().st_size:
                raise ValueError(f"path={file} is an empty file")
            if not os.access(file, os.R_OK):
                raise PermissionError(f"path={file} cannot be read: permission denied")
        if sum(file.stat().st_size for file in self.files() if file.suffix == ".json") > CHECK_CHARS:
            return
        read = 0
        for question in self.questions():
            read += len(question.context)
            if read > CHECK_CHARS:
                return
        if not read:
            raise ValueError(f"path={self.path} holds no question that can be asked{self._left_out()}")

    def _left_out(self) -> str:
        return f" ({', '.join(f'{count} left out: {reason}' for reason, count in self.dropped.items())})" if self.dropped else ""

    def describe(self) -> dict[str, Any]:
        """How many questions were left out, by reason."""
        return {"dropped": sum(self.dropped.values()), **{f"dropped: {reason}": count for reason, count in self.dropped.items()}}

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes, or what `datasets` keeps of the data, and the options."""
        hub = self._hub()
        return f"{type(self).__name__}{EXTRACTION}-{self.limit}-{self.strict}-{digest_of(self.files()) if hub is None else hub.fingerprint()}"


# Fields of records -------------------------------------------------------------------------------------------------


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """The text in a field, as it is (offsets count its characters). Raises ValueError in one line when there is none."""
    if field not in record:
        raise ValueError(f"path={where} has no field '{field}'; the fields there: {', '.join(map(str, record))}")
    if not isinstance(record[field], str):
        raise ValueError(f"path={where} field '{field}' holds a {type(record[field]).__name__}, not a text")
    return encodable(record[field])


def rows_of(value: Any, field: str, where: str) -> list[dict[str, Any]]:
    """A list of records, from one or from a record of equally long lists, as the hub stores it. Raises ValueError in one line."""
    if isinstance(value, Mapping) and all(isinstance(column, Sequence) and not isinstance(column, str) for column in value.values()):
        if len({len(column) for column in value.values()}) <= 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if isinstance(value, list) and all(isinstance(row, Mapping) for row in value):
        return value
    raise ValueError(f"path={where} field '{field}' must hold a list of records, or equally long lists by name")


def shown(text: str, most: int = 60) -> str:
    """A text in quotes for a message, on one line and cut."""
    flat = " ".join(text.split())
    return f"'{flat if len(flat) <= most else flat[: most - 3] + '...'}'"


def require_context(context: str, where: str) -> None:
    """Raise Unfit for a context without a character that is not blank."""
    if not context.strip():
        raise Unfit(f"path={where}: the context is empty; set strict=false to leave such questions out", "empty context")


# Files -------------------------------------------------------------------------------------------------------------


def _expand(path: str) -> list[Path]:
    """The files of a file, a folder (recursively, hidden ones left out) or a glob, sorted. Raises ValueError or OSError in one line."""
    place, known = expanded(path), " ".join(SUFFIXES)
    if is_pattern(str(place)):
        found = [Path(p) for p in glob.glob(str(place), recursive=True)]
    elif place.is_dir():
        found = [p for p in place.rglob("*") if not any(part.startswith(".") for part in p.relative_to(place).parts)]
    elif not place.exists():
        raise FileNotFoundError(f"path={path} does not exist{nearest(place)}")
    else:
        found = [place]
    files = sorted(p for p in found if p.name.lower().endswith(SUFFIXES) and p.is_file())
    if not files:
        raise ValueError(f"path={path} holds no file that ends in {known}")
    return files


def _columns(file: Path, fields: Sequence[str], further: Sequence[str]) -> list[str]:
    """The columns to read: those that are wanted; all where one that must be there is missing, so that the message can name them."""
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(file).names
    except pyarrow.ArrowException:
        return list(fields)  # `read_parquet` says what is wrong
    return [name for name in (*fields, *further) if name in names] if set(fields) <= set(names) else names


def _read_json(file: Path) -> Any:
    """The content of a json file; None for one that holds a record a line. Raises ValueError in one line for anything else."""
    text = decode(file.read_bytes(), file, 0).removeprefix("\ufeff")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # `datasets` writes jsonl under this suffix too
            return None
        raise ValueError(f"path={file} is not JSON: {error}") from None


def _read_gzip(file: Path) -> Iterator[Located]:
    """(file:line, record) of a gzipped jsonl file, without unpacking it to disk. Raises ValueError in one line."""
    try:
        with gzip.open(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                record = json.loads(line) if line.strip() else None
                if record is not None and not isinstance(record, dict):
                    raise ValueError(f"must be a JSON object with named fields, not a {type(record).__name__}")
                if record is not None:
                    yield f"{file}:{number}", record
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"path={file} is no whole gzip file: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"path={file} holds a line that is not JSON: {error}") from None

"""What the sources of questions have in common: local json, jsonl and parquet files or a data set of the hub, and what
is wrong with a question. No torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from research_stack.data.questions.question import Question
from research_stack.data.sources.base import encodable
from research_stack.data.sources.hub import Hub
from research_stack.data.sources.record_reader import (
    CHECK_CHARS,
    Located,
    NoField,
    OddRecords,
    Unfit,
    digest_of,
    find_all,
    is_pattern,
    read_json,
    records_of,
    require_readable,
)
from research_stack.records.paths import expanded

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".parquet")
EXTRACTION = 1  # raise it when the questions that are read change: it is part of the fingerprint


class HubRecords(Hub):
    """The records of a data set that `datasets` can load, whatever their fields."""

    def records(self) -> Iterator[Located]:
        """(path:row, record), in order. Raises ValueError or OSError in one line when they cannot be had."""
        return ((f"{self.path}:row {row}", record) for row, record in enumerate(self._data))


class QuestionFiles(ABC):
    """Questions of local files, or of a data set of the Hugging Face hub.

    - path: a file that ends in .json, .jsonl, .jsonl.gz or .parquet, a folder or a glob of them, a list of such paths,
      a folder that `save_to_disk` wrote, or `owner/name` on the hub. None: nothing is there to read (a mixture leaves
      it out).
    - name, split, revision: of a data set of the hub: its configuration, which of its splits is read, and its commit or
      tag.
    - limit: keep only the first so many questions; None for all.
    - strict: raise at an odd record, and at a question whose context is empty or does not hold its answer; False leaves
      them out.

    `odd` counts what the last `questions()` left out, by reason.
    """

    fields: tuple[str, ...] = ()  # columns of a parquet file without which there is no question
    further: tuple[str, ...] = ()  # columns that are read where they are there

    def __init__(
        self,
        path: str | list[str] | None,
        name: str | None,
        split: str,
        revision: str | None,
        limit: int | None,
        strict: bool,
    ) -> None:
        self.path, self.name, self.split, self.revision, self.limit = path, name, split, revision, limit
        self.odd = OddRecords(strict)

    @abstractmethod
    def question(self, where: str, record: dict[str, Any]) -> Question:
        """The question of a record. Raises Unfit for one that cannot be asked, ValueError for a record of another
        layout.
        """

    def unpacked(self, file: Path, content: Any) -> Iterator[Located]:
        """(where, record) of a json file's content: a list of records, or such a list under `data`."""
        content = content["data"] if isinstance(content, dict) and isinstance(content.get("data"), list) else content
        if not isinstance(content, list):
            raise ValueError(f"path={file} must hold a list of records, or an object with such a list under 'data'")
        for number, record in enumerate(content, 1):
            with self.odd:
                if not isinstance(record, dict):
                    raise ValueError(
                        f"path={file}:record {number} must be a JSON object with named fields, not a"
                        f" {type(record).__name__}"
                    )
            if isinstance(record, dict):
                self.odd.read += 1
                yield f"{file}:record {number}", record

    def records(self) -> Iterator[Located]:
        """(where, record) of everything there is to read. Raises ValueError or OSError in one line."""
        if (hub := self._hub()) is not None:
            for located in hub.records():
                self.odd.read += 1
                yield located
        for file in self.files() if hub is None else ():
            yield from self._records(file)

    def _records(self, file: Path) -> Iterator[Located]:
        if file.name.lower().endswith(".parquet"):
            return records_of(file, self.odd, _columns(file, self.fields, self.further))
        if file.name.lower().endswith(".json") and (content := read_json(file)) is not None:
            return self.unpacked(file, content)
        return records_of(file, self.odd)

    def questions(self) -> Iterator[Question]:
        """The questions, in order. Raises ValueError in one line: a record of another layout, an id that stands twice,
        a question that cannot be asked.
        """
        self.odd.restart()
        return islice(self._questions(), self.limit)

    def _questions(self) -> Iterator[Question]:
        seen: set[str] = set()
        for where, record in self.records():
            question = None
            with self.odd:
                found = self.question(where, record)
                if found.key in seen:
                    raise Unfit(
                        f"path={where}: the id of question '{found.key:.200}' stands twice", "an id that stands twice"
                    )
                question = found
            if question is not None:
                seen.add(question.key)
                yield question

    def files(self) -> list[Path]:
        """The files, in order, each once. Raises ValueError or OSError in one line when there are none."""
        if not self.path:
            raise ValueError(f"path={self.path} must name at least one file, or a data set of the hub")
        return find_all(self.path, SUFFIXES)

    def _hub(self) -> HubRecords | None:
        """What reads a data set of the hub, or one that `save_to_disk` wrote; None where the path names files."""
        if not isinstance(self.path, str):
            return None
        path = expanded(self.path)
        saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
        files = (
            path.exists()
            or is_pattern(self.path)
            or path.is_absolute()
            or self.path.startswith((".", "~"))
            or self.path.endswith(SUFFIXES)
        )
        return HubRecords(self.path, self.name, self.split, revision=self.revision) if saved or not files else None

    def check(self) -> None:
        """Raise ValueError or OSError in one line: missing, empty, not readable, another layout (first 4 MB; a json
        file only up to that size).
        """
        if (hub := self._hub()) is not None:
            return hub.check()
        require_readable(self.files(), self.odd)
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
        return str(
            self.odd
        ) or f" ({', '.join(f'{count} left out: {reason}' for reason, count in self.odd.reasons.items())})" * bool(
            self.odd.reasons
        )

    def describe(self) -> dict[str, Any]:
        """How many questions were left out, by reason."""
        return {
            "dropped": self.odd.reasons.total(),
            **{f"dropped: {reason}": count for reason, count in self.odd.reasons.items()},
        }

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes, or what `datasets` keeps of the data, and the options."""
        hub = self._hub()
        return (
            f"{type(self).__name__}{EXTRACTION}-{self.limit}-{self.odd.strict}-"
            f"{digest_of(self.files()) if hub is None else hub.fingerprint()}"
        )


# Fields of records -------------------------------------------------------------------------------------------------


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """The text in a field, as it is (offsets count its characters). Raises ValueError in one line when there is
    none.
    """
    if field not in record:
        raise NoField(f"path={where} has no field '{field}'; the fields there: {', '.join(map(str, record))}")
    if not isinstance(record[field], str):
        raise ValueError(f"path={where} field '{field}' holds a {type(record[field]).__name__}, not a text")
    return encodable(record[field])


def rows_of(value: Any, field: str, where: str) -> list[dict[str, Any]]:
    """A list of records, from one or from a record of equally long lists, as the hub stores it. Raises ValueError in
    one line.
    """
    if isinstance(value, Mapping) and all(
        isinstance(column, Sequence) and not isinstance(column, str) for column in value.values()
    ):
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
        raise Unfit(
            f"path={where}: the context is empty; set strict=false to leave such questions out", "empty context"
        )


# Files -------------------------------------------------------------------------------------------------------------


def _columns(file: Path, fields: Sequence[str], further: Sequence[str]) -> list[str]:
    """The columns to read: those that are wanted; all where one that must be there is missing, so that the message can
    name them.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(file).names
    except pyarrow.ArrowException:
        return list(fields)  # `read_parquet` says what is wrong
    return [name for name in (*fields, *further) if name in names] if set(fields) <= set(names) else names

"""Files found, lines decoded and records parsed, in one module for all sources. No torch.

An odd record is one that a source cannot use: no JSON, no UTF-8, a missing field, a value of another type, nested
beyond reason.
With `strict` it is an error in one line that names file and line; without, it is left out, and the data say how many
were.
"""

from __future__ import annotations

import difflib
import glob
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, cast, runtime_checkable

from research_stack.data.sources.base import encodable
from research_stack.records.paths import expanded

CHECK_CHARS = 4_000_000  # how much of a corpus a source's check() reads
PARQUET_ROWS = 1024
MAX_NESTING = (
    100  # levels of lists and objects in a record; Python's own limit lies near 1,000 and ends in a RecursionError
)
GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)
OTHER_LAYOUT = "another layout"
Located = tuple[str, dict[str, Any]]  # where a record stands, and the record


# Odd records -------------------------------------------------------------------------------------------------------


class Unfit(ValueError):
    """A record that is well formed and cannot be used.

    - reason: under what it is counted where it is left out.
    - expected: whether the data are known to have such records, so that they are left out without being asked to.
    """

    def __init__(self, message: str, reason: str, expected: bool = False) -> None:
        super().__init__(message)
        self.reason, self.expected = reason, expected


class NoField(ValueError):
    """A record without a field that was asked for; where it is the first, the option that names the field is
    wrong, and not the record.
    """


class OddRecords:
    """What became of the records of one pass over a source: `with odd:` around whatever makes something of a record.

    - strict: a ValueError inside passes on; False leaves the record out and counts it.

    `read` counts records, `reasons` those left out, `expected` those of them that the data are known to have, `blank`
    those whose
    text is empty; `first` is the message of the first that was left out.
    """

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self.restart()

    def restart(self) -> None:
        """Begin to count anew."""
        self.read = self.expected = self.blank = 0
        self.reasons: Counter[str] = Counter()
        self.first: str | None = None

    @property
    def left_out(self) -> int:
        """How many records were left out that the data were not known to have."""
        return self.reasons.total() - self.expected

    def __enter__(self) -> OddRecords:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, ValueError):
            return False
        expected = isinstance(error, Unfit) and error.expected
        if self.strict and not expected:
            if "strict=false" in str(error) or (isinstance(error, NoField) and self.read < 2):
                return False
            raise ValueError(f"{error}; set strict=false to leave such records out") from error
        self.reasons[error.reason if isinstance(error, Unfit) else OTHER_LAYOUT] += 1
        self.expected += expected
        if not expected:
            self.first = self.first or str(error)
        return True

    def summary(self) -> dict[str, Any]:
        """The counts, as they are kept beside a prepared corpus."""
        return {"read": self.read, "left_out": self.left_out, "blank": self.blank, "first": self.first}

    def __str__(self) -> str:
        """` (3 left out, the first: ...)`, or nothing."""
        return f" ({self.left_out} left out, the first: {self.first})" if self.left_out else ""


@runtime_checkable
class Selective(Protocol):
    """A source that leaves odd records out where it is asked to."""

    @property
    def odd(self) -> OddRecords:
        """What became of the records of its last pass."""
        ...


# Finding files -----------------------------------------------------------------------------------------------------


def nearest(path: Path) -> str:
    """`; did you mean X?` with an existing neighbour of a path that does not exist, or where the path breaks off."""
    parent = path.parent
    if not parent.is_dir():
        return f"; the folder {parent} does not exist either" + nearest(parent)
    names = [p.name for p in parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=1) or [n for n in names if Path(n).stem == path.stem]
    return f"; did you mean {parent / close[0]}?" if close else ""


def is_pattern(path: str) -> bool:
    """Whether the path holds a wildcard and no file of that very name exists."""
    return glob.has_magic(path) and not Path(path).exists()


def find_files(path: str, suffixes: Sequence[str]) -> list[Path]:
    """The files, sorted, of a file, a folder (with those below; links followed, hidden ones left out) or a glob.

    Those count that end in one of the suffixes.

    Raises FileNotFoundError when nothing is there, or where a link leads nowhere; ValueError when nothing there has
    such a suffix.
    """
    root, known = expanded(path), " ".join(suffixes)
    if is_pattern(str(root)):
        found = set(_matched(str(root)))
        files = _with_suffix(found, suffixes)
        if not files:
            raise FileNotFoundError(
                f"path={path} matches no file that ends in {known} (it matches {len(found)} in all)"
            )
        return files
    if root.is_dir():
        files = _with_suffix(
            (Path(folder, name) for folder, names in _folders(root) for name in names if not name.startswith(".")),
            suffixes,
        )
        if not files:
            raise ValueError(f"path={path} is a folder without a file that ends in {known}")
        return files
    if not root.exists():
        raise FileNotFoundError(f"path={path} does not exist{nearest(root)}")
    if not root.name.lower().endswith(tuple(suffixes)):
        raise ValueError(f"path={path} has the unknown suffix '{root.suffix}'; known: {known}")
    return [root]


def find_all(path: str | list[str] | None, suffixes: Sequence[str]) -> list[Path]:
    """The files of a path or a list of paths, in order, each once.

    Raises ValueError or OSError in one line as `find_files`.
    """
    paths = [path] if isinstance(path, str) else path or []
    if not paths:
        raise ValueError(f"path={path} must name at least one file")
    return list(dict.fromkeys(file for each in paths for file in find_files(each, suffixes)))


def require_readable(files: Iterable[Path], odd: OddRecords) -> None:
    """Raise PermissionError for a file that may not be read, and ValueError for an empty one, unless odd records
    are left out.
    """
    for file in files:
        if odd.strict and not file.stat().st_size:
            raise ValueError(f"path={file} is an empty file")
        if not os.access(file, os.R_OK):
            raise PermissionError(f"path={file} cannot be read: permission denied")


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of the files' bytes, in order; where the files lie does not matter."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.suffix.lower()}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _folders(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of what it holds beside folders) of the folder and those below, hidden ones left out.

    Links are followed. A folder that several paths lead to comes once, which ends loops.
    """

    def unreadable(error: OSError) -> None:
        raise PermissionError(f"path={error.filename} cannot be read: {error.strerror}")

    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else sorted(name for name in below if not name.startswith("."))
        if real not in seen:
            yield folder, names
        seen.add(real)


def _matched(pattern: str) -> Iterator[Path]:
    """What a glob matches; `**` goes into linked folders too, into each folder once, which `glob` does not promise."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))
        return
    at = parts.index("**")
    rest = parts[at + 1 :] or ("*",)
    for root in glob.glob(os.path.join(*parts[:at])) if at else ["."]:
        for folder, _ in _folders(Path(root)) if os.path.isdir(root) else ():
            yield from _matched(os.path.join(glob.escape(folder), *rest))


def _with_suffix(found: Iterable[Path], suffixes: Sequence[str]) -> list[Path]:
    """The files among them that end so, sorted.

    Raises FileNotFoundError for a link of such a name that leads nowhere.
    """
    files = sorted(path for path in found if path.name.lower().endswith(tuple(suffixes)) and not path.is_dir())
    for path in files:
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(f"path={path} is a link to {os.readlink(path)}, which does not exist")
    return [path for path in files if path.is_file()]


# Reading files -----------------------------------------------------------------------------------------------------


def records_of(file: Path, odd: OddRecords, fields: Sequence[str] = ()) -> Iterator[Located]:
    """(where, record) of a .jsonl, .jsonl.gz or .parquet file; of parquet only the columns in `fields`, or all
    where there are none.
    """
    return read_parquet(file, fields, odd) if file.name.lower().endswith(".parquet") else read_jsonl(file, odd)


def read_lines(file: Path, odd: OddRecords) -> Iterator[tuple[str, str]]:
    """(file:line, line) of a UTF-8 file, gzipped or not, without ends of lines; a line that is no text is an odd
    record.
    """
    for where, raw, offset in _raw_lines(file):
        line, odd.read = None, odd.read + 1
        with odd:
            line = decode(raw, where, offset).removeprefix("\ufeff" if offset == 0 else "").rstrip("\r\n")
        if line is not None:
            yield where, line


def read_jsonl(file: Path, odd: OddRecords) -> Iterator[Located]:
    """(file:line, record) of every line that is not blank; one that holds no JSON object is an odd record."""
    for where, raw, offset in _raw_lines(file):
        if not raw.strip():
            continue
        odd.read += 1
        record = None
        with odd:
            record = parsed(decode(raw, where, offset).removeprefix("\ufeff" if offset == 0 else ""), where)
            if not isinstance(record, dict):
                raise ValueError(f"path={where} must be a JSON object with named fields, not a {type(record).__name__}")
        if isinstance(record, dict):
            yield where, record


def read_parquet(file: Path, fields: Sequence[str], odd: OddRecords) -> Iterator[Located]:
    """(file:row, record) of every row, only the wanted columns (all where none are named).

    Raises ValueError when it is no parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        wanted = [f for f in fields if f in names] if fields else names
        if len(wanted) < len(fields):  # an empty record that carries the names, for the message about the missing field
            odd.read += 1
            yield f"{file}", dict.fromkeys(names)
        row = 0
        for batch in table.iter_batches(PARQUET_ROWS, columns=wanted):
            for number in range(batch.num_rows):
                row, record = row + 1, None
                odd.read += 1
                with odd:
                    record = _row(batch, number, f"{file}:row {row}")
                if record is not None:
                    yield f"{file}:row {row}", record
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"path={file} is not a parquet file: {str(error).splitlines()[0]}") from None


def read_json(file: Path) -> Any:
    """The content of a json file; None for one that holds a record a line.

    Raises ValueError in one line for anything else.
    """
    try:
        return parsed(decode(file.read_bytes(), str(file), 0).removeprefix("\ufeff"), str(file))
    except ValueError as error:
        if (
            isinstance(error.__cause__, json.JSONDecodeError) and error.__cause__.msg == "Extra data"
        ):  # `datasets` writes jsonl under this suffix too
            return None
        raise


def decode(raw: bytes, where: str, offset: int) -> str:
    """The text of bytes that begin at `offset` in the file. Raises ValueError for a NUL byte or invalid UTF-8."""
    nul = raw.find(0)
    if nul >= 0:
        raise ValueError(f"path={where} is not text: NUL byte at offset {offset + nul}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"path={where} is not UTF-8 text: invalid byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
        ) from None


def parsed(text: str, where: str) -> Any:
    """The JSON value of a text, lone surrogates as question marks.

    Raises ValueError in one line for what is none, and for one nested too deep.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"path={where} is nested more than {MAX_NESTING} levels deep") from None
    except ValueError as error:
        raise ValueError(f"path={where} is not JSON: {error}") from error
    if text.count("[") + text.count("{") > MAX_NESTING and _is_deep(value):
        raise ValueError(f"path={where} is nested more than {MAX_NESTING} levels deep")
    return _encodable(value) if "\\u" in text else value


def _raw_lines(file: Path) -> Iterator[tuple[str, bytes, int]]:
    """(file:line, bytes, offset of the first) of each line.

    Raises ValueError in one line for what is no whole gzip file.
    """
    offset = 0
    try:
        with _opened(file) as stream:
            for number, raw in enumerate(stream, 1):
                yield f"{file}:{number}", raw, offset
                offset += len(raw)
    except GZIP_ERRORS as error:
        raise ValueError(f"path={file} is no whole gzip file: {error}") from None


def _opened(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file, "rb")) if file.suffix.lower() == ".gz" else open(file, "rb")


def _row(batch: Any, number: int, where: str) -> dict[str, Any]:
    """A row of a parquet file. Raises ValueError in one line where a text is not UTF-8."""
    try:
        return {name: batch.column(i)[number].as_py() for i, name in enumerate(batch.schema.names)}
    except UnicodeDecodeError as error:
        raise ValueError(f"path={where} is not UTF-8 text: {error.reason}") from None


def _is_deep(value: Any) -> bool:
    """Whether lists and objects stand in one another more than MAX_NESTING deep."""
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _encodable(value: Any) -> Any:
    """The value with lone surrogates, which UTF-8 cannot hold, as question marks."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [_encodable(inner) for inner in value]
    return {encodable(key): _encodable(inner) for key, inner in value.items()} if isinstance(value, dict) else value


# Fields of records -------------------------------------------------------------------------------------------------


def pick(record: dict[str, Any], field: str, where: str) -> str:
    """The text in a field of a record, LF only. Raises ValueError naming the fields there are, or the field's type."""
    if field not in record:
        names = list(map(str, record))
        close = difflib.get_close_matches(field, names, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        if {"prompt", "response"} <= set(names):
            hint = "; for pairs set field=response prompt_field=prompt"
        raise NoField(f"path={where} has no field '{field}'; the fields there: {', '.join(names)}{hint}")
    value = record[field]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"path={where} field '{field}' holds a {type(value).__name__}, not a text")
    return encodable((value or "").replace("\r\n", "\n"))

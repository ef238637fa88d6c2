"""Documents from files: txt, md, jsonl and parquet; single files, folders, globs and lists of them. No torch.

What is a document:
- .txt, .md: a file is cut into stretches, each a document, so that one large file can be split by document too. A
  stretch ends at the first blank line after `document_chars` characters; where none comes before twice as many, it
  ends at a line's end; a line longer than that is cut after every `document_chars` characters.
- .jsonl, .parquet: a record is a document: its `field`, and as its prompt its `prompt_field` if one is given.

CRLF is read as LF; a byte-order mark is dropped; records with an empty text are passed over.
"""
from __future__ import annotations

import difflib
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from research_stack.data.sources import Document, encodable
from research_stack.paths import expanded
from research_stack.require import require

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
EXTRACTION = 1  # raise it when the text that is extracted changes: it is part of the fingerprint
CHECK_CHARS = 4_000_000  # how much of a corpus check() reads
PARQUET_ROWS = 1024


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


def expand(path: str) -> list[Path]:
    """The readable files of a file, a folder (recursively, hidden ones left out) or a glob, sorted.

    Raises FileNotFoundError when nothing is there, ValueError when nothing there has a known suffix.
    """
    place = expanded(path)
    known = " ".join(SUFFIXES)
    if is_pattern(str(place)):
        found = sorted(Path(p) for p in glob.glob(str(place), recursive=True))
        files = [p for p in found if p.suffix.lower() in SUFFIXES and p.is_file()]
        if not files:
            raise FileNotFoundError(f"path={path} matches no file that ends in {known} (it matches {len(found)} in all)")
        return files
    if place.is_dir():
        files = [p for p in sorted(place.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
        files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(place).parts)]
        if not files:
            raise ValueError(f"path={path} is a folder without a file that ends in {known}")
        return files
    if not place.exists():
        raise FileNotFoundError(f"path={path} does not exist{nearest(place)}")
    if place.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path={path} has the unknown suffix '{place.suffix}'; known: {known}")
    return [place]


def read_lines(file: Path) -> Iterator[str]:
    """Lines of a UTF-8 file without their ends. Raises ValueError with the offset of the first byte that is no text."""
    offset = 0
    with open(file, "rb") as stream:
        for raw in stream:
            yield decode(raw, file, offset).removeprefix("\ufeff" if offset == 0 else "").rstrip("\r\n")
            offset += len(raw)


def decode(raw: bytes, file: Path, offset: int) -> str:
    """The text of bytes that begin at `offset` in the file. Raises ValueError for a NUL byte or invalid UTF-8."""
    nul = raw.find(0)
    if nul >= 0:
        raise ValueError(f"path={file} is not text: NUL byte at offset {offset + nul}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"path={file} is not UTF-8 text: invalid byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
        ) from None


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


def read_jsonl(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of every line that is not blank. Raises ValueError at a line that is no JSON object."""
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"path={file}:{number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"path={file}:{number} must be a JSON object with named fields, not a {type(record).__name__}")
        yield f"{file}:{number}", record


def read_parquet(file: Path, fields: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:row, record) of every row, only the wanted columns. Raises ValueError when it is no parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise ValueError(f"path={file} is not a parquet file: {str(error).splitlines()[0]}") from None
    names = table.schema_arrow.names
    wanted = [f for f in fields if f in names]
    if len(wanted) < len(fields):  # an empty record that carries the names, for the message about the missing field
        yield f"{file}", dict.fromkeys(names)
    row = 0
    for batch in table.iter_batches(PARQUET_ROWS, columns=wanted):
        for record in batch.to_pylist():
            row += 1
            yield f"{file}:row {row}", record


def pick(record: dict[str, Any], field: str, where: str) -> str:
    """The text in a field of a record, LF only. Raises ValueError naming the fields there are, or the field's type."""
    if field not in record:
        names = list(record)
        close = difflib.get_close_matches(field, names, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        if {"prompt", "response"} <= set(names):
            hint = "; for pairs set field=response prompt_field=prompt"
        raise ValueError(f"path={where} has no field '{field}'; the fields there: {', '.join(names)}{hint}")
    value = record[field]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"path={where} field '{field}' holds a {type(value).__name__}, not a text")
    return encodable((value or "").replace("\r\n", "\n"))


class Text:
    """Documents of local files.

    - path: a file, a folder, a glob (`**` goes into folders) or a list of them.
    - field: of jsonl and parquet records: the text; of pairs, the response.
    - prompt_field: the field of the prompt; null for plain text.
    - document_chars: about how many characters of a txt or md file make one document.
    """

    def __init__(
        self, path: str | list[str], field: str = "text", prompt_field: str | None = None, document_chars: int = 2000
    ) -> None:
        require(document_chars >= 1, f"document_chars={document_chars} must be at least 1")
        self.path, self.field, self.prompt_field, self.document_chars = path, field, prompt_field, document_chars

    def files(self) -> list[Path]:
        """The files, in order, each once. Raises ValueError or OSError as `expand`."""
        paths = [self.path] if isinstance(self.path, str) else self.path
        require(len(paths) > 0, f"path={self.path} must name at least one file")
        return list(dict.fromkeys(file for path in paths for file in expand(path)))

    def check(self) -> None:
        """Raise ValueError or OSError in one line: missing, empty, binary, malformed, without the field (first 4 MB)."""
        read = 0
        for file in self.files():
            if not file.stat().st_size:
                raise ValueError(f"path={file} is an empty file")
            if not os.access(file, os.R_OK):
                raise PermissionError(f"path={file} cannot be read: permission denied")
            for document in self._read(file):
                read += len(document.text)
                if read > CHECK_CHARS:
                    return
        if not read:
            raise ValueError(f"path={self.path} holds no text: every document is empty")

    def documents(self) -> Iterator[Document]:
        """The documents, file by file. Raises ValueError at the first that cannot be read."""
        for file in self.files():
            yield from self._read(file)

    def _read(self, file: Path) -> Iterator[Document]:
        suffix = file.suffix.lower()
        if suffix in (".txt", ".md"):
            texts = stretches(read_lines(file), self.document_chars)
            return (Document(t, key=f"{file}:{i}") for i, t in enumerate(texts, 1) if t.strip())
        fields = [self.field] + [self.prompt_field] * (self.prompt_field is not None)
        return self._records(read_jsonl(file) if suffix == ".jsonl" else read_parquet(file, fields))

    def _records(self, records: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Document]:
        for where, record in records:
            text = pick(record, self.field, where)
            prompt = None if self.prompt_field is None else pick(record, self.prompt_field, where)
            if text.strip():
                yield Document(text, prompt, where)

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes, in order, and the options; where the files lie does not matter."""
        return f"text{EXTRACTION}-{self.field}-{self.prompt_field}-{self.document_chars}-{digest_of(self.files())}"


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of the files' bytes, in order; where the files lie does not matter."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.suffix.lower()}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()

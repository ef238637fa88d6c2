"""A checksum inside a checkpoint, so that one flipped bit is noticed.

It is the SHA-256 of the zip archive that torch writes, and stands in the archive's own comment: the last thing of a zip
file, so the digest is known when it is due, the file stays one that torch and any unzip read, and it is renamed into
place as a whole. A checkpoint of an earlier release has no comment: of it the CRC-32 of each member is looked at.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

LEAD = b"research_stack sha256 "
COMMENT = len(LEAD) + 64
LENGTH = 2  # bytes in front of a zip's comment that say how long it is
RECORD = 22  # bytes of the record that ends a zip, without its comment
MARK = b"PK\x05\x06"  # how that record begins
CHUNK = 1 << 22


class HashingFile:
    """A file that is written front to back, and the digest of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Write all of the data."""
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        """As of the file."""
        self.file.flush()


def seal(file: BinaryIO, digest: str) -> None:
    """End the zip archive that was just written with the comment that holds its digest."""
    file.seek(-LENGTH, os.SEEK_END)
    file.write(COMMENT.to_bytes(LENGTH, "little") + LEAD + digest.encode())


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None where nothing is. Reads all of it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size < RECORD:
            return f"it has {size} bytes"
        end = _read(file, size - RECORD, RECORD)
        if end.startswith(MARK) and end.endswith(bytes(LENGTH)):  # of an earlier release: no comment
            return _crc(path)
        start = size - COMMENT
        if (
            start < RECORD
            or (tail := _read(file, start - LENGTH, LENGTH + COMMENT))[:-64]
            != COMMENT.to_bytes(LENGTH, "little") + LEAD
        ):
            return "its end is damaged or missing"
        return None if _digest(file, start - LENGTH).encode() == tail[-64:] else "its checksum is another one"


def _read(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


def _digest(file: BinaryIO, size: int) -> str:
    """Of the first bytes and a comment of length zero: what torch wrote."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (chunk := file.read(min(CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    digest.update(bytes(LENGTH))
    return digest.hexdigest()


def _crc(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        return str(error)
    return None if broken is None else f"{broken} in it has another CRC-32"

"""Files that are whole or absent, and histories that several processes may grow. No torch.

A file is written beside its name, flushed to the disk and renamed. A history (`*.jsonl`) grows by one locked append
at a time, and its reader skips a line that a power cut tore. JSON here is strict: it has no NaN or infinity, so
non-finite numbers are written as null.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from research_stack.records.redaction import redact_values

log = logging.getLogger(__name__)

NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC  # a run folder that was sent may hold links to anywhere
STALE_SECONDS = 3600  # a temporary file this old belongs to a writer that was killed


def unwritable(path: Path, reason: OSError) -> OSError:
    """One line with the path and the reason, keeping the errno."""
    error = OSError(f"{path} cannot be written: {reason.strerror or reason}")
    error.errno = reason.errno
    return error


def _fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the same folder (same suffix) to write to; it takes the place of `path` on leaving.

    After any error the temporary file is gone and the old file stays. An OSError (full disk, no permission)
    is raised again as one line with the path and the reason. Missing parent folders are made.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # renamed, never made, or in a folder that is none: the error above says it
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path` to fill, which takes its place on leaving; an older one of that name goes then.

    After any error the temporary folder is gone and the old one stays. OSError as in `atomic_path`.
    """
    path = Path(path)
    temporary, old = (path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}") for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            _fsync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Put `content` (text as UTF-8, secrets masked) in the file, whole or not at all; OSError as in `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(redact_values(content).encode() if isinstance(content, str) else content)


def _plain(value: Any) -> Any:
    """The value in JSON's own types: mappings, lists, numbers, strings; non-finite numbers become None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "tolist"):  # numpy arrays and scalars, tensors
        return _plain(value.tolist())
    return str(value)


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON (no NaN) of plain values, numpy scalars and arrays, tensors and paths."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write the value as indented JSON, atomically."""
    atomic_write(path, to_json(value, indent=2) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file; ValueError with the path and the line if it is not whole."""
    text = Path(path).read_bytes()
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno} is not valid JSON ({error.msg}); the file may be truncated") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid JSON (not UTF-8 text)") from error


def flock(descriptor: int, operation: int) -> None:
    """flock(2), passed over on file systems that have none (some Lustre and FUSE mounts), with a warning."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        log.warning("this file system has no file locks (%s): do not share a run folder", error.strerror)


def open_lock(path: Path) -> int:
    """The descriptor of a lock file, made where it is missing and never cut.

    Raises OSError where something else has its name.
    A link in its place, in a folder that others may write to, would have another file locked, or written to.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise OSError(f"{path} must be a plain file, to lock, and is something else: move it away") from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(f"{path} must be a plain file of its own, to lock, and is something else: move it away")
    return descriptor


def append_jsonl(path: str | os.PathLike[str], rows: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Append one row or several as JSON lines by a single write under a lock; safe with several writers.

    A line that an earlier writer left torn is closed first, so that it cannot swallow the new one. When the disk
    fills up in the middle, the file is cut back to what it was and OSError names the path.
    """
    path, rows = Path(path), [rows] if isinstance(rows, Mapping) else list(rows)
    data = redact_values("".join(to_json(row) + "\n" for row in rows)).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_LINK, 0o666)
        try:
            flock(descriptor, fcntl.LOCK_EX)
            size = os.lseek(descriptor, 0, os.SEEK_END)
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            _write_or_cut(descriptor, b"\n" + data if torn else data, size)
        finally:
            os.close(descriptor)  # also unlocks
    except OSError as error:
        raise unwritable(path, error) from error


def replace_last_jsonl(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Put `row` in the place of the last line, by one write under the lock; a kill leaves the old line or the new.

    Meant for a row that grew: its text is longer than the old one. OSError as in `append_jsonl`.
    """
    path, data = Path(path), redact_values(to_json(row) + "\n").encode()
    try:
        descriptor = os.open(path, os.O_RDWR | NO_LINK)
        try:
            flock(descriptor, fcntl.LOCK_EX)
            size = os.lseek(descriptor, 0, os.SEEK_END)
            tail = os.pread(descriptor, 1 << 20, max(0, size - (1 << 20)))
            start = size - len(tail) + tail.rfind(b"\n", 0, -1) + 1
            _overwrite(descriptor, data, start, old=tail[start - size :])
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unwritable(path, error) from error


def _overwrite(descriptor: int, data: bytes, start: int, old: bytes) -> None:
    """Put the data in the place of `old`, the end of the file, or leave `old` and raise OSError."""
    try:
        if os.pwrite(descriptor, data, start) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(descriptor, start + len(data))
    except OSError:
        os.pwrite(descriptor, old, start)
        os.ftruncate(descriptor, start + len(old))
        raise


def _write_or_cut(descriptor: int, data: bytes, size: int) -> None:
    """Write all of the data, or leave the file at `size` bytes and raise OSError."""
    try:
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, [] if there is none; torn lines are skipped, with a warning if not the last."""
    path = Path(path)
    if not path.is_file():
        return []
    rows, lines = [], path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:  # JSONDecodeError and UnicodeDecodeError
            if number < len(lines):
                log.warning("%s:%d is torn and was skipped", path, number)
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def truncate_jsonl_after_step(path: str | os.PathLike[str], step: int) -> int:
    """Drop the rows whose "step" lies beyond `step`, atomically; returns how many. For a run that is resumed."""
    rows = read_jsonl(path)
    kept = [row for row in rows if row.get("step") is None or row["step"] <= step]
    if len(kept) < len(rows):
        atomic_write(path, "".join(to_json(row) + "\n" for row in kept))
    return len(rows) - len(kept)


def remove_stale(folder: Path) -> None:
    """Delete temporary files that killed writers left in the folder or just below it."""
    horizon = time.time() - STALE_SECONDS
    for path in (*folder.glob(".tmp-*"), *folder.glob("*/.tmp-*")):
        if path.is_file() and path.stat().st_mtime < horizon:
            path.unlink(missing_ok=True)

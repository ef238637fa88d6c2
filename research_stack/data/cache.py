"""A folder that is built once: whole or absent, whoever is killed and however many processes want it. No torch.

`FolderCache.folder(build)` returns the folder of a fingerprint. The first process that holds the lock builds into a
temporary folder and renames it; the others wait and find it. Only the holder of the lock ever writes, so any
temporary folder found under the lock was left by a killed process and is removed. Each file's size and CRC-32 stand in
meta.json, and its own too: a damaged cache is noticed, logged and built again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from research_stack.records.files import open_lock
from research_stack.records.paths import expanded

log = logging.getLogger(__name__)
ADVICE = "set data.cache_dir or RESEARCH_STACK_CACHE to a writable folder with room"
CHUNK = 1 << 22  # bytes read at a time for the checksum


def default_root() -> Path:
    """$RESEARCH_STACK_CACHE, or ~/.cache/research_stack. Raises OSError in one line where there is no home folder."""
    root = expanded(os.environ.get("RESEARCH_STACK_CACHE") or "~/.cache/research_stack")
    if root.parts[0] == "~":
        why = f"user {os.getuid()} has no home folder and HOME is not set"
        raise OSError(f"cache_dir=null has no default: {why}; {ADVICE}")
    return root


def checksum(file: Path) -> list[int]:
    """[bytes, CRC-32] of a file."""
    crc = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return [file.stat().st_size, crc]


def seal_of(meta: dict[str, Any]) -> int:
    """CRC-32 of what a meta.json says, its own seal left out."""
    return zlib.crc32(json.dumps({key: value for key, value in meta.items() if key != "seal"}, sort_keys=True).encode())


class FolderCache:
    """The cache folder of one fingerprint.

    - root: the folder of all caches; None for `default_root()`.
    - fingerprint: names the folder.
    """

    def __init__(self, root: str | Path | None, fingerprint: str) -> None:
        self.root = expanded(root) if root else default_root()
        self.fingerprint = fingerprint
        self.path = self.root / fingerprint

    def folder(self, build: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """(folder, meta): read, or built by `build(empty_folder) -> meta` when it is absent or damaged.

        Raises OSError with one line when the root cannot be written or the disk is full; ValueErrors of `build` pass.
        """
        if (meta := self._read()) is not None:
            return self.path, meta
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._lock():
                if (meta := self._read(report=True)) is None:
                    meta = self._build(build)
        except OSError as error:
            if error.errno is None or self._foreign(error):
                raise
            raise OSError(f"cache_dir={self.root} cannot be written: {error.strerror}; {ADVICE}") from error
        return self.path, meta

    def _foreign(self, error: OSError) -> bool:
        """Whether the error speaks of a file outside the cache (a corpus that went away while it was read)."""
        if error.filename is None:
            return False
        return not str(error.filename).startswith(str(self.root)) and not self.root.is_relative_to(error.filename)

    def _build(self, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        for stale in self.root.glob(f"{self.fingerprint}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        working = self.root / f"{self.fingerprint}.tmp-{os.getpid()}"
        working.mkdir()
        try:
            meta = build(working)
            files = sorted(f for f in working.rglob("*") if f.is_file())
            meta["files"] = {str(f.relative_to(working)): checksum(f) for f in files}
            meta["seal"] = seal_of(meta)
            (working / "meta.json").write_text(json.dumps(meta, indent=1))
            self._sync(working)
            shutil.rmtree(self.path, ignore_errors=True)
            os.rename(working, self.path)
        except BaseException:
            shutil.rmtree(working, ignore_errors=True)
            raise
        return meta

    @staticmethod
    def _sync(folder: Path) -> None:
        """Files on disk before the rename makes them visible: a power cut leaves no whole-looking empty cache."""
        for path in (*folder.rglob("*"), folder):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _read(self, report: bool = False) -> dict[str, Any] | None:
        """The meta of a whole cache; None when it is absent or damaged."""
        if not self.path.is_dir():
            return None
        try:
            meta = json.loads((self.path / "meta.json").read_bytes())
            damaged = [name for name, sums in meta["files"].items() if checksum(self.path / name) != sums]
            damaged += ["meta.json"] * (meta.get("seal", seal_of(meta)) != seal_of(meta))  # caches of old have none
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            damaged = [str(error) or type(error).__name__]
        if damaged and report:
            log.warning("the cache %s is damaged (%s) and is built again", self.path, ", ".join(damaged))
        return None if damaged else meta

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Held by one process at a time; the kernel releases it when the process dies."""
        with os.fdopen(open_lock(self.root / f"{self.fingerprint}.lock")) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waiting for another process that prepares %s", self.path)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

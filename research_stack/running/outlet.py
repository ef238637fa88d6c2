"""Standard output and error that cannot end a run: what nobody reads is dropped, what cannot be shown is escaped.

A reader that has gone (`| head -1`), an output that was closed at the start (`>&-`), a terminal without UTF-8: none of
them says anything about the run, which goes on and whose end is the exit code. Only where output was lost for
another reason (a full disk) an exit code of 0 becomes 1.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

NOBODY = (errno.EPIPE, errno.EIO)  # no reader any more; the terminal was closed


class Outlet(io.FileIO):
    """A descriptor for writing whose errors are kept in `lost`, the first of them, and not raised."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.lost: OSError | None = None

    def write(self, data: object) -> int | None:  # type: ignore[override]
        """Write, or drop the data; how many bytes are done with."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            self.lost = self.lost or error
            return len(memoryview(data))  # type: ignore[arg-type]


def open_streams() -> None:
    """Make standard input, output and error of this process usable, whatever they are."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would take its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = _stream(1, sys.stdout, by_line=False), _stream(2, sys.stderr, by_line=True)


def _stream(descriptor: int, old: TextIO | None, by_line: bool) -> io.TextIOWrapper:
    outlet = Outlet(descriptor)
    encoding, line_buffering, write_through = "utf-8", by_line or outlet.isatty(), False
    if old is not None:
        assert isinstance(old, io.TextIOWrapper), "standard output and error as Python opens them"
        old.flush()
        encoding, line_buffering, write_through = old.encoding, old.line_buffering, old.write_through
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=line_buffering,
        write_through=write_through,
    )


def exit_code(code: int) -> int:
    """The exit code of a process that ends with `code`: 1 where it was 0 and output was lost that somebody may want."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        raw = (
            stream.buffer.raw
            if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.BufferedWriter)
            else None
        )
        if code == 0 and isinstance(raw, Outlet) and raw.lost is not None and raw.lost.errno not in NOBODY:
            code = 1
    return code

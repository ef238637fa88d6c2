"""Which errors are mistakes of the user's, reported in one line, and which are bugs, whose traceback is kept."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from research_stack.config.hints import UserError, one_line
from research_stack.records.paths import PACKAGE, shown
from research_stack.records.run_folder import Refused, Stopped


def is_mistake(error: BaseException) -> bool:
    """Whether an error is one that our code raised to tell the user something, or the system's word on a file.

    A ValueError from inside a library is a bug of ours: it keeps its traceback.
    """
    if isinstance(error, UserError | OSError | Refused | Stopped):
        return True
    return isinstance(error, ValueError | ArithmeticError) and _origin(error.__traceback__).is_relative_to(PACKAGE)


def _origin(trace: TracebackType | None) -> Path:
    """The file in which an error was raised."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return Path(trace.tb_frame.f_code.co_filename) if trace is not None else Path()


def message_of(error: BaseException) -> str:
    """The error on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{shown(os.fsdecode(error.filename))}: {error.strerror}"
    return one_line(error) or type(error).__name__

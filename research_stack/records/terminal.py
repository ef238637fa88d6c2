"""Text on a terminal: what a model or a file says cannot move the cursor, change colours or hide what comes before it.
No torch."""

from __future__ import annotations

import re
import sys

# Control characters but tabs and line ends, and those that turn the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with control characters as escapes: `\\x1b[2J` is printed and does nothing."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def write(text: str) -> None:
    """Text to standard output: visible on a terminal, as it is in a pipe; what the encoding lacks is escaped."""
    shown = visible(text) if sys.stdout.isatty() else text
    sys.stdout.write(
        shown.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8")
    )

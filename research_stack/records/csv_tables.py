"""Tables as CSV that a spreadsheet opens as what they are: a text that begins like a formula is kept from being one.

No torch, no numpy.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULA = re.compile(r"'*[=+\-@\t].", re.DOTALL)  # as programs that open tables see it


def cell(value: Any) -> Any:
    """A value as it is written: a text that could be taken for a formula gets an apostrophe in front, numbers stay.

    A carriage return becomes a line end: the csv module writes one unquoted, and a reader ends the row there.
    """
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    return "'" + value if _FORMULA.match(value) and not _is_number(value) else value


def text_of(written: str) -> str:
    """The value that `cell` wrote."""
    return written[1:] if written.startswith("'") and _FORMULA.match(written) else written


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> str:
    """A table with these columns; a row that is a mapping has nothing where it lacks one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(cell, columns))
    for row in rows:
        writer.writerow(
            [cell(value) for value in ([row.get(name, "") for name in columns] if isinstance(row, Mapping) else row)]
        )
    return text.getvalue()


def read_csv(text: str) -> list[dict[str, str]]:
    """The rows of a table that `as_csv` wrote; a torn one lacks its last cells. Raises csv.Error where it is none."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [{text_of(key): text_of(value or "") for key, value in row.items() if isinstance(key, str)} for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

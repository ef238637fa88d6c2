"""Tables as CSV that a spreadsheet opens as what they are: a text that begins like a formula is kept from being one.

No torch, no numpy.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from research_stack.records.files import atomic_write
from research_stack.records.run_folder import RunFolder

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


def write_table(
    folder: str | os.PathLike[str],
    name: str,
    rows: Iterable[Sequence[Any] | Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    digits: int | None = 6,
) -> None:
    """Write tables/<name>.csv of a run, atomically; None and NaN are empty cells.

    - columns: None: the keys of the first row, a mapping. digits: significant ones of a number that is no integer;
      None: all.
    """
    rows = list(rows)
    written = (
        {key: _shown(value, digits) for key, value in row.items()}
        if isinstance(row, Mapping)
        else [_shown(value, digits) for value in row]
        for row in rows
    )
    atomic_write(RunFolder(folder).tables / f"{name}.csv", as_csv(columns or list(rows[0]), written))


def _shown(value: Any, digits: int | None) -> Any:
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return ""
    if digits is None or not isinstance(value, Real) or isinstance(value, Integral):
        return value
    return f"{value:.{digits}g}"


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

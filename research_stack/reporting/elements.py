"""Words, numbers and tables as pages and terminals show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from research_stack.reporting.html import Element, Html, el


def duration(seconds: float) -> str:
    """43 s, 2 min 58 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def moment(time: Any) -> str:
    """2026-11-21 00:43 UTC of an ISO 8601 time; empty without one."""
    return str(time)[:16].replace("T", " ") + " UTC" if time else ""


def count(value: Any) -> str:
    """1,234,567; whatever is no number as it is."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def cell(value: float, form: str = "{:.3f}") -> str:
    """A number as the form says; a dash for none."""
    return form.format(value) if math.isfinite(value) else "-"


def span(low: float, high: float, form: str = "{:.3f}") -> str:
    """An interval, 2.551 to 2.672; a dash for none."""
    return f"{form.format(low)} to {form.format(high)}" if math.isfinite(low) and math.isfinite(high) else "-"


def between(low: float, high: float, form: str = "{:.2f}", unit: str = "") -> str:
    """An interval in brackets after a blank, (2.55 to 2.67); empty without one."""
    return f" ({span(low, high, form)}{unit})" if math.isfinite(low) and math.isfinite(high) else ""


def listing(header: Sequence[str], rows: Sequence[tuple[Sequence[Any], bool]], text: Sequence[int] = (0,)) -> Element:
    """A table of rows (cells, whether they stand out); the columns in `text` are words, the others numbers."""
    kinds = [None if i in text else "num" for i in range(len(header))]
    head = el("tr", [el("th", text, class_=kind) for text, kind in zip(header, kinds, strict=True)])
    lines = [
        el(
            "tr",
            [el("td", text, class_=kind) for text, kind in zip(cells, kinds, strict=True)],
            class_="head" if strong else None,
        )
        for cells, strong in rows
    ]
    return el("table", el("thead", head), el("tbody", lines))


def scrolled(table: Element, wrap: bool = False) -> Element:
    """A table that scrolls sideways where the page is narrow; `wrap`: its header may take several lines."""
    return el("div", table, class_="scroll wrap" if wrap else "scroll", tabindex="0")


def facts(rows: Mapping[str, Any]) -> Element:
    """Names and values below each other; those without a value are left out."""
    return el(
        "dl",
        [
            [el("dt", key), el("dd", value if isinstance(value, Html | Element) else str(value))]
            for key, value in rows.items()
            if value not in (None, "")
        ],
        class_="facts2",
    )


def folded(title: str, *inside: Any) -> Element:
    """What opens when its title is pressed."""
    return el("details", el("summary", title), *inside)


def note(*words: Any) -> Element:
    """A paragraph of explanation in small print."""
    return el("p", *words, class_="note")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of plain text: the first to the left, the rest to the right, a rule below the first line."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "-" * (sum(widths) + 2 * len(widths) - 2), *texts[1:]])

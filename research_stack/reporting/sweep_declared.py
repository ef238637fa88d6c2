"""What the reports of a sweep's classes declare for it: a sentence, sections, tables that are read first."""

from __future__ import annotations

from collections.abc import Sequence

from research_stack.records.sweep_table import SweepTable
from research_stack.reporting.contract import FewColumns, Lines, reports_of_sweep
from research_stack.reporting.elements import aligned, listing, note, scrolled
from research_stack.reporting.html import Node, el

MIN_COLUMNS = 2  # of a table in a narrow terminal


def verdict(table: SweepTable) -> str:
    """The first sentence that a report has for the sweep; empty without one."""
    sentences = (report.sweep.verdict(table) for report in reports_of_sweep(table) if report.sweep.verdict is not None)
    return next(filter(None, sentences), "")


def first_sections(table: SweepTable) -> list[Node]:
    """The sections above the results."""
    return [section(table) for report in reports_of_sweep(table) for section in report.sweep.first]


def sections(table: SweepTable) -> list[Node]:
    """The sections below the results."""
    return [section(table) for report in reports_of_sweep(table) for section in report.sweep.sections]


def comparable(table: SweepTable) -> bool:
    """Whether every report lets the settings be compared."""
    said = (report.sweep.comparable for report in reports_of_sweep(table))
    return all(comparable(table) for comparable in said if comparable is not None)


def tables(table: SweepTable) -> list[FewColumns]:
    """The tables that are read before that of all numbers."""
    found = (report.sweep.tables for report in reports_of_sweep(table))
    return [few for tables in found if tables is not None for few in tables(table)]


def tables_section(found: Sequence[FewColumns]) -> Node:
    """Tables that are read first, on the page."""
    return [_on_page(few) for few in found]


def _on_page(few: FewColumns) -> list[Node]:
    header, *rows = few.lines
    body = [(row, index in few.strong) for index, row in enumerate(rows)]
    charts = el("div", few.charts, class_="charts") if few.charts else None
    table = scrolled(listing(header, body, text=few.text), wrap=True)
    return [el("h2", few.title), table, note(few.note) if few.note else None, charts]


def tables_markdown(found: Sequence[FewColumns]) -> str:
    """Tables that are read first, for results.md."""
    return "\n".join(_markdown(few) for few in found)


def _markdown(few: FewColumns) -> str:
    header, *rows = few.lines
    rules = ["---" if index in few.text else "---:" for index in range(len(header))]
    body = "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, rules, *rows)
    )
    return f"## {few.title}\n\n{body}\n" + (f"\n{few.note}\n" if few.note else "")


def tables_text(found: Sequence[FewColumns], width: int) -> str:
    """Tables that are read first, for a terminal of `width` columns: as many columns from the left as fit."""
    return "\n\n".join(f"{few.title}\n{_fitting(few.lines, width)}" for few in found)


def _fitting(lines: Lines, width: int) -> str:
    for count in range(len(lines[0]), MIN_COLUMNS, -1):
        text = aligned([line[:count] for line in lines])
        if max(map(len, text.splitlines())) <= width:
            return text
    return aligned([line[:MIN_COLUMNS] for line in lines])

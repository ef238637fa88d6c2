"""The section of examples: single questions with the answers by each path."""

from __future__ import annotations

from collections.abc import Mapping

from research_stack.latentwire.report.tables import LABELS
from research_stack.latentwire.report.words import joined
from research_stack.reporting.elements import note
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles, Table

MAX_EXAMPLES = 12
MAX_CONTEXT, MAX_MESSAGE = 1500, 400  # characters of a context, bytes of a message that are shown


def examples(run: RunFiles) -> Node:
    """Context, question, gold answers, the answer by each path, the message."""
    groups: dict[tuple[str, str, str], Table] = {}
    for row in run.table("latentwire_examples"):
        groups.setdefault((row.get("dataset", ""), row.get("context", ""), row.get("question", "")), []).append(row)
    if not groups:
        return None
    shown = list(groups.values())[:MAX_EXAMPLES]
    more = f" The first {len(shown)} of {len(groups)} are shown." if len(groups) > len(shown) else ""
    words = (
        "✓ marks answers equal to a gold answer after the normalisation of SQuAD: lower case, no punctuation, no"
        " articles."
    )
    named = len({dataset for dataset, *_ in groups}) > 1
    return [el("h2", "Examples"), note(words, more), *(_example(rows, named) for rows in shown)]


def _example(rows: Table, named: bool) -> Node:
    """One question: its rows are those of the readers. `named`: whether to say the data set."""
    first = rows[0]
    golds, context = first.get("answers", "").split(" | "), first.get("context", "")
    cut = f"… ({len(context) - MAX_CONTEXT:,} more characters)" if len(context) > MAX_CONTEXT else ""
    gold = joined([f"“{answer}”" if answer else "no answer" for answer in golds])
    size = f"{len(context.encode('utf-8', 'replace')):,} bytes"
    return el(
        "div",
        el("div", context[:MAX_CONTEXT], cut, class_="sample", tabindex="0"),
        el("p", el("small", f"{first.get('dataset', '')}, {size}" if named else size)),
        el("p", el("b", first.get("question", "")), " ", el("small", f"gold: {gold}")),
        _answers(rows),
        [_message(row) for row in rows],
        style="margin:0 0 2.4em",
    )


def _answers(rows: Table) -> Node:
    """A line for each path, a column for each reader."""
    head = el("tr", el("th"), [el("th", row.get("reader", "")) for row in rows])
    body = [
        el("tr", el("td", words), [_answer(row.get(path), path in row.get("exact", "").split()) for row in rows])
        for path, words in LABELS.items()
        if any(path in row for row in rows)
    ]
    return el("div", el("table", el("thead", head), el("tbody", body)), class_="scroll", tabindex="0")


def _answer(text: str | None, exact: bool) -> Node:
    if text is None:
        return el("td", "-")
    shown = text if len(text) <= 80 else text[:79] + "…"
    if exact:
        return el("td", el("b", f"✓ {shown}", style="color:var(--ok)"))
    return el("td", shown or el("small", "(nothing)", style="color:var(--faint)"))


def _message(row: Mapping[str, str]) -> Node:
    """The bytes of a message, two digits each."""
    digits = row.get("message_hex", "")
    if not digits:
        return None
    count = len(digits) // 2
    cut = " …" if count > MAX_MESSAGE else ""
    shown = " ".join(digits[i : i + 2] for i in range(0, 2 * min(count, MAX_MESSAGE), 2))
    return note(f"{count} bytes to {row.get('reader', '')}: ", el("code", shown, cut))

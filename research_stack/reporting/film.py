"""The refinement film: a text under construction, one row a step, with what changed in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from research_stack.reporting.html import Html, data_island, el

CLASS = {"mask": "m", "kept": "k", "filled": "f", "changed": "c", "prompt": "p"}
ROWS = 18  # rows of the table
BUDGET = 104  # characters of a row
FRAMES = 130  # frames the player gets


class Cell(NamedTuple):
    """A token as it is shown: its piece and the name of its state."""

    piece: str
    state: str


class Window(NamedTuple):
    """A part of a film that fits a page: the steps of the rows, and their cells; `start` is the first position."""

    steps: list[int]
    rows: list[list[Cell]]
    start: int


def chosen(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers 0 .. count - 1, evenly spaced, first and last included."""
    if count <= limit:
        return list(range(count))
    return sorted({round(i * (count - 1) / (limit - 1)) for i in range(limit)})


def recolored(film: Mapping[str, Any], steps: Sequence[int]) -> list[list[str]]:
    """State names of the chosen frames relative to the frame shown before, so that skipped steps are not lost."""
    names, frames = film["states"], film["frames"]
    found = [[names[code] for code in frames[steps[0]]["states"]]]
    for earlier, now in zip(steps, steps[1:], strict=False):
        line = []
        for i, code in enumerate(frames[now]["states"]):
            name = names[code]
            if name not in ("mask", "prompt"):
                was_mask = names[frames[earlier]["states"][i]] == "mask"
                same = frames[earlier]["tokens"][i] == frames[now]["tokens"][i]
                name = "filled" if was_mask else "kept" if same else "changed"
            line.append(name)
        found.append(line)
    return found


def window(film: Mapping[str, Any], rows: int = ROWS, budget: int = BUDGET) -> Window:
    """The rows to show and the stretch of text to show of them: the one where most was changed after it was filled."""
    steps = chosen(len(film["frames"]), rows)
    states = recolored(film, steps)
    pieces = [[film["pieces"][i] for i in film["frames"][step]["tokens"]] for step in steps]
    widths = [max(len(line[i]) for line in pieces) for i in range(len(pieces[0]))]
    start, stop = _stretch(states, widths, budget)
    cells = [
        [Cell(p, s) for p, s in zip(line[start:stop], state[start:stop], strict=True)]
        for line, state in zip(pieces, states, strict=True)
    ]
    return Window(steps, cells, start)


def _stretch(states: Sequence[Sequence[str]], widths: Sequence[int], budget: int) -> tuple[int, int]:
    """(first, last + 1) position of the best stretch whose columns fit the budget: changes count, then what is no
    prompt.
    """
    score = [
        sum((line[i] == "changed") * len(states) * len(widths) + (line[i] == "filled") for line in states)
        for i in range(len(widths))
    ]
    best, found = -1, (0, len(widths))
    stop, used = 0, 0
    for start in range(len(widths)):
        while stop < len(widths) and (used + widths[stop] <= budget or stop == start):
            used += widths[stop]
            stop += 1
        total = sum(score[start:stop])
        if total > best:
            best, found = total, (start, stop)
        if stop == len(widths):
            break
        used -= widths[start]
    return found


def as_table(film: Mapping[str, Any]) -> Html:
    """The film as a table: positions are columns, so that a change stands below what it replaced."""
    shown = window(film)
    body = []
    for index, (step, row) in enumerate(zip(shown.steps, shown.rows, strict=True)):
        label = "start" if index == 0 else str(step)
        body.append(
            el("tr", el("th", label, scope="row"), [el("td", cell.piece, class_=CLASS[cell.state]) for cell in row])
        )
    return el("div", el("table", body, class_="film"), class_="scroll", tabindex="0")


def legend() -> Html:
    """What the colours mean."""
    entries = (
        ("▒▒", "m", "mask"),
        ("word", "f", "filled in this step"),
        ("word", "c", "changed to another token"),
        ("word", "k", "kept"),
        ("word", "p", "prompt"),
    )
    return el("div", [el("span", el("span", sign, class_=code), text) for sign, code, text in entries], class_="key")


def player(film: Mapping[str, Any], identity: str) -> list[Html]:
    """The whole text, step by step under a slider; it shows itself only where the script runs."""
    steps = chosen(len(film["frames"]), FRAMES)
    letters = list(CLASS)
    frames = [
        [film["frames"][step]["tokens"], [letters.index(name) for name in states]]
        for step, states in zip(steps, recolored(film, steps), strict=True)
    ]
    value = {"pieces": film["pieces"], "classes": list(CLASS.values()), "steps": steps, "frames": frames}
    bar = el(
        "div",
        el("button", "Play", type="button"),
        el("input", type="range", min=0, max=0, value=0, aria_label="step"),
        el("output"),
        class_="bar",
    )
    return [el("div", bar, el("div", class_="text"), class_="player", data_film=identity), data_island(identity, value)]


def caption(film: Mapping[str, Any]) -> str:
    """What the table shows of the film."""
    shown, length, last = window(film), len(film["frames"][0]["tokens"]), len(film["frames"]) - 1
    which = (
        "every step"
        if len(shown.steps) == last + 1
        else f"{len(shown.steps)} of its {last + 1} states, colours relative to the row above"
    )
    stop = shown.start + len(shown.rows[0])
    changes = any(cell.state == "changed" for row in shown.rows for cell in row)
    where = f"tokens {shown.start + 1} to {stop} of {length}{', where most was changed' if changes else ''}"
    where = "all tokens" if len(shown.rows[0]) == length else where
    return f"{which}; {where}."

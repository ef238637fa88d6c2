"""The refinement film: a text under construction, one row a step, with what changed in colour."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from research_stack.reporting.charts import save
from research_stack.reporting.html import Element, Html, Node, clean, data_island, el, join

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def as_table(film: Mapping[str, Any]) -> Element:
    """The film as a table: positions are columns, so that a change is below what it replaced."""
    shown = window(film)
    body = []
    for index, (step, row) in enumerate(zip(shown.steps, shown.rows, strict=True)):
        label = "start" if index == 0 else str(step)
        body.append(
            el("tr", el("th", label, scope="row"), [el("td", cell.piece, class_=CLASS[cell.state]) for cell in row])
        )
    return el("div", el("table", body, class_="film"), class_="scroll", tabindex="0")


def legend() -> Element:
    """What the colours mean."""
    entries = (
        ("▒▒", "m", "mask"),
        ("word", "f", "filled in this step"),
        ("word", "c", "changed to another token"),
        ("word", "k", "kept"),
        ("word", "p", "prompt"),
    )
    return el("div", [el("span", el("span", sign, class_=code), text) for sign, code, text in entries], class_="key")


def player(film: Mapping[str, Any], identity: str) -> list[Node]:
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


# The same for a paper ------------------------------------------------------------------------------------------------

LETTER = 0.0627  # inches, of the letters of a picture: DejaVu Sans Mono at 7.5 points
INKS = {  # of a state: the colour behind the token, and its own
    "mask": (None, "#b3b9bf"),
    "kept": (None, "#5b6570"),
    "filled": ("#d9e8f7", "#12467f"),
    "changed": ("#ffd9b8", "#8a3400"),
    "prompt": (None, "#7a838c"),
}


@dataclass(frozen=True)
class Picture:
    """The table of a film as figures/film_<name>.png and .pdf; in the page, links to them."""

    film: Mapping[str, Any]
    name: str

    def __html__(self) -> Html:
        """The links."""
        links = [(kind.upper(), f"figures/film_{self.name}.{kind}") for kind in ("png", "pdf")]
        return join(el("p", [[el("a", text, href=href), " "] for text, href in links], class_="files"))

    def write(self, folder: Path) -> list[Path]:
        """Draw it; returns the paths."""
        figure, paths = self.figure(), [folder / "figures" / f"film_{self.name}.{kind}" for kind in ("png", "pdf")]
        for path in paths:
            save(figure, path)
        return paths

    def figure(self) -> Figure:
        """Each row a step; filled tokens blue, changed ones orange."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        shown = window(self.film)
        widths = [max(len(row[i].piece) for row in shown.rows) for i in range(len(shown.rows[0]))]
        total, height = 7 + sum(widths), 0.75 + 0.2 * len(shown.rows)
        width = max(4.0, total * LETTER / 0.98)
        figure = Figure((width, height))
        axes = figure.add_axes((0.01, 0.1 / height, 0.98, 1 - 0.5 / height))
        axes.set_axis_off()
        axes.set_xlim(0, width * 0.98 / LETTER)
        axes.set_ylim(len(shown.rows) - 0.4, -0.6)
        text = {"family": "DejaVu Sans Mono", "fontsize": 7.5, "va": "center", "parse_math": False}
        for line, (step, row) in enumerate(zip(shown.steps, shown.rows, strict=True)):
            axes.text(6, line, "start" if line == 0 else str(step), ha="right", color="#98a1aa", **text)
            at = 7
            for state, run in itertools.groupby(zip(row, widths, strict=True), key=lambda pair: pair[0].state):
                piece = "".join(clean(cell.piece).ljust(width) for cell, width in run)  # of equal width: one text
                back, ink = INKS[state]
                if back:
                    axes.add_patch(Rectangle((at, line - 0.42), len(piece), 0.84, facecolor=back, edgecolor="none"))
                axes.text(at, line, piece, color=ink, weight="bold" if state == "changed" else "normal", **text)
                at += len(piece)
        title = f"{self.name}: one row a step; blue was filled in, orange was changed"
        axes.set_title(title, loc="left", fontsize=9, parse_math=False)
        return figure

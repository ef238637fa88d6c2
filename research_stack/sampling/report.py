"""What a run shows of its samplers: their texts beside what they cost, and how the first text came about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from research_stack.records.run_folder import RunFolder
from research_stack.reporting.contract import Lines, Metric, Report
from research_stack.reporting.elements import cell, listing, note, scrolled
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles
from research_stack.sampling import film as films

TEXT_LIMIT = 4000  # characters of a sample
SAMPLE_LIMIT = 6  # samples of a sampler
METRICS = {
    "samples/*/calls": Metric("{0}: model calls a text", form="{:.1f}", better="lower"),
    "samples/*/distinct_2": Metric("{0}: distinct-2", form="{:.3f}"),
    "samples/*/entropy": Metric("{0}: token entropy, nats", form="{:.2f}"),
    "samples/*/changed": Metric("{0}: changed after filled", form="{:.1%}"),
    "samples/*/idle": Metric("{0}: idle steps", form="{:.1%}"),
}


def decoding(run: RunFiles, names: Sequence[str] | None = None) -> Lines:
    """What each sampler cost and did: header and rows; [] where nothing was measured.

    - names: the samplers, in order; None for those of result.json.
    """
    measured = dict.fromkeys(k.split("/")[1] for k in run.metrics if k.startswith("samples/") and k.count("/") == 2)
    rows = [
        [name, *(cell(run.metric(key.replace("*", name)), metric.form) for key, metric in METRICS.items())]
        for name in (names or measured)
        if any(math.isfinite(run.metric(key.replace("*", name))) for key in METRICS)
    ]
    return [["decoder", *(metric.label.removeprefix("{0}: ") for metric in METRICS.values())], *rows] if rows else []


def terminal(run: RunFiles) -> list[Lines]:
    """The table for the terminal."""
    lines = decoding(run)
    return [lines] if lines else []


def samples(run: RunFiles) -> Node:
    """Texts of each sampler beside what they cost."""
    names = list(dict.fromkeys(str(row.get("sampler", "")) for row in run.samples))
    if not names:
        return None
    lines = decoding(run, names)
    sections = [
        el(
            "section",
            el("h3", name),
            [_sample(row) for row in run.samples if str(row.get("sampler", "")) == name][:SAMPLE_LIMIT],
        )
        for name in names
    ]
    return [
        el("h2", "Samples"),
        scrolled(listing(lines[0], [(row, False) for row in lines[1:]])) if lines else None,
        el("div", sections, class_="samples"),
    ]


def _sample(row: Mapping[str, Any]) -> Node:
    text, prompt = str(row.get("text", "")), str(row.get("prompt") or "")
    cut = f"… ({len(text) - TEXT_LIMIT:,} more characters)" if len(text) > TEXT_LIMIT else ""
    shown = el("span", prompt[-TEXT_LIMIT:], class_="prompt") if prompt else None
    return el("div", shown, text[:TEXT_LIMIT], cut, class_="sample", tabindex="0")


def refinement(run: RunFiles) -> Node:
    """The first text of each sampler step by step: a table, a player where the script runs, a picture for a paper."""
    found = [el("h2", "Refinement, step by step"), films.legend()]
    for index, (name, film) in enumerate(films_of(run).items()):
        found += [
            el("h3", name),
            note(f"The first sample, {film.get('calls', '?')} model calls: {films.caption(film)}"),
            films.as_table(film),
            *films.player(film, f"film{index}"),
            films.Picture(film, name),
        ]
    return found if len(found) > 2 else None


def films_of(run: RunFiles) -> dict[str, dict[str, Any]]:
    """{sampler: film} of films/*.json that have frames."""
    folder = RunFolder(run.folder).films
    paths = sorted(folder.glob("[!.]*.json")) if folder.is_dir() else []
    films = {path.stem: run.json(f"{folder.name}/{path.name}") for path in paths}
    return {name: film for name, film in films.items() if film.get("frames") and film.get("pieces")}


REPORT = Report(metrics=METRICS, details=(samples, refinement), terminal=terminal)

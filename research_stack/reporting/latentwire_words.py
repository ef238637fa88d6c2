"""What a wire of latents came to, in words: the verdict, the numbers on top, the lines for the terminal. Standard
library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from research_stack.reporting.curves import series
from research_stack.reporting.latentwire_tables import (
    EQUAL_BYTES,
    LATENT,
    NONE,
    POOLED,
    SHUFFLED,
    TEXT,
    WORDS,
    Measured,
    Score,
    Wire,
    load,
)
from research_stack.reporting.reading import RunFiles

FIRST = "train/first1_"  # before the reader's name: how often the first token was right on the batch
WORTH = 0.1  # a difference of F1 that is worth having: if it cannot be ruled out, nothing is said to be level
MOST_READERS = 3  # of the terminal's table


def verdict(run: RunFiles) -> str:
    """What the readers get from the latents, beside the whole text and as many bytes of it; empty if nothing was
    measured.

    Latents that do no better than those of another example are said to give nothing, whatever their score.
    """
    wire = load(run)
    if wire is None:
        return ""
    first = wire.datasets[0]
    where = f"On {first}: " if len(wire.datasets) > 1 and first != POOLED else ""
    told = story(wire, first)
    return f"{where}{told}{exceptions(wire)}" if told else ""


def story(wire: Wire, dataset: str) -> str:
    """The verdict on one data set."""
    readers = [
        reader for reader in wire.readers if wire.main(dataset, reader, LATENT) and wire.main(dataset, reader, TEXT)
    ]
    if not readers:
        return ""
    blind = [reader for reader in readers if level(wire, dataset, reader, TEXT, NONE)]
    rest = [reader for reader in readers if reader not in blind]
    empty = [reader for reader in rest if level(wire, dataset, reader, LATENT, SHUFFLED)]
    open_ = [reader for reader in rest if reader not in empty and wire.stands(dataset, reader, LATENT, SHUFFLED) == 0]
    told = [reader for reader in rest if reader not in (*empty, *open_)]
    parts = [_kept(wire, dataset, told)] if told else []
    parts += [_nothing(wire, dataset, empty, alone=not told)] if empty else []
    parts += [_open(wire, dataset, open_)] if open_ else []
    parts += [_blind(wire, dataset, blind)] if blind else []
    return " ".join([*parts, *_larger(wire, dataset, readers)])


def level(wire: Wire, dataset: str, reader: str, first: str, second: str) -> bool:
    """Whether the first path is no better than the second: not told apart though a difference worth having would show,
    or worse.
    """
    side = wire.stands(dataset, reader, first, second)
    return side == -1 or (side == 0 and wire.reach(dataset, reader, first, second) < WORTH)


def exceptions(wire: Wire) -> str:
    """Single data sets on which the latents give nothing, or no more than as many bytes of text, that the first one
    does not show.
    """
    found = []
    for dataset in wire.datasets[1:]:
        nothing, equal = [], []
        for reader in wire.readers:
            opponent = wire.opponent(dataset, reader)
            if level(wire, dataset, reader, LATENT, SHUFFLED):
                nothing.append(reader)
            elif opponent and wire.stands(dataset, reader, LATENT, opponent.path) in (0, -1):
                equal.append(reader)
        found += (
            [f" On {dataset} {joined(nothing)} {'gets' if len(nothing) == 1 else 'get'} nothing from the latents."]
            if nothing
            else []
        )
        found += (
            [f" On {dataset} the latents are no better than the same bytes of text for {joined(equal)}."]
            if equal
            else []
        )
    return "".join(found)


def _kept(wire: Wire, dataset: str, readers: Sequence[str]) -> str:
    """36 bytes of latents keep 94 % of ...; the same bytes of text keep 33 %."""
    whose = (
        "what the readers answer"
        if len(wire.readers) == len(readers) > 1
        else f"what {joined(readers)} answer{'s' if len(readers) == 1 else ''}"
    )
    named = len(readers) > 1
    opponents = {reader: row for reader in readers if (row := wire.opponent(dataset, reader)) is not None}
    kept = _each(readers, lambda r: _share(wire, dataset, r, wire.main(dataset, r, LATENT)), named)
    text = f"{_bytes(wire, dataset, LATENT, readers)} bytes of latents keep {kept} "
    text += f"of {whose} from the whole text of {_bytes(wire, dataset, TEXT, readers)} bytes (F1)"
    if opponents:
        several = sum(wire.main(dataset, next(iter(opponents)), path) is not None for path in EQUAL_BYTES) > 1
        shares = _each(
            list(opponents), lambda r: _share(wire, dataset, r, opponents[r]), named and len(opponents) < len(readers)
        )
        text += (
            f"; the same bytes of text keep {'at most ' if several else ''}{shares}{_beaten(wire, dataset, opponents)}"
        )
    unproven = [reader for reader in readers if wire.stands(dataset, reader, LATENT, SHUFFLED) is None]
    return f"{text}." + (" Whether latents of another example do as well was not measured." if unproven else "")


def _beaten(wire: Wire, dataset: str, opponents: dict[str, Measured]) -> str:
    """Of which readers the latents are not proven better than as many bytes of text."""
    standing = {reader: wire.stands(dataset, reader, LATENT, row.path) for reader, row in opponents.items()}
    level, worse = ([reader for reader, side in standing.items() if side == wanted] for wanted in (0, -1))
    parts = ([f"more than the latents {_for(worse, opponents)}"] if worse else []) + (
        [f"level with the latents {_for(level, opponents)}"] if level else []
    )
    return f", {' and '.join(part.strip() for part in parts)}" if parts else ""


def _for(readers: Sequence[str], of: dict[str, Measured]) -> str:
    return "" if len(of) == 1 else f"for {joined(readers)}"


def _nothing(wire: Wire, dataset: str, readers: Sequence[str], alone: bool) -> str:
    """F1 with the latents beside that with those of another example."""
    own, others, text = (
        _each(readers, lambda r, p=path: _f1(wire.main(dataset, r, p)), len(readers) > 1 and path == LATENT)
        for path in (LATENT, SHUFFLED, TEXT)
    )
    if alone:
        who = "The readers get" if len(readers) > 1 else f"{readers[0]} gets"
        size = _bytes(wire, dataset, LATENT, readers)
        return (
            f"{who} nothing from the latents: F1 {own} with {size} bytes of them, {others} with those of another"
            f" example, {text} with the whole text."
        )
    return (
        f"{joined(readers)} {'gets' if len(readers) == 1 else 'get'} nothing from them: F1 {own}, with those of another"
        f" example {others}."
    )


def _open(wire: Wire, dataset: str, readers: Sequence[str]) -> str:
    own, others = (
        _each(readers, lambda r, p=path: _f1(wire.main(dataset, r, p)), len(readers) > 1) for path in (LATENT, SHUFFLED)
    )
    who = f"{joined(readers)} {'gets' if len(readers) == 1 else 'get'}"
    return (
        f"Too few questions to tell whether {who} anything from the latents: F1 {own}, with those of another example"
        f" {others}."
    )


def _blind(wire: Wire, dataset: str, readers: Sequence[str]) -> str:
    whole, none = (
        _each(readers, lambda r, p=path: _f1(wire.main(dataset, r, p)), len(readers) > 1) for path in (TEXT, NONE)
    )
    return (
        f"{joined(readers)} cannot answer from the whole text either (F1 {whole}, without any context {none}): nothing"
        " can be told of the latents there."
    )


def _larger(wire: Wire, dataset: str, readers: Sequence[str]) -> list[str]:
    larger = [
        r
        for r in readers
        if (a := wire.main(dataset, r, LATENT)) and (b := wire.main(dataset, r, TEXT)) and a.bytes >= b.bytes
    ]
    return ["The latents are no smaller than the text."] if larger else []


def _each(readers: Sequence[str], said: Callable[[str], str], named: bool) -> str:
    """94 % (llama) and 86 % (qwen)."""
    return joined([f"{said(reader)} ({reader})" if named else said(reader) for reader in readers])


def joined(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _share(wire: Wire, dataset: str, reader: str, row: Measured | None) -> str:
    value = share(row, wire.main(dataset, reader, TEXT))
    return f"{100 * value:.0f} %" if math.isfinite(value) else "?"


def share(row: Measured | None, text: Measured | None) -> float:
    """F1 over that of the whole text; NaN without either."""
    return row.f1.value / text.f1.value if row is not None and text is not None and text.f1.value > 0 else math.nan


def _f1(row: Measured | None) -> str:
    return f"{row.f1.value:.2f}" if row else "?"


def _bytes(wire: Wire, dataset: str, path: str, readers: Sequence[str]) -> str:
    sizes = [size_words(row.bytes) for reader in readers if (row := wire.main(dataset, reader, path)) is not None]
    return joined(list(dict.fromkeys(sizes)))


def size_words(size: float) -> str:
    """36, 35.9, 1,258: a mean of bytes, with a decimal where it is small and no whole number."""
    return f"{size:,.0f}" if size >= 100 or abs(size - round(size)) < 0.05 else f"{size:.1f}"


def warnings(wire: Wire) -> list[str]:
    """What casts doubt on the numbers, one line each."""
    found = []
    for dataset in wire.datasets:
        where = f" on {dataset}" if len(wire.datasets) > 1 else ""
        for reader in wire.readers:
            other, none = wire.main(dataset, reader, SHUFFLED), wire.main(dataset, reader, NONE)
            if other and none and wire.stands(dataset, reader, SHUFFLED, NONE) == 1:
                found.append(
                    f"{reader}{where}: the latents of another example score {other.f1.value:.2f}, above"
                    f" {none.f1.value:.2f} without any context. They say nothing of the context asked about, so this is"
                    " what the adapter alone adds: compare the latents with these."
                )
    total, main = sum(one for one, _ in wire.parts.values()), wire.main(wire.datasets[0], wire.readers[0], LATENT)
    if wire.parts and main is not None and abs(total - main.bytes) > 0.5:
        found.append(
            f"The parts of a message sum to {size_words(total)} bytes, the messages have {size_words(main.bytes)}."
        )
    return found


# Numbers on top and in the terminal ----------------------------------------------------------------------------------


def glance(run: RunFiles) -> dict[str, str]:
    """The few numbers on top of the page."""
    wire = load(run)
    main = wire.main(wire.datasets[0], wire.readers[0], LATENT) if wire else None
    if wire is None or main is None:
        return {}
    found = {"on the wire": f"{size_words(main.bytes)} bytes"}
    found |= {"smaller than the text": f"{main.ratio:.1f} times"} if main.ratio > 1 else {}
    for reader in wire.readers[:MOST_READERS]:
        own, text = (wire.main(wire.datasets[0], reader, path) for path in (LATENT, TEXT))
        if own and text:
            found[f"F1, {reader}"] = f"{own.f1.value:.2f} of {text.f1.value:.2f}"
    return found


def is_wire(run: RunFiles) -> bool:
    """Whether the run trained a wire of latents."""
    return str(run.setting("method._target_")).startswith("research_stack.latentwire.")


def last_step(run: RunFiles) -> str:
    """What an unfinished run says of itself: how often the first token was right on the last batch; empty without
    it.
    """
    names = dict.fromkeys(key for row in run.history for key in row if key.startswith(FIRST))
    last = {key.removeprefix(FIRST): points[-1] for key in names if (points := series(run.history, key))}
    if not last:
        return ""
    step = max(step for step, _ in last.values())
    shares = _each(list(last), lambda reader: f"{100 * last[reader][1]:.0f} %", len(last) > 1)
    return f"At step {step:,.0f} the first token is right {shares} of the time on its own batch."


def terminal(run: RunFiles) -> list[list[list[str]]]:
    """Tables for the terminal, each a list of lines of cells: every path for each reader, then each data set where
    there are several.
    """
    wire = load(run)
    if wire is None:
        return []
    first, readers = wire.datasets[0], wire.readers[:MOST_READERS]
    more = f", {len(wire.readers) - MOST_READERS} more in the report" if len(wire.readers) > MOST_READERS else ""
    lines = [[f"F1 of answers{more}", "bytes", *(text for reader in readers for text in (reader, "95 % interval"))]]
    for path, words in WORDS.items():
        rows = [wire.main(first, reader, path) for reader in readers]
        if any(rows):
            sizes = " / ".join(dict.fromkeys(size_words(row.bytes) for row in rows if row))
            lines.append(
                [
                    words,
                    sizes,
                    *(text for row in rows for text in (f1_words(row), interval_words(row.f1 if row else None))),
                ]
            )
    return [lines] if len(wire.datasets) < 2 else [lines, _by_dataset(wire, readers)]


def _by_dataset(wire: Wire, readers: Sequence[str]) -> list[list[str]]:
    lines = [["F1 by data set", *(f"{reader}, {what}" for reader in readers for what in ("latents", "text"))]]
    return lines + [
        [dataset, *(f1_words(wire.main(dataset, reader, path)) for reader in readers for path in (LATENT, TEXT))]
        for dataset in wire.datasets
    ]


def f1_words(row: Measured | None) -> str:
    """0.872; a dash for none."""
    return f"{row.f1.value:.3f}" if row else "-"


def interval_words(score: Score | None) -> str:
    """0.851 to 0.893; a dash for none."""
    return (
        f"{score.low:.3f} to {score.high:.3f}"
        if score and math.isfinite(score.low) and math.isfinite(score.high)
        else "-"
    )

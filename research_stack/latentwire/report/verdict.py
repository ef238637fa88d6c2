"""What a wire of latents came to in a sentence, and what casts doubt on it."""

from __future__ import annotations

from collections.abc import Sequence

from research_stack.latentwire.path_names import EQUAL_BYTES, LATENT, NONE, POOLED, SHUFFLED, TEXT
from research_stack.latentwire.report.loading import load
from research_stack.latentwire.report.tables import Measurements, PathScore
from research_stack.latentwire.report.words import bytes_text, each, joined, share_text
from research_stack.reporting.run_files import RunFiles

WORTH = 0.1  # a difference of F1 that is worth having: if it cannot be ruled out, nothing is said to be no better


def verdict(run: RunFiles) -> str:
    """What the readers get from the latents, beside the whole text and as many bytes of it; empty if nothing was
    measured.

    Latents that do no better than those of another example are said to give nothing, whatever their score.
    """
    data = load(run)
    if data is None:
        return ""
    first = data.datasets[0]
    where = f"On {first}: " if len(data.datasets) > 1 and first != POOLED else ""
    text = sentences(data, first)
    return f"{where}{text}{exceptions(data)}" if text else ""


def sentences(data: Measurements, dataset: str) -> str:
    """The verdict on one data set."""
    readers = [
        reader for reader in data.readers if data.main(dataset, reader, LATENT) and data.main(dataset, reader, TEXT)
    ]
    if not readers:
        return ""
    unable = [reader for reader in readers if is_no_better(data, dataset, reader, TEXT, NONE)]
    rest = [reader for reader in readers if reader not in unable]
    empty = [reader for reader in rest if is_no_better(data, dataset, reader, LATENT, SHUFFLED)]
    uncertain = [
        reader for reader in rest if reader not in empty and data.compare(dataset, reader, LATENT, SHUFFLED) == 0
    ]
    useful = [reader for reader in rest if reader not in (*empty, *uncertain)]
    parts = [_kept(data, dataset, useful)] if useful else []
    parts += [_nothing(data, dataset, empty, alone=not useful)] if empty else []
    parts += [_uncertain(data, dataset, uncertain)] if uncertain else []
    parts += [_unable(data, dataset, unable)] if unable else []
    return " ".join([*parts, *_larger(data, dataset, readers)])


def is_no_better(data: Measurements, dataset: str, reader: str, first: str, second: str) -> bool:
    """Whether the first path is no better than the second: not told apart though a difference worth having would show,
    or worse.
    """
    side = data.compare(dataset, reader, first, second)
    return side == -1 or (side == 0 and data.upper_bound(dataset, reader, first, second) < WORTH)


def exceptions(data: Measurements) -> str:
    """Single data sets on which the latents give nothing, or no more than as many bytes of text, that the first one
    does not show.
    """
    found = []
    for dataset in data.datasets[1:]:
        nothing, equal = [], []
        for reader in data.readers:
            opponent = data.best_text(dataset, reader)
            if is_no_better(data, dataset, reader, LATENT, SHUFFLED):
                nothing.append(reader)
            elif opponent and data.compare(dataset, reader, LATENT, opponent.path) in (0, -1):
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


def _kept(data: Measurements, dataset: str, readers: Sequence[str]) -> str:
    """36 bytes of latents keep 94 % of ...; the same bytes of text keep 33 %."""
    whose = (
        "what the readers answer"
        if len(data.readers) == len(readers) > 1
        else f"what {joined(readers)} answer{'s' if len(readers) == 1 else ''}"
    )
    named = len(readers) > 1
    opponents = {reader: row for reader in readers if (row := data.best_text(dataset, reader)) is not None}
    kept = each(readers, lambda r: _share(data.main(dataset, r, LATENT)), named)
    text = f"{_bytes(data, dataset, LATENT, readers)} bytes of latents keep {kept} "
    text += f"of {whose} from the whole text of {_bytes(data, dataset, TEXT, readers)} bytes (F1)"
    if opponents:
        several = sum(data.main(dataset, next(iter(opponents)), path) is not None for path in EQUAL_BYTES) > 1
        shares = each(list(opponents), lambda r: _share(opponents[r]), named and len(opponents) < len(readers))
        text += (
            f"; the same bytes of text keep {'at most ' if several else ''}{shares}{_beaten(data, dataset, opponents)}"
        )
    unproven = [reader for reader in readers if data.compare(dataset, reader, LATENT, SHUFFLED) is None]
    return f"{text}." + (" Whether latents of another example do as well was not measured." if unproven else "")


def _beaten(data: Measurements, dataset: str, opponents: dict[str, PathScore]) -> str:
    """Of which readers the latents are not proven better than as many bytes of text."""
    standing = {reader: data.compare(dataset, reader, LATENT, row.path) for reader, row in opponents.items()}
    level, worse = ([reader for reader, side in standing.items() if side == wanted] for wanted in (0, -1))
    parts = ([f"more than the latents {_for(worse, opponents)}"] if worse else []) + (
        [f"level with the latents {_for(level, opponents)}"] if level else []
    )
    return f", {' and '.join(part.strip() for part in parts)}" if parts else ""


def _for(readers: Sequence[str], of: dict[str, PathScore]) -> str:
    return "" if len(of) == 1 else f"for {joined(readers)}"


def _nothing(data: Measurements, dataset: str, readers: Sequence[str], alone: bool) -> str:
    """F1 with the latents beside that with those of another example."""
    own, others, text = (
        each(readers, lambda r, p=path: _f1(data.main(dataset, r, p)), len(readers) > 1 and path == LATENT)
        for path in (LATENT, SHUFFLED, TEXT)
    )
    if alone:
        who = "The readers get" if len(readers) > 1 else f"{readers[0]} gets"
        size = _bytes(data, dataset, LATENT, readers)
        return (
            f"{who} nothing from the latents: F1 {own} with {size} bytes of them, {others} with those of another"
            f" example, {text} with the whole text."
        )
    return (
        f"{joined(readers)} {'gets' if len(readers) == 1 else 'get'} nothing from them: F1 {own}, with those of another"
        f" example {others}."
    )


def _uncertain(data: Measurements, dataset: str, readers: Sequence[str]) -> str:
    own, others = (
        each(readers, lambda r, p=path: _f1(data.main(dataset, r, p)), len(readers) > 1) for path in (LATENT, SHUFFLED)
    )
    who = f"{joined(readers)} {'gets' if len(readers) == 1 else 'get'}"
    return (
        f"Too few questions to tell whether {who} anything from the latents: F1 {own}, with those of another example"
        f" {others}."
    )


def _unable(data: Measurements, dataset: str, readers: Sequence[str]) -> str:
    whole, none = (
        each(readers, lambda r, p=path: _f1(data.main(dataset, r, p)), len(readers) > 1) for path in (TEXT, NONE)
    )
    return (
        f"{joined(readers)} cannot answer from the whole text either (F1 {whole}, without any context {none}): nothing"
        " can be told of the latents there."
    )


def _larger(data: Measurements, dataset: str, readers: Sequence[str]) -> list[str]:
    larger = [
        r
        for r in readers
        if (a := data.main(dataset, r, LATENT)) and (b := data.main(dataset, r, TEXT)) and a.bytes >= b.bytes
    ]
    return ["The latents are no smaller than the text."] if larger else []


def _share(row: PathScore | None) -> str:
    return share_text(row.share, "?") if row is not None else "?"


def _f1(row: PathScore | None) -> str:
    return f"{row.f1.value:.2f}" if row else "?"


def _bytes(data: Measurements, dataset: str, path: str, readers: Sequence[str]) -> str:
    sizes = [bytes_text(row.bytes) for reader in readers if (row := data.main(dataset, reader, path)) is not None]
    return joined(list(dict.fromkeys(sizes)))


def warnings(data: Measurements) -> list[str]:
    """What casts doubt on the numbers, one line each."""
    found = []
    for dataset in data.datasets:
        where = f" on {dataset}" if len(data.datasets) > 1 else ""
        for reader in data.readers:
            other, none = data.main(dataset, reader, SHUFFLED), data.main(dataset, reader, NONE)
            if other and none and data.compare(dataset, reader, SHUFFLED, NONE) == 1:
                found.append(
                    f"{reader}{where}: the latents of another example score {other.f1.value:.2f}, above"
                    f" {none.f1.value:.2f} without any context. They say nothing of the context asked about, so this is"
                    " what the adapter alone adds: compare the latents with these."
                )
    total, main = sum(one for one, _ in data.parts.values()), data.main(data.datasets[0], data.readers[0], LATENT)
    if data.parts and main is not None and abs(total - main.bytes) > 0.5:
        found.append(
            f"The parts of a message sum to {bytes_text(total)} bytes, the messages have {bytes_text(main.bytes)}."
        )
    return found

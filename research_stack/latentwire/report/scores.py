"""The section of scores: F1 of what readers answer from latents and from text of equal cost, as charts and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from research_stack.latentwire.path_names import LATENT
from research_stack.latentwire.report.loading import load
from research_stack.latentwire.report.score_charts import charts
from research_stack.latentwire.report.tables import LABELS, Measurements, PathScore
from research_stack.latentwire.report.verdict import warnings
from research_stack.latentwire.report.words import bytes_text, f1_cells, share_text
from research_stack.metrics.interval import FEW
from research_stack.reporting.elements import cell, folded, listing, note, scrolled, span
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles

HEADER = (
    "",
    "reader",
    "latents",
    "bits",
    "bytes",
    "times smaller",
    "positions",
    "F1",
    "95 % interval",
    "of the whole text",
    "EM",
    "95 % interval",
    "FirstTok@1",
    "@5",
    "@10",
)
BRIEF = (0, 1, 4, 5, 7, 8, 9, 10, 12, 13, 14)  # what fits the page


def scores(run: RunFiles) -> Node:
    """F1 over bytes and over the number of latents for each data set and reader, then the tables."""
    data = load(run)
    if data is None:
        return None
    found: list[Node] = [
        el("h2", "Answers from latents"),
        el(
            "p",
            "F1 of the readers' answers, given latents of the context or text that costs as much. Higher is better.",
        ),
    ]
    found += [el("p", el("b", "Caution: "), text) for text in warnings(data)]
    for dataset in data.datasets:
        drawn = charts(data, dataset)
        found += [el("h3", f"Data set {dataset}")] if drawn and len(data.datasets) > 1 else []
        found += [el("div", drawn, class_="charts")] if drawn else []
    return [*found, note(explanation(data)), *tables(data), *comparisons(data)]


def explanation(data: Measurements) -> str:
    """What the lines, the bars and the paths are."""
    counts = {name: [row.questions for row in data.rows if row.dataset == name] for name in data.datasets}
    known = {name: max(filter(math.isfinite, values), default=math.nan) for name, values in counts.items()}
    questions = ", ".join(
        f"{count:,.0f} questions{f' of {name}' if len(known) > 1 else ''}"
        for name, count in known.items()
        if math.isfinite(count)
    )
    return (
        f"{f'{questions}. ' if questions else ''}Bars and shades are 95 % intervals over groups of questions, those of"
        f" one article or context together; they are meant for {FEW} groups or more and do not cover a new training"
        " run. Bytes are those of the whole message with its header, scales, hint and checksum, beside the UTF-8 bytes"
        " of text. The same bytes of text are the longest part of the context that fits them; as many tokens are its"
        " first ones in the reader's own tokenizer. Latents of another example must score no more than no context at"
        " all."
    )


def tables(data: Measurements) -> list[Node]:
    """The trained setting for every data set, then all settings, folded."""
    found: list[Node] = []
    pairs = [(path, reader) for path in LABELS for reader in data.readers]
    for dataset in data.datasets:
        rows = [row for path, reader in pairs if (row := data.main(dataset, reader, path)) is not None]
        words = "At the trained setting"
        found += [el("h3", f"{words}, {dataset}" if len(data.datasets) > 1 else words), _table(rows, BRIEF)]
    every = [row for dataset in data.datasets for path, reader in pairs for row in data.of(dataset, reader, path)]
    main = sum(data.main(dataset, reader, path) is not None for dataset in data.datasets for path, reader in pairs)
    if len(every) > main:
        found.append(folded(f"All {len(every)} settings and paths", _table(every, range(len(HEADER)))))
    return found


def _table(rows: Sequence[PathScore], columns: Sequence[int]) -> Node:
    """Rows under these columns of HEADER, without those that are empty throughout."""
    several = len({row.dataset for row in rows}) > 1
    lines = [_cells(row, several) for row in rows]
    shown = [i for i in columns if any(line[i] not in ("", "-") for line in lines)]
    body = [([line[i] for i in shown], row.path == LATENT and row.main) for line, row in zip(lines, rows, strict=True)]
    return scrolled(listing([HEADER[i] for i in shown], body, text=(0, 1)), wrap=True)


def _cells(row: PathScore, several: bool) -> list[str]:
    setting = [f"{value:g}" if math.isfinite(value) else "" for value in (row.num_latents, row.bits)]
    smaller = f"{row.ratio:.2f}" if math.isfinite(row.ratio) and row.bytes > 0 else "-"
    name = f"{LABELS[row.path]}, {row.dataset}" if several else LABELS[row.path]
    costs = [*setting, bytes_text(row.bytes), smaller, cell(row.prefill, "{:.1f}")]
    exact = [cell(row.em.value), span(row.em.low, row.em.high)]
    return [name, row.reader, *costs, *f1_cells(row), share_text(row.share), *exact, *map(cell, row.first)]


def comparisons(data: Measurements) -> list[Node]:
    """Paired differences of F1 over the same questions, and the ratios of the means."""
    if not data.paired:
        return []
    several = len(data.datasets) > 1
    lines = []
    for (dataset, reader, comparison), one in data.paired.items():
        first, _, second = comparison.partition("-")
        names = f"{LABELS.get(first, first)} − {LABELS.get(second, second)}{f', {dataset}' if several else ''}"
        p = f"{one.p:.2g}" if one.p >= 0.001 else "< 0.001" if math.isfinite(one.p) else "-"
        gap, ratio = one.difference, one.ratio
        numbers = [
            cell(gap.value, "{:+.3f}"),
            span(gap.low, gap.high, "{:+.3f}"),
            p,
            cell(ratio.value, "{:.2f}"),
            span(ratio.low, ratio.high, "{:.2f}"),
        ]
        lines.append(([names, reader, *numbers], data.compare(dataset, reader, first, second) not in (0, None)))
    header = ("F1, question by question", "reader", "difference", "95 % interval", "p", "ratio", "95 % interval")
    return [
        el("h3", "Compared question by question"),
        scrolled(listing(header, lines, text=(0, 1)), wrap=True),
        note(
            "Intervals over questions, those of one context or article together; p by flipping signs. Bold: the"
            " interval of the difference leaves out zero. Nothing is corrected for the number of comparisons."
        ),
    ]

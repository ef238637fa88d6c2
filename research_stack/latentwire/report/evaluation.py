"""What a run and a sweep show of the answers from latents."""

from __future__ import annotations

from research_stack.latentwire.path_names import LATENT, TEXT
from research_stack.latentwire.report import sweep
from research_stack.latentwire.report.examples import examples
from research_stack.latentwire.report.loading import load
from research_stack.latentwire.report.messages import messages, speed
from research_stack.latentwire.report.scores import scores
from research_stack.latentwire.report.tables import LABELS, Measurements
from research_stack.latentwire.report.verdict import verdict
from research_stack.latentwire.report.words import bytes_text, f1_cells
from research_stack.reporting.contract import Lines, Metric, Report
from research_stack.reporting.run_files import RunFiles

MAX_READERS = 3  # of the terminal's table and of the numbers on top


def numbers(run: RunFiles) -> dict[str, str]:
    """The few numbers on top of the page."""
    data = load(run)
    main = data.main(data.datasets[0], data.readers[0], LATENT) if data else None
    if data is None or main is None:
        return {}
    found = {"on the wire": f"{bytes_text(main.bytes)} bytes"}
    found |= {"smaller than the text": f"{main.ratio:.1f} times"} if main.ratio > 1 else {}
    for reader in data.readers[:MAX_READERS]:
        own, text = (data.main(data.datasets[0], reader, path) for path in (LATENT, TEXT))
        if own and text:
            found[f"F1, {reader}"] = f"{own.f1.value:.2f} of {text.f1.value:.2f}"
    return found


def terminal(run: RunFiles) -> list[Lines]:
    """Tables for the terminal: every path for each reader, then each data set where there are several."""
    data = load(run)
    if data is None:
        return []
    first, readers = data.datasets[0], data.readers[:MAX_READERS]
    more = f", {len(data.readers) - MAX_READERS} more in the report" if len(data.readers) > MAX_READERS else ""
    lines = [[f"F1 of answers{more}", "bytes", *(text for reader in readers for text in (reader, "95 % interval"))]]
    for path, label in LABELS.items():
        rows = [data.main(first, reader, path) for reader in readers]
        if any(rows):
            sizes = " / ".join(dict.fromkeys(bytes_text(row.bytes) for row in rows if row))
            lines.append([label, sizes, *(text for row in rows for text in f1_cells(row))])
    return [lines] if len(data.datasets) < 2 else [lines, _by_dataset(data, readers)]


def _by_dataset(data: Measurements, readers: list[str]) -> Lines:
    pairs = [(reader, path) for reader in readers for path in (LATENT, TEXT)]
    header = ["F1 by data set", *(f"{reader}, {'latents' if path == LATENT else 'text'}" for reader, path in pairs)]
    rows = [
        [dataset, *(f1_cells(data.main(dataset, reader, path))[0] for reader, path in pairs)]
        for dataset in data.datasets
    ]
    return [header, *rows]


F1 = "{:.3f}"
REPORT = Report(
    metrics={
        "latentwire/*/f1_latent": Metric("{0}, F1 from latents", better="higher", headline=True, form=F1),
        "latentwire/*/share_of_text": Metric("{0}, share of the whole text's F1", better="higher", plot=False, form=F1),
        "latentwire/*/over_text_bytes": Metric(
            "{0}, F1 over that of the same bytes of text", better="higher", plot=False, form="{:.2f}", interval=True
        ),
        "latentwire/*/first1": Metric("{0}, FirstTok@1 from latents", better="higher", plot=False, form=F1),
        "latentwire/*/exact_latent": Metric("{0}, exact match from latents", better="higher", plot=False, form=F1),
        "latentwire/*/collapse": Metric(
            "{0}, F1 above latents of another example", better="higher", plot=False, form=F1
        ),
        "latentwire/*/f1_text": Metric("{0}, F1 from the whole text", plot=False, form=F1),
        "latentwire/*/f1_text_bytes": Metric("{0}, F1 from the same bytes of text", plot=False, form=F1),
        "latentwire/*/f1_none": Metric("{0}, F1 without context", plot=False, form=F1),
        "latentwire/*/f1_shuffled": Metric("{0}, F1 from latents of another example", plot=False, form=F1),
        "latentwire/*/bytes": Metric("{0}, bytes of a message", plot=False),
        "latentwire/*/ratio": Metric("{0}, times smaller than the text", plot=False, form="{:.2f}"),
        "latentwire/*/information_bits": Metric("{0}, bits of the facts that came through", plot=False),
        "latentwire/*/information_share": Metric("{0}, those bits over the bits sent", plot=False, form=F1),
    },
    results=(scores, messages, speed, examples),
    verdict=verdict,
    numbers=numbers,
    terminal=terminal,
    sweep=sweep.REPORT,
)

"""LatentWire offline, from nothing: what two frozen readers answer from a message, beside what they answer from as many
bytes of text.

    python benchmarks/latentwire.py [overrides, as for research-stack]
    python benchmarks/latentwire.py --run FOLDER

The first trains everything in a new folder with a cache of its own: two tiny readers, then encoder and adapters; it
evaluates and writes the report. The second only reads a finished run. Printed is, for each reader: F1 from the whole
text and from the latents, the share that is left, the ratio to text of the same bytes with its 95 % interval, latents
of another example against no context; the curve of bytes and F1; the time to the first token and from which length on
the latents are faster, with the encoder and for the receiver alone; and the seconds of each part. The last line is
JSON.
"""

import argparse
import csv
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from research_stack.metrics.crossover import always_below_from

NUM_LATENTS = "[3,4,5,6]"  # further points of the curve, of one training
PARTS = {
    "readers": r"the tiny \w+ reader answers .*; (\d+) s",
    "training": r"trained \d+ steps in (\d+) s",
    "evaluation": r"eval latentwire: ([\d.]+) s",
}


def trained(folder, overrides):
    """Train and measure in `folder`, with an empty cache; seconds of the whole."""
    cache = folder / "cache"
    command = [
        sys.executable,
        "-m",
        "research_stack",
        "experiment=latentwire",
        f"eval.latentwire.num_latents={NUM_LATENTS}",
        f"hydra.run.dir={folder / 'run'}",
        *overrides,
    ]
    start = time.perf_counter()
    subprocess.run(
        command, check=True, cwd=folder, env=os.environ | {"RESEARCH_STACK_CACHE": str(cache)}, stdout=sys.stderr
    )
    return time.perf_counter() - start


def table(run, name):
    """The rows of a table, numbers as numbers; none where there is no such file."""
    path = run / "tables" / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def number(text):
    """The number that a cell holds, or its text; None where it is empty."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def seconds(run):
    """{part: seconds} by the run's log; the last evaluation counts, and readers that were in the cache cost nothing."""
    log = (run / "run.log").read_text() if (run / "run.log").is_file() else ""
    found = {part: [float(value) for value in re.findall(pattern, log)] for part, pattern in PARTS.items()}
    return {part: sum(values) if part == "readers" else values[-1] for part, values in found.items() if values}


def faster_from(rows, time_of):
    """The shortest measured context from which on latents are always faster than text; None if they are not at the
    longest.
    """
    text = {row["context_bytes"]: row["total_ms"] for row in rows if row["path"] == "text"}
    latent = [row for row in rows if row["path"] == "latent" and row["context_bytes"] in text]
    latent.sort(key=lambda row: row["context_bytes"])
    if not latent:
        return None
    lengths = [row["context_bytes"] for row in latent]
    found = always_below_from(lengths, list(map(time_of, latent)), [text[length] for length in lengths])
    return None if math.isnan(found) else found


def read(run):
    """{reader: numbers} of a run."""
    scores, pairs, times = (table(run, name) for name in ("latentwire", "latentwire_paired", "latentwire_latency"))
    if not scores:
        raise SystemExit(
            f"{run} has no tables/latentwire.csv: it was not evaluated (research-stack task=eval run={run}"
            " eval=latentwire)"
        )
    dataset, found = scores[0]["dataset"], {}
    for reader in dict.fromkeys(row["reader"] for row in scores):
        own = [row for row in scores if (row["reader"], row["dataset"]) == (reader, dataset)]
        main = {row["path"]: row for row in own if row["main"]}
        over = next(
            row
            for row in pairs
            if (row["reader"], row["dataset"], row["comparison"]) == (reader, dataset, "latent-text_bytes")
        )
        timed = [row for row in times if row["reader"] == reader]
        longest = max((row["context_bytes"] for row in timed), default=None)
        curve = sorted(
            (row["bytes"], row["path"], row["f1"])
            for row in own
            if row["path"] in ("latent", "text_bytes", "text_bytes_tail", "text_zlib")
        )
        found[reader] = {
            "f1_text": main["text"]["f1"],
            "f1_latent": main["latent"]["f1"],
            "share_of_text": ratio(main["latent"]["f1"], main["text"]["f1"]),
            "bytes": main["latent"]["bytes"],
            "smaller": main["latent"]["ratio"],
            "f1_text_bytes": main["text_bytes"]["f1"],
            "over_text_bytes": [over["ratio"], over["ratio_low"], over["ratio_high"]],
            "f1_text_tokens": main["text_tokens"]["f1"],
            "f1_shuffled": main["shuffled"]["f1"] if "shuffled" in main else None,
            "f1_none": main["none"]["f1"],
            "curve": {
                path: [[size, f1] for size, kind, f1 in curve if kind == path]
                for path in dict.fromkeys(kind for _, kind, _ in curve)
            },
            "ms_longest": {row["path"]: row["total_ms"] for row in timed if row["context_bytes"] == longest},
            "longest": longest,
            "faster_from": faster_from(timed, lambda row: row["total_ms"]),
            "receiver_faster_from": faster_from(timed, lambda row: row["receiver_ms"]),
        }
    return found


def ratio(a, b):
    """a / b; None where b is 0."""
    return a / b if b else None


def shown(value):
    """A number to three places, other things as they are."""
    if isinstance(value, float):
        return f"{value:.3g}" if value >= 100 or value == int(value) else f"{value:.3f}"
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return ", ".join(f"{key} {shown(own)}" for key, own in value.items()) if isinstance(value, dict) else str(value)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, help="a finished run: nothing is trained")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        run = arguments.run or Path(made) / "run"
        whole = {} if arguments.run else {"whole": trained(Path(made), arguments.overrides)}
        result = {"readers": read(run), "seconds": seconds(run) | whole}
    for reader, numbers in result["readers"].items():
        for name, value in numbers.items():
            rows = [f"{name} {path}" for path in value] if name == "curve" else [name]
            for row, own in zip(rows, value.values() if name == "curve" else [value], strict=True):
                print(f"{reader:8s} {row:24s} {'  '.join(map(shown, own)) if name == 'curve' else shown(own)}")
    print(f"seconds  {shown(result['seconds'])}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

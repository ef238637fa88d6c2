"""Run folders of LatentWire as its training and its evaluation leave them, with made-up numbers."""

import csv
import json
import math
import random
import zlib

import yaml

PATHS = ("latent", "shuffled", "none", "text", "text_bytes", "text_tokens")
FULL = {"llama": 0.93, "qwen": 0.99}
GUESS = {"llama": 0.11, "qwen": 0.12}
CONFIG = {
    "name": "latentwire",
    "seed": 1,
    "method": {
        "_target_": "research_stack.latentwire.module.LatentWire",
        "losses": {"first": {"weight": 0.5}, "kd": {"weight": 0.1}},
    },
    "eval": {"latentwire": {"_target_": "research_stack.latentwire.evaluation.LatentWireEvaluation"}},
    "optimization": {"clip": 1.0},
    "trainer": {"max_steps": 500},
}
HEADER = (
    "dataset,reader,path,num_latents,bits,bytes,ratio,ratio_mean,prefill_tokens,f1,f1_low,f1_high,em,em_low,em_high,"
    "share_of_text,first1,first5,first10,questions,main"
).split(",")
SHARE = HEADER.index("share_of_text")
BOTH = {"llama": 0.87, "qwen": 0.83}  # F1 of the latents at the trained setting


def write(folder, name, header, rows):
    path = folder / "tables" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def row(dataset, reader, path, num_latents, bits, size, f1, context=136.0, main="", half=0.02, first=True):
    """A line of latentwire.csv."""
    score = [f1, max(0.0, f1 - half), min(1.0, f1 + half)] if half else [f1, "", ""]
    exact = [max(0.0, value - 0.03) for value in score] if half else [f1 - 0.03, "", ""]
    firsts = [min(1.0, f1 + add) for add in (0.02, 0.08, 0.12)] if first else ["", "", ""]
    ratio = context / size if size else ""
    return [
        dataset,
        reader,
        path,
        num_latents,
        bits,
        size,
        ratio,
        ratio,
        num_latents or size / 4,
        *score,
        *exact,
        "",
        *firsts,
        1000,
        main,
    ]


def scores(readers=BOTH, dataset="qa_facts", shuffled=None, head=None, text=FULL, context=136.0, curve=True, half=0.02):
    """latentwire.csv of one data set: `readers` are the latents' F1, `head` that of the same bytes of text, `shuffled`
    of another example's latents.
    """
    rows = []
    for reader, best in readers.items():
        none, full = GUESS.get(reader, 0.11), text.get(reader, 0.95)
        other = (shuffled or {}).get(reader, none + 0.01)
        level = (head or {}).get(reader, 0.31 if reader == "llama" else 0.37)
        for num_latents, bits in [(4, 4), (8, 4), (16, 4), (8, 2), (16, 2)] if curve else [(8, 4)]:
            size = 4 + num_latents * 8 * bits / 8
            main, share = (1 if (num_latents, bits) == (8, 4) else ""), 1 - 0.35 * 8 / size + 0.35 * 8 / 36
            rows.append(
                row(
                    dataset,
                    reader,
                    "latent",
                    num_latents,
                    bits,
                    size,
                    none + (best - none) * share - 0.06 * (bits == 2),
                    context,
                    main,
                    half,
                )
            )
            rows.append(row(dataset, reader, "shuffled", num_latents, bits, size, other, context, main, half))
            rows.append(row(dataset, reader, "zeros", num_latents, bits, size, none - 0.02, context, main, half))
            spread = full * min(1.0, level / full + math.log(size / 36) * 0.25)
            rows.append(row(dataset, reader, "text_bytes", num_latents, bits, size - 0.1, spread, context, main, half))
            rows.append(
                row(
                    dataset,
                    reader,
                    "text_bytes_tail",
                    num_latents,
                    bits,
                    size - 0.1,
                    spread - 0.03,
                    context,
                    main,
                    half,
                )
            )
            rows.append(
                row(
                    dataset,
                    reader,
                    "text_zlib",
                    num_latents,
                    bits,
                    size - 1,
                    max(none, spread - 0.15),
                    context,
                    main,
                    half,
                )
            )
        for num_latents in (4, 8, 16) if curve else (8,):
            rows.append(
                row(
                    dataset,
                    reader,
                    "text_tokens",
                    num_latents,
                    "",
                    num_latents * 3.1,
                    none + 0.018 * num_latents,
                    context,
                    1 if num_latents == 8 else "",
                    half,
                )
            )
        rows.append(row(dataset, reader, "text", "", "", context, full, context, 1, half))
        rows.append(row(dataset, reader, "none", "", "", 0, none, context, 1, half, first=False))
    return rows


def with_shares(rows):
    """The rows with F1 over that of the whole text."""
    text = {(row[0], row[1]): row[9] for row in rows if row[2] == "text"}
    return [[*row[:SHARE], row[9] / text[row[0], row[1]], *row[SHARE + 1 :]] for row in rows]


def paired(rows, half=0.03):
    """latentwire_paired.csv of what `scores` made."""
    at = {(r[0], r[1], r[2]): r[9] for r in rows if r[-1] == 1}
    found = []
    for dataset, reader in dict.fromkeys((r[0], r[1]) for r in rows):
        for pair in ("latent-text_bytes", "latent-shuffled", "latent-text", "shuffled-none", "latent-text_tokens"):
            a, b = (at[dataset, reader, name] for name in pair.split("-"))
            found.append(
                [
                    dataset,
                    reader,
                    pair,
                    a - b,
                    a - b - half,
                    a - b + half,
                    0.0001 if abs(a - b) > half else 0.4,
                    a / b,
                    a / b - 0.2,
                    a / b + 0.2,
                ]
            )
    return found


LATENCY = (
    "reader,context_bytes,num_latents,path,encode_ms,adapt_ms,prefill_ms,total_ms,total_p90_ms,prefill_tokens,memory_mib"
).split(",")


def latency(readers, lengths=(68, 136, 272, 544, 1088, 2176)):
    """latentwire_latency.csv: the text's prefill grows with its length faster than the encoder's time."""
    rows = []
    for index, reader in enumerate(readers):
        for size in lengths:
            tokens = size / (3.1 + index)
            encode, adapt, prefill = 2.1 + 0.0012 * size, 0.3, 1.2
            rows.append(
                [
                    reader,
                    size,
                    8,
                    "latent",
                    encode,
                    adapt,
                    prefill,
                    encode + adapt + prefill,
                    1.3 * (encode + adapt + prefill),
                    8 + 9,
                    210.5,
                ]
            )
            text = 2.0 + 0.075 * tokens
            rows.append([reader, size, "", "text", 0, 0, text, text, 1.25 * text, tokens + 9, 220.25 + tokens / 10])
    return rows


SPEED = (
    "reader,num_latents,faster_from_bytes,faster_somewhere,shortest_bytes,longest_bytes,long_context_bytes,latent_ms,"
    "text_ms"
).split(",")


def speed(readers):
    """latentwire_speed.csv."""
    return [[reader, 8, 136, 1, 68, 2176, 99.2 + 32 * i, 3.719 + 0.04 * i, 4.4] for i, reader in enumerate(readers)]


FACTS = (
    "Mira lives in Oslo. Mira eats rice. Mira has a red bike. Mira plays the cello. Mira works as a baker. Mira likes"
    " green tea on rainy Mondays."
)


def examples(readers, context=FACTS, question="What does Mira eat?", answers="rice", dataset="qa_facts"):
    """latentwire_examples.csv of one question."""
    said = {
        "latent": "Rice.",
        "shuffled": "tea",
        "none": "a bike",
        "text": "rice",
        "text_bytes": "rice",
        "text_tokens": "Oslo",
    }
    return [
        [
            dataset,
            reader,
            context,
            question,
            answers,
            *said.values(),
            "latent text text_bytes",
            "".join(f"{i * (n + 3) % 256:02x}" for i in range(36)),
        ]
        for n, reader in enumerate(readers)
    ]


EXAMPLES = ["dataset", "reader", "context", "question", "answers", *PATHS, "exact", "message_hex"]
PARTS = [["header", 3, 3], ["values", 32, 48], ["scales", 0, 0], ["checksum", 1, 1]]


def question_scores(readers, shift=0.0, seed=1, count=200, dataset="qa_facts", move=0):
    """latentwire_scores.csv: each question's F1 by latents; `shift` makes answers right that were not, `seed` is a
    run's own noise.
    """
    rows = []
    for reader, level in readers.items():
        for n in range(move, count + move):
            hard = random.Random(zlib.crc32(f"{reader}{n}".encode())).random()
            noise = random.Random(zlib.crc32(f"{reader}{n}/{seed}/{shift}".encode())).gauss(0, 0.05)
            right = float(hard + noise < level + shift)
            rows.append([dataset, reader, "latent", f"q{n}", right, right])
            rows.append([dataset, reader, "text", f"q{n}", 1.0, 1.0])
    return rows


def history(steps, readers, parts=("first", "answer", "kd")):
    """metrics.jsonl."""
    rng, rows = random.Random(0), []
    for step in range(1, steps + 1):
        fall = math.exp(-step / (steps / 4))
        line = {
            "step": step,
            "time": 0.25 * step,
            "train/loss": 1 + 4 * fall + rng.gauss(0, 0.1),
            "train/grad_norm": math.exp(rng.gauss(-0.4, 0.3)),
            "train/lr": 0.003,
        }
        line |= {
            f"train/loss_{part}": (0.4 + 3 * fall) * (i + 1) / 2 + abs(rng.gauss(0, 0.08))
            for i, part in enumerate(parts)
        }
        line |= {
            f"train/first1_{reader}": min(1.0, max(0.0, 0.85 - 0.05 * i - 0.75 * fall + rng.gauss(0, 0.06)))
            for i, reader in enumerate(readers)
        }
        line |= {"train/collapse": 0.75 - 0.75 * fall + rng.gauss(0, 0.06)}
        if step % (steps // 5) == 0:
            line |= {"val/loss": 1.05 + 4 * fall, "val/loss_first": 0.25 + 1.5 * fall} | {
                f"val/first1_{reader}": 0.8 - 0.7 * fall for reader in readers
            }
        rows.append(line)
    return rows


def make_wire(
    folder,
    readers=BOTH,
    seed=1,
    rows=None,
    status="ok",
    evaluated=True,
    overrides=(),
    method=None,
    steps=500,
    shift=0.0,
    move=0,
    first1=None,
    **options,
):
    """A run folder; `options` go to `scores`, `shift` and `move` to `question_scores`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(CONFIG | {"seed": seed, "method": CONFIG["method"] | (method or {})}, sort_keys=False)
    )
    (folder / "run.json").write_text(
        json.dumps(
            {
                "command": "research-stack experiment=latentwire",
                "name": "latentwire",
                "seed": seed,
                "overrides": list(overrides),
            }
        )
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history(steps, readers)))
    metrics = {}
    if evaluated:
        rows = with_shares(rows or scores(readers, **options))
        write(folder, "latentwire", HEADER, rows)
        write(
            folder,
            "latentwire_paired",
            "dataset,reader,comparison,difference,low,high,p,ratio,ratio_low,ratio_high".split(","),
            paired(rows),
        )
        write(folder, "latentwire_latency", LATENCY, latency(readers))
        write(folder, "latentwire_speed", SPEED, speed(readers))
        write(folder, "latentwire_bytes", ["part", "reader_bytes", "broadcast_bytes"], PARTS)
        write(folder, "latentwire_examples", EXAMPLES, examples(readers))
        asked = question_scores(readers, shift, seed, move=move)
        write(folder, "latentwire_scores", ["dataset", "reader", "path", "question", "f1", "em"], asked)
        for reader in readers:
            own = [line[4] for line in asked if line[1] == reader and line[2] == "latent"]
            f1, text = sum(own) / len(own), FULL.get(reader, 0.95)
            found = {
                "f1_latent": f1,
                "f1_text": text,
                "share_of_text": f1 / text,
                "over_text_bytes": f1 / 0.34,
                "over_text_bytes_low": f1 / 0.36,
                "over_text_bytes_high": f1 / 0.32,
                "f1_shuffled": 0.12,
                "f1_none": 0.11,
                "first1": (first1 or {}).get(reader, f1),
                "bytes": 36.0,
                "ratio": 136 / 36,
            }
            metrics |= {f"latentwire/{reader}/{key}": value for key, value in found.items()}
    result = {
        "status": status,
        "hash": "3f1b2c4d5e6f",
        "metrics": metrics,
        "seconds": 178.2,
        "started": "2026-11-21T00:40:11+00:00",
        "finished": f"2026-11-21T00:43:{seed:02d}+00:00",
        "steps": steps,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder

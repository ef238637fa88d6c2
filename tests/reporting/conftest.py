"""Run folders as training leaves them, without training."""
from __future__ import annotations

import csv
import json
import math
import random

import pytest

WORDS = ("The function returns a new list of the items that are in the given mapping , and raises ValueError if "
         "no key is found . When the argument is None the default value of the module is used instead").split()  # fmt: skip


def metrics_rows(steps, seed=0, start=7.6, end=4.6, spike=None):
    """A loss that falls and settles, a norm that follows, a validation every hundred steps."""
    rng, rows = random.Random(seed), []
    for step in range(1, steps + 1):
        loss = end + (start - end) * math.exp(-step / (steps / 6)) + rng.gauss(0, 0.18)
        norm = math.exp(rng.gauss(-0.4, 0.3)) * (1 + 6 * math.exp(-step / 20))
        if spike and step == spike:
            loss, norm = loss + 9, norm * 60
        row = {"step": step, "time": 0.25 * step, "train/loss": loss, "train/grad_norm": norm, "train/lr": 0.003}
        if step % (steps // 7) == 0:
            row["val/loss"] = end + 0.05 + (start - end) * math.exp(-step / (steps / 6))
        rows.append(row)
    return rows


def fake_film(name, length=64, steps=24, seed=0, edits=True, text=None):
    """A text that grows from masks and, with edits, is rewritten here and there."""
    rng = random.Random(seed)
    pieces = ["▒", *(" " + word for word in (text or WORDS))]
    tokens, frames = [0] * length, []
    order = rng.sample(range(length), length)
    for step in range(steps + 1):
        states = [0 if token == 0 else 1 for token in tokens]
        if step:
            for place in order[(step - 1) * length // steps : step * length // steps]:
                tokens[place], states[place] = rng.randrange(1, len(pieces)), 2
            filled = [i for i, token in enumerate(tokens) if token and states[i] == 1]
            for place in rng.sample(filled, min(len(filled), 2)) if edits else ():
                tokens[place], states[place] = rng.randrange(1, len(pieces)), 3
        frames.append({"tokens": list(tokens), "states": list(states)})
    text = "".join(pieces[token] for token in tokens)
    return {"sampler": name, "prompt": "", "text": text, "calls": steps, "steps": steps, "seed": 1,
            "states": ["mask", "kept", "filled", "changed", "prompt"], "pieces": pieces, "frames": frames}  # fmt: skip


LIKELIHOOD = [
    ("hybrid p_u=0.05 (matched)", "upper bound, headline", 4.912, 4.861, 4.963), ("absorbing", "upper bound", 5.034, 4.98, 5.088),
    ("unigram", "baseline", 6.421, 6.371, 6.471), ("trigram", "baseline", 5.288, 5.241, 5.335),
]  # fmt: skip
CONFIG = {
    "name": "flowlm", "seed": 1,
    "method": {"_target_": "research_stack.flowlm.module.FlowLM", "loss": {"positions": "all", "weight": "none", "normalize": "positions"}},
    "corruption": {"_target_": "research_stack.corruption.modes.Absolute", "mask_ratio": [0.0, 0.9], "corruption_rate": [0.0, 0.1]},
    "trainer": {"max_steps": 700}, "optimization": {"lr": 0.003, "clip": 1.0},
}  # fmt: skip
RUN = {
    "command": "research-stack corruption.mask_ratio=[.0,.9]", "name": "flowlm", "seed": 1, "hash": "3f1b2c4d5e6f",
    "git": {"sha": "0123456789abcdef0123456789abcdef01234567", "branch": "main", "dirty": True, "untracked": [], "diff": "diff.patch"},
    "python": "3.12.4", "versions": {"torch": "2.13.0", "lightning": "2.6.6", "hydra-core": "1.3.8"},
    "machine": {"host": "box", "platform": "Linux", "cpu": "AMD EPYC 9B45", "cores": 2, "memory_gib": 7.8, "cpu_flags": ["avx512_bf16"], "gpus": []},
    "data": {"fingerprint": "0dc573dd73d557edf75a", "vocab_size": 2048, "sequence_length": 128, "train_documents": 5102,
             "train_tokens": 604123, "validation_tokens": 31877, "bytes_per_token": 3.4113},
    "model": {"parameters": 3412224, "trained": 3412224, "state_bytes": 54595584},
}  # fmt: skip


def write_likelihood(folder, rows=LIKELIHOOD):
    path = folder / "tables" / "likelihood.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "kind", "nats_per_token", "low", "high", "perplexity", "bits_per_byte", "sequences", "tokens"])
        for name, kind, value, low, high in rows:
            writer.writerow([name, kind, value, low, high, math.exp(value), value / math.log(2) / 3.4113, 256, 31877])


def make_run(folder, status="ok", steps=700, error=None, config=None, metrics=None, evaluated=True, samples=None, seed=0, **curve):
    """A run folder; `samples` are (sampler, prompt, text)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config or CONFIG
    import yaml

    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "run.json").write_text(json.dumps(RUN | {"seed": config["seed"]}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics_rows(steps, seed, **curve)))
    found = {"likelihood/bound": 4.912, "likelihood/bound_low": 4.861, "likelihood/bound_high": 4.963, "likelihood/perplexity": math.exp(4.912),
             "likelihood/bits_per_byte": 2.077, "likelihood/unigram": 6.421, "likelihood/trigram": 5.288, "likelihood/gain_over_trigram": 0.376,
             "likelihood/gain_low": 0.341, "likelihood/gain_high": 0.411}  # fmt: skip
    for name, calls, changed in (("llada", 64.0, 0.0), ("flowlm", 24.0, 0.161)):
        found |= {f"samples/{name}/calls": calls, f"samples/{name}/distinct_2": 0.83, f"samples/{name}/entropy": 3.6,
                  f"samples/{name}/changed": changed, f"samples/{name}/idle": 0.04}  # fmt: skip
    result = {"status": status, "hash": "3f1b2c4d5e6f", "metrics": (metrics or found) if evaluated else {}, "seconds": 178.2,
              "started": "2026-11-21T00:40:11+00:00", "finished": "2026-11-21T00:43:09+00:00", "steps": steps}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result | ({"error": error} if error else {})))
    if evaluated:
        write_likelihood(folder)
        texts = samples or [(name, "", fake_film(name, seed=s)["text"]) for name in ("llada", "flowlm") for s in range(3)]
        rows = [{"sampler": s, "prompt": p, "text": t, "calls": 24, "steps": 24, "seed": 1} for s, p, t in texts]
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "films").mkdir(exist_ok=True)
        for name, edits in (("llada", False), ("flowlm", True)):
            (folder / "films" / f"{name}.json").write_text(json.dumps(fake_film(name, edits=edits)))
    return folder


@pytest.fixture
def run_folder():
    """Makes a run folder, see `make_run`."""
    return make_run


@pytest.fixture
def base_config():
    """The config that `make_run` saves by default."""
    return CONFIG

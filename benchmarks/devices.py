"""Several devices: nine experiments on one process and on two, side by side.

    python benchmarks/devices.py [--experiments flowlm,grpo] [--ways ddp,fsdp] [--steps 4]

Each experiment is trained a few steps in the smallest size, in float32, by one process and, on the same global batches,
by two (gloo) in each of four ways: ddp and fsdp, each with and without accumulation. All runs of two processes share
one pair of processes. The table shows loss and gradient norm of the last step and `off`, the largest relative
difference of a loss or gradient norm to that of one process in any step; `one+accumulate` is one process that cuts its
batch.
`tests/slow/test_devices.py` holds the same runs to limits. A way that is refused, or fails, says why.
"""

import argparse
import json
import logging
import math
import os
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

TINY = [
    f"method.readers.{reader}.{size}"
    for reader in ("llama", "qwen")
    for size in ("steps=2", "batch_size=2", "dim=32", "layers=1", "heads=2", "vocab_size=300")
]
POLICY = ["model=smoke", "model.causal=true", "callbacks=default", "method.rollouts.max_completion_length=6"]
#: Overrides that make an experiment small, and where its numbers depend on chance, ones under which no number may.
EXPERIMENTS = {
    "flowlm": ["model=smoke", "data=smoke"],
    "llada": ["model=smoke", "data=smoke"],
    "minigpt": ["model=smoke", "data=smoke", "model.causal=true"],
    "lookahead": ["model=smoke", "data=smoke", "model.causal=true", "model.condition_dim=23", "model.spared=8"],
    "sft": ["model=smoke", "model.causal=true", "callbacks=default", "data.batch_size=16"],
    "polychromic": [
        *POLICY,
        "data.batch_size=16",
        "method.num_generations=4",
        "method.advantage.size=2",
        "method.diversity_start=0.25",
        "method/reward=heuristic",
        "method.reward.rewards.length.unit=characters",
    ],
    "grpo": [
        *POLICY,
        "data.batch_size=4",
        "method.num_generations=4",
        "method/reward=heuristic",
        "method.reward.rewards.length.unit=characters",
        "method.beta=0.1",
        "method.ref_model_sync_steps=2",
        "method.entropy_coef=0.01",
        "method.num_mini_batches=2",
        "method.num_groups=2",
    ],
    "reward": ["data.source.count=200", "data.batch_size=16"],
    "latentwire": [*TINY, "model.dim=32", "model.layers=1", "data.batch_size=4", "data.sources.qa_facts.contexts=60"],
}
#: By name: overrides. Two processes take them all, with shards or without.
ONE = {"one": [], "one+accumulate": ["optimization.accumulate=2"]}
TWO = {
    "ddp": ["hardware=cpu_ddp", "hardware.strategy=ddp"],
    "ddp+accumulate": ["hardware=cpu_ddp", "hardware.strategy=ddp", "optimization.accumulate=2"],
    "fsdp": ["hardware=cpu_ddp", "hardware.strategy=fsdp"],
    "fsdp+accumulate": ["hardware=cpu_ddp", "hardware.strategy=fsdp", "optimization.accumulate=2"],
}
SHARED = [
    "eval=none",
    "trainer=smoke",
    "callbacks.checkpoints.every=1000",
    "optimization.ema=0",
    "hardware.precision=32",
    "hardware.threads=1",
]


def save_encoder(folder):
    """A random BERT of a few words, so that nothing has to be installed for the embeddings of the reward model."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=260, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(folder)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(
        models.BPE(
            {"[PAD]": 0, "[UNK]": 1} | {letter: i + 2 for i, letter in enumerate(sorted(alphabet))},
            [],
            unk_token="[UNK]",
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def prepare(place, experiments, ways, steps=4, more=()):
    """Folders of runs that are ready to train: {way: {experiment: folder}}."""
    from research_stack import compose
    from research_stack.records.files import write_json
    from research_stack.records.run_folder import RunFolder

    found = {}
    encoder = place / "encoder"
    if "reward" in experiments and not encoder.is_dir():
        save_encoder(encoder)
    for way, overrides in ways.items():
        for name in experiments:
            own = [*EXPERIMENTS[name], *([f"data.encoder.path={encoder}"] if name == "reward" else [])]
            cfg = compose(
                [
                    f"experiment={name}",
                    *own,
                    *SHARED,
                    f"trainer.max_steps={steps}",
                    f"trainer.val_check_interval={steps}",
                    *overrides,
                    *more,
                ]
            )
            folder = found.setdefault(way, {})[name] = place / way / name
            folder.mkdir(parents=True)
            RunFolder(folder).write_config(cfg)
            write_json(folder / "run.json", {})
    return found


def train(folders):
    """Train the saved config of each folder in this process, one among others or alone; errors go to the folder."""
    from omegaconf import OmegaConf

    from research_stack.running.fit import fit

    rank = os.environ.get("RANK", "0")
    for folder in folders:
        if "torch._dynamo" in sys.modules:
            sys.modules[
                "torch._dynamo"
            ].reset()  # what is compiled for one experiment does not count among another's variants
        started = time.monotonic()
        try:
            fit(OmegaConf.load(folder / "config.yaml"), folder)
        except Exception as error:  # one that fails must not keep the others
            text = str(error) if isinstance(error, ValueError | OSError) else traceback.format_exc()
            (folder / f"error.{rank}").write_text(text)
        if rank == "0":
            (folder / "seconds").write_text(f"{time.monotonic() - started:.3f}")


def train_on_two(folders):
    """Train them in two processes that are started once; raises RuntimeError when these end badly."""
    import subprocess

    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        "--train",
        *map(str, folders),
    ]
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"two processes ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def error_of(folder):
    """What a rank says of why the run failed; None where it did not."""
    return next((path.read_text() for path in sorted(folder.glob("error.*"))), None)


def numbers(folder):
    """[(loss, gradient norm), ...] of the steps."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["train/loss"], row["train/grad_norm"]) for row in rows if "train/loss" in row]


def off(found, reference):
    """The largest relative difference of a number to that of the reference; infinite where steps are missing."""
    if len(found) != len(reference) or not found:
        return math.inf
    return max(
        abs(a - b) / max(abs(b), 1e-6)
        for one, other in zip(found, reference, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def run_all(place, experiments, ways, steps=4, more=()):
    """{way: {experiment: folder}}, all trained: `one` and what one process does here, the rest in two processes."""
    found = prepare(place, experiments, ways, steps, more)
    with redirect_stdout(StringIO()):
        train([folder for way in found if way in ONE for folder in found[way].values()])
    on_two = [folder for way in found if way in TWO for folder in found[way].values()]
    if on_two:
        train_on_two(on_two)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS))
    parser.add_argument("--ways", default=",".join([*ONE, *TWO][1:]))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="a new folder that the runs are left in")
    parser.add_argument("more", nargs="*", help="further overrides of all runs")
    given = parser.parse_args()
    ways = {way: (ONE | TWO)[way] for way in ["one", *given.ways.split(",")]}
    started = time.monotonic()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        found = run_all(given.keep or Path(scratch), given.experiments.split(","), ways, given.steps, given.more)
        table = {name: {way: measured(found[way][name], found["one"][name]) for way in ways} for name in found["one"]}
    print(f"{'experiment':<12} {'way':<17} {'loss':>12} {'gradient norm':>14} {'off':>9} {'seconds':>8}")
    for name, row in table.items():
        for way, cell in row.items():
            if "error" in cell:
                print(f"{name:<12} {way:<17} {cell['error'].strip().splitlines()[-1][:300]}")
            else:
                print(
                    f"{name:<12} {way:<17} {cell['loss']:>12.6f} {cell['grad_norm']:>14.6f} {cell['off']:>9.1e}"
                    f" {cell['seconds']:>8.1f}"
                )
    worst = max((cell["off"] for row in table.values() for cell in row.values() if "off" in cell), default=math.nan)
    print(json.dumps({"worst": worst, "seconds": round(time.monotonic() - started, 1), "table": table}))


def measured(folder, reference):
    """A cell of the table."""
    if (error := error_of(folder)) is not None:
        return {"error": error}
    rows = numbers(folder)
    return {
        "loss": rows[-1][0],
        "grad_norm": rows[-1][1],
        "off": off(rows, numbers(reference)),
        "seconds": float((folder / "seconds").read_text()),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        from research_stack.running.worker import leave

        train([Path(folder) for folder in sys.argv[2:]])
        leave(0)
    main()

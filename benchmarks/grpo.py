"""GRPO: seconds a step and generated tokens per second, ours against TRL's GRPOTrainer, and what set-marginal
advantages cost.

    python benchmarks/grpo.py [--precision auto|32|bf16-mixed] [--threads 1] [--prompts 8] [--group 16] [--length 32]
    [--width 128]

needs the extra `bench` (TRL). Three kinds, each in a process of its own, in turn, so that drifts of the machine hit
all: `trl` is its GRPOTrainer and `hf` is ours, both on the same saved Qwen3 with random weights; `own` is ours on the
stack's own Transformer of the same sizes. All draw as many completions of the same prompts at temperature 1, of exactly
the same length (no model can end a text), take the same reward, the same advantages and loss (dapo, beta 0, one pass)
and AdamW, in the same precision and with the same threads. TRL has its fastest settings for this: the whole batch in
one pass, no gradient checkpointing, logging every 10 steps; ours logs every step. A step is the time from the end of
one to the end of the next, all of it.

The split of a step: rollout (TRL's `_generate_single_turn`), reward (the rest of what makes the batch: texts, rewards,
advantages; TRL's `_prepare_inputs`) and learning: forward, backward, optimizer, with all that is left.

In `own` the advantage changes from step to step: GroupRelative, pass@k and the polychromic one, exact in both scales.
Its time is that of the call, and `step_ratio` the median step with it over that with GroupRelative.

Two workloads: `short` prompts (a third of the tokens of a text) and `long` ones (most of them). What bounds them: a
short workload's learning is products and activations of a small model, the same for both on the same model; its rollout
is calls, and there ours makes no masks and runs no logits processors. Long prompts are read by TRL once for each
completion, in the rollout and again in the loss. `cpu_ratio` compares the seconds of CPU, which other work on the
machine changes less than those of the clock. `share_of_peak` counts 4 forward passes over every token of every text
(one to write, three to learn), read or not.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM = 3  # steps that are not counted
WORKLOADS = {
    "short": {"numbers": 2, "steps": 15},
    "long": {"numbers": 20, "steps": 11},
}  # numbers that a prompt adds up, steps of a process
LR = 1e-4
PARTS = ("rollout", "reward", "learning")
KINDS = ("trl", "hf", "own")


def reward():
    """Worth more the longer the text is in characters: it tells completions of as many tokens apart."""
    from research_stack.posttraining.rewards.heuristic import Length

    return Length(0, 10_000, 10_000, 10_000, unit="characters")


# What all kinds share -----------------------------------------------------------------------------------------------


def prompts(numbers, count=256):
    """Sums of so many numbers and up to two more: prompts of unequal lengths."""
    return [
        "what is " + " + ".join(str((i + 7) * (k + 3) ** 3 % 9973) for k in range(numbers + i % 3)) + " ?"
        for i in range(count)
    ]


def make(folder, size):
    """Save prompts, a tokenizer and a model in the folder; the model's three special tokens are never its
    prediction.
    """
    import tokenizers
    import torch
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    special = ["<mask>", "<pad>", "<end>"]
    codec = tokenizers.Tokenizer(models.BPE())
    codec.pre_tokenizer, codec.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    codec.train_from_iterator(
        prompts(5, 4096),
        trainers.BpeTrainer(
            vocab_size=size["vocab"], special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    torch.manual_seed(0)
    width = size["width"]
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=codec.get_vocab_size(),
            hidden_size=width,
            intermediate_size=ffn(width),
            num_hidden_layers=size["layers"],
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=width // 4,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            eos_token_id=2,
            pad_token_id=1,
            bos_token_id=None,
        )
    )
    with torch.no_grad():  # the first coordinate of every hidden state is large, and only these three look at it
        model.model.embed_tokens.weight[:, 0] = 4.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[:3] = 0.0
        model.lm_head.weight[:3, 0] = -50.0
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=codec, mask_token="<mask>", pad_token="<pad>", eos_token="<end>"
    ).save_pretrained(folder)
    (folder / "prompts.txt").write_text("\n".join(prompts(size["numbers"])) + "\n")


def ffn(width):
    """8/3 of the width, as the stack's own Transformer has it."""
    return -(-8 * width // (32 * 3)) * 32


class Clock:
    """Seconds of the steps and of their parts, and the tokens that were written in each."""

    def __init__(self):
        self.last, self.last_cpu, self.rows, self.now = time.perf_counter(), time.process_time(), [], {}

    def timed(self, owner, method, name):
        """Let calls of the owner's method count as this part."""
        inner = getattr(owner, method)

        def outer(*arguments, **options):
            start = time.perf_counter()
            result = inner(*arguments, **options)
            self.now[name] = self.now.get(name, 0.0) + time.perf_counter() - start
            return result

        setattr(owner, method, outer)

    def tick(self, tokens):
        """A step has ended."""
        now, batch, rollout = time.perf_counter(), self.now["batch"], self.now["rollout"]
        step, cpu = now - self.last, time.process_time()
        self.rows.append(
            {
                "step": step,
                "cpu": cpu - self.last_cpu,
                "rollout": rollout,
                "reward": batch - rollout,
                "learning": step - batch,
                "tokens": tokens,
            }
        )
        self.last, self.last_cpu, self.now = now, cpu, {}


def run_trl(folder, size, steps):
    """(clock, trainer) of TRL's training."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(size["threads"])
    clock, made, worth = Clock(), [], reward()

    def score(prompts, completions, completion_ids, **_):
        made.append(sum(map(len, completion_ids)))
        return worth(prompts, completions).tolist()

    class Ticks(TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.tick(made[-1])

    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=size["prompts"] * size["group"],
        num_generations=size["group"],
        max_completion_length=size["length"],
        max_steps=steps,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        adam_beta2=0.95,
        optim="adamw_torch_fused",
        bf16=size["precision"] == "bf16-mixed",
        fp16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False),
        processing_class=AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        args=config,
        reward_funcs=score,
        callbacks=[Ticks()],
        train_dataset=Dataset.from_dict({"prompt": prompts(size["numbers"])}),
    )
    clock.timed(trainer, "_generate_single_turn", "rollout")
    clock.timed(trainer, "_prepare_inputs", "batch")
    trainer.train()
    return clock, trainer


class Rotating:
    """Another advantage at each step, with a stopwatch."""

    needs = "kinds"

    def __init__(self):
        from research_stack.posttraining.advantages import GroupRelative, SetMarginal

        self.members = {"group": GroupRelative(), "pass_at_k": SetMarginal("max", 4, scale="sigma"),
                        "polychromic_unbiased": SetMarginal("polychromic", 4, scale="unbiased"),
                        "polychromic_sigma": SetMarginal("polychromic", 4, scale="sigma")}  # fmt: skip
        self.rows = []

    def check(self, group):
        for advantage in self.members.values():
            advantage.check(group)

    def __call__(self, *arguments):
        name = list(self.members)[len(self.rows) % len(self.members)]
        start = time.perf_counter()
        found = self.members[name](*arguments)
        self.rows.append((name, time.perf_counter() - start))
        return found


def overrides(kind, folder, size, steps):
    """The config of a run of ours."""
    hf = ["model=hf_causal", f"model.path={folder}"]
    own = [
        "model=micro",
        f"model.dim={size['width']}",
        f"model.layers={size['layers']}",
        "model.heads=4",
        "model.kv_heads=2",
        "model.qk_norm=true",
        f"model.ffn_dim={ffn(size['width'])}",
        "model.tie_embeddings=false",
        "model.max_length=512",
    ]
    return [
        "experiment=grpo",
        "callbacks=default",
        "eval=none",
        *(hf if kind == "hf" else own),
        "data=prompts",
        f"data.path={folder / 'prompts.txt'}",
        "data.sequence_length=256",
        "data/tokenizer=pretrained",
        f"data.tokenizer.path={folder}",
        f"data.batch_size={size['prompts']}",
        f"data.cache_dir={folder / 'cache'}",
        "method/reward=heuristic",
        f"method.num_generations={size['group']}",
        f"method.rollouts.max_completion_length={size['length']}",
        f"trainer.max_steps={steps}",
        "trainer.val_check_interval=1000000",
        "callbacks.checkpoints.every=1000000",
        f"optimization.lr={LR}",
        "optimization.warmup_steps=0",
        f"hardware.threads={size['threads']}",
        f"hardware.precision={size['precision']}",
    ]


def run_ours(kind, folder, size, steps):
    """(clock, method) of the training that `research-stack` runs, its logger included."""
    from research_stack import compose
    from research_stack.posttraining.rollout import Rollouts
    from research_stack.records import provenance
    from research_stack.records.run_folder import RunFolder
    from research_stack.running import fit

    clock, place, assemble, found = Clock(), RunFolder(folder / f"{kind}-{time.time_ns()}"), fit.assemble, []

    def changed(cfg):
        parts = assemble(cfg)
        method = parts.method
        found.append(method)
        method.reward = reward()
        method.bias_V[method.vocab.end] = -float("inf")  # as little as TRL's model can
        method.advantage = Rotating() if kind == "own" else method.advantage
        step = method.training_step

        def training_step(*arguments):
            loss = step(*arguments)
            clock.tick(int(method.rows["completion_length"].sum()))
            return loss

        method.training_step = training_step
        clock.timed(method, "experience", "batch")
        return parts

    fit.assemble = changed
    clock.timed(Rollouts, "__call__", "rollout")
    cfg = compose(overrides(kind, folder, size, steps))
    place.write_config(cfg)
    provenance.begin(place.path, cfg)
    fit.fit(cfg, place.path)
    return clock, found[0]


def measure(kind, folder, size, steps):
    """One JSON line: the counted steps, and what else the kind tells."""
    if kind == "trl":
        clock, trainer = run_trl(folder, size, steps)
        return {"rows": clock.rows[WARM:], "parameters": sum(p.numel() for p in trainer.model.parameters())}
    clock, method = run_ours(kind, folder, size, steps)
    width = float(method.rows["prompt_length"].float().mean())
    length = round(width) + size["length"]
    found = {
        "prompt_tokens": width,
        "rows": clock.rows[WARM:],
        "parameters": sum(p.numel() for p in method.parameters()),
        "flops": size["prompts"] * length * method.training_flops(length),
    }
    return found | ({"advantages": method.advantage.rows[WARM:]} if kind == "own" else {})


# The table ----------------------------------------------------------------------------------------------------------


def in_process(kind, folder, size, steps):
    """`measure` in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--kind",
        kind,
        "--folder",
        str(folder),
        "--size",
        json.dumps(size),
        "--steps",
        str(steps),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_flops(precision, threads, size=2048):
    """FLOP/s of a square matrix product: the best of five."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2, size, size).to(torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def median(rows, name="step"):
    """Of one number of the steps."""
    return statistics.median(row[name] for row in rows)


def summary(kind, rounds):
    """Medians over the steps of all rounds."""
    rows = [row for found in rounds for row in found[kind]["rows"]]
    numbers = {
        "seconds": median(rows),
        "tokens_per_second": median(rows, "tokens") / median(rows),
        "tokens_a_step": median(rows, "tokens"),
    }
    return numbers | {name: median(rows, name) for name in (*PARTS, "cpu")}


def of_advantages(rounds):
    """{name: milliseconds of the call, its share of the step, the step over that with GroupRelative}."""
    calls, steps = {}, {}
    for found in rounds:
        for (name, seconds), row in zip(found["own"]["advantages"], found["own"]["rows"], strict=True):
            calls.setdefault(name, []).append(seconds)
            steps.setdefault(name, []).append(row["step"])
    plain = statistics.median(steps["group"])
    return {
        name: {
            "ms": round(1000 * statistics.median(calls[name]), 3),
            "share": round(statistics.median(calls[name]) / statistics.median(steps[name]), 5),
            "step_ratio": round(statistics.median(steps[name]) / plain, 3),
        }
        for name in calls
    }


def compared(size, steps, rounds):
    """The numbers of one workload."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, size)
        runs = [{kind: in_process(kind, folder, size, steps) for kind in KINDS} for _ in range(rounds)]
    found = {kind: summary(kind, runs) for kind in KINDS}
    each = {
        kind: [round(median(one["trl"]["rows"]) / median(one[kind]["rows"]), 2) for one in runs]
        for kind in ("hf", "own")
    }
    peak, trl = peak_flops(size["precision"], size["threads"]), found["trl"]
    result = {"prompt_tokens": round(runs[0]["own"]["prompt_tokens"], 1), "peak_gflops": round(peak / 1e9)}
    for kind in ("hf", "own"):
        ratios = {"": "seconds", **{f"{part}_": part for part in (*PARTS, "cpu")}}
        result |= {
            f"{kind}_{name}ratio_to_trl": round(trl[key] / found[kind][key], 2) for name, key in ratios.items()
        } | {f"{kind}_ratio_by_round": each[kind]}
    for kind in KINDS:
        facts, numbers = runs[0][kind], found[kind]
        result |= {
            f"{kind}_seconds": round(numbers["seconds"], 4),
            f"{kind}_tokens_per_second": round(numbers["tokens_per_second"]),
            f"{kind}_tokens_a_step": int(numbers["tokens_a_step"]),
        }
        result |= {f"{kind}_{part}_seconds": round(numbers[part], 4) for part in PARTS} | {
            f"{kind}_parameters": facts["parameters"]
        }
        if "flops" in facts:
            result |= {f"{kind}_share_of_peak": round(facts["flops"] / numbers["seconds"] / peak, 3)}
    for name, numbers in of_advantages(runs).items():
        result |= {f"{name}_{key}": value for key, value in numbers.items()}
    return result


def main():
    parser = argparse.ArgumentParser()
    for name, default in {
        "prompts": 8,
        "group": 16,
        "length": 32,
        "width": 128,
        "layers": 4,
        "vocab": 512,
        "threads": 1,
        "rounds": 2,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=["auto", "32", "bf16-mixed"], default="auto")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--steps", type=int, help="of a process, instead of the workload's")
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size", type=json.loads)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.folder, options.size, options.steps)))
        return
    from research_stack.running.hardware import Hardware

    size = {
        name: getattr(options, name) for name in ("prompts", "group", "length", "width", "layers", "vocab", "threads")
    }
    size["precision"] = Hardware(precision=options.precision).resolved_precision().removesuffix("-true")
    result = dict(size)
    for name in options.workloads:
        found = compared(
            size | {"numbers": WORKLOADS[name]["numbers"]}, options.steps or WORKLOADS[name]["steps"], options.rounds
        )
        result |= {f"{name}_{key}": value for key, value in found.items()}
    for name, value in result.items():
        print(f"{name:40s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

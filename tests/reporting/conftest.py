"""Run folders as training leaves them, without training."""

from __future__ import annotations

import csv
import json
import math
import random

import pytest

WORDS = (
    "The function returns a new list of the items that are in the given mapping , and raises ValueError if "
    "no key is found . When the argument is None the default value of the module is used instead"
).split()


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
    pieces = ["▒", *(" " + word for word in text or WORDS)]
    tokens, frames = [0] * length, []
    order = rng.sample(range(length), length)
    for step in range(steps + 1):
        states = [0 if token == 0 else 1 for token in tokens]
        if step:
            for position in order[(step - 1) * length // steps : step * length // steps]:
                tokens[position], states[position] = rng.randrange(1, len(pieces)), 2
            filled = [i for i, token in enumerate(tokens) if token and states[i] == 1]
            for position in rng.sample(filled, min(len(filled), 2)) if edits else ():
                tokens[position], states[position] = rng.randrange(1, len(pieces)), 3
        frames.append({"tokens": list(tokens), "states": list(states)})
    text = "".join(pieces[token] for token in tokens)
    return {"sampler": name, "prompt": "", "text": text, "calls": steps, "steps": steps, "seed": 1,
            "states": ["mask", "kept", "filled", "changed", "prompt"], "pieces": pieces, "frames": frames}  # fmt: skip


LIKELIHOOD = [
    ("hybrid p_u=0.05 (matched)", "upper bound, headline", 4.912, 4.861, 4.963),
    ("absorbing", "upper bound", 5.034, 4.98, 5.088),
    ("unigram", "baseline", 6.421, 6.371, 6.471),
    ("trigram", "baseline", 5.288, 5.241, 5.335),
]
CONFIG = {
    "name": "flowlm",
    "seed": 1,
    "method": {
        "_target_": "research_stack.flowlm.module.FlowLM",
        "loss": {"positions": "all", "weight": "none", "normalize": "positions"},
    },
    "corruption": {
        "_target_": "research_stack.corruption.modes.Absolute",
        "mask_ratio": [0.0, 0.9],
        "corruption_rate": [0.0, 0.1],
    },
    "trainer": {"max_steps": 700},
    "optimization": {"lr": 0.003, "clip": 1.0},
    "sampler": {"_target_": "research_stack.sampling.sampler.Sampler"},
    "eval": {
        "likelihood": {"_target_": "research_stack.evaluation.likelihood.Likelihood"},
        "samples": {"_target_": "research_stack.evaluation.samples.Samples"},
    },
}
RUN = {
    "command": "research-stack corruption.mask_ratio=[.0,.9]",
    "name": "flowlm",
    "seed": 1,
    "hash": "3f1b2c4d5e6f",
    "git": {
        "sha": "0123456789abcdef0123456789abcdef01234567",
        "branch": "main",
        "dirty": True,
        "untracked": [],
        "diff": "diff.patch",
    },
    "python": "3.12.4",
    "versions": {"torch": "2.13.0", "lightning": "2.6.6", "hydra-core": "1.3.8"},
    "machine": {
        "host": "box",
        "platform": "Linux",
        "cpu": "AMD EPYC 9B45",
        "cores": 2,
        "memory_gib": 7.8,
        "cpu_flags": ["avx512_bf16"],
        "gpus": [],
    },
    "data": {
        "fingerprint": "0dc573dd73d557edf75a",
        "vocab_size": 2048,
        "sequence_length": 128,
        "train_documents": 5102,
        "train_tokens": 604123,
        "validation_tokens": 31877,
        "bytes_per_token": 3.4113,
    },
    "model": {"parameters": 3412224, "trained": 3412224, "state_bytes": 54595584},
}


def write_likelihood(folder, rows=LIKELIHOOD):
    path = folder / "tables" / "likelihood.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["name", "kind", "nats_per_token", "low", "high", "perplexity", "bits_per_byte", "sequences", "tokens"]
        )
        for name, kind, value, low, high in rows:
            writer.writerow([name, kind, value, low, high, math.exp(value), value / math.log(2) / 3.4113, 256, 31877])


def make_run(
    folder, status="ok", steps=700, error=None, config=None, metrics=None, evaluated=True, samples=None, seed=0, **curve
):
    """A run folder; `samples` are (sampler, prompt, text)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config or CONFIG
    import yaml

    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "run.json").write_text(json.dumps(RUN | {"seed": config["seed"]}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics_rows(steps, seed, **curve)))
    found = {
        "likelihood/bound": 4.912,
        "likelihood/bound_low": 4.861,
        "likelihood/bound_high": 4.963,
        "likelihood/perplexity": math.exp(4.912),
        "likelihood/bits_per_byte": 2.077,
        "likelihood/unigram": 6.421,
        "likelihood/trigram": 5.288,
        "likelihood/gain_over_trigram": 0.376,
        "likelihood/gain_low": 0.341,
        "likelihood/gain_high": 0.411,
    }
    for name, calls, changed in (("llada", 64.0, 0.0), ("flowlm", 24.0, 0.161)):
        found |= {f"samples/{name}/calls": calls, f"samples/{name}/distinct_2": 0.83, f"samples/{name}/entropy": 3.6,
                  f"samples/{name}/changed": changed, f"samples/{name}/idle": 0.04}  # fmt: skip
    result = {
        "status": status,
        "hash": "3f1b2c4d5e6f",
        "metrics": (metrics or found) if evaluated else {},
        "seconds": 178.2,
        "started": "2026-11-21T00:40:11+00:00",
        "finished": "2026-11-21T00:43:09+00:00",
        "steps": steps,
    }
    (folder / "result.json").write_text(json.dumps(result | ({"error": error} if error else {})))
    if evaluated:
        write_likelihood(folder)
        texts = samples or [
            (name, "", fake_film(name, seed=s)["text"]) for name in ("llada", "flowlm") for s in range(3)
        ]
        rows = [{"sampler": s, "prompt": p, "text": t, "calls": 24, "steps": 24, "seed": 1} for s, p, t in texts]
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "films").mkdir(exist_ok=True)
        for name, edits in (("llada", False), ("flowlm", True)):
            (folder / "films" / f"{name}.json").write_text(json.dumps(fake_film(name, edits=edits)))
    return folder


# A next-token model, with a confidence head or without one ------------------------------------------------------------

LOOKAHEAD = {
    "name": "lookahead", "seed": 1, "method": {"_target_": "research_stack.lookahead.module.Lookahead", "weight": 0.3},
    "data": {"batch_size": 16}, "trainer": {"max_steps": 700}, "optimization": {"lr": 0.003, "clip": 1.0},
    "eval": {
        "lookahead": {"_target_": "research_stack.lookahead.calibration.LookaheadCalibration"},
        "generated_prefix": {"_target_": "research_stack.lookahead.generated_prefix.GeneratedPrefix"},
    },
}  # fmt: skip
MINIGPT = LOOKAHEAD | {"name": "minigpt", "method": {"_target_": "research_stack.lookahead.module.MiniGPT"}}
SCORES = {"confidence head": 0.9, "entropy": 0.8, "max probability": 0.74, "margin": 0.66, "oracle": 2.6}
EMPTY = ""  # what a cell without a number holds


def write_table(folder, name, header, rows):
    path = folder / "tables" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def lookahead_rows(steps, seed=0, head=True, pace=0.25, end=2.6):
    """Losses that fall, a confidence loss, gradient norms; a validation every hundred steps, with a pause after it."""
    rng, rows, pause = random.Random(seed), [], 0.0
    for step in range(1, steps + 1):
        fall = math.exp(-step / (steps / 6))
        lm, conf = end + 5 * fall + rng.gauss(0, 0.12), 0.09 + 2.4 * fall**2 + abs(rng.gauss(0, 0.01))
        row = {
            "step": step,
            "time": round(pace * step + pause, 3),
            "train/loss": lm + 0.3 * conf * head,
            "train/loss_lm": lm,
            "train/lr": 0.003,
            "train/grad_norm": math.exp(rng.gauss(-0.4, 0.3)) * (1 + 6 * math.exp(-step / 20)),
        }
        if head:
            row |= {
                "train/loss_confidence": conf,
                "train/grad_lm": 0.02 * row["train/grad_norm"],
                "train/grad_confidence": 0.004 * row["train/grad_norm"] * math.exp(rng.gauss(0, 0.2)),
                "train/confidence_mean": end + 5 * fall + rng.gauss(0, 0.1),
                "train/confidence_std": 1.3 * (1 - fall) + 0.02,
                "train/future_mean": end + 0.1 + 5 * fall + rng.gauss(0, 0.1),
                "train/future_std": 2.1 - 0.8 * fall,
            }
        if step % (steps // 7) == 0:
            row["val/loss"] = row["val/loss_lm"] = end + 0.06 + 0.03 * rng.random() + 5 * fall
            row |= {"val/loss_confidence": 0.1 + 2.4 * fall**2} if head else {}
            pause += 4.0
        rows.append(row)
    return rows


def write_lookahead_tables(folder, head=True, seed=0):
    """tables/*.csv as the evaluations of a next-token model write them."""
    rng = random.Random(seed)
    write_table(
        folder,
        "next_token",
        "name,nats,low,high,bits_per_byte,accuracy,ece,ece_equal_mass,brier,tokens",
        [
            ["this run", 2.612, 2.551, 2.673, 1.105, 0.463, 0.021, 0.023, 0.661, 31877],
            ["unigram", 6.421, 6.371, 6.471, 2.716, *[EMPTY] * 4, 31877],
            ["trigram", 3.712, 3.655, 3.769, 1.57, *[EMPTY] * 4, 31877],
        ],
    )
    predictors = [
        ("entropy fit", "control", 0.381),
        ("max probability fit", "control", 0.342),
        ("margin fit", "control", 0.29),
        ("linear probe", "control", 0.402),
        ("noise ceiling", "ceiling", 0.517),
    ]
    predictors = [("confidence head", "head", 0.431), *predictors] if head else predictors
    write_table(
        folder,
        "future_loss",
        "name,kind,r2,low,high,pearson,spearman,slope,bias,calibration_error,n",
        [
            [
                n,
                k,
                r,
                r - 0.018,
                r + 0.019,
                r**0.5,
                r**0.5 - 0.02,
                *((0.98, 0.012, 0.041) if k != "ceiling" else ("nan",) * 3),
                31365,
            ]
            for n, k, r in predictors
        ],
    )
    names = {
        "confidence head": (0, 1),
        "confidence head, own token correct": (-0.35, 0.95),
        "confidence head, own token wrong": (0.3, 1.02),
        "entropy fit": (0.15, 0.93),
    }
    rows = []
    for name, (shift, slope) in names.items():
        for number in range(15 if head or name == "entropy fit" else 0):
            predicted = 0.35 + 5.2 * (number / 14) ** 1.2
            actual = max(0.05, 0.1 + shift + slope * predicted + rng.gauss(0, 0.06))
            rows.append([name, number, predicted, actual, actual - 0.11, actual + 0.13, 2091])
    write_table(folder, "reliability", "name,bin,predicted,actual,low,high,count", rows)
    rows = []
    for loss, whole in (("future loss", 2.9), ("next-token loss", 2.612)):
        for score, skill in SCORES.items():
            if head or score != "confidence head":
                curve = [(i / 50, whole * (i / 50) ** skill * (1 + 0.01 * rng.random())) for i in range(1, 51)]
                aurc = sum(risk for _, risk in curve) / len(curve)
                rows += [[score, loss, coverage, risk, aurc, aurc - whole / 3.6] for coverage, risk in curve]
    write_table(folder, "risk_coverage", "score,loss,coverage,risk,aurc,excess", rows)
    scores = ("confidence head", "entropy", "max probability") if head else ("entropy", "max probability")
    write_table(
        folder,
        "abstention",
        "promise,score,target,delta,coverage,risk,low,high,violations,splits",
        [
            [
                promise,
                score,
                target,
                delta,
                max(0.0, reach - 0.04 * i),
                target - 0.011 if reach else "nan",
                target - 0.02,
                target - 0.002,
                0.03,
                200,
            ]
            for promise, delta in (("conformal", ""), ("learn-then-test", 0.05))
            for i, score in enumerate(scores)
            for target, reach in ((0.05, 0.0), (0.1, 0.21), (0.2, 0.38), (0.3, 0.56))
        ],
    )
    write_table(
        folder,
        "generated_prefix",
        "decoder,setting,future_nats,low,high,repetition,distinct_2,entropy,calls,texts",
        [
            ["greedy", "", 3.41, 3.3, 3.52, 0.412, 0.31, 3.1, 32, 256],
            ["sampling", "temperature 1", 3.62, 3.5, 3.74, 0.03, 0.91, 5.2, 32, 256],
            ["top-p", "p 0.9", 3.35, 3.24, 3.46, 0.06, 0.84, 4.7, 32, 256],
            ["lookahead", "8 candidates", 3.22, 3.11, 3.33, 0.09, 0.8, 4.5, 64, 256],
        ],
    )


def make_lookahead(folder, seed=1, head=True, steps=700, tables=True, pace=0.25, flops=2.1e10, config=None, shift=0.0):
    """A run folder of a next-token model; `shift` moves its metrics."""
    make_run(folder, evaluated=False, steps=steps, config=(config or (LOOKAHEAD if head else MINIGPT)) | {"seed": seed})
    model = RUN["model"] | ({"flops_per_step": flops} if flops else {})
    (folder / "run.json").write_text(
        json.dumps(RUN | {"seed": seed, "model": model, "command": "research-stack experiment=lookahead"})
    )
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n" for row in lookahead_rows(steps, seed, head, pace * (1 + 0.01 * seed), 2.6 + shift)
        )
    )
    result = json.loads((folder / "result.json").read_text())
    metrics = {
        "nats": 2.612 + shift + 0.01 * seed,
        "nats_low": 2.551,
        "nats_high": 2.673,
        "bits_per_byte": 1.105,
        "unigram": 6.421,
        "trigram": 3.712,
        "gain_over_trigram": 1.1 - shift,
        "gain_low": 1.04,
        "gain_high": 1.16,
        "ece": 0.021 + 0.001 * seed,
        "brier": 0.661 + shift,
    }
    metrics |= (
        {"r2": 0.431 + 0.002 * seed, "r2_low": 0.41, "r2_high": 0.45, "r2_entropy": 0.381, "r2_over_entropy": 0.05}
        if head
        else {}
    )
    result["metrics"] = {f"lookahead/{key}": value for key, value in metrics.items()} if tables else {}
    (folder / "result.json").write_text(json.dumps(result))
    if tables:
        write_lookahead_tables(folder, head, seed)
    return folder


@pytest.fixture
def lookahead_folder():
    """Makes the run folder of a next-token model, see `make_lookahead`."""
    return make_lookahead


@pytest.fixture
def run_folder():
    """Makes a run folder, see `make_run`."""
    return make_run


@pytest.fixture
def base_config():
    """The config that `make_run` saves by default."""
    return CONFIG


# Policies: SFT, then GRPO
# ----------------------------------------------------------------------------------------------

PHASES = {"sft": "sft.SFT", "polychromic": "polychromic.PolychromicSFT", "grpo": "grpo.GRPO"}
HELD_OUT = 2  # held-out prompts, too few for an interval


def dynamics_of(points, prompts=28, which="trained", count=32, method="GRPO"):
    """dynamics.json of {step: (pass@1, distinct right)}."""

    def band(value, wide=0.04, n=prompts):
        return {"value": value, "low": value - wide, "high": value + wide, "n": n, "undefined": prompts - n}

    found = [
        {
            "step": step,
            "metrics": {
                "pass@1": band(good),
                "pass@8": band(min(1.0, 2 * good)),
                "pass@32": band(1.0, 0.0),
                "reward": band(good),
                "unique_correct@32": band(wide, 1.0),
                "self_bleu": band(60.0 + step / 10),
                "distinct_2": band(0.4),
                "entropy": band(1.2 - good),
                "self_bleu_correct": {"value": None, "low": None, "high": None, "n": 0, "undefined": prompts},
            },
            "per_prompt": {},
        }
        for step, (good, wide) in points.items()
    ]
    return {
        "method": method,
        "count": count,
        "which": which,
        "prompts": [f"{i}=" for i in range(prompts)],
        "points": found,
    }


def policy_rows(steps, kind, seed=0):
    """What sft, polychromic and grpo log."""
    rng, rows = random.Random(seed), []
    for step in range(1, steps + 1):
        row = {"step": step, "time": 0.1 * step, "train/grad_norm": math.exp(rng.gauss(0, 0.3)), "train/lr": 0.001}
        if kind == "grpo":
            row |= {
                "train/loss": rng.gauss(0, 0.01),
                "train/loss_policy": rng.gauss(0, 0.01),
                "train/reward": 0.5 + 0.4 * step / steps + rng.gauss(0, 0.02),
                "train/entropy": 1 - 0.7 * step / steps,
                "train/clip_ratio": 0.0,
                "train/completion_length": 5 + rng.random(),
                "train/truncated": 0.01 * rng.random(),
                "train/frac_reward_zero_std": 0.25 * rng.random(),
                "train/unique_fraction": 1 - 0.5 * step / steps,
            }
            row |= {"val/loss": -0.2, "val/reward": 0.2} if step % 20 == 0 else {}
        else:
            row |= {"train/loss": 1 + rng.random(), "train/loss_reply": 1 + rng.random()} | (
                {"train/reward": 0.1, "train/different_pairs": rng.random()} if kind == "polychromic" else {}
            )
            row |= {"val/loss": 1.6, "val/loss_reply": 1.6} if step % 20 == 0 else {}
        rows.append(row)
    return rows


def answers_of(good, wide):
    """{metric: (value, half of its interval)} of the trained prompts."""
    return {
        "pass@1": (good, 0.05),
        "pass@8": (min(1.0, 2 * good), 0.02),
        "pass@32": (1.0, 0.0),
        "reward": (good, 0.05),
        "unique_correct@32": (wide, 0.4),
        "unique@32": (wide + 4, 0.5),
        "self_bleu": (80.0, 1.0),
        "distinct_2": (0.12, 0.01),
        "preference_pass@32": (0.3, 0.02),
        "entropy": (1.2 - good, 0.03),
    }


def write_passk(folder, good, wide, prompts=28, texts=("1+1", "4-2")):
    """The three tables of eval=passk."""
    own = [
        ["trained", name, value, value - half, value + half, prompts, 0]
        for name, (value, half) in answers_of(good, wide).items()
    ]
    other = [
        ["held_out", name, 0.5 * value, 0.5 * value, 0.5 * value, HELD_OUT, 0]
        for name, (value, _) in answers_of(good, wide).items()
    ]
    other.append(["held_out", "self_bleu_correct", 70.0, 60.0, 80.0, 1, 1])
    write_table(folder, "passk", "prompts,metric,value,low,high,n,undefined", own + other)
    write_table(
        folder,
        "passk_curve",
        "prompts,k,pass,low,high",
        [
            [side, k, min(1.0, share * good * k), share * good, 1.0]
            for side, share in (("trained", 1), ("held_out", 0.5))
            for k in (1, 2, 4, 8, 16, 32)
        ],
    )
    lines = [
        ["trained", f"{i}=", 128, 10 * (i % 10), 3, "  ".join(f"{text} x{i}" for text in texts)] for i in range(prompts)
    ]
    write_table(
        folder,
        "passk_prompts",
        "prompts,prompt,answers,correct,unique_correct,most_frequent_correct",
        [*lines, ["held_out", "99=", 128, 7, 2, texts[0]]],
    )


def make_policy(
    folder,
    kind="grpo",
    seed=1,
    init_from=None,
    init="sft",
    points=None,
    good=0.84,
    wide=2.3,
    steps=100,
    advantage="group",
    evaluated=True,
    texts=("1+1", "4-2"),
):
    """The run folder of a phase: {step: (pass@1, distinct right)} while training, `good` and `wide` after it."""
    method = {"_target_": f"research_stack.posttraining.{PHASES[kind]}"}
    if kind == "grpo":
        kinds = {
            "group": {"_target_": "research_stack.posttraining.advantages.GroupRelative", "scale_rewards": "group"}
        }
        marginal = {
            "_target_": "research_stack.posttraining.advantages.SetMarginal",
            "objective": advantage,
            "size": 8,
            "scale": "unbiased",
        }
        method["advantage"] = kinds.get(advantage, marginal)
    config = {
        "name": kind,
        "seed": seed,
        "init_from": init if init_from else None,
        "method": method,
        "eval": {"passk": {"_target_": "research_stack.posttraining.passk.PassK", "max_prompts": 64}},
        "callbacks": {"dynamics": {"_target_": "research_stack.posttraining.dynamics.DiversityDynamics", "every": 50}},
        "optimization": {"clip": 1.0, "ema": 0.99},
        "trainer": {"max_steps": steps},
    }
    make_run(folder, config=config, steps=max(steps, 7), evaluated=False)
    (folder / "run.json").write_text(
        json.dumps(
            {
                "command": "research-stack",
                "name": kind,
                "seed": seed,
                "cwd": str(folder.parent),
                "overrides": [f"method/advantage={advantage}"] if kind == "grpo" else [],
                **({"init_from": str(init_from)} if init_from else {}),
            }
        )
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in policy_rows(steps, kind, seed)))
    points = points or (
        {0: (0.0, 0.0), 50: (0.3, 8.0), 100: (0.55, 15.7)}
        if kind != "grpo"
        else {0: (0.54, 15.0), 50: (0.7, 6.0), 100: (good, wide)}
    )
    (folder / "dynamics.json").write_text(json.dumps(dynamics_of(points)))
    result = json.loads((folder / "result.json").read_text()) | {"steps": steps}
    if evaluated:
        own = {f"passk/{name}": value for name, (value, _) in answers_of(good, wide).items()}
        result["metrics"] = own | {
            f"passk/held_out_{name}": 0.5 * value for name, (value, _) in answers_of(good, wide).items()
        }
        write_passk(folder, good, wide, texts=texts)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def policy_folder():
    """Makes the run folder of a phase, see `make_policy`."""
    return make_policy


@pytest.fixture
def two_phases(tmp_path):
    """(SFT, the GRPO that began with it)."""
    sft = make_policy(tmp_path / "outputs" / "sft" / "a", "sft", good=0.55, wide=15.7)
    return sft, make_policy(tmp_path / "outputs" / "grpo" / "b", init_from="outputs/sft/a")

"""Whole runs of post-training: begun from another run, killed and resumed, failing in one line, measured and sampled
from, on two devices.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from research_stack import compose, load, run
from research_stack.posttraining.grpo import GRPO
from research_stack.posttraining.rewards.expressions import ExpressionReward
from research_stack.records.files import read_json, read_jsonl
from research_stack.training.checkpoint import load_checkpoint
from research_stack.training.module import TrainingModule

QUICK = [
    "trainer=smoke",
    "eval=none",
    "callbacks=default",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "hardware.threads=1",
]
SMALL = [
    "experiment=grpo",
    *QUICK,
    "method.num_generations=4",
    "data.batch_size=4",
    "method.rollouts.max_completion_length=6",
]
PHASE = (
    "init_from='sft trainer=smoke trainer.max_steps=5 trainer.val_check_interval=5 eval=none callbacks=default"
    " data.batch_size=16'"
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def digits(monkeypatch):
    """The reward of expressions, but one that random bytes earn too: the share of bytes that are no character."""

    def worth(self, prompts, completions):
        return np.array(
            [sum(letter == "\N{REPLACEMENT CHARACTER}" for letter in text) / max(len(text), 1) for text in completions]
        )

    monkeypatch.setattr(ExpressionReward, "__call__", worth)


def history(folder):
    """What was measured at each step; not how long it took."""
    return [
        {name: value for name, value in row.items() if "time" not in name and "per_second" not in name}
        for row in read_jsonl(Path(folder) / "metrics.jsonl")
    ]


def last(folder):
    return load_checkpoint(Path(folder) / "checkpoints" / "last.ckpt")


def dies_at(step, monkeypatch):
    """The process ends in this step, as by kill -9: after the draws, before the update."""
    clip = TrainingModule.clip_gradients

    def killed(self):
        if self.global_step == step:
            raise RuntimeError("killed")
        return clip(self)

    return monkeypatch.setattr(TrainingModule, "clip_gradients", killed)


STATES = {
    "passes": ["method.num_iterations=2", "method.advantage.scale_rewards=batch", "optimization.accumulate=3"],
    "reference": [
        "method.beta=.1",
        "method.entropy_coef=.01",
        "method.num_iterations=2",
        "method.ref_model_sync_steps=2",
        "method.ref_model_mixup_alpha=.5",
    ],
    "average": ["method.num_mini_batches=2", "optimization.ema=.9", "method.beta=.1", "method.num_groups=3"],
}


@pytest.mark.parametrize("options", STATES.values(), ids=STATES)
def test_a_killed_run_goes_on_bit_for_bit(monkeypatch, digits, options):
    """The last checkpoint lies between two steps on one batch of completions."""
    cfg = compose([*SMALL, *options, "callbacks.checkpoints.every=3"])
    run(cfg, "whole")
    with monkeypatch.context() as patched:
        dies_at(5, patched)
        with pytest.raises(RuntimeError, match="killed"):
            run(cfg, "cut")
    assert last("cut")["global_step"] == 3 and "completions" in last("cut")
    assert read_json("cut/result.json")["status"] == "failed"
    assert run(cfg, "cut").status == "ok"
    assert len(history("whole")) == 6 and history("cut") == history("whole")
    ours, theirs = last("cut")["state_dict"], last("whole")["state_dict"]
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(row["train/grad_norm"] > 0 for row in history("whole"))


@pytest.mark.parametrize("options", [
    ["experiment=sft", "data.pack=true", "data.sequence_length=40"],
    ["experiment=polychromic", "method.num_generations=4", "method.diversity_start=.2",
     "method.rollouts.max_completion_length=6",
     "method.advantage.size=2", "+method.advantage.num_subsets=5"],
], ids=["sft", "polychromic"])  # fmt: skip
def test_supervised_runs_go_on_bit_for_bit(monkeypatch, digits, options):
    cfg = compose([*options, *QUICK, "data.batch_size=8", "callbacks.checkpoints.every=2"])
    run(cfg, "whole")
    with monkeypatch.context() as patched:
        dies_at(3, patched)
        with pytest.raises(RuntimeError, match="killed"):
            run(cfg, "cut")
    assert run(cfg, "cut").status == "ok" and history("cut") == history("whole")


def test_a_run_begins_with_the_policy_of_another_one_and_so_does_its_reference(digits):
    """By a phrase that is trained first, once; by its folder; both give the same run."""
    two = [*SMALL, "trainer.max_steps=2", "trainer.val_check_interval=2", "method.beta=.1"]
    assert run(compose([*two, PHASE]), "phrase").status == "ok"
    (first,) = Path("outputs/sft").glob("phase_*")
    assert read_json(first / "result.json")["status"] == "ok" and read_json("phrase/run.json")["init_from"].endswith(
        first.name
    )
    theirs, ours = last(first)["state_dict"], last("phrase")["state_dict"]
    weights = [name for name in theirs if name.startswith("model.")]
    assert len(weights) > 10 and all(
        torch.equal(ours[name.replace("model.", "reference.", 1)], theirs[name]) for name in weights
    )
    assert not all(torch.equal(ours[name], theirs[name]) for name in weights)
    trained = (first / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert run(compose([*two, f"init_from={first}"]), "folder").status == "ok"
    assert history("folder") == history("phrase")
    assert run(compose([*two, PHASE, "method.entropy_coef=.1"]), "other").status == "ok"
    assert (first / "checkpoints" / "last.ckpt").stat().st_mtime_ns == trained, "it must not be trained again"
    for mistake, message in (
        (["model.dim=32"], "^init_from: that run's model is another one than model"),
        (["data.tokenizer._target_=research_stack.data.tokenizers.ByteBPE"], ""),
    ):
        with pytest.raises(ValueError, match=message or "init_from"):
            run(compose([*two, f"init_from={first}", *mistake]), f"mistake{len(message)}")
        assert read_json(f"mistake{len(message)}/result.json")["status"] == "failed"


@pytest.mark.parametrize(
    "worth, message",
    [
        (
            lambda prompts, texts: np.full(len(texts), np.nan),
            "reward=expressions gave nan to 16 of 16 completions, the first one",
        ),
        (
            lambda prompts, texts: np.ones(3),
            r"reward=expressions returned shape \(3,\) for 16 completions, it must be \(16,\)",
        ),
        (lambda prompts, texts: [1.0] * len(texts), "reward=expressions returned a list, it must return a numpy array"),
        (
            lambda prompts, texts: 1 / 0,
            "reward=expressions failed on prompt '[0-9]+=' and completion '.*': ZeroDivisionError: division by zero",
        ),
    ],
    ids=["nan", "shape", "type", "raises"],
)
def test_a_reward_that_breaks_its_contract_is_one_line_and_a_failed_run(monkeypatch, worth, message):
    monkeypatch.setattr(ExpressionReward, "__call__", lambda self, prompts, texts: worth(prompts, texts))
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        run(compose(SMALL), "run")
    result = read_json("run/result.json")
    assert result["status"] == "failed" and "reward=expressions" in result["error"] and result["steps"] == 0


def test_a_first_step_that_moves_nothing_is_one_line_and_a_failed_run(digits):
    with pytest.raises(ValueError, match="^optimization.lr=1e-30: the first step has moved no weight$"):
        run(compose([*SMALL, "optimization.lr=1e-30"]), "run")
    result = read_json("run/result.json")
    assert result["status"] == "failed" and "has moved no weight" in result["error"]


def test_mistakes_show_before_the_first_step():
    for mistake, message in (
        ("method.num_groups=5", "method.num_groups=5 must be at most data.batch_size=4"),
        ("data.pack=true", "pack=true|pack=True"),
        ("method.num_mini_batches=17", "method.num_mini_batches=17 must be at most the 16 completions"),
        (
            "method.rollouts.max_completion_length=2000",
            "method.rollouts.max_completion_length=2000 behind the longest prompt of 3 tokens exceeds",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(compose([*SMALL, mistake]), "run")
        assert not Path("run/checkpoints").exists()


def test_prompts_alone_and_the_prompts_of_pairs_are_one_task(digits):
    """Pairs of the same numbers: the replies are not read. A step sees the same kinds of prompts and completions."""
    run(compose([*SMALL, "data.source.answers=2", "data.source.high=9", "data.sequence_length=14"]), "pairs")
    saved = load("pairs", ["sampler=gpt"])
    method, rows = saved.method, saved.data.train
    assert rows.spans[:, 1].max() > rows.spans[:, 0].max() and isinstance(method, GRPO)
    assert all(row["train/completion_length"] <= 6 and math.isfinite(row["train/loss"]) for row in history("pairs"))


def test_a_run_is_measured_and_sampled_from(digits, capsys):
    run(compose([*SMALL, "method.beta=.1"]), "run")
    before = read_json("run/result.json")
    measured = run(
        compose(
            [
                "task=eval",
                "run=run",
                "eval=passk",
                "eval.passk.metrics.num_generations=8",
                "eval.passk.metrics.ks=[1,8]",
                "sampler=gpt",
            ]
        )
    )
    assert measured.status == "ok" and any(name.startswith("passk/") for name in measured.metrics)
    assert all(math.isfinite(value) for name, value in measured.metrics.items() if "pass@" in name)
    assert read_json("run/result.json")["steps"] == before["steps"]
    capsys.readouterr()
    run(compose(["task=sample", "run=run", 'prompt="12="', "sampler=gpt"]))
    assert capsys.readouterr().out.startswith("12=") and len(read_jsonl("run/samples.jsonl")) >= 1
    context = load("run", ["sampler=gpt"])
    assert not context.method.training and not context.method.reference.training


# --------------------------------------------------------------------------------------------------- processes
SMOKE = ["eval=none", "callbacks=default", "trainer.val_check_interval=100", "hardware.threads=1"]
DEVICES = [
    "experiment=grpo",
    *SMOKE,
    "optimization.lr=.001",
    "method.num_generations=8",
    "data.batch_size=8",
    "hardware.precision=32",
]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A first phase after which some answers are right."""
    place = tmp_path_factory.mktemp("first") / "run"
    run(compose(["experiment=sft", *SMOKE, "trainer.max_steps=150"]), place)
    return f"init_from={place}"


@pytest.fixture
def processes(monkeypatch):
    """`run`, `start`, ... of the small runs of the slow tests."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "slow"))
    import small_runs

    return small_runs


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    ["method.advantage.scale_rewards=batch", "method.beta=.1", "method.entropy_coef=.01", "method.num_mini_batches=2",
     "method.num_groups=5",
     "method.mask_truncated_completions=true"],
    ["method.loss.loss_type=bnpo", "optimization.accumulate=3", "method.beta=.1", "method.ref_model_sync_steps=2",
     "method.num_iterations=2"],
], ids=["minibatches", "pieces"])  # fmt: skip
def test_two_devices_take_the_steps_of_one(first, options):
    """Losses, norms and all that is logged; in time rounding makes another token of one draw."""
    for name, hardware in (("one", "cpu"), ("two", "cpu_ddp")):
        run(compose([*DEVICES, first, *options, "trainer.max_steps=4", f"hardware={hardware}"]), name)
    one, two = history("one"), history("two")
    assert len(one) == len(two) == 4 and one[0]["train/reward"] > 0 and one[0]["train/grad_norm"] > 0
    for ours, theirs in zip(two, one, strict=True):
        assert set(ours) == set(theirs)
        for name in ours:
            same = math.isclose(ours[name], theirs[name], rel_tol=1e-4, abs_tol=1e-6)
            assert same, (ours["step"], name, ours[name], theirs[name])


@pytest.mark.slow
def test_killed_without_a_word_between_two_passes(tmp_path, processes, first):
    """Every device goes on with its own completions."""
    command = [
        *DEVICES,
        first,
        "hardware=cpu_ddp",
        "trainer.max_steps=40",
        "method.num_iterations=3",
        "method.beta=.1",
        "callbacks.checkpoints.every=7",
    ]
    run(compose(command), "whole")
    process = processes.start(*command, f"hydra.run.dir={tmp_path / 'killed'}", cwd=tmp_path)
    processes.wait_for(lambda: len(processes.rows(tmp_path / "killed")) >= 9, process, tmp_path)
    process.kill()
    process.wait()
    assert 0 < len(history("killed")) < 40 and last("killed")["global_step"] in (7, 14)  # neither is a multiple of 3
    assert len(last("killed")["completions"]) == 2
    run(compose("run=killed"), "killed")
    assert history("killed") == history("whole")
    assert json.loads((tmp_path / "killed" / "result.json").read_text())["status"] == "ok"


@pytest.mark.slow
def test_sft_on_two_devices_takes_the_steps_of_one():
    command = [
        "experiment=sft",
        *SMOKE,
        "trainer.max_steps=10",
        "data.pack=true",
        "data.sequence_length=40",
        "data.batch_size=16",
    ]
    for name, hardware in (("one", "cpu"), ("two", "cpu_ddp")):
        run(compose([*command, f"hardware={hardware}", "hardware.precision=32"]), name)
    for ours, theirs in zip(history("two"), history("one"), strict=True):
        for name in ours:
            assert math.isclose(ours[name], theirs[name], rel_tol=2e-4, abs_tol=1e-6), (ours["step"], name)

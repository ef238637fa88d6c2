"""Runs that begin with another one's weights: how a first phase is named, what is refused before it is trained, and
that it is trained once.
"""

import io
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from research_stack import compose, run
from research_stack.cli.main import main
from research_stack.config.first_phase import check_init_from, first_phase_config, first_phase_folder
from research_stack.config.hints import UserError
from research_stack.data.module import TokenData
from research_stack.posttraining.grpo import GRPO
from research_stack.records.config_hash import config_hash
from research_stack.records.files import read_json, read_jsonl, write_json
from research_stack.records.paths import names_folder
from research_stack.records.run_folder import RunFolder
from research_stack.training.checkpoint import load_checkpoint
from research_stack.training.module import TrainingModule

SHORT = ["eval=none", "callbacks=default", "hardware.threads=1"]
PHRASE = (
    "sft trainer=smoke trainer.max_steps=2 trainer.val_check_interval=2 eval=none callbacks=default data.batch_size=8"
)
SECOND = [
    "experiment=grpo",
    *SHORT,
    "trainer=smoke",
    "trainer.max_steps=3",
    "trainer.val_check_interval=3",
    "method.num_generations=4",
    "data.batch_size=2",
    "method.rollouts.max_completion_length=4",
    "callbacks.checkpoints.every=1",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A working directory with a run that began with a phase, and the phase itself."""
    where = tmp_path_factory.mktemp("phases")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(where)
        assert run(compose([*SECOND, f"init_from='{PHRASE}'", "seed=5"]), "second").status == "ok"
    return where


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of it, which a test may damage."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def phase_folder():
    (found,) = Path("outputs/sft").glob("phase_*")
    return found


def train_calls(monkeypatch):
    """How often a step is taken."""
    calls, step = [], TrainingModule.training_step
    monkeypatch.setattr(
        TrainingModule, "training_step", lambda self, *a: calls.append(type(self).__name__) or step(self, *a)
    )
    return calls


@cache
def composed():
    return compose(["experiment=grpo", *SHORT])


def second(**values):
    """The config of a second phase with these values; composing it anew takes its time."""
    cfg = composed().copy()
    for key, value in values.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


def refused(first, **values):
    """The one line that says why a run cannot begin so."""
    with pytest.raises(UserError) as caught:
        check_init_from(second(init_from=str(first), **values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- naming
def test_what_is_a_folder_and_what_a_phrase(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "done").mkdir()
    assert names_folder("done") and names_folder("outputs/sft/x") and names_folder("~/x")
    assert not names_folder("sft") and not names_folder("sft method/reward=expressions")


def test_a_phase_has_the_seed_and_the_hardware_of_the_run_and_its_own_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = second(init_from="sft trainer.max_steps=7 optimization.lr=.002", seed=11)
    phase = first_phase_config(cfg)
    assert (phase.name, phase.seed, phase.trainer.max_steps, phase.optimization.lr, phase.hardware.threads) == (
        "sft",
        11,
        7,
        0.002,
        1,
    )
    assert phase.init_from is None and phase.task == "train" and phase.run is None and not phase.dry_run
    assert phase.method._target_.endswith("SFT") and phase.data.source.answers == 80 and cfg.data.source.answers == 0
    assert first_phase_folder(cfg).path == Path("outputs/sft") / f"phase_{config_hash(phase)}"


def test_its_folder_depends_on_what_it_is_and_not_on_what_follows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def folder(first, **values):
        return first_phase_folder(second(init_from=first, **values)).path

    base, other = folder("sft"), folder("polychromic")
    assert base == folder("sft", method__num_groups=8, optimization__lr=0.1, trainer__max_steps=3)
    assert (
        len({base, folder("sft", seed=2), folder("sft trainer.max_steps=3"), other}) == 4
        and other.parent.name == "polychromic"
    )


# ------------------------------------------------------------------------------------------------ one-line mistakes
def test_a_mistake_is_one_line_before_anything_is_trained(tmp_path_factory):
    for phrase, parts in (
        ("sftt", ["init_from=sftt is neither the folder of a run nor an experiment", "did you mean 'sft'"]),
        ("'polychromc trainer=smoke'", ["init_from=polychromc trainer=smoke is neither", "did you mean 'polychromic'"]),
        ("' '", ["is neither the folder of a run nor an experiment", "grpo", "sft"]),
        ("'sft trainer=smok'", ["init_from=sft trainer=smok: ", "did you mean 'smoke'"]),
        ("'sft optimisation.lr=1'", ["init_from=sft optimisation.lr=1: ", "did you mean 'optimization"]),
        ("'sft data.batch_size=-1'", ["init_from=sft data.batch_size=-1: data.batch_size=-1 must be"]),
        ("'sft seed=3'", ["init_from=sft seed=3: seed=3 cannot be set there", "leave seed out"]),
        ("'sft hardware=gpu'", ["hardware=gpu cannot be set there"]),
        ("'sft hardware.threads=2'", ["hardware.threads=2 cannot be set there"]),
        ("'sft dry_run=true'", ["dry_run=true cannot be set there"]),
        ("'sft task=eval'", ["task=eval cannot be set there"]),
        (
            "'sft model.dim=32 model.layers=2'",
            ["that run's model is another one", "model.dim: 32 there, 64 here", "model.layers: 2 there, 3 here"],
        ),
        ("'sft model.heads=2'", ["model.heads: 2 there, 4 here"]),  # the same shapes, another function
        ("'sft model.qk_norm=true'", ["model.qk_norm: True there, False here"]),
        ("'sft data/tokenizer=bpe'", ["data.tokenizer is ByteBPE there, Bytes here"]),
        ("minigpt", ["that run's model is another one"]),
        ("./nowhere", ["init_from=./nowhere is no run folder (no such folder)"]),
    ):
        with pytest.MonkeyPatch.context() as monkeypatch:
            tmp_path = tmp_path_factory.mktemp("case")
            monkeypatch.chdir(tmp_path)
            message = refused(phrase.strip("'"))
            for part in parts:
                assert part in message, message
            assert not list(tmp_path.iterdir())


def test_folders_that_are_no_finished_run(here):
    phase = phase_folder()
    assert f"did you mean {phase}" in refused(str(phase)[:-2])
    Path("empty").mkdir()
    assert "init_from=empty is no run folder (has no config.yaml and run.json)" in refused("empty")
    (phase / "checkpoints" / "last.ckpt").unlink()
    assert f"init_from={phase} has no checkpoint in {phase}/checkpoints" in refused(phase)


def test_a_folder_whose_weights_would_load_and_mean_something_else(here):
    assert f"init_from={phase_folder()}: that run's model is another one (model.heads: 4 there, 2 here)" in refused(
        phase_folder(), model__heads=2
    )
    check_init_from(second(init_from=str(phase_folder()), model__dropout=0.1))


def test_a_folder_with_a_model_of_another_size_is_one_line_and_takes_no_step(here, monkeypatch):
    calls = train_calls(monkeypatch)
    with pytest.raises(ValueError, match="^init_from: that run's model is another one than model[^\n]*$"):
        run(compose([*SECOND, f"init_from={phase_folder()}", "model.layers=2"]), "mistake")
    assert calls == [] and read_json("mistake/result.json")["status"] == "failed"


def test_a_folder_with_another_tokenizer_of_the_same_size(here, monkeypatch):
    calls, described = train_calls(monkeypatch), phase_folder() / "run.json"
    described.write_text(described.read_text().replace('"codec": "', '"codec": "another '))
    assert "another" in described.read_text()
    with pytest.raises(
        ValueError, match="^init_from=.* was trained with another tokenizer than data.tokenizer gives here[^\n]*$"
    ):
        run(compose([*SECOND, f"init_from={phase_folder()}"]), "mistake")
    assert calls == []


# ---------------------------------------------------------------------------------------------------------- once
def test_the_phase_is_trained_once_with_the_seed_of_the_run_and_its_weights_are_taken(here, monkeypatch):
    phase = phase_folder()
    assert OmegaConf.load(phase / "config.yaml").seed == 5 and read_json(phase / "result.json")["steps"] == 2
    assert Path(read_json("second/run.json")["init_from"]) == phase
    before = (phase / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    calls = train_calls(monkeypatch)
    begun, load_initial_weights = [], GRPO.load_initial_weights
    monkeypatch.setattr(
        GRPO, "load_initial_weights", lambda self, state: begun.append(state) or load_initial_weights(self, state)
    )
    assert run(compose([*SECOND, f"init_from='{PHRASE}'", "seed=5", "method.entropy_coef=.01"]), "third").status == "ok"
    assert (
        calls == ["GRPO"] * 3 and len(begun) == 1 and (phase / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    )
    saved = load_checkpoint(phase / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(begun[0][name], saved[name]) for name in saved)
    assert run(compose([*SECOND, f"init_from='{PHRASE}'", "seed=6"]), "fourth").status == "ok"
    assert calls.count("SFT") == 2 and len(list(Path("outputs/sft").glob("phase_*"))) == 2


def test_a_phase_that_was_cut_off_goes_on(here, monkeypatch):
    """One that has failed is not taken for a finished one."""
    phase = phase_folder()
    result = read_json(phase / "result.json")
    (phase / "result.json").write_text(
        str(result)
        .replace("'", '"')
        .replace("None", "null")
        .replace('"ok"', '"interrupted"')
        .replace("True", "true")
        .replace("False", "false")
    )
    assert RunFolder(phase).load_result().status == "interrupted"
    run(compose([*SECOND, f"init_from='{PHRASE}'", "seed=5", "method.entropy_coef=.01"]), "third")
    assert RunFolder(phase).load_result().status == "ok"


def test_dry_run_trains_no_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calls = train_calls(monkeypatch)
    assert run(compose([*SECOND, f"init_from='{PHRASE}'", "dry_run=true"]), "dry").status == "ok"
    assert "parameters" in capsys.readouterr().out
    assert calls == [] and not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------- the first phase is gone by then
@pytest.fixture
def without_phase(here):
    """The second run was begun by a folder, which is no longer there."""
    phase = phase_folder()
    config = OmegaConf.load("second/config.yaml")
    config.init_from = str(phase)
    OmegaConf.save(config, "second/config.yaml")
    facts = read_json("second/run.json")
    write_json("second/run.json", facts | {"config": facts["config"] | {"init_from": str(phase)}})
    shutil.rmtree(phase)
    return here


def test_it_can_still_be_measured_and_sampled_from(without_phase, monkeypatch, capsys):
    small = [
        "eval.passk.metrics.num_generations=8",
        "eval.passk.metrics.ks=[1,8]",
        "eval.passk.max_prompts=2",
        "eval.passk.metrics.rollouts.max_completion_length=4",
    ]
    assert main(["task=eval", "run=second", "eval=passk", *small]) == 0
    assert 0 <= read_json("second/result.json")["metrics"]["passk/pass@8"] <= 1
    capsys.readouterr()
    monkeypatch.setattr(TokenData, "prepare", lambda self: 1 / 0)  # the tokenizer that the run keeps is enough
    assert main(["task=sample", "run=second", "sampler=gpt", "prompt=12="]) == 0
    assert capsys.readouterr().out.startswith("12=")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True))
        assert main(["task=sample", "run=second", "sampler=gpt", "prompt=3="]) == 2
    assert read_jsonl("second/samples.jsonl")[-1]["prompt"] == "3="  # kept before it is shown


def test_it_can_still_go_on(without_phase, monkeypatch):
    calls = train_calls(monkeypatch)
    checkpoint = load_checkpoint("second/checkpoints/last.ckpt")
    Path("second/result.json").unlink()
    assert checkpoint["global_step"] == 3
    config = OmegaConf.load("second/config.yaml")
    config.trainer.max_steps = 4
    OmegaConf.save(config, "second/config.yaml")
    assert main(["run=second"]) == 0
    assert calls == ["GRPO"] and read_json("second/result.json")["steps"] == 4


def test_without_a_checkpoint_of_its_own_it_needs_the_phase(without_phase, capfd):
    (Path("second") / "checkpoints" / "last.ckpt").unlink()
    assert main(["run=second"]) == 2
    assert "is no run folder (no such folder)" in capfd.readouterr().err

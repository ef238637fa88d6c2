"""Each mistake is one line that names key, value, place and the nearest choice; exit code 2, nothing started."""

from __future__ import annotations

import shlex

import pytest

MISTAKES = {
    "modle=tiny": ["modle=tiny", "did you mean 'model=tiny'", "command line"],
    "model=tinny": ["model=tinny", "no such model", "did you mean 'tiny'", "odd, small, tiny", "command line"],
    "model.drop_out=.1": [
        "model.drop_out=.1",
        "Model has no parameter 'drop_out'",
        "did you mean 'dropout'",
        "command line",
    ],
    "+model.drop_out=.1": ["model.drop_out=0.1", "did you mean 'dropout'", "command line"],
    "model.dropout=.1": ["Model takes 'dropout'", "+model.dropout=.1"],
    "model=odd": ["model.dim=7 must be even", "model/odd.yaml:2"],
    "model.dim=big": ["model.dim=big must be int", "command line"],
    "model.dim=true": ["model.dim=true must be int, not a boolean"],
    "+model.kind=prae": ["model.kind=prae must be one of pre, post", "did you mean 'pre'"],
    "+model.widths=[1,2,3]": ["model.widths=[1, 2, 3] must be tuple[int, int]"],
    "corruption.mask_ratio=1.7": ["corruption.mask_ratio=1.7 must lie in [0, 1]", "command line"],
    "corruption.mask_ratio=[.7,.3]": ["corruption.mask_ratio=[0.7, 0.3] must lie in [0, 1]"],
    "corruption.corruption_rate=.8": ["mask_ratio=0.3 and corruption_rate=0.8 must sum to at most 1", "command line"],
    "corruption.mask_ratio=.6 corruption.corruption_rate=.6": [
        "mask_ratio=0.6 and corruption_rate=0.6 must sum to at most 1"
    ],
    "model._target_=os.system": ["model._target_=os.system lies", "of research_stack, toylib, lightning.Trainer"],
    "model._target_=toylib.Modell": ["toylib has no 'Modell'", "did you mean 'toylib.Model'"],
    "model._target_=lightning.Trainerr": ["lies outside", "did you mean 'lightning.Trainer'"],
    "trainer.max_step=3": ["Trainer has no parameter 'max_step'", "did you mean 'max_steps'"],
    "trainer.max_steps=abc": ["trainer.max_steps=abc must be int"],
    "trainer=demoo": ["trainer=demoo", "did you mean 'demo'"],
    "sweep=matrx": ["sweep=matrx: there is no such sweep", "did you mean 'matrix'"],
    "-m sweep=matrx seed=1,2": ["sweep=matrx: there is no such sweep", "did you mean 'matrix'"],
    "task=trian": ["task=trian must be one of train, eval, sample, export, compare", "did you mean 'train'"],
    "eval={a:1}": ["'eval' has no such keys", "++eval={a:1}"],
    "++trainer.devices=2": ["trainer.devices=2 cannot be set here; set it in hardware"],
    "++trainer.gradient_clip_val=1": ["set optimization.clip"],
    "trainer.max_steps=-1": ["trainer.max_steps=-1 must be a whole number of steps, at least 1"],
    "data=pretrained data.source={limit:1}": ["'data.source' lacks a key of these braces", "++data.source.KEY=VALUE"],
    "seed=range(1,3)": ["several values", "add -m"],
    "hydra.run.dirr=x": ["hydra.run.dirr=x", "did you mean 'dir'"],
    "seed=abc": ["seed=abc must be int", "command line"],
    "name=${nmae}": ["name=${nmae}", "'nmae' not found", "command line"],
    "model": ["'model' lacks '='", "odd, small, tiny"],
    "modle": ["'modle' lacks '='", "model=..."],
    "model=tiny,small": ["several values", "-m", "model=[tiny,small]"],
    "=tiny": ["'=tiny' lacks a key"],
    "seed=[1": ["seed=[1 cannot be read", "quote it"],
    "~modle": ["no 'modle' to delete", "did you mean 'model'"],
    "model=small model.drop_out=.1 model.widht=3": [
        "model.drop_out=.1",
        "Model has no parameter 'drop_out'",
        "did you mean 'dropout'",
    ],
    "--multirum": ["--multirum is no option", "--multirun"],
    "--cfg": ["--cfg needs a value"],
    "--cfg jbo": ["one of job, hydra, all"],
    "--cfg job modle=tiny": ["did you mean 'model=tiny'"],
    "data=text": ["data.path=??? must be given", "data/text.yaml:1"],
    "data=text data.path=nowhere.txt": ["data.path=nowhere.txt", "command line"],
    "data=pretrained data.tokenizer.path=./nowhere": ["data.tokenizer.path=./nowhere does not exist", "command line"],
    "run=nowhere": ["run=nowhere is no run folder", "no such folder"],
    "task=eval": ["task=eval needs run=FOLDER"],
    "task=compare": ["task=compare needs runs="],
    "task=compare runs=[nowhere]": ["nowhere"],
    "why": ["why needs a key"],
    "why trainer.max_stepz": ["nothing sets that key", "did you mean 'trainer.max_steps'"],
    "-m hydra.sweep.subdir=x": ["hydra.sweep.subdir cannot be set"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_one_line_with_the_nearest_choice(line, conf, fake_run, command):
    code, out, err = command(*line.split())
    assert code == 2 and out == "" and err.startswith("research-stack: error: ") and err.count("\n") == 1, err
    for part in MISTAKES[line]:
        assert part in err
    assert fake_run.calls == []
    assert not (conf.parent / "work" / "outputs").exists() and not (conf.parent / "work" / "multirun").exists()


def test_data_files(conf, fake_run, command, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    for name in ("empty.txt", "binary.txt"):
        code, _, err = command("data=text", f"data.path={tmp_path / name}")
        assert code == 2 and err.count("\n") == 1 and f"data.path={tmp_path / name}" in err
    (tmp_path / "good.txt").write_text("words and more words\n\n" * 50)
    assert command("data=text", f"data.path={tmp_path / 'good.txt'}")[0] == 0


def test_yaml_mistakes_name_file_and_line(conf, command):
    (conf / "model/tiny.yaml").write_text("_target_: toylib.Model\ndim: [8\nlayers: 2\n")
    code, _, err = command()
    assert code == 2 and "model/tiny.yaml:3: invalid YAML" in err and err.count("\n") == 1
    (conf / "model/tiny.yaml").write_text("_target_: toylib.Model\ndim: 8\ndim: 9\n")
    assert "model/tiny.yaml:3" in command()[2]
    (conf / "model/tiny.yaml").write_text("_target_: toylib.Model\nlayer: 2\n")
    assert "model.layer=2: Model has no parameter 'layer'; did you mean 'layers'? " in (err := command()[2])
    assert "model/tiny.yaml:2" in err
    (conf / "experiment/first.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: huge\n")
    (conf / "experiment/second.yaml").write_text("# @package _global_\ndefaults:\n  - override /modl: small\n")
    _, _, err = command("experiment=second")
    assert (
        "modl: there is no such group to override; did you mean 'model'?" in err and "experiment/second.yaml:3" in err
    )
    assert "model=huge" in (err := command()[2]) and "experiment/first.yaml:3" in err


def test_the_command_line_is_blamed_before_a_file(conf, command):
    (conf / "corruption/hybrid.yaml").write_text("_target_: toylib.Corruption\nmask_rate: 1\n")
    _, _, err = command("trainer.max_steps=abc")
    assert "trainer.max_steps=abc" in err and "one more mistake" in err


def test_every_point_is_checked_before_the_first_starts(conf, fake_run, command):
    code, _, err = command("-m", "corruption.mask_ratio=.3,.5,1.7", "seed=1,2")
    assert code == 2 and err.count("\n") == 1 and fake_run.calls == []
    assert "corruption.mask_ratio=1.7 must lie in [0, 1]" in err and "point 5 of 6" in err and "seed=1" in err
    code, _, err = command("-m", "model=tiny,tinny")
    assert code == 2 and "did you mean 'tiny'" in err and "point 2 of 2" in err and fake_run.calls == []


def test_a_bug_shows_its_traceback(conf, fake_run, command):
    fake_run.raises[1] = TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        command()


# ------------------------------------------------------------------------------- our own configs, post-training
POLICY = {
    "experiment=grpo method.num_generations=1": ["method.num_generations=1 must be at least 2", "command line"],
    "experiment=polychromic method.num_generations=1": [
        "method.num_generations=1 must be at least 2: diversity is a property of several answers"
    ],
    "experiment=polychromic method.diversity_coef=0": [
        "method.diversity_coef=0 must be above 0; without diversity it is experiment=sft"
    ],
    "experiment=polychromic method.estimator=hard": ["method.estimator=hard must be one of score, soft"],
    "experiment=grpo init_from=sftt": [
        "init_from=sftt is neither the folder of a run nor an experiment",
        "did you mean 'sft'",
    ],
    "experiment=grpo init_from=outputs/nowhere": ["init_from=outputs/nowhere is no run folder (no such folder)"],
    "experiment=grpo init_from='sft model.heads=2'": [
        "that run's model is another one",
        "model.heads: 2 there, 4 here",
    ],
    "experiment=grpo method/advantage=polychromatic": [
        "no such method/advantage",
        "did you mean 'polychromic'",
        "pass_at_k",
    ],
    "experiment=grpo method/reward=expresions": ["no such method/reward", "did you mean 'expressions'"],
    "experiment=grpo method.loss.loss_type=dapoo": [
        "method.loss.loss_type=dapoo must be one of grpo, dapo",
        "did you mean 'dapo'",
    ],
    "experiment=grpo method.advantage.scale_rewards=grup": [
        "method.advantage.scale_rewards=grup must be one of group, batch, none",
        "did you mean 'group'",
    ],
    "experiment=grpo method.beta=.1 method.reference=none": [
        "method.beta=0.1 needs a reference: reference=copy or adapters"
    ],
    "experiment=grpo eval.passk.metrics.num_generations=1": ["eval.passk.metrics.num_generations=1 must be at least 2"],
    "experiment=sft callbacks.dynamics.prompts=heldout": [
        "callbacks.dynamics.prompts=heldout must be one of held_out, trained",
        "did you mean 'held_out'",
    ],
    "experiment=sft data.source.answers=-1": ["data.source.answers=-1 must be at least 0"],
}
#: Mistakes that only the objects of a run show: before its first step.
BUILT = {
    "experiment=sft data=smoke": ["data=PythonDocs has no pairs of prompt and reply; choose data=expressions"],
    "experiment=sft data=smoke +data.pack=true": ["pack"],
    "experiment=grpo data=smoke": [
        "data=PythonDocs has no prompts: completions need something to stand behind; use data=expressions"
    ],
    "experiment=grpo method.rollouts.max_completion_length=2000": [
        "method.rollouts.max_completion_length=2000 behind the longest prompt of 3 tokens exceeds"
        " model.max_length=1024; lower it to"
        " 1021"
    ],
    "experiment=grpo model.max_length=8 method.rollouts.max_completion_length=8": [
        "exceeds model.max_length=8; lower it to 5"
    ],
    "experiment=grpo method/advantage=diversity +method.advantage.diversity=distance": [
        "method.encoder=null must be a sentence encoder: advantage=SetMarginal asks how far answers are apart"
    ],
    "experiment=polychromic +method.advantage.diversity=distance": ["encoder=null must be a sentence encoder"],
    "experiment=polychromic data.batch_size=100": [
        "data.batch_size=100 must be a multiple of method.num_generations=16"
    ],
    "experiment=polychromic method.estimator=soft data.batch_size=48 optimization.accumulate=2": [
        "optimization.accumulate=2 must divide the 3 groups of a step"
    ],
    "experiment=polychromic method.num_generations=4 data.batch_size=16": [
        "size=8 must be less than num_generations=4"
    ],
}


@pytest.mark.parametrize("line", POLICY)
def test_mistakes_about_policies_are_one_line_and_nothing_starts(line, fake_run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*shlex.split(line.replace("='", "=\"'").replace("2'", "2'\"")))
    assert code == 2 and out == "" and err.startswith("research-stack: error: ") and err.count("\n") == 1, err
    for part in POLICY[line]:
        assert part in err, err
    assert fake_run.calls == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", BUILT)
def test_mistakes_about_policies_that_building_shows_are_one_line_before_the_first_step(
    line, command, tmp_path, monkeypatch
):
    from research_stack.training.module import TrainingModule

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainingModule, "training_step", lambda *a: 1 / 0)
    code, _, err = command(*line.split(), "trainer.max_steps=2", "hardware.threads=1")
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("research-stack: error: ") and "Traceback" not in err, err
    for part in BUILT[line]:
        assert part in last, last

"""Where the files of a run lie: relative paths, data that has moved, no home folder, config folders of one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from research_stack.config.composer import Composer
from research_stack.data.cache import FolderCache, default_root
from research_stack.records import paths
from research_stack.records.run_folder import RunFolder


@pytest.fixture
def moved(conf, fake_run, command, tmp_path, monkeypatch):
    """(run folder, corpus) of a finished run; its data.path is not relative to the working directory."""
    Path("d").mkdir()
    Path("d/x.txt").write_text("words and more words\n\n" * 50)
    assert command("data=text", "data.path=d/x.txt", "seed=4")[0] == 0
    run = fake_run.calls.pop()[1].absolute()
    (run / "run.json").write_text(json.dumps({"cwd": str(Path.cwd())}))
    (run / "checkpoints").mkdir()
    shutil.make_archive(str(run / "checkpoints/last"), "zip", run, "run.json")
    (run / "checkpoints/last.zip").rename(run / "checkpoints/last.ckpt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return run, tmp_path / "work/d/x.txt"


def test_relative_paths_of_a_run_are_those_of_where_it_was_started(moved, fake_run, command):
    run, corpus = moved
    for task in ("eval", "sample", "train"):
        assert command(f"task={task}", f"run={run}")[0] == 0
        assert fake_run.calls[-1][0].data.path == fake_run.calls[-1][0].data.source.path == str(corpus)
    assert RunFolder(run).read_config()["data"]["path"] == str(
        corpus
    )  # gone on with from here, it is recorded as from here


def test_data_that_has_moved_may_be_said_again(moved, fake_run, command, tmp_path):
    run, corpus = moved
    corpus = corpus.rename(tmp_path / "x, new.txt")
    code, _, err = command("task=eval", f"run={run}")
    assert (
        code == 2
        and "data.path=d/x.txt does not exist" in err
        and f"{paths.shown(run)}/config.yaml:" in err
        and err.count("\n") == 1
    ), err
    assert "say where it is: data.path=..." in err and "conf/" not in err
    line = int(err.partition("config.yaml:")[2].partition(";")[0])
    assert (run / "config.yaml").read_text().splitlines()[line - 1].strip() == "path: d/x.txt"
    for task in ("eval", "sample", "train"):
        code, _, err = command(f"task={task}", f"run={run}", f"data.path={corpus}")
        cfg = fake_run.calls[-1][0]
        assert code == 0 and cfg.data.path == cfg.data.source.path == str(corpus) and cfg.seed == 4, err
    code, _, err = command("task=eval", f"run={run}", "model.path=x")
    assert code == 2 and "model.path=x is no path of that run; did you mean 'data." in err
    code, _, err = command("data=text", f"data.path={corpus}", "seed=4", f"run={run}")  # the whole command again
    assert code == 0, err
    code, _, err = command("data=text", f"data.path={corpus}", "seed=5", "model.dim=4", f"run={run}")
    assert code == 2 and "(model.dim: 8 there, 4 now; seed: 4 there, 5 now)" in err, err


def test_the_typed_keys_of_another_config_are_told_first(moved, command, conf):
    run, _ = moved
    shutil.copytree(run.parents[2] / "d", "d")
    text = (conf / "corruption/hybrid.yaml").read_text()
    (conf / "corruption/hybrid.yaml").write_text(text.replace("0.3", "0.1").replace("0.2", "0.1"))
    code, _, err = command("data=text", "data.path=d/x.txt", "seed=4", "trainer.max_steps=9", f"run={run}")
    assert (
        code == 2 and "(trainer.max_steps: 700 there, 9 now; corruption.corruption_rate: 0.2 there, 0.1 now; " in err
    ), err


def test_sampling_from_a_prompt_needs_no_corpus(moved, fake_run, command):
    run, corpus = moved
    corpus.unlink()
    assert command("task=sample", f"run={run}", "prompt=x")[0] == 2
    RunFolder(run).tokenizer.mkdir()
    assert command("task=sample", f"run={run}", "prompt=x")[0] == 0
    assert command("task=sample", f"run={run}")[0] == 2 and command("task=eval", f"run={run}")[0] == 2  # these read it


def test_a_user_without_a_home_folder_is_told_where_the_cache_may_be(tmp_path, monkeypatch):
    monkeypatch.delenv("RESEARCH_STACK_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache/research_stack"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(
        OSError, match="cannot be written: .*; set data.cache_dir or RESEARCH_STACK_CACHE to a writable folder"
    ):
        FolderCache(None, "x").folder(lambda folder: {})
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as for a user that no one has named
    with pytest.raises(
        OSError, match="has no home folder and HOME is not set; set data.cache_dir or RESEARCH_STACK_CACHE"
    ):
        default_root()
    assert paths.expanded("~/x") == Path("~/x")
    from research_stack.training.loggers import logged_in

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    assert not logged_in()


def test_no_module_asks_for_a_home_folder_in_a_way_that_may_raise():
    asking = [
        str(file)
        for file in paths.PACKAGE.rglob("*.py")
        if ".expanduser()" in (text := file.read_text()) or "Path.home()" in text
    ]
    assert not asking, "paths.expanded leaves `~` as it is where there is no home folder"


# Config folders of one's own -----------------------------------------------------------------------------------------


@pytest.fixture
def mine(conf):
    """A further config folder, beside the working directory."""
    folder = Path("../mine")
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment/mine.yaml").write_text(
        "# @package _global_\n# Mine alone.\nname: mine\ntrainer:\n  max_steps: 33\n"
    )
    return folder


@pytest.mark.parametrize(
    "how", ["--config-dir=../mine", "-cd ../mine", "hydra.searchpath=[file://../mine]", "in config.yaml"]
)
def test_a_config_folder_of_ones_own_is_known_everywhere(how, mine, conf, fake_run, command):
    words = how.split() if how != "in config.yaml" else []
    if not words:
        (conf / "config.yaml").write_text(
            (conf / "config.yaml").read_text() + f"hydra:\n  searchpath: ['file://{mine.resolve()}']\n"
        )
    assert command("experiment=mine", *words)[0] == 0 and fake_run.calls[0][0].trainer.max_steps == 33
    assert (
        command("-m", "experiment=mine", "seed=1,2", *words)[0] == 0
        and [c.name for c, _ in fake_run.calls] == ["mine"] * 3
    )
    assert command("experiment=mine", "dry_run=true", *words)[0] == 0
    assert "max_steps: 33" in command("experiment=mine", "--cfg", "job", *words)[1]
    assert (
        "mine/experiment/mine.yaml:5  33   <- wins" in command("why", "trainer.max_steps", "experiment=mine", *words)[1]
    )
    code, _, err = command("experiment=mime", *words)
    assert code == 2 and "did you mean 'mine'?" in err and err.count("\n") == 1
    code, _, err = command("experiment=mine", "model.dmi=3", *words)
    assert code == 2 and "did you mean 'dim'" in err and err.count("\n") == 1
    if words:
        assert "first, mine, second" in command("--help", *words)[1]
        assert command("list", "experiment", *words)[1].splitlines()[1].split() == ["experiment=mine", "Mine", "alone"]


def test_a_config_folder_that_is_not_there_is_one_line(conf, fake_run, command):
    for words in (
        ["-cd", "nowhere"],
        ["--config-path=nowhere"],
        ["hydra.searchpath=[file://nowhere]"],
        ["why", "seed", "-cd", "nowhere"],
        ["--help", "-cd", "nowhere"],
    ):
        code, out, err = command(*words)
        assert (
            code == 2
            and out == ""
            and "nowhere" in err
            and "no" in err
            and err.count("\n") == 1
            and fake_run.calls == []
        )


def test_a_relative_config_path_is_one_of_the_working_directory(conf, fake_run, command):
    shutil.copytree(conf, "conf2")
    Path("conf2/config.yaml").rename("conf2/other.yaml")
    Path("conf2/trainer/demo.yaml").write_text(
        "# @package _global_\ntrainer:\n  _target_: lightning.Trainer\n  max_steps: 55\n  val_check_interval: 5\n"
    )
    for words in (["dry_run=true"], [], ["-m", "seed=1"]):
        assert command("-cp", "conf2", "-cn", "other", *words)[0] == 0 and fake_run.calls[-1][0].trainer.max_steps == 55
    assert "max_steps: 55" in command("-cp", "conf2", "-cn", "other", "--cfg", "job")[1]
    assert (
        "conf2/trainer/demo.yaml:4  55   <- wins"
        in command("why", "trainer.max_steps", "-cp", "conf2", "-cn", "other.yaml")[1]
    )
    Path("conf2/bare.yaml").write_text("a: 1\n")
    code, _, err = command("-cp", "conf2", "-cn", "bare")
    assert code == 2 and "conf2/bare.yaml lacks name, task, seed" in err and err.count("\n") == 1


def test_references_to_hydras_own_config_are_told_as_what_they_are(conf, fake_run, command):
    for words in (["name=${hydra:runtime.choices.model}"], ["-m", "seed=1,2", "name=${hydra:runtime.choices.model}"]):
        code, _, err = command(*words, "dry_run=true")
        assert (
            code == 2
            and "name=${hydra:runtime.choices.model} refers to Hydra's own config" in err
            and "command line" in err
            and err.count("\n") == 1
        )
    (conf / "experiment/second.yaml").write_text("# @package _global_\nname: x\nhydra_free: ${hydra:job.num}\n")
    code, _, err = command("experiment=second")
    assert code == 2 and "experiment/second.yaml:3" in err and fake_run.calls == []


def test_completion_knows_the_folders_of_the_line_and_the_verbs(mine, command, monkeypatch):
    for line, wanted in {
        "research-stack --config-dir ../mine experiment=": ["experiment=first", "experiment=mine", "experiment=second"],
        "research-stack 'hydra.searchpath=[file://../mine]' experiment=m": ["experiment=mine"],
        "research-stack list -cd ../mine exp": ["experiment"],
        "research-stack list exp": ["experiment"],
        "research-stack wh": ["why"],
        "research-stack why trainer.max": ["trainer.max_steps="],
        "research-stack 'name=a b' model=t": ["model=tiny"],
    }.items():
        monkeypatch.setenv("COMP_LINE", line)
        code, out, err = command("-sc", "query=bash")
        assert code == 0 and sorted(out.split()) == wanted, (line, out, err)
    assert Composer(paths.CONF).folders == [paths.CONF.resolve()]

"""A config runs nothing but constructors of classes that a config may name, from wherever it came."""

from __future__ import annotations

import sys
import zipfile

import pytest
from omegaconf import OmegaConf

from research_stack import compose, load, run
from research_stack.cli.main import main
from research_stack.config import build as building
from research_stack.config import packages, targets
from research_stack.config.build import build
from research_stack.config.check_node import check_node
from research_stack.config.hints import UserError
from research_stack.records.config_hash import config_hash
from research_stack.records.escaping import as_config, escaped, unescaped
from research_stack.records.files import atomic_write, write_json
from research_stack.records.run_folder import RunFolder

FOREIGN = {
    "torch.utils.collect_env.run": "outside",
    "torch.hub.load": "outside",
    "torch.load": "outside",
    "torch.nn.Linear": "outside",
    "transformers.AutoModelForCausalLM.from_pretrained": "outside",
    "transformers.AutoModelForCausalLM": "outside",
    "torch.distributed.run.main": "outside",
    "os.system": "outside",
    "subprocess.Popen": "outside",
    "builtins.exec": "outside",
    "lightning.pytorch.loggers.CSVLogger": "outside",
    "lightning.fabric.utilities.cloud_io._load": "outside",
    "lightning": "outside",
    "research_stack.records.files.atomic_write": "function",
    "research_stack.records.provenance._git": "function",
    "research_stack.running.run.run": "function",
    "research_stack.config.build.build": "function",
    "research_stack.records.run_folder.RunFolder.write_config": "function",
    "research_stack.records.run_folder.Result.load": "function",
    "research_stack.records.files.Path": "pathlib.Path",
    "research_stack.records.provenance.subprocess.Popen": "subprocess.Popen",
    "research_stack.records.provenance.subprocess.run": "subprocess.run",
    "research_stack.records.files.os.system": "os.system",
    "research_stack.training.checkpoint.torch.load": "torch.load",
    "research_stack.training.checkpoint.TorchCheckpointIO": "lightning.",
    "research_stack.backbones.sentence.importlib.util.find_spec": "importlib",
    "lightning.pytorch.callbacks.model_checkpoint.os.system": "os.system",
    "lightning.pytorch.callbacks.timer.timedelta": "timedelta",
    "research_stack.running.hardware": "module",
    "research_stack.config.packages.VARIABLE": "str",
    "research_stack.records.files.log": "Logger",
    "research_stack.no_such.Thing": "no",
    "research_stack": "module",
    "": "outside",
    ".": "outside",
    "research_stack.": "",
    3: "int",
    None: "NoneType",
}


class Sentinel(Exception):
    """Stands for a command that ran."""


@pytest.fixture
def nothing_runs(monkeypatch):
    """Whatever a target leads to, nothing comes to be called."""

    def called(*arguments):
        raise Sentinel

    monkeypatch.setattr(building, "_called", called)


def test_nothing_foreign_is_built_at_any_depth_and_the_check_says_so_first(nothing_runs):
    own = {"_target_": "research_stack.data.tokenizers.Bytes"}
    with pytest.raises(Sentinel):
        build(own, "data")
    unseen = []
    for target, said in FOREIGN.items():
        bad = {"_target_": target, "command": "true"}
        for node in (bad, {**own, "x": {"y": [bad]}}, {**own, "x": [[bad]]}, {**own, 7: (bad,)}):
            with pytest.raises(ValueError, match=r"_target_") as error:
                build(node, "data")
            assert said in str(error.value) and "\n" not in str(error.value), error.value
        with pytest.raises(ValueError, match="_target_"):
            building.target(bad, "method")
        problems = [problem.message for problem in check_node("data", bad)]
        assert len(problems) <= 1
        unseen += [] if problems else [target]
    assert unseen == [
        "research_stack.running.hardware",
        "research_stack.config.packages.VARIABLE",
        "research_stack.records.files.log",
        "research_stack.no_such.Thing",
        "research_stack",
        "research_stack.",
    ]  # what is bound to no class, function or import: building it decides


def test_what_a_config_may_name(nothing_runs):
    for target in (
        "lightning.Trainer",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.Timer",
        "lightning.pytorch.callbacks.EarlyStopping",
        "research_stack.data.TokenData",
        "research_stack.running.hardware.Hardware",
    ):
        assert targets.refused(target) is None
        assert isinstance(building.target({"_target_": target}), type)


def test_keys_that_change_how_a_node_is_built_are_refused(nothing_runs):
    for key, value in {"_args_": ["x"], "_partial_": True, "_recursive_": False, "_convert_": "none"}.items():
        node = {"_target_": "research_stack.data.tokenizers.Bytes", key: value}
        with pytest.raises(ValueError, match=f"data.a.{key}=.* cannot be set"):
            build({"_target_": "research_stack.data.tokenizers.Bytes", "a": node}, "data")
        assert "cannot be set" in next(check_node("data", node)).message


def test_values_of_a_node_are_text(monkeypatch):
    monkeypatch.setenv("SOME_VARIABLE", "leaked")
    texts = [
        "${oc.env:SOME_VARIABLE}",
        r"\${oc.env:SOME_VARIABLE}",
        r"a\\${x}",
        "${",
        "$",
        "\\",
        "${${a}}",
        "${oc.decode:1}",
        "???x",
    ]
    for text in texts:
        assert unescaped(escaped(text)) == text
        assert OmegaConf.to_container(as_config({"a": [text]}), resolve=True) == {"a": [text]}
        built = build({"_target_": "research_stack.data.sources.text.Text", "path": text}, "source")
        assert built.path == text


def test_a_saved_config_is_read_as_it_was_written_and_its_interpolations_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_VARIABLE", "leaked")
    run_folder = RunFolder(tmp_path)
    kept = {"name": "a", "prompt": "${oc.env:SOME_VARIABLE}", "deep": [{"x": r"\${y}"}, "plain", None, 1.5]}
    run_folder.write_config(kept)
    assert run_folder.read_config() == kept and config_hash(run_folder.read_config()) == config_hash(kept)
    for line, number in {
        "  x: ${oc.env:SOME_VARIABLE}": 3,
        "  x: ${name}": 3,
        "  x: [a, '\\\\${oc.decode:1}']": 3,
        '  x: {y: "a\\n${hydra:runtime.cwd}"}': 3,
        "  x:\n   - ${point_name:[a]}": 4,
        "  x: >\n    a\n    b ${name}": 3,
        "  ${name}: 1": 3,
    }.items():
        run_folder.config_yaml.write_text(f"name: a\nmodel:\n{line}\n")
        with pytest.raises(ValueError, match=rf"config.yaml:{number}: .* is an interpolation") as error:
            run_folder.read_config()
        assert "leaked" not in str(error.value)


# Packages of one's own -------------------------------------------------------------------------------------------

GROWING = '''
from torch import Tensor
from research_stack.corruption.base import Corruption, Rates
from pathlib import Path
def made(): ...
class Growing(Corruption):
    """Masks a growing share."""
    def __init__(self, most: float = 0.9) -> None:
        super().__init__(); self.most = most
    def rates(self, level_B: Tensor) -> Rates:
        none_B = 0 * level_B
        return Rates(mask=self.most * level_B**2, replace=none_B, keep=none_B)
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The working directory of somebody whose package `myproj` has a corruption of its own, and a conf folder."""
    (tmp_path / "myproj").mkdir()
    (tmp_path / "myproj" / "__init__.py").touch()
    (tmp_path / "myproj" / "noise.py").write_text(GROWING)
    (tmp_path / "conf" / "corruption").mkdir(parents=True)
    (tmp_path / "conf" / "corruption" / "growing.yaml").write_text("_target_: myproj.noise.Growing\nmost: 0.9\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(packages.VARIABLE, raising=False)
    yield tmp_path
    for name in ("myproj", "myproj.noise"):
        sys.modules.pop(name, None)


def test_a_package_is_opted_into_by_the_environment(project, monkeypatch):
    node = {"_target_": "myproj.noise.Growing", "most": 0.5}
    for refused in (lambda: build(node, "corruption"), lambda: building.target(node, "corruption")):
        with pytest.raises(
            ValueError, match=r"corruption\._target_=myproj\.noise\.Growing .*RESEARCH_STACK_PACKAGES=myproj"
        ):
            refused()
    assert (
        "RESEARCH_STACK_PACKAGES=myproj" in next(check_node("corruption", node)).message and "myproj" not in sys.modules
    )
    monkeypatch.setenv(packages.VARIABLE, " other, myproj,")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(project))])
    with pytest.raises(ValueError, match="no package 'myproj' in the working directory or on PYTHONPATH"):
        build(node, "corruption")
    packages.search_working_directory()
    assert sys.path[-1] == str(project)
    assert [p.message for p in check_node("corruption", node | {"moist": 1})] == [
        "corruption.moist=1: Growing has no parameter 'moist'; did you mean 'most'?"
    ]
    assert "myproj" not in sys.modules  # the check has read its source, no more
    assert build(node, "corruption").most == 0.5
    for target, said in {
        "myproj.noise.made": "function",
        "myproj.noise.Path": "pathlib.Path",
        "myproj.noise.Tensor": "Tensor",
    }.items():
        with pytest.raises(ValueError, match=said):
            build({"_target_": target}, "corruption")
    assert isinstance(building.target({"_target_": "myproj.noise.Corruption"}), type)  # defined in ours
    monkeypatch.setenv(packages.VARIABLE, "myproj.noise")
    with pytest.raises(UserError, match="'myproj.noise' must be the name of a top-level package"):
        packages.packages()


def test_a_package_is_opted_into_by_an_installed_distribution(project, monkeypatch):
    folder = project / "site" / "mine-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[research_stack.packages]\nanything = myproj.noise\n")
    monkeypatch.syspath_prepend(project / "site")
    packages.installed.cache_clear()
    try:
        assert packages.packages() == ("research_stack", "myproj") and "myproj" not in sys.modules
        monkeypatch.syspath_prepend(project)
        assert build({"_target_": "myproj.noise.Growing"}, "corruption").most == 0.9
    finally:
        packages.installed.cache_clear()


# Folders of somebody else ----------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """(writes a run folder as somebody might send it, what its config would make): a run of ours, one thing changed."""
    monkeypatch.chdir(tmp_path)
    kept = OmegaConf.to_container(compose("model=smoke", "data=smoke", "trainer=smoke"), resolve=True)

    def sent(key, value):
        config = as_config(kept)
        OmegaConf.update(config, key, value, force_add=True)
        run_folder = RunFolder(tmp_path / "theirs")
        atomic_write(run_folder.config_yaml, OmegaConf.to_yaml(config))
        write_json(run_folder.run_json, {})
        run_folder.start(config_hash(config))
        run_folder.finish({}, 3)
        run_folder.checkpoints.mkdir(exist_ok=True)
        with zipfile.ZipFile(run_folder.checkpoints / "last.ckpt", "w") as archive:
            archive.writestr("archive/data.pkl", b"")
        return run_folder.path

    return sent, tmp_path / "made"


def test_a_foreign_run_folder_runs_nothing(foreign, capfd, monkeypatch):
    sent, made = foreign
    monkeypatch.setenv("SOME_VARIABLE", "leaked")
    writes = {"_target_": "research_stack.records.files.atomic_write", "path": str(made), "content": "x"}
    runs = {"_target_": "research_stack.records.provenance.subprocess.check_call", "_args_": [["touch", str(made)]]}
    by_command = {
        "model": [],
        "data.source": ["task=eval"],
        "trainer.plugins": ["task=sample"],
        "prompt": ["task=eval"],
    }
    reads = {"_target_": "torch.load", "f": "x", "weights_only": False}
    for key, value in {
        "model": writes,
        "method.loss": runs,
        "data.source": reads,
        "callbacks.more": writes,
        "trainer.plugins": [runs],
        "eval.more.deep": [{"x": writes}],
        "sampler.steps": runs,
        "hardware": writes,
        "model.dim": r"${oc.env:SOME_VARIABLE}",
        "prompt": "${oc.decode:1}",
    }.items():
        folder = sent(key, value) if not isinstance(value, str) else sent("name", "marked")
        if isinstance(value, str):
            with (folder / "config.yaml").open("a") as file:
                file.write(f"more:\n  x: {value}\n")
        if key in by_command:
            code = main([*by_command[key], f"run={folder}"])
            out, err = capfd.readouterr()
            assert code == 2 and err.count("\n") == 1 and out == "" and "leaked" not in err, (key, err)
            assert "_target_" in err or "config.yaml" in err, err
        with pytest.raises(ValueError, match="_target_|is an interpolation"):  # no check comes before it here
            run(as_config(RunFolder(folder).read_config()), folder.with_name("again"))
        assert not made.exists()
    with pytest.raises(ValueError, match="is an interpolation"):
        load(folder)

"""A config folder of the shape of ours with classes of its own, and a run that trains nothing."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path

import pytest

from research_stack.cli.main import main
from research_stack.config import check_node, packages, signatures, tasks
from research_stack.records import paths
from research_stack.records.config_hash import config_hash
from research_stack.records.provenance import overrides_of
from research_stack.records.run_folder import RunFolder
from research_stack.running import jobs
from research_stack.running.compare import compare

TOY = '''
from __future__ import annotations
from dataclasses import dataclass
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol
import unknown
from research_stack.require import high, is_rate, low, require
from toylib.parts import Exported as Renamed

Rate = float | list[float]

class Model:
    def __init__(self, vocab_size: int, dim: int = 8, layers: int = 2, dropout: float = 0.0, tie: bool = True,
                 kind: Literal["pre", "post"] = "pre", name: str | None = None, widths: tuple[int, int] = (1, 2),
                 scale: Annotated[float, "unit"] = 1.0):
        """Says nothing."""
        super().__init__()
        require(dim % 2 == 0, f"dim={dim} must be even")
        require(kind in ("pre", "post") and 0 <= dropout < 1, f"dropout={dropout} must lie in [0, 1)")
        self.dim = dim

class Child(Model):
    pass

class Loose(Model):
    def __init__(self, extra: int = 1, **rest):
        super().__init__(**rest)

@dataclass
class Corruption:
    mask_ratio: Rate = 0.3
    corruption_rate: Rate = 0.2

    def __post_init__(self):
        require(is_rate(self.mask_ratio), f"mask_ratio={self.mask_ratio} must lie in [0, 1]")
        require(is_rate(self.corruption_rate), f"corruption_rate={self.corruption_rate} must lie in [0, 1]")
        require(high(self.mask_ratio) + high(self.corruption_rate) <= 1,
                f"mask_ratio={self.mask_ratio} and corruption_rate={self.corruption_rate} must sum to at most 1")

@dataclass
class Whole:
    name: str
    task: str
    seed: int
    run: str | None
    runs: list[str]
    prompt: str | None
    dry_run: bool
    model: Model
    corruption: Corruption
    trainer: Any
    hardware: Any
    sampler: Any
    eval: Any = None
    data: Any = None
    init_from: str | None = None

class Outside(unknown.Base):
    pass

class Scores(Protocol):
    def score(self) -> float: ...

class Scorer:
    def score(self) -> float:
        return 1.0

class Holder:
    def __init__(
        self,
        model: Model | None = None,
        several: Mapping[str, Model] = {},  # noqa: B006
        some: Sequence["Model"] = (),
        scored: Scores | None = None,
    ):
        self.model = model

class Strange:
    def __init__(self, a: int = 1, b: SomethingElse = None):
        a = unknown(a)
        require(a > 100, f"a={a} must be over 100")
        require(mystery(b), "b=? must be known")
'''
FILES = {
    "config.yaml": (
        """\
defaults:
  - _self_
  - model: tiny
  - corruption: hybrid
  - trainer: demo
  - optional data: null
  - optional sweep: null
  - experiment: first
name: flowlm
task: train
seed: 1
run: null
runs: []
prompt: null
dry_run: false
eval: {}
hardware: {}
sampler: {}
"""
    ),
    "model/tiny.yaml": "_target_: toylib.Model\ndim: 8\nlayers: 2   # blocks\n",
    "model/small.yaml": "_target_: toylib.Model\ndim: 16\nlayers: 2\n",
    "model/odd.yaml": "_target_: toylib.Model\ndim: 7\n",
    "corruption/hybrid.yaml": "_target_: toylib.Corruption\nmask_ratio: 0.3\ncorruption_rate: 0.2\n",
    "corruption/mask.yaml": "_target_: toylib.Corruption\nmask_ratio: 0.8\ncorruption_rate: 0.0\n",
    "trainer/demo.yaml": (
        "# @package _global_\ntrainer:\n  _target_: lightning.Trainer\n  max_steps: 700\n  val_check_interval: 100\n"
    ),
    "trainer/short.yaml": (
        "# @package _global_\ntrainer:\n  _target_: lightning.Trainer\n  max_steps: 200\n  val_check_interval: 100\n"
    ),
    "data/text.yaml": "path: ???\nsource:\n  _target_: research_stack.data.sources.text.Text\n  path: ${data.path}\n",
    "data/pretrained.yaml": (
        "source:\n  _target_: research_stack.data.PythonDocs\n"
        "tokenizer:\n  _target_: research_stack.data.Pretrained\n  path: bert\n"
    ),
    "sweep/matrix.yaml": "# @package _global_\nhydra:\n  sweeper:\n    params:\n      corruption: hybrid,mask\n",
    "experiment/first.yaml": "# @package _global_\nname: flowlm\n",
    "experiment/second.yaml": (
        "# @package _global_\ndefaults:\n  - override /model: small\nname: second\ntrainer:\n  max_steps: 50\n"
    ),
}


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A config folder; the working directory is an empty one beside it."""
    root = tmp_path / "conf"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    classes = tmp_path / "classes"
    (classes / "toylib").mkdir(parents=True)
    (classes / "toylib" / "__init__.py").write_text(TOY)
    (classes / "toylib" / "parts.py").write_text("class Exported:\n    def __init__(self, size: int = 1): ...\n")
    real = signatures.package_folder

    def roots(name: str) -> Path | None:
        return classes / name if (classes / name).is_dir() else real(name)

    monkeypatch.setattr(signatures, "package_folder", roots)
    monkeypatch.setenv(packages.VARIABLE, "toylib")
    monkeypatch.syspath_prepend(classes)
    monkeypatch.setattr(check_node, "SCHEMA", "toylib.Whole")
    monkeypatch.setattr(paths, "CONF", root)
    for cached in (signatures.module, signatures.signature, tasks._tasks_of):
        cached.cache_clear()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield root
    for cached in (signatures.module, signatures.signature, tasks._tasks_of):
        cached.cache_clear()


class FakeRun:
    """Stands for research_stack.running.run: writes a run folder and notes what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict, Path]] = []
        self.argv: list[str] = []
        self.overrides: list[str] = []
        self.raises: dict[int, BaseException] = {}

    def __call__(self, cfg, folder):
        if cfg.task == "compare":
            return compare(cfg.runs)
        self.calls.append((cfg, Path(folder)))
        self.argv, self.overrides = list(sys.argv), overrides_of(sys.argv)
        if cfg.dry_run or cfg.task != "train":
            return None
        run_folder = RunFolder(folder)
        run_folder.write_config(cfg)
        (run_folder.path / "run.json").write_text("{}")
        run_folder.start(config_hash(cfg))
        error = self.raises.get(len(self.calls))
        if isinstance(error, KeyboardInterrupt):
            run_folder.interrupted(3)
        if error is not None:
            raise error
        return run_folder.finish({"likelihood/bound": float(len(self.calls))}, 7)


@pytest.fixture
def fake_run(monkeypatch):
    """Runs that train nothing, and a sweep report that is a line of text."""
    fake, report = FakeRun(), types.ModuleType("sweep_page")

    def write_sweep_report(folder, table, differences=()):
        (Path(folder) / "report.html").write_text(f"{len(table.points)} points")
        return Path(folder) / "report.html"

    report.write_sweep_report, report.as_markdown, report.as_text = (
        write_sweep_report,
        lambda table, differences=(): "",
        lambda table, width: table.as_text(width),
    )
    monkeypatch.setattr(jobs, "run", fake)
    monkeypatch.setitem(sys.modules, "research_stack.reporting.sweep_page", report)
    return fake


@pytest.fixture
def command(capfd, monkeypatch):
    """Runs the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["research-stack"])

    def call(*arguments: str):
        capfd.readouterr()
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def trained(conf, fake_run, command):
    """A finished run with a checkpoint."""
    command("model=small", "seed=4")
    folder = fake_run.calls.pop()[1]
    (folder / "checkpoints").mkdir()
    with zipfile.ZipFile(folder / "checkpoints" / "last.ckpt", "w") as archive:
        archive.writestr("data.pkl", "x" * 1000)
    return folder

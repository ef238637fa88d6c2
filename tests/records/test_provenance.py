"""run.json and the history."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from research_stack.records import provenance
from research_stack.records.config_hash import config_hash
from research_stack.records.files import read_json, read_jsonl
from research_stack.records.run_folder import RunFolder

CONFIG = {"name": "flowlm", "seed": 3, "corruption": {"_target_": "research_stack.corruption.Hybrid"},
          "eval": {"likelihood": {"_target_": "x.L"}, "samples": {"_target_": "x.S"}}, "logger": {}}  # fmt: skip


@pytest.mark.parametrize("text, expected", [
    ("logger.api_key=abc123", "logger.api_key=***"),
    ("data.hub_token=xyz seed=1", "data.hub_token=*** seed=1"),
    ("+password: hunter2", "+password: ***"),
    ("data.path=hf_abcdefghijklmnopqrstuv", "data.path=***"),
    ("https://me:secret@host/x", "https://me:***@host/x"),
    ("sk-abcdefghijklmnop0123", "***"),
    ("data.tokenizer.path=bert", "data.tokenizer.path=bert"),
    ("sampler.max_tokens=5 data.tokens=7", "sampler.max_tokens=5 data.tokens=7"),
    ("data.token=null", "data.token=null"),
    ("run=outputs/flowlm/2026 corruption.mask_ratio=[.3,.7]", "run=outputs/flowlm/2026 corruption.mask_ratio=[.3,.7]"),
])  # fmt: skip
def test_secrets_are_masked_and_nothing_else(text, expected):
    assert provenance.redact(text) == expected


@pytest.mark.parametrize("argv, expected", [
    (["/venv/bin/research-stack", "seed=1"], "research-stack seed=1"),
    (["/x/research_stack/__main__.py", "prompt=two words", "-m"], "research-stack 'prompt=two words' -m"),
    (["examples/flowlm.py", "a"], "examples/flowlm.py a"),
])  # fmt: skip
def test_the_command_as_one_would_type_it(argv, expected):
    assert provenance.command_line(argv) == expected


@pytest.fixture(autouse=True)
def no_hydra_job(monkeypatch):
    """A command that an earlier test gave in this process leaves Hydra's config behind."""
    monkeypatch.delitem(sys.modules, "hydra.core.hydra_config", raising=False)


def test_run_json(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET_THING", "do-not-keep-me")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    provenance.begin(tmp_path, CONFIG, ["/x/bin/research-stack", "-m", "seed=3", "logger.api_key=abc", "--cfg=job"])
    provenance.add(tmp_path, {"data": {"fingerprint": "f00"}})
    text = (tmp_path / "run.json").read_text()
    facts = json.loads(text)
    assert facts["command"] == "research-stack -m seed=3 logger.api_key=*** --cfg=job"
    assert facts["overrides"] == ["seed=3", "logger.api_key=***"]
    assert facts["hash"] == config_hash(CONFIG) and facts["seed"] == 3 and facts["name"] == "flowlm"
    assert facts["data"] == {"fingerprint": "f00"} and facts["slurm"]["SLURM_JOB_ID"] == "4711"
    assert facts["machine"]["cores"] == len(os.sched_getaffinity(0)) and facts["machine"]["memory_gib"] > 0
    assert facts["versions"]["torch"] and facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "do-not-keep-me" not in text and "abc" not in facts["argv"]


def test_a_resumed_run_remembers_its_earlier_parts(tmp_path):
    for part in ("one", "two", "three"):
        provenance.begin(tmp_path, CONFIG, ["research-stack", f"x={part}"])
    facts = read_json(tmp_path / "run.json")
    assert facts["command"].endswith("x=three")
    assert [part["command"] for part in facts["earlier"]] == ["research-stack x=one", "research-stack x=two"]


def git(folder, *arguments):
    done = subprocess.run(
        ["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository that holds a copy of the package, and nothing in the working directory that is a repository."""
    package = tmp_path / "repo" / "research_stack"
    shutil.copytree(
        provenance.PACKAGE,
        package,
        ignore=lambda folder, names: [n for n in names if n not in ("__init__.py", "run_folder.py")],
    )
    git(tmp_path / "repo", "init", "-q")
    git(tmp_path / "repo", "add", ".")
    git(tmp_path / "repo", "commit", "-q", "-m", "x")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    return tmp_path / "repo"


def test_the_code_is_named_by_commit_and_difference(checkout, tmp_path):
    facts, difference = provenance.code()
    assert facts["sha"] == git(checkout, "rev-parse", "HEAD") and not facts["dirty"] and difference == ""
    with (checkout / "research_stack" / "__init__.py").open("a") as file:
        file.write("\nCHANGED = 'hf_abcdefghijklmnopqrstuv'\n")
    (checkout / "new.py").write_text("")
    run = provenance.begin(tmp_path / "run", CONFIG)
    assert len(run["git"]["changes"]) == 12 and facts["changes"] is None
    assert run["git"]["dirty"] and run["git"]["untracked"] == ["new.py"] and run["git"]["diff"] == "diff.patch"
    patch = (tmp_path / "run" / "diff.patch").read_text()
    assert "+CHANGED = '***'" in patch


def test_an_installed_package_has_no_commit(checkout, monkeypatch):
    git(checkout, "rm", "-r", "-q", "--cached", "research_stack")  # as in a virtual environment inside a checkout
    assert provenance.code() == (None, "")
    monkeypatch.setenv("PATH", "")
    assert provenance.code() == (None, "")


def finish(folder, history, index):
    run_folder = RunFolder(folder)
    run_folder.start("abc")
    run_folder.finish({"bound": float(index)}, 5)
    provenance.history(run_folder, CONFIG | {"seed": index}, path=history)


def ten_runs(tmp_path, writer):
    for index in range(10):
        finish(tmp_path / f"{writer}-{index}", tmp_path / "history.jsonl", 100 * writer + index)


def test_the_history_takes_several_writers(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=ten_runs, args=(tmp_path, writer)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert {line["seed"] for line in lines} == {100 * w + i for w in range(4) for i in range(10)} and len(lines) == 40


def test_a_line_of_the_history(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["research-stack", "seed=3", "data.token=hush"])
    run_folder = RunFolder(tmp_path / "run")
    provenance.begin(run_folder, CONFIG)
    run_folder.start("abc")
    run_folder.fail(ValueError("bad"), 2)
    provenance.history(run_folder, CONFIG)
    (line,) = read_jsonl(tmp_path / "outputs" / "history.jsonl")
    assert (line["status"], line["error"], line["steps"], line["task"]) == ("failed", "ValueError: bad", 2, "train")
    assert line["choices"] == {"corruption": "Hybrid", "eval": "likelihood,samples"}
    assert line["overrides"] == ["seed=3", "data.token=***"] and line["hash"] == config_hash(CONFIG)
    assert line["folder"] == str(run_folder.path) and line["started"] <= line["finished"]
    assert provenance.search_history("FAILED", "hybrid") == [line]
    assert provenance.search_history("failed", "absorbing") == []


def test_a_history_that_cannot_be_written_does_not_take_the_run_down(tmp_path, caplog):
    (tmp_path / "outputs").write_text("")
    line = provenance.history(tmp_path / "run", CONFIG, path=tmp_path / "outputs" / "history.jsonl")
    assert line["name"] == "flowlm" and "cannot be written" in caplog.text


def test_inside_a_hydra_job_the_overrides_are_those_of_the_point(monkeypatch):
    from types import SimpleNamespace

    config = SimpleNamespace(
        initialized=lambda: True,
        get=lambda: SimpleNamespace(overrides=SimpleNamespace(task=OmegaConf.create(["seed=2"]))),
    )
    monkeypatch.setitem(sys.modules, "hydra.core.hydra_config", SimpleNamespace(HydraConfig=config))
    assert provenance.overrides_of(["research-stack", "-m", "seed=1,2"]) == ["seed=2"]

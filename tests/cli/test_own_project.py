"""A project of one's own on the command line: checked, listed, explained, completed; nothing of ours edited."""

from __future__ import annotations

import shlex
import sys

import pytest
from own_project import commands, mistakes, write_project

from research_stack import compose
from research_stack.cli.main import main
from research_stack.config import packages, signatures, tasks
from research_stack.config.check import check
from research_stack.config.composer import Composer
from research_stack.config.first_phase import first_phase_config


@pytest.fixture(params=["environment", "entry point"])
def project(request, tmp_path, monkeypatch):
    """The project of docs/extending.md, opted into in both ways."""
    caches = (signatures.module, signatures.signature, signatures.package_folder, tasks._tasks_of)
    write_project(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    if request.param == "environment":
        monkeypatch.setenv(packages.VARIABLE, "addition")
    else:
        monkeypatch.setattr(packages, "installed", lambda: ("addition",))
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "addition"]:
        del sys.modules[name]


@pytest.fixture
def said(capfd, monkeypatch):
    """(exit code, standard output, standard error) of a command line."""
    monkeypatch.setattr(sys, "argv", ["research-stack"])

    def call(line):
        code = main(shlex.split(line)[1:])
        return code, *capfd.readouterr()

    return call


def test_its_mistakes_are_named_before_it_is_imported(project, said):
    static = [pair for pair in mistakes() if "first" not in pair[0] and "eval=" not in pair[0]]
    assert len(static) >= 2
    for line, wanted in static:
        assert said(line) == (2, "", f"{wanted}\n")
    assert "addition.steep" not in sys.modules


def test_it_is_listed_explained_completed_and_composed(project, said, monkeypatch):
    assert "experiment=addition " in said("research-stack list experiment")[1]
    assert "task=add run=RUN" in said("research-stack list task")[1]
    usage = said("research-stack --help")[1]
    assert "adder" in usage and "what a trained network takes a + b to be" in " ".join(usage.split())
    assert said("research-stack why data.modulus experiment=addition")[1].startswith("addition/conf/data/sums.yaml:")
    assert "addition.sums.Sums" in said("research-stack --cfg job experiment=addition")[1]
    for typed, found in (("experiment=add", "experiment=addition"), ("task=ad", "task=add"), ("data=su", "data=sums")):
        monkeypatch.setenv("COMP_LINE", f"research-stack {typed}")
        assert said("research-stack -sc query=bash")[1].split() == [found]
    phase = first_phase_config(compose("experiment=addition", "init_from='addition trainer.max_steps=3'"))
    assert (phase.trainer.max_steps, phase.data["_target_"]) == (3, "addition.sums.Sums")


def test_every_point_of_its_sweep_is_checked(project):
    composer = Composer()
    _, points = composer.points(["sweep=tables", "seed=1,2"])
    assert len(points) == 6 and sum("sweep=tables" in line for line in commands()) == 1
    assert [problem for point in points for problem in check(composer.compose_point(point).cfg)] == []


@pytest.mark.parametrize("how", [["--config-dir", "more"], ["hydra.searchpath=[file://more]"]])
def test_further_folders_are_found(project, said, how):
    code, out, _ = said(shlex.join(["research-stack", "--cfg", "job", "experiment=wide", *how]))
    assert code == 0 and "dim: 256" in out and "addition.learner.Network" in out
    assert "experiment=wide " in said(shlex.join(["research-stack", "list", "experiment", *how]))[1]

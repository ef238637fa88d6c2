"""A project outside the package, as docs/extending.md builds it: installed, run, swept, submitted, on devices."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import slurm_cluster
from own_project import ROOT, cluster_commands, commands, mistakes, write_project
from small_runs import SMALL, finish, log_of, start

pytestmark = pytest.mark.slow

CODE = '''
from pathlib import Path
from lightning.pytorch import Callback

class Notes(Callback):
    """Writes down which process was given what."""
    def __init__(self, api_key: str) -> None:
        self.api_key = api_key
    def on_train_start(self, trainer, pl_module):
        Path(f"rank{trainer.global_rank}").write_text(self.api_key[::-1])
'''


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """`research-stack` and `pip` on the PATH: those of this checkout, and into a folder of the test's own."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "site").mkdir()
    install = f"install --quiet --no-build-isolation --no-deps --no-index --target {folder / 'site'}"
    for name, command in (("research-stack", 'research_stack "$@"'), ("pip", f'pip {install} "${{@:2}}"')):
        (folder / name).write_text(f"#!/usr/bin/env bash\nexec {sys.executable} -m {command}\n")
        (folder / name).chmod(0o755)
    paths = [str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def ran(command, cwd, environment, code=0):
    """(standard output, standard error) of a shell command that ends with the exit code."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_every_command_of_the_page_does_what_it_says(tmp_path, environment):
    write_project(tmp_path)
    out, _ = ran("set -ex\n" + "\n".join(commands()), tmp_path, environment)
    assert "3 + 4 = " in out and "modulo 13" in out and out.count("ok, 6 steps") >= 5
    page = (tmp_path / "first" / "report.html").read_text()
    assert "<h2>Sums</h2>" in page and "of the sums it has not seen" in page
    (sweep,) = tmp_path.glob("multirun/*/*/report.html")
    assert "held-out sums right" in sweep.read_text() and len(list(sweep.parent.glob("*/result.json"))) == 6
    assert len(list(tmp_path.glob("elsewhere/outputs/*/*/report.html"))) == 1
    for command, wanted in mistakes():
        _, err = ran(f"RESEARCH_STACK_PACKAGES=addition {command}", tmp_path, environment, code=2)
        assert err == f"{wanted}\n"


def test_a_cluster_job_finds_the_project(tmp_path, environment):
    reason = slurm_cluster.missing() or (None if find_spec("submitit") else "no submitit")
    if reason:
        pytest.skip(reason)
    write_project(tmp_path)
    with slurm_cluster.cluster() as cluster:
        for command in cluster_commands():
            ran(command, tmp_path, {**environment, **cluster, "RESEARCH_STACK_PACKAGES": "addition"})
    assert len(list(tmp_path.glob("multirun/*/*/*/report.html"))) == 3


def test_every_process_has_the_package_and_the_secret(tmp_path):
    (tmp_path / "myproj").mkdir()
    (tmp_path / "myproj" / "notes.py").write_text(CODE)
    environment = {**os.environ, "RESEARCH_STACK_PACKAGES": "myproj"}
    command = [
        *SMALL,
        "hardware=cpu_ddp",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "+callbacks.notes={_target_: myproj.notes.Notes, api_key: s3cret-of-mine}",
        "hydra.run.dir=run",
    ]
    assert finish(start(*command, cwd=tmp_path, environment=environment), tmp_path) == 0, log_of(tmp_path)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["s3cret-of-mine"[::-1]] * 2
    held = [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret-of-mine" in path.read_bytes()]
    assert held == [] and "***masked***" in (tmp_path / "run" / "config.yaml").read_text()
    refused = start("run=run", cwd=tmp_path)
    assert finish(refused, tmp_path) == 2 and "RESEARCH_STACK_PACKAGES=myproj" in log_of(tmp_path).splitlines()[-1]

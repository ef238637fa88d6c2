"""Sweeps really submitted to a SLURM cluster that the test starts; one job is preempted, requeued and resumed.

Needs root, slurm-wlm, munge and submitit; skipped elsewhere, unless RESEARCH_STACK_REQUIRE_SLURM=1 says that this
machine must have them.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from importlib.util import find_spec

import pytest
import slurm_cluster
from omegaconf import OmegaConf
from small_runs import SMALL, finish, log_of, losses, rows, run_here, start, wait_for

pytestmark = pytest.mark.slow

STEPS = 600  # about seven seconds: SLURM takes some to preempt
SIGNALLED = 150  # for a signal that is sent at once
COMMAND = [
    "-m",
    *SMALL,
    f"trainer.max_steps={STEPS}",
    "launcher=slurm",
    "hardware=slurm_cpu",
    "hardware.resources.timeout_min=60",
    "hardware.resources.mem_gb=2",
    "hardware.resources.cpus_per_task=1",
    "seed=1,2",
]


@pytest.fixture(scope="module")
def environment():
    """A running cluster, as the environment of its commands."""
    reason = slurm_cluster.missing() or (
        None if find_spec("submitit") else "no submitit (pip install 'research-stack[slurm]')"
    )
    if reason and os.environ.get("RESEARCH_STACK_REQUIRE_SLURM") == "1":
        pytest.fail(f"RESEARCH_STACK_REQUIRE_SLURM=1, but {reason}")
    if reason:
        pytest.skip(reason)
    with slurm_cluster.cluster() as environment:
        yield environment


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The losses of seed 2 on this machine, undisturbed."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run_here(*SMALL, f"trainer.max_steps={STEPS}", "seed=2", folder=folder)
    return losses(folder)


def slurm(environment, *command: str) -> str:
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def point(cwd, seed: int):
    """The folder of a point of the sweep in this working directory."""
    configs = {int(OmegaConf.load(path).seed): path.parent for path in cwd.glob("multirun/*/*/*/config.yaml")}
    return configs.get(seed, cwd / "not yet")


def assert_both_ok(cwd):
    for seed in (1, 2):
        assert json.loads((point(cwd, seed) / "result.json").read_text())["status"] == "ok"
    (table,) = cwd.glob("multirun/*/*/results.csv")
    with open(table) as file:
        assert sorted(row["seed"] for row in csv.DictReader(file)) == ["1", "2"]


def test_a_preempted_job_is_requeued_and_gives_the_same_losses(environment, alone, tmp_path):
    """An urgent job takes the whole node; SLURM tells both jobs, and starts them again when it is done."""
    process = start(*COMMAND, cwd=tmp_path, environment=environment)
    wait_for(lambda: len(rows(point(tmp_path, 2))) >= 12, process, tmp_path)
    slurm(environment, "sbatch", "--partition=urgent", "--exclusive", "--wrap=sleep 1", "--output=/dev/null")
    assert finish(process, tmp_path) == 0, log_of(tmp_path)
    assert losses(point(tmp_path, 2)) == alone
    text = (point(tmp_path, 2) / "run.log").read_text()
    assert "SIGUSR2 at step" in text and "resuming" in text, text
    assert_both_ok(tmp_path)


def test_two_tasks_of_one_job_train_one_model(environment, tmp_path):
    """Data parallelism through srun, preempted by a signal that reaches the second task only."""
    arguments = [
        *COMMAND[:-1],
        f"trainer.max_steps={SIGNALLED}",
        "seed=2",
        "hardware.devices=2",
        "hardware.strategy=ddp",
    ]
    process = start(*arguments, cwd=tmp_path, environment=environment)
    wait_for(lambda: len(rows(point(tmp_path, 2))) >= 12, process, tmp_path)
    os.kill(second_task(tmp_path), signal.SIGUSR2)
    assert finish(process, tmp_path) == 0, log_of(tmp_path)
    text = (point(tmp_path, 2) / "run.log").read_text()
    assert "SIGUSR2 at step" in text and "resuming" in text, text
    run_here(*SMALL, f"trainer.max_steps={SIGNALLED}", "seed=2", "hardware=cpu_ddp", folder=tmp_path / "here")
    assert losses(point(tmp_path, 2)) == losses(tmp_path / "here")


def second_task(cwd) -> int:
    """The process of the job's second task."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environment, open(f"/proc/{pid}/cmdline", "rb") as command:
                task = (
                    b"SLURM_PROCID=1" in environment.read().split(b"\0") and b"submitit.core._submit" in command.read()
                )
            if task and os.readlink(f"/proc/{pid}/cwd") == str(cwd):
                return int(pid)
        except OSError:
            continue  # it has just ended
    raise AssertionError("there is no second task")


def test_a_sweep_without_multirun_says_what_is_missing(tmp_path):
    process = start(*COMMAND[1:-1], cwd=tmp_path)
    assert finish(process, tmp_path) == 2
    assert "launcher=slurm submits sweeps only: add -m" in log_of(tmp_path)

"""Several processes as one run: signals reach them all, it goes on, and what a rank has to say is one line."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from contextlib import chdir

import pytest
from small_runs import SMALL, finish, log_of, losses, rows, run_here, start, wait_for

from research_stack import compose
from research_stack import run as run_config
from research_stack.cli.main import main
from research_stack.records.files import write_json
from research_stack.records.run_folder import Result, Stopped

pytestmark = pytest.mark.slow

# At the default learning rate a difference in rounding grows tenfold within thirty steps.
ONE = [*SMALL, "hardware.precision=32", "trainer.max_steps=30", "optimization.lr=0.001"]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The losses of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    run_here(*ONE, folder=folder)
    found = losses(folder)
    assert len(found) == 30 and found[0][1] > found[-1][1], "the run must have learned something"
    return found


def assert_same(found, expected):
    """Training loss, gradient norm and validation loss, up to rounding."""
    assert [row[0] for row in found] == [row[0] for row in expected]
    for row, reference in zip(found, expected, strict=True):
        for value, wanted, tolerance in zip(row[1:], reference[1:], (2e-4, 2e-4, 2e-4), strict=True):
            assert (value is None) == (wanted is None), row
            assert value is None or math.isclose(value, wanted, rel_tol=tolerance), (row, reference)


def test_ctrl_c_and_kill_9_reach_all_processes_and_the_run_goes_on(one, tmp_path):
    """No process outlives the one that started it. What goes on without accumulation gives the losses of one, too."""
    folder = tmp_path / "run"
    arguments = [*ONE, "hardware=cpu_ddp"]
    process = start(*arguments, f"hydra.run.dir={folder}", cwd=tmp_path)
    wait_for(lambda: len(rows(folder)) >= 7, process, tmp_path)
    process.send_signal(signal.SIGINT)
    assert finish(process, tmp_path) == 130, log_of(tmp_path)
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert 7 <= (done := len(rows(folder))) < 27
    process = start(*arguments, f"hydra.run.dir={folder}", cwd=tmp_path)
    wait_for(lambda: len(rows(folder)) >= done + 2, process, tmp_path)
    assert len(workers(tmp_path)) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while workers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not workers(tmp_path)
    assert done + 2 <= len(rows(folder)) < 30
    run_here(*arguments, folder=folder)
    assert_same(losses(folder), one)


def workers(cwd) -> list[int]:
    """Processes that train below this working directory."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().decode().split("\0")
            if "research_stack.running.worker" in words and os.readlink(f"/proc/{pid}/cwd") == str(cwd):
                found.append(int(pid))
        except OSError:
            continue  # it has just ended
    return found


def test_a_mistake_seen_by_the_ranks_is_one_line(tmp_path, capfd):
    """Only the processes load the checkpoint; theirs is the error, once, without a traceback."""
    folder = tmp_path / "run"
    arguments = [*ONE, "trainer.max_steps=100000", "hardware=cpu_ddp", f"hydra.run.dir={folder}"]
    process = start(*arguments, cwd=tmp_path)
    wait_for(lambda: len(rows(folder)) >= 3, process, tmp_path)
    process.terminate()
    assert finish(process, tmp_path) == 143, log_of(tmp_path)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    capfd.readouterr()
    with chdir(tmp_path):
        assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert (out + err).count("the checkpoint is damaged") == 1 and "Traceback" not in out + err, out + err


def test_ranks_that_are_stopped_below_max_steps_go_on_and_train_nothing_twice(tmp_path):
    """How a rank ends reaches the process that launched it: stopped, then ended, then ended before it began."""
    command = [*SMALL, "hardware=cpu_ddp", "trainer.max_steps=4"]
    folder = tmp_path / "run"
    with chdir(tmp_path), pytest.raises(Stopped, match="stopped at step 1 of 4: its time"):
        run_config(compose([*command, "+trainer.max_time={milliseconds: 1}"]), folder)
    assert Result.load(folder).status == "interrupted"
    run_here(*command, folder=folder)
    before = (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    write_json(folder / "result.json", json.loads((folder / "result.json").read_text()) | {"status": "running"})
    run_here(*command, folder=folder)
    assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before and len(rows(folder)) == 4

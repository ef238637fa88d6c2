"""A real run, stopped at steps drawn at random by each signal and by kill -9, ends with the losses of one left
alone.
"""

from __future__ import annotations

import json
import random
import signal

import pytest
from small_runs import SMALL, finish, log_of, losses, rows, run, run_here, start, wait_for

pytestmark = pytest.mark.slow


def test_interrupted_by_each_signal_and_killed(tmp_path):
    command = [*SMALL, "trainer.max_steps=150", "callbacks.checkpoints.every=7"]
    run_here(*command, folder=tmp_path / "whole")
    cut, step = tmp_path / "cut", 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGKILL):
        step += random.randint(3, 25)
        process = start(*command, f"hydra.run.dir={cut}", cwd=tmp_path)
        wait_for(lambda step=step: len(rows(cut)) >= step, process, tmp_path)
        process.send_signal(number)
        if number == signal.SIGKILL:
            assert process.wait() == -number and step <= len(rows(cut)) < 150
            break
        assert finish(process, tmp_path) == 128 + number, log_of(tmp_path)
        assert "research-stack run=cut" in log_of(tmp_path), "it must say how to go on"
        result = json.loads((cut / "result.json").read_text())
        assert result["status"] == "interrupted" and step <= result["steps"] < 150
        step = result["steps"]
    run("run=cut", cwd=tmp_path)
    assert losses(cut) == losses(tmp_path / "whole")
    assert json.loads((cut / "result.json").read_text())["status"] == "ok"


CARRIED = ["experiment=lookahead", "method.previous=carry", "data.order=contiguous", "data.overlap=2"]


@pytest.mark.parametrize("experiment", [["experiment=lookahead"], CARRIED], ids=["lookahead", "carry"])
def test_killed_without_a_word(tmp_path, experiment):
    command = [*experiment, *SMALL, "trainer.max_steps=60", "callbacks.checkpoints.every=7"]
    run_here(*command, folder=tmp_path / "whole")
    killed, step = tmp_path / "killed", random.randint(9, 50)  # any step must do; the first checkpoint is at 7
    process = start(*command, f"hydra.run.dir={killed}", cwd=tmp_path)
    wait_for(lambda: len(rows(killed)) >= step, process, tmp_path)
    process.kill()
    process.wait()
    assert 0 < len(losses(killed)) < len(losses(tmp_path / "whole"))
    run("run=killed", cwd=tmp_path)
    assert losses(killed) == losses(tmp_path / "whole"), f"killed at step {step}"
    assert json.loads((killed / "result.json").read_text())["status"] == "ok"

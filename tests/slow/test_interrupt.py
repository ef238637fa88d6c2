"""A real run, told to stop by each signal in turn at steps drawn at random, ends with the losses of one left alone."""
from __future__ import annotations

import json
import random
import signal

import pytest
from small_runs import SMALL, finish, log_of, losses, rows, run, start, wait_for

pytestmark = pytest.mark.slow


def test_interrupted_three_times(tmp_path):
    command = [*SMALL, "trainer.max_steps=150"]
    run(*command, f"hydra.run.dir={tmp_path / 'whole'}", cwd=tmp_path)
    cut, step = tmp_path / "cut", 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        step += random.randint(3, 25)
        process = start(*command, f"hydra.run.dir={cut}", cwd=tmp_path)
        wait_for(lambda step=step: len(rows(cut)) >= step, process, tmp_path)
        process.send_signal(number)
        assert finish(process, tmp_path) == 128 + number, log_of(tmp_path)
        assert "research-stack run=cut" in log_of(tmp_path), "it must say how to go on"
        result = json.loads((cut / "result.json").read_text())
        assert result["status"] == "interrupted" and step <= result["steps"] < 150
        step = result["steps"]
    run(*command, f"hydra.run.dir={cut}", cwd=tmp_path)
    assert losses(cut) == losses(tmp_path / "whole")
    assert json.loads((cut / "result.json").read_text())["status"] == "ok"

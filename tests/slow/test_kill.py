"""A run killed with SIGKILL at a random step and started again logs the same losses, bit for bit."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "research_stack", "model=smoke", "data=smoke", "trainer=smoke", "eval=none",
           "trainer.max_steps=40", "trainer.val_check_interval=15", "callbacks.checkpoints.every=7"]


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row.get("train/loss"), row.get("train/grad_norm"), row.get("val/loss")) for row in rows]


def start(folder, cwd):
    return subprocess.Popen([*COMMAND, f"run={folder}"], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps_logged(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, tmp_path)
    assert process.wait(timeout=300) == 0, process.stdout.read()

    step = random.randint(9, 35)  # any step must do; the first checkpoint is at 7
    process = start(killed, tmp_path)
    deadline = time.monotonic() + 300
    while steps_logged(killed) < step and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert losses(killed) != losses(whole)

    process = start(killed, tmp_path)
    assert process.wait(timeout=300) == 0, process.stdout.read()
    assert losses(killed) == losses(whole), f"killed at step {step}"
    assert json.loads((killed / "result.json").read_text())["status"] == "ok"

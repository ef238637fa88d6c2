"""Small real runs for the slow tests: the command line in a process of its own, and what it logged; what is left alone
runs in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import chdir
from pathlib import Path

from research_stack import compose
from research_stack import run as run_config

ROOT = Path(__file__).resolve().parents[2]
RESEARCH_STACK = [sys.executable, "-m", "research_stack"]
SMALL = [
    "model=smoke",
    "data=smoke",
    "trainer=smoke",
    "eval=none",
    "trainer.val_check_interval=10",
    "callbacks.checkpoints.every=1000",
    "hardware.threads=1",
]


def start(*arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `research-stack ARGUMENTS`; its output goes to cwd/command.log, in a session of its own."""
    environment = dict(environment or os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), environment.get("PYTHONPATH")])
    )  # of a checkout not installed
    with open(cwd / "command.log", "a") as log:
        return subprocess.Popen(
            [*RESEARCH_STACK, *arguments],
            cwd=cwd,
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[str], cwd: Path, seconds: float = 240) -> int:
    """The exit code; a process that takes longer is killed, and that fails the test."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {seconds} s:\n{log_of(cwd)}") from None


def run(*arguments: str, cwd: Path) -> None:
    """Run `research-stack ARGUMENTS` to a good end."""
    assert finish(start(*arguments, cwd=cwd), cwd) == 0, log_of(cwd)


def run_here(*arguments: str, folder: Path) -> None:
    """The same as `run`, in this process: it saves importing what this one has imported, seven CPU seconds."""
    with chdir(folder.parent):
        assert run_config(compose(arguments), folder).status == "ok"


def log_of(cwd: Path) -> str:
    """The end of the output so far."""
    return (cwd / "command.log").read_text()[-4000:]


def rows(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def losses(folder: Path) -> list[tuple[float | None, ...]]:
    """(step, training loss, gradient norm, validation loss) of each row."""
    return [
        tuple(row.get(key) for key in ("step", "train/loss", "train/grad_norm", "val/loss")) for row in rows(folder)
    ]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], cwd: Path, seconds: float = 120) -> None:
    """Wait while the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log_of(cwd)
        time.sleep(0.02)

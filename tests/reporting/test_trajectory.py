"""Quality and diversity over the phases of a policy, and what is said of dynamics that are gone or torn."""

import json
import math
import re
import shutil

import pytest

from research_stack.posttraining.report.trajectory import (
    changes,
    metrics_by_step,
    note,
    panels,
    path_in_plane,
    plane_of,
    section,
    trajectory,
)
from research_stack.reporting import write_report
from research_stack.reporting.html import walk
from research_stack.reporting.page import render
from research_stack.reporting.run_files import begun_from, read


def rewritten(folder, **changes):
    path = folder / "dynamics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_phases_lie_one_after_the_other(two_phases):
    first, last = trajectory(read(two_phases[1]))
    assert (first.name, first.begins, first.ends) == ("SFT", 0, 100) and (last.name, last.begins, last.ends) == (
        "GRPO",
        100,
        200,
    )
    assert [m.step for m in first.curves["pass@1"]] == [0, 50, 100] and [m.step for m in last.curves["pass@1"]] == [
        100,
        150,
        200,
    ]
    assert last.curves["pass@1"][0].value == 0.54
    assert "self_bleu_correct" not in last.curves


def test_three_phases(tmp_path, policy_folder):
    policy_folder(tmp_path / "a", "sft")
    policy_folder(tmp_path / "b", "polychromic", init_from="a", steps=70, points={0: (0.5, 9.0), 70: (0.6, 12.0)})
    found = trajectory(read(policy_folder(tmp_path / "c", init_from="b")))
    assert [phase.name for phase in found] == ["SFT", "polychromic SFT", "GRPO"] and [
        phase.begins for phase in found
    ] == [0, 100, 170]


def test_a_phase_that_was_not_measured_takes_its_place(two_phases):
    (two_phases[0] / "dynamics.json").unlink()
    found = read(two_phases[1])
    (only,) = trajectory(found)
    assert only.begins == 100
    section(found)
    assert any("dynamics.json is missing" in problem for problem in found.problems)


def test_the_plane_and_the_panels(two_phases):
    phases = trajectory(read(two_phases[1]))
    across, up = plane_of(phases)
    assert (across, up) == ("unique_correct@32", "pass@1")
    assert [(d.value, q.value) for d, q in path_in_plane(phases[1], across, up)] == [
        (15.0, 0.54),
        (6.0, 0.7),
        (2.3, 0.84),
    ]
    assert [panel.title for panel in panels(phases)] == [
        "Correct answers, pass@k",
        "Unique correct answers among 32",
        "Self-BLEU",
        "Distinct-2",
        "Entropy",
    ]
    assert panels(phases)[0].metrics == ["pass@1", "pass@8", "pass@32"] and panels(phases)[0].factor == 100
    assert (
        changes(phases)
        == "SFT went from 0 to 55 % correct at the first try and from 0.0 to 15.7 unique correct answers among 32; GRPO"
        " went from 54 to 84 % correct at the first try and from 15.0 to 2.3 unique correct answers among 32."
    )


@pytest.mark.figures
def test_page_and_figure(two_phases):
    text = write_report(two_phases[1]).read_text()
    assert "Quality and diversity while training" in text and "optimizer step, SFT | GRPO" in text
    assert not re.search(r'(?i)(d|x|y|cx|cy)="[^"]*(nan|inf)', text)
    figures = {path.name for path in (two_phases[1] / "figures").iterdir()}
    assert {"dynamics_plane.png", "dynamics_pass.pdf", "dynamics_entropy.png"} <= figures
    plane, *others = (node for node in walk(section(read(two_phases[1]))) if hasattr(node, "figure"))
    assert plane.title == "Quality against diversity" and {"SFT", "GRPO"} <= {
        t.get_text() for t in plane.figure.axes[0].texts
    }
    assert all([text for _, text, _ in chart.file_legend] == ["SFT", "GRPO"] for chart in others)


def test_few_prompts_have_no_band_and_a_warning(two_phases):
    data = json.loads((two_phases[1] / "dynamics.json").read_text())
    for point in data["points"]:
        for band in point["metrics"].values():
            band["n"] = 2
    rewritten(two_phases[1], points=data["points"], prompts=["1=", "2="])
    phases = trajectory(read(two_phases[1]))
    assert all(math.isnan(m.low) for m in phases[1].curves["pass@1"]) and not math.isnan(
        phases[0].curves["pass@1"][0].low
    )
    assert "Only 2 prompts" in note(phases) and "asked other prompts" in note(phases)


def test_the_same_prompts_need_no_warning(two_phases):
    assert (
        note(trajectory(read(two_phases[1])))
        == "32 answers to each of 28 prompts that were trained on, drawn alike at every measurement. "
        "Shades are 95 % intervals over prompts."
    )


@pytest.mark.parametrize(
    "content, problem",
    [
        ('{"points": ', "not valid JSON|cannot be read|dynamics.json"),
        ("[1, 2]", "no list of points"),
        ('{"points": 3}', "no list of points"),
    ],
)
def test_torn_dynamics_are_a_problem_and_no_crash(two_phases, content, problem):
    (two_phases[1] / "dynamics.json").write_text(content)
    run = read(two_phases[1])
    assert section(run) is None
    assert len([line for line in run.problems if re.search(problem, line)]) == 1
    assert "dynamics.json" in write_report(two_phases[1]).read_text()


@pytest.mark.parametrize(
    "points",
    [
        [3, None, {"step": 1}],
        [{"step": "x", "metrics": {}}],
        [{"step": 0, "metrics": {"pass@1": 0.5}}],
        [{"step": 0, "metrics": {"pass@1": {"value": None}}}],
    ],
)
def test_points_of_another_shape_are_left_out(two_phases, points):
    rewritten(two_phases[1], points=points)
    assert metrics_by_step({"points": points}) == {}
    write_report(two_phases[1])


def test_one_measurement_is_enough(tmp_path, policy_folder):
    text = write_report(policy_folder(tmp_path / "run", points={0: (0.5, 3.0)})).read_text()
    assert "Quality and diversity while training" in text and not re.search(r'(?i)(d|x|y|cx|cy)="[^"]*(nan|inf)', text)


def test_missing_dynamics_are_named_only_where_they_were_asked_for(tmp_path, policy_folder):
    folder = policy_folder(tmp_path / "run")
    (folder / "dynamics.json").unlink()
    assert "is missing though callbacks.dynamics is on" in render(read(folder))
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("dynamics:", "other:"))
    assert "is missing" not in render(read(folder))


def test_a_first_phase_that_is_gone(two_phases):
    shutil.rmtree(two_phases[0])
    run = read(two_phases[1])
    assert [phase.name for phase in trajectory(run)] == ["GRPO"]
    assert "outputs/sft/a, whose weights the run began with, is no longer there" in render(run)


def test_phases_that_go_round_in_circles(tmp_path, policy_folder):
    policy_folder(tmp_path / "a", init_from="b")
    policy_folder(tmp_path / "b", init_from="a")
    run = read(tmp_path / "b")
    assert len(run.earlier) == 1 and any("refers back to itself" in problem for problem in run.problems)


def test_runs_that_were_moved_together_find_each_other(two_phases, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "outputs", moved / "outputs")
    shutil.rmtree(tmp_path / "outputs")
    found = begun_from(
        {"init_from": "outputs/sft/a", "cwd": str(tmp_path / "outputs" / "grpo")}, moved / "outputs" / "grpo" / "b"
    )
    assert found == moved.resolve() / "outputs" / "sft" / "a"
    assert begun_from({}, moved) is None

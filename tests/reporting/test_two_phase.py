"""A sweep of policies: short names, first phases beside what came of them, trajectories over each other."""

import math
import shutil

import pytest
from sweep_pages import metrics, plotted, render, verdict

from research_stack.evaluation.seed_differences import seed_differences
from research_stack.posttraining.report import sweep as policy_sweep
from research_stack.posttraining.report import sweep_charts
from research_stack.records import sweep_table
from research_stack.reporting.budgets import panels as budget_panels
from research_stack.reporting.stability import training_curve
from research_stack.reporting.sweep_axes import grid_of, label_of
from research_stack.reporting.sweep_names import named
from research_stack.reporting.sweep_page import as_markdown, as_text

INITS = {"sft": "sft trainer.max_steps=200", "polychromic": "polychromic"}


@pytest.fixture
def sweep(tmp_path, policy_folder):
    """The table of inits x advantages x seeds, each seed with a first phase of its own."""

    def make(inits=("sft", "polychromic"), advantages=("group", "max", "polychromic"), seeds=(1, 2)):
        folders = []
        for i, init in enumerate(inits):
            for seed in seeds:
                phase = policy_folder(
                    tmp_path / "outputs" / init / f"phase_{seed}",
                    init,
                    seed=seed,
                    good=0.4 + 0.1 * i + 0.03 * seed,
                    wide=10.0 + i,
                )
                for j, advantage in enumerate(advantages):
                    folders.append(
                        policy_folder(
                            tmp_path / "multirun" / f"{init},{advantage},{seed}",
                            seed=seed,
                            init_from=phase,
                            init=INITS[init],
                            advantage=advantage,
                            good=0.7 + 0.05 * j + 0.01 * seed,
                            wide=3.0 + 2 * j + i,
                        )
                    )
        return sweep_table.collect(folders)

    return make


def test_axes_get_short_names(sweep):
    raw = sweep()
    assert all(
        "max_steps" in str(row.settings["init_from"]) or row.settings["init_from"] == "polychromic" for row in raw.rows
    )
    table = named(raw)
    assert table.axes == ["init_from", "method.advantage"] and list(table.labels.values()) == ["init_from", "advantage"]
    assert [tuple(row.settings.values()) for row in table.rows] == [
        (i, a) for i in ("polychromic", "sft") for a in ("group", "max", "polychromic")
    ]
    assert "method.advantage.objective" in table.collapsed["method.advantage"]
    assert label_of(table.rows[0], table) == "polychromic → group"
    assert all(table.settings[folder] == row.settings for row in table.rows for folder in row.points)
    assert grid_of(table).position("max", "sft") - grid_of(table).position("max", "polychromic") == pytest.approx(0.12)


def test_names_that_would_not_tell_apart_stay(tmp_path, policy_folder):
    folders = [
        policy_folder(
            tmp_path / f"r{steps}",
            init_from=policy_folder(tmp_path / f"p{steps}", "sft"),
            init=f"sft trainer.max_steps={steps}",
        )
        for steps in (100, 200)
    ]
    table = named(sweep_table.collect(folders))
    assert [row.settings["init_from"] for row in table.rows] == [
        "sft trainer.max_steps=100",
        "sft trainer.max_steps=200",
    ]


def test_a_choice_that_some_runs_do_not_name_stays(sweep):
    raw = sweep(inits=("sft",), advantages=("group", "polychromic"), seeds=(1,))
    path = raw.points[0].folder / "run.json"
    path.write_text(path.read_text().replace("method/advantage=group", "seed=1"))
    assert "method.advantage" not in named(raw).axes


def test_first_phases_are_lines_of_their_own(sweep):
    found = policy_sweep.lines(named(sweep()))
    assert [(line.first, line.then, line.row.n) for line in found] == [
        ("polychromic", "", 2),
        ("polychromic", "group", 2),
        ("polychromic", "max", 2),
        ("polychromic", "polychromic", 2),
        ("sft", "", 2),
        ("sft", "group", 2),
        ("sft", "max", 2),
        ("sft", "polychromic", 2),
    ]
    assert policy_sweep.head(found) == [
        "first phase",
        "then",
        "seeds",
        "pass@1, %",
        "pass@8, %",
        "pass@32, %",
        "unique correct of 32",
        "hidden preference, %",
        "entropy, nats",
    ]
    cells = [policy_sweep.cells(line, policy_sweep.columns(found)) for line in found]
    assert cells[4][:4] == ["sft", "-", "2", "44.5 ± 1.5"] and cells[5][:4] == ["sft", "group", "2", "71.50 ± 0.50"]
    assert cells[0][6] == "11 ± 0"
    printed = as_text(named(sweep()), 120).splitlines()
    assert len(printed) == 3 + len(found) and "71.50 ± 0.50" in printed[8] and len(set(map(len, printed[1:]))) == 1


def test_one_seed_has_no_error_and_a_shared_phase_counts_once(sweep):
    found = policy_sweep.lines(named(sweep(inits=("sft",), advantages=("group", "max"), seeds=(1,))))
    assert [line.row.n for line in found] == [1, 1, 1] and policy_sweep.cells(found[0], policy_sweep.columns(found))[
        3
    ] == "43"


@pytest.mark.figures
def test_markdown_and_page(sweep, tmp_path):
    table = named(sweep())
    text = as_markdown(table, seed_differences(table))
    assert "## Quality and diversity\n\n| first phase | then | seeds | pass@1, % |" in text
    assert "| sft | - | 2 | 44.5 ± 1.5 |" in text
    assert "## Differences, seed by seed" in text and "(sft → group) − (sft → max)" in text
    page = render(tmp_path / "multirun", table)
    assert "<summary>All numbers</summary>" in page and "sft → polychromic" in page
    assert "0: the last phase begins" in page and page.count("<svg") == page.count("</svg>")
    figures = {path.name for path in (tmp_path / "multirun" / "figures").iterdir()}
    assert {"quality_diversity.png", "dynamics_pass_at_1.pdf", "dynamics_entropy.png"} <= figures


def test_pass_at_one_decides(sweep):
    table = named(sweep())
    assert plotted(table)[:2] == ["passk/pass@1", "passk/unique_correct@32"] and "passk/self_bleu" not in plotted(table)
    assert "gives the highest pass@1" in verdict(table)
    assert (
        metrics(table).of("passk/pass@8").better == "higher"
        and metrics(table).of("passk/held_out_pass@1").better == "higher"
        and metrics(table).of("passk/entropy").better is None
        and metrics(table).of("passk/unique_correct@32").better == "higher"
    )
    assert (
        metrics(table).of("passk/held_out_pass@1").label == "held out: pass@1"
        and metrics(table).of("passk/unique_correct@32").label == "unique correct answers among 32"
    )


def test_the_surrogate_is_no_loss_to_compare(sweep):
    table = sweep(inits=("sft",), advantages=("group", "max"))
    assert training_curve(table).key == "train/reward" and budget_panels(table) == []


def test_tracks_are_means_over_seeds_that_meet_at_zero(sweep):
    found = policy_sweep.lines(named(sweep(inits=("sft",), advantages=("group", "max"))))
    first, last = sweep_charts.track(found[1])
    assert (first.begins, first.ends, last.begins, last.ends) == (-100, 0, 0, 100)
    moment = last.curves["pass@1"][-1]
    assert (moment.step, moment.value, moment.low, moment.high) == (
        100,
        pytest.approx(0.715),
        pytest.approx(0.71),
        pytest.approx(0.72),
    )
    assert len(sweep_charts.phase_curves(found)) == 3  # the first phase once, and two settings


def test_line_styles(sweep):
    found = policy_sweep.lines(named(sweep()))
    styles = dict(zip((line.label for line in found), sweep_charts.styles(found), strict=True))
    assert styles["sft"].color is None and styles["sft → group"].color == styles["polychromic → group"].color == 0
    assert styles["sft → group"].dashed and not styles["polychromic → group"].dashed


def test_points_in_the_plane(sweep):
    found = policy_sweep.lines(named(sweep()))
    placed, across = sweep_charts.points_of(found)
    assert across == "unique_correct@32" and len(placed) == 8 and len(sweep_charts.origins(placed)) == 6
    spot = next(spot for spot in placed if spot.line.label == "sft → group")
    assert spot.point == (3.0, pytest.approx(71.5)) and spot.errors == (0.0, pytest.approx(0.5))


def test_labels_keep_clear_of_each_other():
    first, second = sweep_charts.label_sides([(0.2, 0.5), (0.22, 0.5)], ["polychromic", "polychromic"])
    assert first != second
    (alone,) = sweep_charts.label_sides([(0.95, 0.5)], ["a long label"])
    assert alone.left
    crowd = sweep_charts.label_sides([(0.2, 0.5), (0.2, 0.5), (0.2, 0.5)], ["polychromic"] * 3)
    assert len(set(crowd)) == 3


def test_a_first_phase_that_is_gone_is_left_out(sweep, tmp_path):
    table = named(sweep(inits=("sft",), advantages=("group", "max")))
    shutil.rmtree(tmp_path / "outputs")
    assert [line.then for line in policy_sweep.lines(table)] == ["group", "max"]
    assert "Quality and diversity" in render(tmp_path / "multirun", table)


def test_policies_without_a_first_phase(tmp_path, policy_folder):
    folders = [
        policy_folder(tmp_path / f"{kind}{seed}", kind, seed=seed) for kind in ("sft", "polychromic") for seed in (1, 2)
    ]
    found = policy_sweep.lines(named(sweep_table.collect(folders)))
    assert [(line.first, line.row.n) for line in found] == [("", 2), ("", 2)] and all(line.then for line in found)
    assert "0: the last phase begins" not in render(tmp_path / "multirun", named(sweep_table.collect(folders)))
    assert all(
        math.isfinite(moment.value)
        for line in found
        for phase in sweep_charts.track(line)
        for moment in phase.curves["pass@1"]
    )


def test_other_sweeps_have_none_of_this(tmp_path, run_folder):
    table = sweep_table.collect([run_folder(tmp_path / "a")])
    assert sweep_charts.tables(table) == []
    assert named(table).axes == table.axes


def test_hostile_names_are_text(tmp_path, policy_folder):
    hostile = "<b>$x^{"
    folders = [
        policy_folder(tmp_path / f"r{i}", advantage=advantage, init_from=policy_folder(tmp_path / "p", "sft"))
        for i, advantage in enumerate((hostile, "max"))
    ]
    page = render(tmp_path / "multirun", named(sweep_table.collect(folders)))
    assert "<b>$" not in page and "&lt;b&gt;$x^{" in page
    (alone,) = sweep_charts.tables(named(sweep_table.collect([policy_folder(tmp_path / "alone", advantage=hostile)])))
    assert len(alone.charts) == 7  # the legend and six panels: no plane of a single point
    assert [text for _, text, _ in alone.charts[1].file_legend] == ["the only setting"]


def test_dynamics_that_are_gone_leave_the_table(sweep):
    table = named(sweep(inits=("sft",), advantages=("group", "max")))
    for point in table.points:
        (point.folder / "dynamics.json").write_text("{")
    assert sweep_charts.phase_curves(policy_sweep.lines(table)) == []
    (found,) = sweep_charts.tables(table)
    assert "unique correct of 32" in found.lines[0] and [chart.name for chart in found.charts[1:]] == [
        "quality_diversity"
    ]

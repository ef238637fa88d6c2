"""Paired statistics against tables and by hand; curves on a common grid; budgets, speed and overlays of a
comparison.
"""

import json
import math

import pytest
from sweep_pages import metrics, plotted, render, verdict

from research_stack.lookahead.report.overlays import mean_bins
from research_stack.records import sweep_table
from research_stack.reporting import budgets, speed
from research_stack.reporting.curves import averaged, interpolate
from research_stack.reporting.reliability import DiagramBin as Bin


@pytest.fixture
def compare(tmp_path, lookahead_folder):
    """Runs of a baseline and of a model with a head; `shift` of each seed makes the difference."""

    def make(seeds=(1, 2, 3), shifts=(-0.05, -0.04, -0.09), baseline_seeds=None, **options):
        runs = [
            lookahead_folder(tmp_path / "cmp" / f"minigpt,seed={s}", s, head=False, pace=0.2, flops=1.9e10, steps=140)
            for s in baseline_seeds or seeds
        ]
        runs += [
            lookahead_folder(tmp_path / "cmp" / f"lookahead,seed={s}", s, shift=d, steps=140, **options)
            for s, d in zip(seeds, shifts, strict=True)
        ]
        return sweep_table.collect(runs)

    return make


# Curves --------------------------------------------------------------------------------------------------------------


def test_interpolation_by_hand():
    line = [(0.0, 1.0), (2.0, 5.0), (3.0, 4.0)]
    assert interpolate(line, [0, 0.5, 2, 2.5, 3]) == pytest.approx([1, 2, 5, 4.5, 4])
    assert interpolate(line, [-1, 9]) == [1, 4] and interpolate([(1.0, 7.0)], [1, 2]) == [7, 7]
    assert interpolate([(1.0, 7.0), (1.0, 9.0), (2.0, 3.0)], [1.5]) == [6]


def test_seeds_are_averaged_where_all_are_known():
    mean, band = averaged([[(0.0, 0.0), (4.0, 4.0)], [(1.0, 3.0), (3.0, 1.0), (5.0, 1.0)]])
    assert mean == [(1, 2), (3, 2), (4, 2.5)]
    assert band == ([(1, 1), (3, 1), (4, 1)], [(1, 3), (3, 3), (4, 4)])
    assert averaged([[(1.0, 2.0)]]) == ([(1.0, 2.0)], None) and averaged([[], []]) == ([], None)
    assert averaged([[(0.0, 1.0), (1.0, 1.0)], [(2.0, 1.0), (3.0, 1.0)]]) == ([], ([], []))


def test_budgets_know_steps_flops_and_seconds(compare):
    panels = budgets.panels(compare())
    assert [panel.label for panel in panels] == ["optimizer step", "training FLOPs", "seconds since the start"]
    assert {panel.key for panel in panels} == {"val/loss_lm"}
    ends = {
        curve.row.settings["method"]: [panel.curves[i].mean[-1][0] for panel in panels]
        for i, curve in enumerate(panels[0].curves)
    }
    assert ends["MiniGPT"][:2] == [140, pytest.approx(140 * 1.9e10)] and ends["Lookahead"][1] == pytest.approx(
        140 * 2.1e10
    )
    assert ends["MiniGPT"][2] < ends["Lookahead"][2]
    assert all(curve.band is not None for panel in panels for curve in panel.curves)


def test_no_flops_no_axis(compare, tmp_path):
    table = compare(flops=None)
    (flops,) = [panel for panel in budgets.panels(table) if panel.label == "training FLOPs"]
    assert [curve.row.settings["method"] for curve in flops.curves] == ["MiniGPT"]
    run = next(p.folder for p in table.points)
    (run / "run.json").write_text('{"model": ')
    for point in table.points:
        (point.folder / "run.json").write_text('{"model": ')
    assert [panel.label for panel in budgets.panels(table)] == ["optimizer step", "seconds since the start"]
    assert "Over compute" not in render(tmp_path, table)


def test_a_run_without_the_own_loss_is_compared_by_the_mixed_one(compare):
    table = compare()
    path = table.points[0].folder / "metrics.jsonl"
    path.write_text(path.read_text().replace("val/loss_lm", "val/other"))
    assert {panel.key for panel in budgets.panels(table)} == {"val/loss"}


def test_a_single_validation_is_no_curve(compare, tmp_path):
    table = compare(seeds=(1,), shifts=(-0.05,))
    assert "Validation loss over each budget" in render(tmp_path, table)
    for point in table.points:
        rows = [json.loads(line) for line in (point.folder / "metrics.jsonl").read_text().splitlines()]
        last = max(i for i, row in enumerate(rows) if "val/loss" in row)
        rows = [
            row if i == last else {k: v for k, v in row.items() if not k.startswith("val/")}
            for i, row in enumerate(rows)
        ]
        (point.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert budgets.panels(table) == [] and "Validation loss over each budget" not in render(tmp_path, table)


# Speed and overlays --------------------------------------------------------------------------------------------------


def test_validation_is_not_training_time():
    rows = [{"step": s, "time": 0.5 * s + (30.0 if s > 3 else 0.0), "train/loss": 1.0} for s in range(1, 6)]
    rows[2]["val/loss"] = 1.0
    assert speed.seconds_per_step(rows) == pytest.approx(0.5)
    assert speed.seconds_per_step(
        [{"step": 10, "time": 1.0, "val/loss": 1}, {"step": 20, "time": 31.0, "val/loss": 1}]
    ) == pytest.approx(3.0)  # nothing else is known
    apart = [
        {"step": 1, "time": 1.0, "train/loss": 1},
        {"step": 3, "time": 90.0, "val/loss": 1},
        {"step": 4, "time": 91.0, "train/loss": 1},
        {"step": 6, "time": 93.0, "train/loss": 1},
    ]
    assert speed.seconds_per_step(apart) == pytest.approx(1.0)
    resumed = [
        {"step": 5, "time": 5.0, "train/x": 1},
        {"step": 3, "time": 6.0, "train/x": 1},
        {"step": 4, "time": 8.0, "train/x": 1},
    ]
    assert speed.seconds_per_step(resumed) == pytest.approx(2.0)
    assert math.isnan(speed.seconds_per_step([])) and math.isnan(speed.seconds_per_step([{"step": 1}, {"time": 2}]))


def test_the_speed_of_a_run(compare):
    point = compare().points[0]
    found = speed.speed_of(point.folder, point.config)
    assert found.seconds == pytest.approx(0.202, abs=1e-3) and (found.tokens, found.parameters, found.flops) == (
        16 * 128,
        3412224,
        1.9e10,
    )
    facts = json.loads((point.folder / "run.json").read_text())
    facts["model"]["tokens_per_step"] = 4096
    (point.folder / "run.json").write_text(json.dumps(facts))
    assert speed.speed_of(point.folder, point.config).tokens == 4096
    (point.folder / "run.json").write_text("[]")
    assert math.isnan(speed.speed_of(point.folder, {}).tokens)


def test_bins_are_averaged_over_seeds():
    one, two = [Bin(1, 2, 1.5, 2.5), Bin(3, 4, 3, 5)], [Bin(2, 3, 2, 4), Bin(4, 3, 2, 4)]
    assert mean_bins([one, two, [Bin(0, 0, 0, 0)], []]) == [Bin(1.5, 2.5, 2, 3), Bin(3.5, 3.5, 3, 4)]
    assert mean_bins([[], one]) == one


@pytest.mark.figures
def test_the_page_of_a_comparison(compare, tmp_path):
    table = compare()
    text = render(tmp_path / "out", table)
    for words in (
        "Validation loss over each budget",
        "val/loss_lm over compute",
        "Calibration, risk and coverage",
        "Lookahead: confidence head, AURC",
        "MiniGPT: entropy, AURC",
        "MiniGPT: entropy fit, dashed",
        "Speed",
        "1.00 ×",
        "Differences, seed by seed",
        "of the language model, smoothed",
    ):
        assert words in text, words
    assert {p.stem for p in (tmp_path / "out" / "figures").iterdir()} >= {
        "sweep_lookahead_nats",
        "training_curve",
        "gradient_norm",
        "loss_over_steps",
        "loss_over_compute",
        "loss_over_time",
        "reliability",
        "risk_coverage_future_loss",
        "risk_coverage_next_token_loss",
    }
    assert text.count("<svg") == text.count("</svg>") and len(text) < 1_000_000
    assert verdict(table).startswith("Lookahead gives the lowest held-out loss, 2.572 ±")


def test_a_comparison_of_torn_runs(compare, tmp_path):
    table = compare()
    for point in table.points:
        (point.folder / "metrics.jsonl").write_text('{"step": 1, "ti')
        for csv in (point.folder / "tables").iterdir():
            csv.write_text('name,score\n"')
    text = render(tmp_path, table)
    assert "Speed" not in text and "Validation loss over each budget" not in text and "Calibration, risk" not in text


def test_metrics_have_labels_and_directions(compare):
    table = compare()
    assert plotted(table)[:2] == ["lookahead/nats", "lookahead/r2"]
    names = ("nats", "ece", "r2", "r2_over_entropy", "r2_entropy")
    better = [metrics(table).of(f"lookahead/{name}").better for name in names]
    assert better == ["lower", "lower", "higher", "higher", None]
    assert metrics(table).of("lookahead/r2").label == "R² of the confidence head"

"""The report of a sweep, over axes of every kind."""

import copy
import re
from dataclasses import replace

import pytest
from sweep_pages import metrics, plotted, render, verdict

from research_stack.records import sweep_table
from research_stack.reporting.sweep_axes import grid_of, label_of
from research_stack.reporting.sweep_page import write_sweep_report

BOUND = "likelihood/bound"


@pytest.fixture
def sweep(tmp_path, run_folder, base_config):
    """Makes a sweep of {name: ({key: value}, bound)} over seeds; names in `failing` get no result."""

    def make(points, seeds=(1, 2), failing=()):
        folders = []
        for name, (updates, bound) in points.items():
            for seed in seeds:
                config = copy.deepcopy(base_config) | {"seed": seed}
                for key, value in updates.items():
                    *path, last = key.split(".")
                    node = config
                    for part in path:
                        node = node[part]
                    node[last] = value
                failed = name in failing and seed == seeds[-1]
                metrics = {
                    BOUND: bound + 0.01 * seed,
                    "likelihood/bound_low": bound,
                    "samples/flowlm/calls": 20.0 + seed,
                }
                folders.append(
                    run_folder(
                        tmp_path / f"{name},seed={seed}",
                        "failed" if failed else "ok",
                        steps=140,
                        config=config,
                        metrics=metrics,
                        evaluated=not failed,
                        error="loss=nan <b>at step</b> 70" if failed else None,
                    )
                )
        return sweep_table.collect(folders)

    return make


LR = {
    "a": ({"optimization.lr": 0.001}, 5.0),
    "b": ({"optimization.lr": 0.01}, 4.6),
    "c": ({"optimization.lr": 0.1}, 5.2),
}
MATRIX = {
    f"{m}": ({"corruption.mask_ratio": m, "corruption.corruption_rate": c}, b)
    for m, c, b in ((0.8, 0.0, 4.9), (0.5, 0.2, 5.0), (0.3, 0.4, 5.3), (0.0, 0.8, 6.0))
}
GRID = {
    f"{m}{c}": ({"corruption.mask_ratio": m, "corruption.corruption_rate": c}, 5 + m * c)
    for m in (0.3, 0.5, 0.7)
    for c in (0.0, 0.1, 0.2)
}


@pytest.mark.figures
def test_one_numeric_axis(sweep, tmp_path):
    table = sweep(LR)
    text = write_sweep_report(tmp_path, table).read_text()
    assert (
        "lr=0.01 gives the lowest bound, 4.6150 ± 0.0050 nats per token; lr=0.001 follows with 5.0150 ± 0.0050." in text
    )
    grid = grid_of(table)
    assert grid.numeric and grid.log and not grid.is_heat_map
    assert "<b>4.6150 ± 0.0050</b>" in text and "<b>5.0150" not in text
    names = {p.name for p in (tmp_path / "figures").iterdir()}
    assert {"sweep_likelihood_bound.png", "sweep_likelihood_bound.pdf", "sweep_samples_flowlm_calls.png"} <= names
    assert text.count("<svg") == text.count("</svg>") == 3 + 3  # bound, calls, seconds; loss, validation, norm


def test_axes_that_are_not_crossed_become_points(sweep, tmp_path):
    table = sweep(MATRIX)
    grid = grid_of(table)
    assert grid.columns == ["0 / 0.8", "0.3 / 0.4", "0.5 / 0.2", "0.8 / 0"] and not grid.numeric
    assert "0.3 / 0.4" in render(tmp_path, table)


def test_crossed_axes_become_a_map(sweep, tmp_path):
    table = sweep(GRID, seeds=(1,))
    grid = grid_of(table)
    assert grid.is_heat_map and sorted(grid.columns) == [0.3, 0.5, 0.7]
    cell = grid.at(0.7, 0.2)
    assert (cell.settings["corruption.mask_ratio"], cell.settings["corruption.corruption_rate"]) == (0.7, 0.2)
    assert render(tmp_path, table).count("color-mix(in srgb,var(--ramp-b)") >= 9
    assert "one seed each" in verdict(table)


def test_two_short_axes_become_lines(sweep):
    points = {
        f"{m}{c}": ({"corruption.mask_ratio": m, "corruption.corruption_rate": c}, 5 + m)
        for m in (0.3, 0.5, 0.7)
        for c in (0.0, 0.1)
    }
    grid = grid_of(sweep(points, seeds=(1,)))
    assert not grid.is_heat_map and len(grid.columns) == 3 and len(grid.lines) == 2


def test_ranges_are_names(sweep):
    grid = grid_of(
        sweep({"a": ({"corruption.mask_ratio": [0.0, 0.9]}, 5.0), "b": ({"corruption.mask_ratio": 0.5}, 4.0)})
    )
    assert not grid.numeric and len(grid.columns) == 2


def test_failures_are_listed_with_their_error(sweep, tmp_path):
    text = render(tmp_path, sweep(LR, failing=("b",)))
    assert "Runs without a result: 1 of 6" in text and "loss=nan &lt;b&gt;at step&lt;/b&gt; 70" in text
    assert "stroke-dasharray" in text  # its curve is drawn too


def test_all_failed(sweep, tmp_path):
    table = sweep({"a": LR["a"]}, seeds=(1,), failing=("a",))
    assert "No run has a result." in write_sweep_report(tmp_path, table).read_text()


def test_it_stands_alone(sweep, tmp_path):
    text = render(tmp_path, sweep(LR))
    loads = r"url\((?!#)|@import|https?://|<(img|link|iframe)|\bsrc=|\bhref=\"(?!(tables|figures)/|#)"
    assert not re.search(loads, text)
    assert len(text) < 1_000_000


def test_settings_that_are_all_equal_are_said_to_be(sweep):
    table = sweep({"a": ({"optimization.lr": 0.1}, 5.0), "b": ({"optimization.lr": 0.2}, 5.0)}, seeds=(1,))
    equal = replace(table, metrics=["seconds"], constant={"likelihood/bound": 5.01})  # what differs is the time alone
    assert verdict(equal) == "2 runs, and bound is 5.01 in all of them."


def test_within_two_standard_errors_is_said(sweep):
    assert "within two standard errors" in verdict(
        sweep({"a": ({"optimization.lr": 0.1}, 5.0), "b": ({"optimization.lr": 0.2}, 5.001)})
    )


def test_metrics_worth_a_plot(sweep):
    table = sweep(LR)
    assert plotted(table)[0] == BOUND and "likelihood/bound_low" not in plotted(table)
    assert (metrics(table).of(BOUND).better, metrics(table).of("samples/flowlm/changed").better) == ("lower", None)
    assert label_of(table.rows[0], table) == "lr=0.001"

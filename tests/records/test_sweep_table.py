"""The table of a sweep: axes, statistics, failures, order, text."""

import csv
import json
import math

import pytest

from research_stack.records import sweep_table
from research_stack.records.config_hash import ABSENT, config_hash
from research_stack.records.files import read_json, to_json, write_json
from research_stack.records.run_folder import RunFolder

HYBRID = {"_target_": "research_stack.corruption.Hybrid", "mask_ratio": 0.5, "corruption_rate": 0.2}
SAMPLERS = {
    name: {
        "_target_": "research_stack.sampling.Sampler",
        **{
            part: {"_target_": f"research_stack.sampling.{name}{part}"}
            for part in ("init", "proposer", "selector", "committer", "stopper")
        },
        **extra,
    }
    for name, extra in {"llada": {"steps": 64}, "flowlm": {"threshold": 0.9}}.items()
}


def make(folder, seed=1, metrics=None, status="ok", error="boom", name="flowlm", **nodes):
    run_folder = RunFolder(folder)
    config = {
        "name": name,
        "seed": seed,
        "corruption": HYBRID,
        "sampler": SAMPLERS["flowlm"],
        "hardware": {"threads": 1},
        **nodes,
    }
    run_folder.write_config(config)
    run_folder.start(config_hash(config))
    if status == "ok":
        run_folder.finish(metrics or {"bound": 5.0}, steps=3)
    elif status == "failed":
        run_folder.fail(error, steps=1)
    return folder


def matrix(tmp_path, seeds=(1, 2)):
    """The four rows of the matrix; bound = 4 + ratio + seed / 10; unigram is the same in all."""
    rows = [(0.8, 0.0), (0.5, 0.2), (0.3, 0.4), (0.0, 0.8)]
    return [
        make(tmp_path / f"corruption=mask{int(m * 100)}_random{int(r * 100)},seed={seed}", seed,
             {"bound": 4 + m + seed / 10, "unigram": 6.0}, corruption=HYBRID | {"mask_ratio": m, "corruption_rate": r})
        for m, r in rows for seed in seeds
    ]  # fmt: skip


def test_the_matrix(tmp_path):
    table = sweep_table.collect(matrix(tmp_path))
    assert table.axes == ["corruption.mask_ratio", "corruption.corruption_rate"]
    assert list(table.labels.values()) == ["mask_ratio", "corruption_rate"]
    assert [tuple(row.settings.values()) for row in table.rows] == [(0.0, 0.8), (0.3, 0.4), (0.5, 0.2), (0.8, 0.0)]
    assert table.metrics == ["bound", "seconds"] and table.constant == {"unigram": 6.0}
    assert [row.n for row in table.rows] == [2] * 4 and table.rows[0].seeds == [1, 2]
    assert table.rows[0].mean("bound") == pytest.approx(4.15)
    assert table.rows[0].standard_error("bound") == pytest.approx(0.05)  # sd .0707 / sqrt 2
    assert table.failures == [] and table.collapsed == {}


def test_statistics_by_hand(tmp_path):
    values = [1.0, 2.0, 4.0, 9.0]
    runs = [make(tmp_path / f"{seed}", seed, {"m": value}) for seed, value in enumerate(values)]
    (row,) = sweep_table.collect(runs).rows
    assert row.mean("m") == 4.0
    assert row.standard_error("m") == pytest.approx(math.sqrt(((9 + 4 + 0 + 25) / 3) / 4))
    assert row.standard_error("none") is None and row.mean("none") is None


def test_one_seed_has_no_error(tmp_path):
    table = sweep_table.collect(matrix(tmp_path, seeds=(1,)))
    assert table.rows[0].standard_error("bound") is None
    assert "±" not in table.as_text()


def test_a_grid_without_what_does_not_matter(tmp_path):
    runs = [
        make(
            tmp_path / f"{m}-{r}-{threads}",
            1,
            {"b": m + r},
            corruption=HYBRID | {"mask_ratio": m, "corruption_rate": r},
            hardware={"threads": threads},
            logger={"x": threads},
        )
        for (m, r), threads in zip([(0.3, 0), (0.3, 0.2), (0.5, 0), (0.5, 0.2)], (1, 2, 3, 4), strict=True)
    ]
    table = sweep_table.collect(runs)
    assert table.axes == ["corruption.mask_ratio", "corruption.corruption_rate"]
    assert len(table.rows) == 4


def test_a_choice_of_class_is_one_axis(tmp_path):
    absorbing = {"_target_": "research_stack.corruption.Absorbing", "schedule": "linear"}
    nodes = [absorbing, HYBRID, HYBRID | {"mask_ratio": 0.3}]
    table = sweep_table.collect(
        [make(tmp_path / str(i), 1, {"b": float(i)}, corruption=node) for i, node in enumerate(nodes)]
    )
    assert table.axes == ["corruption", "corruption.mask_ratio"]
    assert [list(row.settings.values()) for row in table.rows] == [
        ["Absorbing", ABSENT],
        ["Hybrid", 0.3],
        ["Hybrid", 0.5],
    ]
    assert table.collapsed == {"corruption": ["corruption.schedule", "corruption.corruption_rate"]}
    table = sweep_table.collect([tmp_path / "0", tmp_path / "1"])
    assert table.axes == ["corruption"]


def test_arguments_of_one_class_are_no_axis_of_their_own(tmp_path):
    nodes = [{"_target_": f"research_stack.corruption.{name}"} for name in ("Absorbing", "Uniform")] + [HYBRID]
    table = sweep_table.collect(
        [make(tmp_path / str(i), 1, {"b": float(i)}, corruption=node) for i, node in enumerate(nodes)]
    )
    assert table.axes == ["corruption"] and len(table.rows) == 3
    assert table.collapsed == {"corruption": ["corruption.mask_ratio", "corruption.corruption_rate"]}


def test_a_choice_of_many_keys_is_one_axis(tmp_path):
    table = sweep_table.collect(
        [make(tmp_path / name, 1, {"b": len(name)}, sampler=node) for name, node in SAMPLERS.items()]
    )
    assert len(table.axes) == 1 and len(table.rows) == 2
    assert len(table.collapsed[table.axes[0]]) == 6  # five parts, steps, threshold, less the one shown


def test_a_choice_goes_by_the_name_that_was_typed(tmp_path):
    runs = [make(tmp_path / name, 1, {"b": len(name)}, sampler=node) for name, node in SAMPLERS.items()]
    for run in runs:
        write_json(run / "run.json", {"overrides": [f"sampler={run.name}", "seed=1"]})
    table = sweep_table.collect(runs)
    assert [row.settings for row in table.rows] == [{"sampler": "flowlm"}, {"sampler": "llada"}]


def test_an_ablation_is_one_axis_by_its_name_beside_others(tmp_path):
    """Each changes keys of its own, some of them the same ones; what else was swept stays an axis."""
    changes = {
        "none": {},
        "big": {"model": {"dim": 9, "extra": {"a": 1}}},
        "wide": {"model": {"dim": 9}, "data": {"size": 2}},
    }
    runs = []
    for name, change in changes.items():
        for lr in (1, 2):
            runs.append(
                make(
                    tmp_path / f"{name}{lr}",
                    1,
                    {"b": lr},
                    **{"model": {"dim": 3}, "data": {"size": 1}, "optimization": {"lr": lr}} | change,
                )
            )
            write_json(runs[-1] / "run.json", {"overrides": [f"ablation={name}", "seed=1"]})
    table = sweep_table.collect(runs)
    assert table.axes == ["ablation", "optimization.lr"]
    assert [tuple(row.settings.values()) for row in table.rows] == [
        (name, lr) for name in ("big", "none", "wide") for lr in (1, 2)
    ]
    assert set(table.collapsed["ablation"]) == {"model.dim", "model.extra.a", "data.size"}


def test_experiments_are_told_apart_by_name(tmp_path):
    runs = [
        make(
            tmp_path / name,
            1,
            {"b": len(name)},
            name=name,
            sampler=node,
            method={"_target_": f"research_stack.{name}"},
            corruption=HYBRID | {"_target_": f"research_stack.{name}C"},
        )
        for name, node in SAMPLERS.items()
    ]
    table = sweep_table.collect(runs)
    assert table.axes == ["name"]
    assert [row.settings["name"] for row in table.rows] == ["flowlm", "llada"]


def test_failures_are_listed_and_the_rest_counts(tmp_path):
    runs = matrix(tmp_path)
    make(
        runs[1],
        2,
        status="failed",
        error="ValueError: loss=nan\nat step 3",
        corruption=HYBRID | {"mask_ratio": 0.8, "corruption_rate": 0.0},
    )
    make(runs[2], 1, status="started", corruption=HYBRID)
    (runs[3] / "config.yaml").write_text("a: [")
    (runs[4] / "result.json").write_text('{"status": "o')
    table = sweep_table.collect([*runs, tmp_path / "nowhere"])
    assert [failure.status for failure in table.failures] == ["failed", "interrupted", "missing", "missing", "missing"]
    assert table.failures[0].error == "ValueError: loss=nan at step 3"
    assert table.failures[0].settings == {"corruption.mask_ratio": 0.8, "corruption.corruption_rate": 0.0}
    assert str(runs[4]) in table.failures[3].error and str(tmp_path / "nowhere") in table.failures[4].error
    assert [row.n for row in table.rows] == [2, 1, 1]
    text = sweep_table.as_markdown(table)
    assert "5 of 9 runs have no result" in text and "loss=nan at step 3" in text
    assert "failed: mask_ratio" not in text and "corruption.mask_ratio=0.8" in table.as_text()


def test_nothing_but_failures(tmp_path):
    table = sweep_table.collect([make(tmp_path / "a", status="failed")])
    assert table.rows == [] and "boom" in table.as_text()
    sweep_table.write_table(tmp_path, table)
    assert "No run has a result" in (tmp_path / "results.md").read_text()


def test_values_are_ordered_by_nature(tmp_path):
    values = ["layer10", "layer9", None, 10, 2, 2.5, [0.3, 0.7], [0.3, 0.5]]
    runs = [make(tmp_path / str(i), 1, {"b": i}, model={"x": value}) for i, value in enumerate(values)]
    for order in (runs, runs[::-1]):
        table = sweep_table.collect(order)
        assert [row.settings["model.x"] for row in table.rows] == [
            None,
            2,
            2.5,
            10,
            [0.3, 0.5],
            [0.3, 0.7],
            "layer9",
            "layer10",
        ]


def test_the_same_experiment_twice_counts_once(tmp_path, caplog):
    runs = [make(tmp_path / name, 1, {"b": value}) for name, value in (("old", 1.0), ("new", 2.0))]
    old = read_json(runs[0] / "result.json")
    write_json(runs[0] / "result.json", old | {"finished": "2020-01-01T00:00:00+00:00"})
    table = sweep_table.collect(runs[::-1])
    (row,) = table.rows
    assert row.values["b"] == [2.0] and row.points == [runs[1]]
    assert "same experiment" in caplog.text
    assert len(table.points) == 2


def test_files(tmp_path):
    table = sweep_table.collect(matrix(tmp_path))
    sweep_table.write_table(tmp_path, table)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == 8
    assert rows[0]["folder"] == "corruption=mask80_random0,seed=1"
    assert (rows[0]["status"], rows[0]["seed"], rows[0]["corruption.mask_ratio"]) == ("ok", "1", "0.8")
    assert float(rows[0]["bound"]) == pytest.approx(4.9) and float(rows[0]["unigram"]) == 6.0
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0] == "| mask_ratio | corruption_rate | seeds | bound | seconds |"
    assert lines[2].startswith("| 0 | 0.8 | 2 | 4.150 ± 0.050 |")
    assert "The same in all runs: unigram 6." in "\n".join(lines)


def test_text_fits_the_terminal(tmp_path):
    metrics = {f"evaluation/metric_number_{i}": 1.0 for i in range(12)}
    runs = [make(tmp_path / str(s), s, {k: v * s for k, v in metrics.items()}) for s in (1, 2)]
    table = sweep_table.collect(runs)
    assert all(len(line) <= 80 for line in table.as_text(80).splitlines())
    assert "more metrics in results.csv" in table.as_text(80)
    assert "more metrics" not in table.as_text(1000)


@pytest.mark.parametrize("mean, error, text", [
    (5.123456, 0.0123, "5.123 ± 0.012"), (5.1, None, "5.1"), (1234.567, 12.3, "1235 ± 12"), (0.5, 0.0, "0.5 ± 0"),
    (float("nan"), 0.1, "nan"), (5.0, float("nan"), "5"), (2e-9, 1e-10, "2e-09 ± 1.0e-10"), (None, None, "-"),
    (0.99999, 0.0996, "1.000 ± 0.100"),
])  # fmt: skip
def test_a_mean_is_shown_to_its_error(mean, error, text):
    assert sweep_table.show_mean(mean, error) == text


def test_not_a_number_is_not_hidden(tmp_path):
    runs = [make(tmp_path / str(s), s, {"b": v}) for s, v in enumerate((1.0, math.nan))]
    (row,) = sweep_table.collect(runs).rows
    assert math.isnan(row.mean("b")) and math.isnan(row.standard_error("b"))


def test_a_metric_that_some_runs_lack_says_how_many_have_it(tmp_path):
    runs = [make(tmp_path / str(s), s, {"b": s} | ({"extra": 2.0} if s else {})) for s in range(3)]
    table = sweep_table.collect(runs)
    assert table.constant == {} and "(n=2)" in table.as_text(200)


def test_expand(tmp_path, monkeypatch):
    runs = matrix(tmp_path / "sweep", seeds=(2, 10))
    (tmp_path / "sweep" / "figures").mkdir()
    single = make(tmp_path / "single")
    assert len(sweep_table.expand([tmp_path / "sweep"])) == 8
    assert (
        sweep_table.expand([tmp_path / "sweep"])[0].name == "corruption=mask0_random80,seed=2"
    )  # 0 before 30, 2 before 10
    assert set(sweep_table.expand([tmp_path])) == {*runs, single}
    assert sweep_table.expand([single, tmp_path])[0] == single and len(sweep_table.expand([single, tmp_path])) == 9
    assert len(sweep_table.expand([str(tmp_path / "sweep" / "*seed=2")])) == 4
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="runs=swep does not exist; did you mean sweep?"):
        sweep_table.expand(["swep"])
    with pytest.raises(ValueError, match="runs=sweep/figures holds no run"):
        sweep_table.expand(["sweep/figures"])


def test_the_table_loads_back(tmp_path):
    runs = matrix(tmp_path)
    make(
        runs[1],
        2,
        status="failed",
        error="ValueError: loss=nan\nat step 3",
        corruption=HYBRID | {"mask_ratio": 0.8, "corruption_rate": 0.0},
    )
    make(
        runs[2],
        1,
        {"bound": math.nan, "unigram": 6.0},
        corruption=HYBRID | {"mask_ratio": None, "corruption_rate": [0.1, 0.2]},
    )
    (runs[4] / "result.json").write_text('{"status": "o')
    table = sweep_table.collect([*runs, tmp_path / "nowhere"])
    sweep_table.write_table(tmp_path, table)
    loaded = sweep_table.SweepTable.load(tmp_path / "results.json")
    assert loaded == table and loaded is not table
    assert [failure.status for failure in loaded.failures] == ["failed", "missing", "missing"]
    assert any(math.isnan(row.mean("bound")) for row in loaded.rows) and any(
        None in row.settings.values() for row in loaded.rows
    )
    assert all(
        isinstance(path, type(tmp_path))
        for path in [*loaded.settings, *(f.folder for f in loaded.failures), *loaded.rows[0].points]
    )
    assert sweep_table.as_markdown(loaded) == sweep_table.as_markdown(table) and sweep_table.as_csv(
        loaded, tmp_path
    ) == sweep_table.as_csv(table, tmp_path)
    empty = sweep_table.collect([tmp_path / "nowhere"])
    sweep_table.write_table(tmp_path / "empty", empty)
    assert sweep_table.SweepTable.load(tmp_path / "empty" / "results.json") == empty


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, "x", None, True]},
        (1, (2, 3)),
        {"$path": "no path"},
        {"": {}},
        math.inf,
        -math.inf,
        {1: "one"},
        [],
        {},
        1e300,
        2**70,
        "ü\u2028\U0001f600",
    ],
)
def test_values_are_packed_and_unpacked(value):
    again = sweep_table.unpacked(json.loads(to_json(sweep_table.packed(value))))
    assert again == value and type(again) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "research-stack sweep 1"}',
        '{"format": "research-stack sweep 1", "rows": [{"n": 1}], "failures": [], "points": []}',
        '{"format": "research-stack sweep 1", "rows": [{"$what": 1}]}',
    ],
)
def test_what_is_no_table_is_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="results.json"):
        sweep_table.SweepTable.load(tmp_path / "results.json")

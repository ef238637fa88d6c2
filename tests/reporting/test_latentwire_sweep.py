"""A sweep of wires of latents: its baseline, the gate, differences over the same questions."""

import csv
import math
import random
import statistics

import latentwire_runs as runs
import pytest
import yaml

from research_stack.records import sweep_table
from research_stack.reporting import latentwire_sweep, latentwire_sweep_page
from research_stack.reporting.sweep_names import named

READERS = {"llama": 0.6, "qwen": 0.55}
SHIFTS = {"[]": 0.0, "[lora]": 0.02, "[deep_prefix]": 0.12, "[lora,deep_prefix]": -0.1}


@pytest.fixture
def sweep(tmp_path):
    """The table of features x seeds; `record`: what multirun.yaml says was swept."""

    def make(shifts=SHIFTS, seeds=(1, 2), record=None, order=None, **law):
        root = tmp_path / "sweep"
        folders = []
        for features, shift in shifts.items():
            method = {"features": yaml.safe_load(features)}
            for seed in seeds:
                place, overrides = (
                    root / f"features={features},seed={seed}",
                    [f"method.features={features}", f"seed={seed}"],
                )
                folders.append(
                    runs.make_wire(
                        place, readers=READERS, seed=seed, shift=shift, method=method, overrides=overrides, **law
                    )
                )
        if record:
            (root / "multirun.yaml").write_text(
                yaml.safe_dump(
                    {
                        "hydra": {
                            "sweeper": {"params": {"method.features": record}},
                            "overrides": {"task": ["seed=1,2", "x=1"]},
                        }
                    }
                )
            )
        return named(sweep_table.collect(sorted(folders, key=order) if order else folders))

    return make


def test_the_baseline_comes_first_and_is_compared_with_itself_never(sweep):
    found = latentwire_sweep.lines(sweep())
    assert found[0].baseline and found[0].label == "features=[]" and found[0].differences == {}
    assert [line.baseline for line in found] == [True, False, False, False]
    sides = {line.label: {one.side for one in line.differences.values()} for line in found[1:]}
    assert sides["features=[deep_prefix]"] == {1} and sides["features=[lora,deep_prefix]"] == {-1}
    assert {one.questions for line in found[1:] for one in line.differences.values()} == {200} and {
        one.seeds for line in found[1:] for one in line.differences.values()
    } == {2}


def test_the_baseline_is_the_first_value_whatever_the_order(sweep):
    def order(folder):
        return -len(folder.name)

    assert latentwire_sweep.baseline(sweep(order=order)).settings["method.features"] == ["lora", "deep_prefix"]
    assert (
        latentwire_sweep.baseline(sweep(order=order, record="[],[lora],[deep_prefix],[lora,deep_prefix]")).settings[
            "method.features"
        ]
        == []
    )


@pytest.mark.parametrize(
    "text, values",
    [
        ("a,b", ["a", "b"]),
        ("[],[a,b],c", ["[]", "[a,b]", "c"]),
        ("{x:1,y:2},'p,q'", ["{x:1,y:2}", "'p,q'"]),
        ("range(1,4)", ["range(1,4)"]),
        ("1", ["1"]),
    ],
)
def test_choices(text, values):
    assert latentwire_sweep.choices(text) == values


def test_what_was_swept_is_read_from_the_record(sweep, tmp_path):
    sweep(record="[],[lora]")
    assert latentwire_sweep.swept(tmp_path / "sweep") == {"method.features": ["[]", "[lora]"], "seed": ["1", "2"]}
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: [")
    assert latentwire_sweep.swept(tmp_path / "sweep") == {} and latentwire_sweep.swept(tmp_path / "none") == {}


def test_a_difference_is_paired_by_question_over_the_seeds(sweep):
    table = sweep()
    first = latentwire_sweep.baseline(table)
    row = next(row for row in table.rows if row.settings["method.features"] == ["deep_prefix"])
    one = latentwire_sweep.difference(table, row, first, "llama")
    by_question = {}
    for a, b in zip(row.points, first.points, strict=True):
        own, other = (
            {
                line["question"]: float(line["f1"])
                for line in csv.DictReader((folder / "tables" / "latentwire_scores.csv").open())
                if (line["reader"], line["path"]) == ("llama", "latent")
            }
            for folder in (a, b)
        )
        for question in own:
            by_question.setdefault(question, []).append(own[question] - other[question])
    values = [statistics.fmean(v) for v in by_question.values()]
    half = (
        1.972 * statistics.stdev(values) / math.sqrt(200)
    )  # 97.5 % quantile of Student's t with 199 degrees of freedom
    assert one.value == pytest.approx(statistics.fmean(values)) and (one.low, one.high) == pytest.approx(
        (one.value - half, one.value + half), rel=1e-3
    )


@pytest.mark.exact
def test_questions_of_a_group_are_drawn_together():
    """A group of k equal answers tells as much as one: the interval is that of the groups."""
    rng = random.Random(5)
    of_group = [0.1 + rng.gauss(0, 0.3) for _ in range(40)]
    alone = {latentwire_sweep.Asked("d", f"{g}", f"{g}"): value for g, value in enumerate(of_group)}
    copies = {
        latentwire_sweep.Asked("d", f"{g}.{copy}", f"{g}"): value
        for g, value in enumerate(of_group)
        for copy in range(5)
    }
    assert latentwire_sweep.over_groups(copies) == pytest.approx(latentwire_sweep.over_groups(alone))
    mean, low, high = latentwire_sweep.over_groups(
        {latentwire_sweep.Asked("d", str(q), "one"): 0.1 * q for q in range(3)}
    )
    assert mean == pytest.approx(0.1) and math.isnan(low) and math.isnan(high)


@pytest.mark.exact
def test_the_interval_of_uneven_groups_covers_the_mean_over_questions():
    rng, covered = random.Random(3), 0
    for _ in range(400):
        values = {}
        for g in range(60):
            shift = rng.gauss(0, 0.2)
            values |= {
                latentwire_sweep.Asked("d", f"{g}.{q}", str(g)): 0.1 + shift + rng.gauss(0, 0.1)
                for q in range(rng.randint(1, 6))
            }
        _, low, high = latentwire_sweep.over_groups(values)
        covered += low <= 0.1 <= high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.exact
def test_the_interval_covers_a_true_difference():
    """Coverage of the interval that `difference` takes, on differences of known mean."""
    from research_stack.reporting.paired import paired

    rng, covered = random.Random(3), 0
    for _ in range(400):
        values = [0.1 + (rng.random() < 0.3) - 0.3 for _ in range(200)]
        _, _, low, high, _ = paired(values, [0.0] * 200)
        covered += low <= 0.1 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_only_questions_that_both_were_asked_count(sweep, tmp_path):
    table = sweep(seeds=(1,))
    runs.make_wire(
        tmp_path / "sweep" / "features=[lora],seed=1",
        readers=READERS,
        shift=0.02,
        move=150,
        method={"features": ["lora"]},
    )
    found = {line.label: line.differences for line in latentwire_sweep.lines(table)}
    assert (
        found["features=[lora]"]["llama"].questions == 50 and found["features=[deep_prefix]"]["llama"].questions == 200
    )
    assert "the same 50 or 200 questions" in latentwire_sweep.note(table)


def test_without_scores_there_is_a_difference_and_no_interval(sweep):
    table = sweep()
    for point in table.points:
        (point.folder / "tables" / "latentwire_scores.csv").unlink()
    one = latentwire_sweep.lines(table)[1].differences["llama"]
    row, first = latentwire_sweep.lines(table)[1].row, latentwire_sweep.baseline(table)
    assert (
        one.value == pytest.approx(row.mean("latentwire/llama/f1_latent") - first.mean("latentwire/llama/f1_latent"))
        and math.isnan(one.low)
        and one.side == 0
    )
    assert "there is no interval" in latentwire_sweep.note(table)


@pytest.mark.parametrize(
    "first1, passed",
    [
        ({"llama": 0.15, "qwen": 0.2}, True),
        ({"llama": 0.149, "qwen": 0.9}, False),
        ({"llama": 0.5, "qwen": math.nan}, False),
    ],
)
def test_the_gate_needs_every_reader(sweep, first1, passed):
    table = sweep(first1=first1)
    assert latentwire_sweep.passed(table) is passed and latentwire_sweep.comparable(table) is passed
    assert any(line.differences for line in latentwire_sweep.lines(table)) is passed
    if not passed:
        said = latentwire_sweep.headline(table)
        assert said.startswith("The gate was not passed: the baseline's first token is right ") and said.endswith(
            "every reader needs 15 %. No feature is compared."
        )
        assert latentwire_sweep.title(table) == "Settings, not compared" and "<svg" not in "".join(
            map(str, latentwire_sweep_page.section(table))
        )
        assert "of the text: the share" in latentwire_sweep.as_markdown(
            table
        ) and "+0." not in latentwire_sweep.as_markdown(table)


def test_a_gate_missed_by_little_shows_it(sweep):
    assert "right 14.9 % (llama) and 90 % (qwen)" in latentwire_sweep.headline(
        sweep(first1={"llama": 0.149, "qwen": 0.9})
    )


def test_only_the_baseline_passes_the_gate(sweep, tmp_path):
    table = sweep(seeds=(1,))
    runs.make_wire(
        tmp_path / "sweep" / "features=[lora],seed=1",
        readers=READERS,
        first1={"llama": 0.01, "qwen": 0.01},
        method={"features": ["lora"]},
    )
    assert latentwire_sweep.passed(named(sweep_table.collect([point.folder for point in table.points])))


def test_a_baseline_without_a_result(sweep, tmp_path):
    table = sweep(seeds=(1,))
    runs.make_wire(
        tmp_path / "sweep" / "features=[],seed=1",
        readers=READERS,
        status="failed",
        method={"features": []},
        overrides=["method.features=[]", "seed=1"],
    )
    table = named(sweep_table.collect([point.folder for point in table.points]))
    assert latentwire_sweep.baseline(table) is None and not latentwire_sweep.comparable(table)
    assert (
        latentwire_sweep.headline(table)
        == "The baseline, the point with the first value of every swept key, has no result: no feature is compared."
    )
    assert len(latentwire_sweep.lines(table)) == 3


def test_the_headline_counts(sweep):
    said = latentwire_sweep.headline(sweep(shifts={"[]": 0.0, "[deep_prefix]": 0.2, "[lora]": -0.2}))
    assert said.startswith(
        "Of 2 settings 1 is better than the baseline, features=[], for every reader and 1 worse; the best,"
        " features=[deep_prefix], changes F1 by +0."
    )
    assert latentwire_sweep.headline(sweep(shifts={"[]": 0.0})) == ""


def test_the_terminal_drops_columns_as_it_gets_narrower(sweep):
    table = sweep()
    wide, narrow = latentwire_sweep.as_text(table, 240), latentwire_sweep.as_text(table, 120)
    assert (
        "FirstTok@1" in wide
        and "of the text" in wide
        and "FirstTok@1" not in narrow
        and "of the text" not in narrow
        and "baseline" in narrow
    )
    assert wide.splitlines()[-1] == latentwire_sweep.headline(table)
    rows = latentwire_sweep.as_markdown(table).splitlines()
    assert sum(line.startswith("| features=") for line in rows) == 4


def test_the_page_has_a_table_and_a_chart_for_each_reader(sweep):
    page = "".join(
        "".join(part) if isinstance(part, str) else "".join("".join(inner) for inner in part)
        for part in latentwire_sweep_page.section(sweep())
        if part
    )
    assert page.count("<table") == 2 and page.count("<svg") == 2 and "<h3>qwen</h3>" in page


def test_other_sweeps_have_none_of_this(tmp_path, run_folder):
    table = sweep_table.collect([run_folder(tmp_path / "a"), run_folder(tmp_path / "b", seed=2)])
    assert (
        latentwire_sweep.lines(table) == []
        and latentwire_sweep.headline(table)
        == latentwire_sweep.as_text(table)
        == latentwire_sweep.as_markdown(table)
        == ""
    )
    assert latentwire_sweep_page.section(table) is None and latentwire_sweep.comparable(table)

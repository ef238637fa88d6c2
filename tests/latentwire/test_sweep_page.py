"""What a sweep shows: its baseline, the gate, differences over the same questions; message sizes as one curve."""

import csv
import math
import statistics

import pytest
import saved_wires as runs
import scipy.stats
import yaml

from research_stack.evaluation.seed_differences import seed_differences
from research_stack.latentwire.report import sweep, sweep_numbers, sweep_sizes
from research_stack.records import sweep_table
from research_stack.reporting import sweep_page
from research_stack.reporting.contract import Metrics, reports_of_sweep
from research_stack.reporting.sweep_names import named
from research_stack.reporting.sweep_page import as_text, write_sweep_report

READERS = {"llama": 0.6, "qwen": 0.55}
SHIFTS = {"[]": 0.0, "[lora]": 0.02, "[deep_prefix]": 0.12, "[lora,deep_prefix]": -0.1}


@pytest.fixture
def table_of(tmp_path):
    """The table of features x seeds; `record`: what multirun.yaml says was swept."""

    def make(shifts=SHIFTS, seeds=(1, 2), record=None, order=None, **options):
        root, folders = tmp_path / "sweep", []
        for features, shift in shifts.items():
            for seed in seeds:
                own = {
                    "seed": seed,
                    "shift": shift,
                    "method": {"features": yaml.safe_load(features)},
                    "overrides": [f"method.features={features}", f"seed={seed}"],
                }
                place = root / f"features={features},seed={seed}"
                folders.append(runs.make_wire(place, **{"readers": READERS, "steps": 20, **own, **options}))
        if record:
            hydra = {"sweeper": {"params": {"method.features": record}}, "overrides": {"task": ["seed=1,2", "x=1"]}}
            (root / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
        return named(sweep_table.collect(sorted(folders, key=order) if order else folders))

    return make


def collected(table):
    return named(sweep_table.collect([point.folder for point in table.points]))


def features_of(setting):
    return setting.row.settings["method.features"]


# The baseline and its gate -------------------------------------------------------------------------------------------


def test_the_baseline_comes_first_and_is_compared_with_itself_never(table_of):
    found = sweep_numbers.settings(table_of())
    assert features_of(found[0]) == [] and found[0].differences == {}
    assert [setting.is_baseline for setting in found] == [True, False, False, False]
    signs = {str(features_of(s)): {one.sign for one in s.differences.values()} for s in found[1:]}
    assert signs["['deep_prefix']"] == {1} and signs["['lora', 'deep_prefix']"] == {-1}
    differences = [one for setting in found[1:] for one in setting.differences.values()]
    assert {(one.questions, one.seeds) for one in differences} == {(200, 2)}


def test_the_baseline_is_the_first_value_whatever_the_order(table_of, tmp_path):
    def order(folder):
        return -len(folder.name)

    assert sweep_numbers.baseline(table_of(order=order)).settings["method.features"] == ["lora", "deep_prefix"]
    table = table_of(order=order, record="[],[lora],[deep_prefix],[lora,deep_prefix]")
    assert sweep_numbers.baseline(table).settings["method.features"] == []
    swept = sweep_numbers.swept(tmp_path / "sweep")
    assert swept == {"method.features": ["[]", "[lora]", "[deep_prefix]", "[lora,deep_prefix]"], "seed": ["1", "2"]}
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: [")
    assert sweep_numbers.swept(tmp_path / "sweep") == sweep_numbers.swept(tmp_path / "none") == {}
    for text, values in (
        ("[],[a,b],c", ["[]", "[a,b]", "c"]),
        ("{x:1,y:2},'p,q'", ["{x:1,y:2}", "'p,q'"]),
        ("range(1,4)", ["range(1,4)"]),
    ):
        assert sweep_numbers.choices(text) == values


def test_the_gate_needs_every_reader(table_of):
    for first1, passed in (
        ({"llama": 0.15, "qwen": 0.2}, True),
        ({"llama": 0.149, "qwen": 0.9}, False),
        ({"llama": 0.5, "qwen": math.nan}, False),
    ):
        table = table_of(first1=first1, seeds=(1,))
        assert sweep_numbers.passed(table) is sweep_numbers.comparable(table) is passed
        assert any(setting.differences for setting in sweep_numbers.settings(table)) is passed
        if not passed:
            assert sweep.headline(table).startswith("The gate was not passed: the baseline's first token is correct ")
            (first, _) = sweep.tables(table)
            assert first.title == "Settings, not compared: llama" and not first.charts
            assert "+0." not in str(first.lines)
    table = table_of(first1={"llama": 0.149, "qwen": 0.9}, seeds=(1,))
    assert "correct 14.9 % (llama) and 90 % (qwen)" in sweep.headline(table)


def test_a_baseline_without_a_result(table_of, tmp_path):
    table = table_of(seeds=(1,))
    runs.make_wire(
        tmp_path / "sweep" / "features=[],seed=1",
        readers=READERS,
        status="failed",
        method={"features": []},
        overrides=["method.features=[]", "seed=1"],
    )
    table = collected(table)
    assert sweep_numbers.baseline(table) is None and not sweep_numbers.comparable(table)
    assert sweep.headline(table).endswith("has no result: no feature is compared.")
    assert len(sweep_numbers.settings(table)) == 3


# Differences ---------------------------------------------------------------------------------------------------------


def test_a_difference_is_paired_by_question_over_the_seeds(table_of):
    table = table_of()
    first = sweep_numbers.baseline(table)
    row = next(row for row in table.rows if row.settings["method.features"] == ["deep_prefix"])
    one = sweep_numbers.difference(table, row, first, "llama")
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
    half = scipy.stats.t.ppf(0.975, 199) * statistics.stdev(values) / math.sqrt(200)
    assert (one.value, one.low, one.high) == pytest.approx(
        (statistics.fmean(values), statistics.fmean(values) - half, statistics.fmean(values) + half)
    )


def test_only_questions_that_both_were_asked_count(table_of, tmp_path):
    table = table_of(seeds=(1,))
    place = tmp_path / "sweep" / "features=[lora],seed=1"
    runs.make_wire(place, readers=READERS, shift=0.02, move=150, method={"features": ["lora"]})
    found = sweep_numbers.settings(table)
    counts = {str(features_of(setting)): setting.differences["llama"].questions for setting in found[1:]}
    assert counts["['lora']"] == 50 and counts["['deep_prefix']"] == 200
    assert "the same 50 or 200 questions" in sweep.explanation(table, found)
    for point in table.points:
        (point.folder / "tables" / "latentwire_scores.csv").unlink()
    found = sweep_numbers.settings(table)
    one, metric = found[1].differences["llama"], "latentwire/llama/f1_latent"
    assert one.value == pytest.approx(found[1].row.mean(metric) - found[0].row.mean(metric))
    assert math.isnan(one.low) and one.sign == 0 and "there is no interval" in sweep.explanation(table, found)


# Words, tables, pages ------------------------------------------------------------------------------------------------


def test_the_headline_counts(table_of):
    text = sweep.headline(table_of(shifts={"[]": 0.0, "[deep_prefix]": 0.2, "[lora]": -0.2}, seeds=(1,)))
    assert text.startswith("Of 2 settings 1 is better than the baseline, features=[], for every reader and 1 worse;")
    assert "the best, features=[deep_prefix], changes F1 by +0." in text


@pytest.mark.figures
def test_a_sweep_is_compared_with_its_baseline(table_of, tmp_path):
    table = table_of(shifts={"[]": 0.0, "[deep_prefix]": 0.2})
    assert sweep_page.verdict(table, Metrics(reports_of_sweep(table))).startswith(
        "Of 1 setting 1 is better than the baseline, features=[], for every reader"
    )
    page = write_sweep_report(tmp_path / "sweep", table, seed_differences(table)).read_text()
    assert page.count("difference of F1 from the baseline, 95 % intervals over questions") == 2
    assert "Against the baseline: qwen" in page and "Differences, seed by seed" in page
    names = {path.name for path in (tmp_path / "sweep" / "figures").iterdir()}
    assert {"latentwire_differences_llama.png", "latentwire_differences_qwen.pdf"} <= names
    text = sweep_page.as_markdown(table, seed_differences(table))
    assert "## Against the baseline: llama" in text and "## Differences, seed by seed" in text
    assert sum(line.startswith("| features=") for line in text.splitlines()) >= 4
    wide, narrow = as_text(table, 240), as_text(table, 80)
    assert "FirstTok@1" in wide and "of the text" in wide and "FirstTok@1" not in narrow and "baseline" in narrow
    assert wide.splitlines()[-1] == sweep.headline(table)


def test_behind_a_shut_gate_nothing_is_compared(table_of, tmp_path):
    options = {"shifts": {"[]": 0.0, "[deep_prefix]": 0.2}, "first1": {"llama": 0.05, "qwen": 0.4}}
    table = table_of(**options)
    assert sweep_page.verdict(table, Metrics(reports_of_sweep(table))).startswith(
        "The gate was not passed: the baseline's first token is correct 5 % (llama) and 40"
    )
    page = write_sweep_report(tmp_path / "sweep", table, seed_differences(table)).read_text()
    assert "No feature is compared." in page
    assert "Differences, seed by seed" not in page and "Over features" not in page
    assert "Differences" not in sweep_page.as_markdown(
        table, seed_differences(table)
    ) and "No feature is compared." in as_text(table, 200)


# Sizes ---------------------------------------------------------------------------------------------------------------

BYTES = {8: 36, 3: 16, 17: 72}
CURVE = [(8, 8, 0.9), (3, 3, 0.5), (17, 17, 0.95)]


def of_size(num_latents, best):
    """Scores of a run that was trained for so many latents; also rows of fewer ones, which are not main."""
    rows = runs.scores({"llama": best, "qwen": best - 0.1}, curve=False)
    for row in rows:
        if row[2] not in ("text", "none"):
            row[3], row[5] = num_latents, BYTES[num_latents]
    fewer = [[*row[:3], num_latents - 1, row[4], row[5] - 4, *row[6:-1], ""] for row in rows if row[2] == "latent"]
    return rows + fewer


@pytest.fixture
def sized(tmp_path):
    def make(settings, axis="num_latents"):
        folders = [
            runs.make_wire(
                tmp_path / "sweep" / f"{place}-{seed}",
                seed=seed,
                method={axis: value},
                rows=of_size(num_latents, best + 0.02 * (seed - 1)),
                steps=20,
            )
            for place, (value, num_latents, best) in enumerate(settings)
            for seed in (1, 2)
        ]
        return named(sweep_table.collect(folders))

    return make


@pytest.mark.figures
def test_each_size_is_a_point_and_the_first_one_the_main(sized, tmp_path):
    table = sized(CURVE)
    data = sweep_sizes.sizes(table)
    latents = data.of("qa_facts", "llama", "latent")
    found = [(row.bytes, row.num_latents, row.main) for row in latents]
    assert found == [(16, 3, False), (36, 8, True), (72, 17, False)]
    ends = [(row.f1.value, row.f1.low, row.f1.high) for row in latents]  # means of two seeds
    assert ends == [pytest.approx((value, value - 0.02, value + 0.02)) for value in (0.51, 0.91, 0.96)]
    assert [row.bytes for row in data.of("qa_facts", "qwen", "text_bytes")] == [16, 36, 72]
    assert len(data.of("qa_facts", "qwen", "text")) == len(data.of("qa_facts", "qwen", "shuffled")) == 1
    page = write_sweep_report(tmp_path / "sweep", table, seed_differences(table)).read_text()
    assert "16 bytes of latents keep 55\u00a0% and 41\u00a0%, 36 bytes 98\u00a0% and 82\u00a0%, 72 bytes 103" in page
    assert "What a byte is worth" in page and page.count("F1 against bytes on the wire") == 2
    names = {path.name for path in (tmp_path / "sweep" / "figures").iterdir()}
    assert {"latentwire_bytes_llama.png", "latentwire_latents_qwen.pdf"} <= names


def test_other_sweeps_are_no_curve(sized):
    for settings, axis in (
        (CURVE, "features"),
        ([(8, 8, 0.9), (9, 8, 0.5)], "num_latents"),
        (CURVE[:1], "num_latents"),
    ):
        table = sized(settings, axis)
        assert sweep_sizes.sizes(table) is sweep_sizes.section(table) is None and sweep_sizes.verdict(table) == ""

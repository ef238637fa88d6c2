"""The report of a policy: its words, pass@k and diversity, its training curves, and what is said where there is
little.
"""

import json

import pytest

from research_stack.posttraining.report import names, passk, reward_model, training
from research_stack.reporting import page, summary, write_report
from research_stack.reporting.contract import Metrics, reports_of
from research_stack.reporting.page import render
from research_stack.reporting.run_files import read


def verdict(run):
    return page.verdict(run, reports_of(run))


HOSTILE = "</script><img src=x onerror=alert(1)>&"


def test_the_verdict_says_where_it_began(two_phases):
    assert (
        verdict(read(two_phases[1]))
        == "Correct at the first try 84 % of the time (79 to 89 %), with 2.3 unique correct answers among 32 (1.9 to"
        " 2.7); "
        "after SFT it was 55 % and 15.7."
    )
    assert (
        verdict(read(two_phases[0]))
        == "Correct at the first try 55 % of the time (50 to 60 %), with 15.7 unique correct answers among 32 (15.3 to"
        " 16.1)."
    )


def test_where_it_began_is_step_zero_if_the_first_phase_was_measured_otherwise(two_phases):
    sft, grpo = two_phases
    (sft / "config.yaml").write_text((sft / "config.yaml").read_text().replace("max_prompts: 64", "max_prompts: 8"))
    assert "after SFT it was 54 % and 15.0." in verdict(read(grpo))
    dynamics = json.loads((grpo / "dynamics.json").read_text())
    (grpo / "dynamics.json").write_text(json.dumps(dynamics | {"which": "held_out"}))
    assert "after SFT" not in verdict(read(grpo))


def test_an_unfinished_policy_says_its_last_measurement(tmp_path, policy_folder):
    folder = policy_folder(tmp_path / "run", evaluated=False)
    assert (
        verdict(read(folder))
        == "At step 100 correct at the first try 84 % of the time, with 2.3 unique correct answers among 32."
    )
    (folder / "dynamics.json").write_text('{"points": []}')
    assert verdict(read(folder)).startswith("The last training reward was 0.") and "nats" not in verdict(read(folder))


def test_the_loss_of_sft_is_in_nats_per_reply_token(tmp_path, policy_folder):
    folder = policy_folder(tmp_path / "run", "sft")
    run = read(folder)
    (folder / "dynamics.json").unlink()
    assert training.progress(read(folder)).endswith("nats per reply token.")
    assert "noise levels" not in render(run) and "Loss of the replies" in render(run)


@pytest.mark.parametrize(
    "share, text", [(0.843, "84 %"), (0.004, "0.4 %"), (0.996, "99.6 %"), (1.0, "100 %"), (0.0, "0 %")]
)
def test_percent(share, text):
    assert names.percent(share) == text


def test_the_numbers_on_top(two_phases):
    found = page.numbers(run := read(two_phases[1]), reports_of(run))
    assert found["correct at the first try"] == "84 %" and found["unique correct of 32"] == "2.3"
    assert float(found["reward in training"]) == pytest.approx(0.88, abs=0.02)


def test_the_table_has_both_sides_and_no_interval_of_two_prompts(two_phases):
    header, rows = passk.comparison(passk.measured(read(two_phases[1])))
    assert header == ["", "28 trained prompts", "95 % interval", "2 held-out prompts", "95 % interval"]
    assert [cells[0] for cells, strong in rows if strong] == ["Correctness", "Diversity", "Certainty"]
    cells = {row[0]: row[1:] for row, _ in rows}
    assert cells["correct at the first try"] == ["84.0 %", "79.0 to 89.0 %", "42.0 %", "-"]
    assert cells["unique correct answers among 32"] == ["2.3", "1.9 to 2.7", "1.1", "-"]
    assert cells["self-BLEU, correct answers"] == ["-", "-", "70.0", "-"]


def test_few_prompts_are_named(two_phases):
    text = render(read(two_phases[1]))
    assert (
        "Only 2 held-out prompts: too few to tell how the policy does on others, and too few for an interval." in text
    )
    assert "Only 28" not in text and "self-BLEU, correct answers (1 of 2 held-out)" in text


def test_prompts_are_folded_and_the_hardest_come_first(two_phases):
    text = render(read(two_phases[1]))
    assert "<summary>29 prompts, the hardest first</summary>" in text
    table = text[text.index("29 prompts") :]
    assert (
        table.index("<td>20=</td>")
        < table.index("<td>1=</td>")
        < table.index("<td>9=</td>")
        < table.index("<td>99=</td>")
    )


def test_answers_keep_apart_on_the_page():
    assert (
        passk.separated("6+1 x2  a  b x12  4+3 x1") == "6+1 ×2 · a  b ×12 · 4+3 ×1"
        and passk.separated("") == ""
        and passk.separated("2 x3") == "2 ×3"
    )


def test_hostile_answers_do_nothing(tmp_path, policy_folder):
    folder = policy_folder(tmp_path / "run", texts=(HOSTILE, "x" * 500))
    dynamics = json.loads((folder / "dynamics.json").read_text())
    dynamics["points"][0]["metrics"][HOSTILE + "@8"] = {"value": 1.0}
    (folder / "dynamics.json").write_text(json.dumps(dynamics))
    text = render(read(folder))
    assert "<img" not in text and "&lt;img src=x" in text and "x" * 100 not in text


@pytest.mark.figures
def test_a_hostile_name_is_text_in_figures(tmp_path, policy_folder):
    folder = policy_folder(tmp_path / "run")
    (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text().replace("grpo.GRPO", "grpo.Other").replace("name: grpo", "name: '<b>$x^{'")
    )
    text = write_report(folder).read_text()
    assert "&lt;b&gt;$x^{" in text and "<b>$" not in text.replace("<b>&lt;", "")


def test_a_policy_gradient_shows_rewards_and_no_loss(two_phases):
    run = read(two_phases[1])
    moved, still = training.changing(run)
    assert [curve.title for curve in moved] == [
        "Reward",
        "Entropy",
        "Completion length",
        "Truncated",
        "Groups of equal reward",
        "Unique answers",
    ]
    assert [(curve.title, value) for curve, value in still] == [("Clipped", 0.0)]
    text = render(run)
    assert (
        "The same at every step: clipped 0 (% of tokens)." in text
        and "it is not drawn" in text
        and "averaged over noise levels" not in text
    )


def test_polychromic_sft_shows_its_answers_too(tmp_path, policy_folder):
    run = read(policy_folder(tmp_path / "run", "polychromic"))
    assert [curve.title for curve in training.changing(run)[0]] == ["Answers that differ"]
    assert "Loss of the replies" in render(run)


def test_other_runs_have_none_of_this(tmp_path, run_folder):
    run = read(run_folder(tmp_path / "run"))
    assert passk.answers(run) is None and training.training(run) is None and passk.verdict(run) == ""


@pytest.mark.figures
def test_figures_and_summary(two_phases):
    write_report(two_phases[1])
    assert {"training_reward.png", "passk.pdf", "dynamics_plane.png", "dynamics_pass.png"} <= {
        path.name for path in (two_phases[1] / "figures").iterdir()
    }
    lines = summary(two_phases[1]).splitlines()
    row = next(line for line in lines if line.startswith("correct at the first try"))
    assert row.split("  ")[-1].strip() == "-" and "79.0 to 89.0 %" in row and "42.0 %" in row
    assert any(line.startswith("Correct at the first try 84 %") for line in lines) and max(map(len, lines[:8])) < 110


def test_torn_tables_are_survived(two_phases):
    tables = two_phases[1] / "tables"
    (tables / "passk.csv").write_text(
        "prompts,metric,value,low,high,n,undefined\ntrained,pass@1,0.5\ntrained,entropy,x,,,,\nelsewhere,pass@1,1,1,1,9,0\n"
    )
    (tables / "passk_curve.csv").write_text("prompts,k,pass,low,high\ntrained,1,nan,0,1\ntrained,2\n")
    (tables / "passk_prompts.csv").write_text("prompts,prompt\ntrained,1=\n")
    found = passk.measured(read(two_phases[1]))
    assert list(found) == ["trained"] and list(found["trained"]) == ["pass@1"]
    assert "50.0 %" in write_report(two_phases[1]).read_text()


@pytest.mark.parametrize(
    "metric, label, group",
    [
        ("pass@1", "correct at the first try", "Correctness"),
        ("pass@8", "correct within 8 tries", "Correctness"),
        ("unique_correct@32", "unique correct answers among 32", "Diversity"),
        ("distinct_2_correct", "distinct-2, correct answers", "Diversity"),
        ("self_bleu", "self-BLEU", "Diversity"),
        ("entropy", "entropy, nats per token", "Certainty"),
        ("preference_pass@32", "hidden preference met within 32 tries", "Correctness"),
        ("some_other", "some other", "Diversity"),
    ],
)
def test_metrics_have_names(metric, label, group):
    assert names.label(metric) == label and names.group_of(metric) == group


def test_the_few_that_matter_are_in_order():
    given = [
        "entropy",
        "pass@32",
        "unique_correct@8",
        "unique_correct@32",
        "pass@1",
        "self_bleu",
        "pass@8",
        "preference_pass@32",
    ]
    assert names.main(given) == ["pass@1", "pass@8", "pass@32", "unique_correct@32", "preference_pass@32", "entropy"]


# A reward model ------------------------------------------------------------------------------------------------------


@pytest.fixture
def reward_folder(tmp_path, run_folder):
    config = {
        "name": "reward",
        "seed": 1,
        "method": {"_target_": "research_stack.posttraining.reward_model.RewardModel", "loss": "mse"},
        "eval": {"reward": {"_target_": "research_stack.posttraining.reward_evaluation.RewardEvaluation"}},
    }
    metrics = {
        "reward/pearson": 0.655,
        "reward/pearson_low": 0.616,
        "reward/pearson_high": 0.69,
        "reward/pearson_length": 0.405,
    }
    folder = run_folder(tmp_path / "run", config=config, metrics=metrics)
    for file in ("samples.jsonl", "tables/likelihood.csv"):
        (folder / file).unlink()
    (folder / "tables" / "reward_heldout.csv").write_text(
        "name,kind,pearson,pearson_low,pearson_high,pairs,prompts\nreward model,model,.655,.616,.69,785,133\n"
    )
    (folder / "tables" / "reward_reliability.csv").write_text("predicted,actual,low,high\n1,1.1,1,1.2\n2,2.1,2,2.2\n")
    (folder / "tables" / "reward_points.csv").write_text("predicted,actual\n1,1.3\n2,1.7\n")
    return folder


@pytest.mark.figures
def test_a_reward_model_is_reported(reward_folder):
    text = write_report(reward_folder).read_text()
    run = read(reward_folder)
    assert verdict(run).startswith("Correlates 0.66 (0.62 to 0.69)") or verdict(run).startswith(
        "Correlates 0.65 (0.62 to 0.69)"
    )
    assert "Engagement on unseen prompts" in text and "averaged over noise levels" not in text
    assert {"reward_correlation.png", "reward_pairs.pdf", "reward_deciles.png"} <= {
        path.name for path in (reward_folder / "figures").iterdir()
    }
    assert "Correlates" in summary(reward_folder)


def test_its_loss_is_a_squared_error(reward_folder):
    run = read(reward_folder)
    assert reward_model.unit(run) == "squared standard deviations of the target"
    assert "always predicting the mean gives about 1" in reward_model.words(run)
    run.config["method"]["loss"] = "huber"
    assert "Huber" in reward_model.unit(run) and "about 1" not in reward_model.words(run)


def test_every_metric_is_declared(two_phases, reward_folder):
    for folder in (*two_phases, reward_folder):
        run = read(folder)
        metrics = Metrics(reports_of(run))
        assert [name for name in run.metrics if not metrics.is_declared(name)] == []
    metrics = Metrics(reports_of(read(two_phases[1])))
    assert metrics.of("passk/pass@8").label == "pass@8" and metrics.of("passk/pass@8").better == "higher"
    assert metrics.of("passk/unique_correct@32").label == "unique correct answers among 32"
    assert metrics.of("passk/held_out_pass@1").label == "held out: pass@1"
    assert metrics.of("passk/entropy").better is None and not metrics.of("passk/self_bleu").plot

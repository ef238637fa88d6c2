"""Settings compared seed by seed: the statistics by hand, pairs that meet by seed, and what is said of them."""

import math

import pytest
from sweep_pages import metrics, render

from research_stack.evaluation.seed_differences import seed_differences
from research_stack.metrics.paired import between_seeds
from research_stack.records import sweep_table
from research_stack.reporting.differences import as_markdown


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


def test_paired_by_hand():
    mean, error, low, high, p, smallest = between_seeds([3.0, 5.0, 4.0], [2.0, 3.0, 1.0])  # differences 1, 2, 3: sd 1
    assert (mean, error) == pytest.approx((2.0, 1 / math.sqrt(3)))
    assert (low, high) == pytest.approx((2 - 4.3026527 / math.sqrt(3), 2 + 4.3026527 / math.sqrt(3)))
    assert p == smallest == 0.25  # all of one sign: 2 of 8
    with pytest.raises(ValueError, match="two seeds"):
        between_seeds([1.0], [2.0])


@pytest.mark.parametrize(
    "differences, p",
    [
        ([1.0, 2.0], 0.5),
        ([1.0, -1.0], 1.0),
        ([1.0, 2.0, -3.0], 1.0),
        ([0.0, 0.0, 0.0], 1.0),
        ([0.1] * 5, 2 / 32),
        ([-0.1] * 5, 2 / 32),
        ([1.0, 1.0, 1.0, -1.0], 10 / 16),
        ([0.1, 0.2, 0.3], 0.25),
    ],
)
def test_sign_flips(differences, p):
    assert between_seeds(differences, [0.0] * len(differences)).p == p


def test_pairs_meet_by_seed(compare):
    table = compare(seeds=(1, 2, 3), baseline_seeds=(3, 2, 4))
    found = {one.metric: one for one in seed_differences(table)}
    nats = found["lookahead/nats"]
    assert (nats.first, nats.second, nats.seeds) == ("Lookahead", "MiniGPT", 2)  # seeds 2 and 3
    assert nats.difference == pytest.approx(-0.065) and nats.error == pytest.approx(0.025) and nats.p == 0.5
    assert "lookahead/r2" not in found and nats.differs is False


def test_missing_values_and_seeds(compare):
    table = compare(seeds=(1, 2), shifts=(-0.1, -0.1))
    point = next(p for p in table.points if p.seed == 2)
    point.metrics["lookahead/nats"] = math.nan
    assert "lookahead/nats" not in {one.metric for one in seed_differences(table)}
    assert seed_differences(compare(seeds=(1,), shifts=(0.0,))) == []


def test_many_settings_are_compared_with_the_best(tmp_path, lookahead_folder):
    runs = []
    for number in range(10):
        config = {"name": "lookahead", "method": {"_target_": "x.Lookahead", "weight": number / 10}}
        config["eval"] = {"x": {"_target_": "research_stack.lookahead.calibration.LookaheadCalibration"}}
        runs += [
            lookahead_folder(
                tmp_path / f"{number},{s}", s, config=config, shift=0.01 * abs(number - 4), tables=True, steps=70
            )
            for s in (1, 2)
        ]
    found = [one for one in seed_differences(sweep_table.collect(runs)) if one.metric == "lookahead/nats"]
    assert len(found) == 9 and {one.second for one in found} == {"weight=0.4"}


def test_it_is_said_in_markdown_and_on_the_page(compare, tmp_path):
    table = compare()
    text = as_markdown(seed_differences(table), metrics(table))
    assert "| held-out loss | Lookahead − MiniGPT | -0.060 ± 0.015 | -0.126 to 0.006 | 0.25 | 3 |" in text
    assert "With 3 seeds p cannot be below 0.25" in text
    assert "With 3 seeds p cannot be below 0.25" in render(tmp_path, table)
    sweep_table.write_table(tmp_path, table, text)
    assert "Differences, seed by seed" in (tmp_path / "results.md").read_text()

"""Whether 95 % means it: simulated coverage of every kind of interval, on data as the evaluations have them.

The simulations are those of `benchmarks/coverage.py`. A thousand intervals tell 93 from 95 %: their share has a
standard error of .007.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from research_stack.metrics.stratification import balanced_part

pytestmark = pytest.mark.exact

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
spec = importlib.util.spec_from_file_location("simulated_coverage", BENCHMARK)
simulated = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulated)

GROUPS = (5, 10, 30)
TIMES = 1000


def reported(*names, groups=GROUPS, times=TIMES):
    """{(kind, groups): share} of the intervals that evaluations print."""
    return {(name, g): simulated.shares(name, g, times)["reported"] for g in groups for name in names}


def close(shares, low=0.925, high=0.975):
    """.93 to .97, and what chance adds to a thousand intervals."""
    assert all(low <= share <= high for share in shares.values()), shares


def test_nats_per_token_of_documents_of_different_lengths():
    close(reported("nats per token", groups=(3, *GROUPS)))
    # Where documents differ lopsidedly a symmetric interval is a little short.
    close(reported("nats, lopsided", groups=(3, *GROUPS)), low=0.915)


@pytest.mark.parametrize("name", ["absorbing bound", "hybrid bound", "uniform bound"])
def test_bounds_whose_levels_are_stratified_over_rows(name):
    found = [simulated.shares(name, groups, TIMES // 2, ("reported", "blind")) for groups in GROUPS]
    shares, blind = ({g: each[form] for g, each in zip(GROUPS, found, strict=True)} for form in ("reported", "blind"))
    close(shares, low=0.92, high=0.98)
    if name != "absorbing bound":  # levels taken for noise: the intervals are too wide
        assert np.mean(list(blind.values())) > np.mean(list(shares.values())) + 0.008, (blind, shares)


def test_balanced_parts_sum_to_nothing_and_need_enough_levels():
    rng = np.random.default_rng(0)
    t_BS = (np.arange(4) + (rng.permuted(np.tile(np.arange(40), (4, 1)), axis=1).T + 0.5) / 40) / 4
    effect_BS = 3 * np.sin(np.pi * t_BS / 2)
    found_B = balanced_part(effect_BS + 5 * rng.normal(size=40)[:, None], t_BS)
    assert found_B.sum() == pytest.approx(0, abs=1e-9)
    # The row's own difficulty is no part of it.
    np.testing.assert_allclose(found_B, effect_BS.mean(1) - effect_BS.mean(), atol=0.03)
    assert not balanced_part(effect_BS[:2], t_BS[:2]).any() and not balanced_part(effect_BS[:8, :1], t_BS[:8, :1]).any()


def test_scores_of_questions_of_articles():
    """F1 and differences of it, articles of very different numbers of questions; ratios of two ways."""
    # Fieller's ratio of few articles is a little wide.
    close(reported("score", "score difference", "score ratio"), high=0.98)


def test_means_over_prompts():
    close(reported("pass@1"))
    # Nearly all prompts at 1 and a few far below: no sample of a few says so, and the intervals are short.
    close(reported("pass@8", "normalised DER", groups=(30,), times=TIMES // 4), low=0.84)


def test_predictions_of_losses():
    """R2, its difference from another prediction's, and correlations, over documents."""
    close(reported("R2", "R2 difference") | reported("correlation", times=TIMES // 4), low=0.91, high=0.98)


def test_intervals_that_know_less_are_too_short():
    """Else the table could not show what the others are for."""
    found = simulated.shares("nats per token", 5, TIMES // 4, ("reported", "bootstrap", "student"))
    assert found["bootstrap"] < found["student"] - 0.03 < found["reported"] - 0.05, found


def test_the_command_prints_every_kind(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["coverage.py", "--times", "2"])
    simulated.main()
    head, *rows, outside, last = capsys.readouterr().out.splitlines()
    table = json.loads(last)["table"]
    assert list(table) == list(simulated.KINDS) and len(rows) == sum(map(len, table.values())) == 3 * len(table) + 3
    assert {len(line) for line in (head, *rows)} == {len(head)} and outside.startswith("reported, outside")

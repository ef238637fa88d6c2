"""Scores by hand, and which positions may be written."""

from __future__ import annotations

import math

import pytest
import torch
from denoisers import M, positions, state

from research_stack.corruption.process import Absorbing, Hybrid, Uniform
from research_stack.sampling.selectors import (
    AllPositions,
    AnyPosition,
    Confidence,
    Entropy,
    FillThenCorrect,
    Margin,
    RandomOrder,
)

P = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
TOKEN, P_TOKEN = torch.tensor([1, 0, 3]), torch.tensor([0.3, 0.25, 1.0], dtype=torch.float64)
Z, P_CURRENT = [M, 2, 1], torch.tensor([0.0, 0.25, 0.1], dtype=torch.float64)


def scores(selector, coin=0.0):
    at = positions(P, Z, coin=coin)
    return selector.score(at, TOKEN, P_TOKEN, P_CURRENT).tolist()


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (Confidence(), [0.3, 0.25, 1.0]),
        (Margin(), [0.2, 0.0, 1.0]),
        (Entropy(), [0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2), -math.log(4), 0.0]),
        (AnyPosition(), [0.3, -math.inf, 0.9]),
        (AnyPosition(visible_prior=0.5), [0.3, -math.inf, 0.45]),
        (AnyPosition(visible_prior=0.5, min_gain=0.45), [0.3, -math.inf, -math.inf]),
        (AnyPosition(min_gain=0.89), [0.3, -math.inf, 0.9]),
        (FillThenCorrect(), [0.3, -math.inf, 0.9]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_scores_by_hand(selector, expected):
    assert scores(selector) == pytest.approx(expected)


def test_random_scores_are_the_coins_and_everything_is_equal():
    coin = torch.tensor([0.3, 0.9, 0.1], dtype=torch.float64)
    assert scores(RandomOrder(), coin) == coin.tolist()
    assert scores(AllPositions()) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("selector", [Confidence, Margin, Entropy, RandomOrder])
def test_standard_selectors_look_at_masks_unless_told(selector):
    before = state([[M, 3, M], [3, 3, 3]], inside_BG=torch.tensor([[True, True, True], [True, True, False]]))
    assert torch.equal(selector().where(before), before.mask_BG)
    assert torch.equal(selector(visible=True).where(before), before.inside_BG)


def test_which_positions_may_be_written():
    before = state([[M, 3, M], [3, 3, 3]], inside_BG=torch.tensor([[True, True, True], [True, True, False]]))
    assert torch.equal(AnyPosition(visible_prior=0).where(before), before.mask_BG)
    assert torch.equal(AnyPosition(visible_prior=0.1).where(before), before.inside_BG)
    assert FillThenCorrect().where(before).tolist() == [[True, False, True], [True, True, False]]
    for process in (Absorbing(), Hybrid(p_u=0.2), Uniform()):
        before.process = process
        expected = before.inside_BG if process.has_uniform else before.mask_BG
        assert torch.equal(AllPositions().where(before), expected)

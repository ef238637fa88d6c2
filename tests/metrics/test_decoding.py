"""Metrics of decoding against histories written by hand. 9 is the mask."""

import math

import numpy as np
import pytest

from research_stack.metrics.decoding import STATES, changed_after_fill, distinct, idle_steps, states, token_entropy

M = 9
#          start        fill 2        nothing       change + fill   remask        back, another
HISTORY = np.array([[5, M, M, M], [5, 1, M, 2], [5, 1, M, 2], [5, 3, 4, 2], [5, 3, 4, M], [5, 3, 4, 2]])[:, None]
GENERATED = np.array([[False, True, True, True]])


def test_states_by_hand():
    names = [[STATES[code] for code in row] for row in states(HISTORY, GENERATED, M)[:, 0]]
    assert names == [
        ["prompt", "mask", "mask", "mask"],
        ["prompt", "filled", "mask", "filled"],
        ["prompt", "kept", "mask", "kept"],
        ["prompt", "changed", "filled", "kept"],
        ["prompt", "kept", "kept", "mask"],
        ["prompt", "kept", "kept", "filled"],
    ]


def test_changed_after_fill_by_hand():
    assert changed_after_fill(HISTORY, GENERATED, M) == pytest.approx(
        1 / 3
    )  # position 1; position 3 came back the same
    other = HISTORY.copy()
    other[-1, 0, 3] = 7
    assert changed_after_fill(other, GENERATED, M) == pytest.approx(2 / 3)
    assert math.isnan(changed_after_fill(HISTORY, GENERATED & False, M))


def test_changes_from_a_random_start_count():
    history = np.array([[[1, 2]], [[3, 2]]])
    assert changed_after_fill(history, np.ones((1, 2), bool), M) == 0.5


def test_idle_steps_by_hand():
    assert idle_steps(HISTORY, GENERATED) == pytest.approx(1 / 5)  # step 2 of 5
    ended = np.concatenate([HISTORY, HISTORY[-1:], HISTORY[-1:]])  # after the last change nothing counts
    assert idle_steps(ended, GENERATED) == pytest.approx(1 / 5)
    assert math.isnan(idle_steps(HISTORY[:1], GENERATED))


def test_distinct_by_hand():
    assert distinct([np.array([1, 2, 1, 2]), np.array([1, 2])]) == 2 / 4  # 12 21 12, 12
    assert distinct([np.array([1, 2, 1])], n=1) == 2 / 3
    assert math.isnan(distinct([np.array([1])]))


def test_token_entropy_by_hand():
    assert token_entropy([np.array([1, 1, 2, 2])]) == pytest.approx(math.log(2))
    assert token_entropy([np.array([1, 1]), np.array([1, 2])]) == pytest.approx(math.log(2) / 2)

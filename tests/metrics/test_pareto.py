"""The front by hand and its defining properties."""

import numpy as np
import pytest

from research_stack.metrics.pareto import front


@pytest.mark.exact
def test_the_vectors():
    assert front([(1, 1), (2, 2), (3, 3)]).tolist() == [False, False, True]
    assert front([(1, 4), (2, 2), (4, 1), (1, 1)]).tolist() == [True, True, True, False]


def test_equal_points_and_ties():
    assert front([(1, 1), (1, 1)]).tolist() == [True, True]
    assert front([(1, 2), (1, 1)]).tolist() == [True, False]
    assert front([(3, 0, 0), (0, 3, 0), (0, 0, 3), (0, 2, 0)]).tolist() == [True, True, True, False]
    assert front(np.empty((0, 2))).tolist() == []


def test_all_that_is_not_on_it_is_beaten_by_some_that_is():
    points = np.random.default_rng(0).integers(0, 6, (40, 2))
    on = front(points)
    assert 0 < on.sum() < 40
    for point in points[~on]:
        assert any((points[on] >= point).all(1) & (points[on] > point).any(1))


def test_what_it_refuses():
    for points in (np.ones(3), [[np.nan, 1.0]]):
        with pytest.raises(ValueError, match="points_nM="):
            front(points)

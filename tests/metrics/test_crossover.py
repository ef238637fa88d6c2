"""Where a curve comes to lie below another for good, and a curve between its points."""

import math

import pytest

from research_stack.metrics.crossover import always_below_from, value_at


def test_from_where_on_a_curve_is_below_another():
    cases = [
        ((1, 2, 4, 5), 30),
        ((4, 4, 4, 4), 10),
        ((4, 2, 4, 4), 30),
        ((1, 1, 1, 1), math.nan),
        ((4, 4, 4, 3), math.nan),
    ]
    for other, start in cases:
        assert always_below_from((10, 20, 30, 40), (3, 3, 3, 3), other) == pytest.approx(start, nan_ok=True)


def test_between_points_a_curve_is_straight_and_beyond_them_unknown():
    assert value_at(128, (40, 80, 160, 200), (2, 4, 8, 10)) == pytest.approx(6.4)
    assert value_at(40, (40, 80), (2, 4)) == 2 and value_at(80, (40, 80), (2, 4)) == 4
    for x, xs in ((300, (40, 80)), (39, (40, 80)), (40, (40,))):
        assert math.isnan(value_at(x, xs, range(len(xs))))

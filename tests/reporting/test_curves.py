"""Smoothing, thinning and ticks; the film's window."""

import math

import pytest

from research_stack.reporting.curves import even, log_ticks, number, quantile, series, smooth, thin, ticks
from research_stack.sampling.film import chosen, recolored, window


def test_series_skips_what_is_no_number():
    rows = [
        {"step": 2, "a": 1.0},
        {"step": 1, "a": 3},
        {"step": 3, "a": None},
        {"step": 4, "a": math.nan},
        {"step": 5, "a": True},
        {"a": 1.0},
    ]
    assert series(rows, "a") == [(1, 3), (2, 1)]


def test_smoothing_keeps_lines_and_ends():
    line = [(float(i), 2.0 * i) for i in range(100)]
    assert [y for _, y in smooth(line)] == pytest.approx([y for _, y in line])
    assert smooth([(0, 0), (1, 3), (2, 0), (3, 0), (4, 0)], window=2)[2] == (2, pytest.approx(3 / 5))


def test_thinning_keeps_every_spike():
    points = [(float(i), 0.0) for i in range(10_000)]
    points[4321], points[77] = (4321.0, 9.0), (77.0, -9.0)
    kept = thin(points, 400)
    assert (4321.0, 9.0) in kept and (77.0, -9.0) in kept and len(kept) <= 400 and kept == sorted(kept)
    assert even(points, 10)[0] == points[0] and even(points, 10)[-1] == points[-1] and len(even(points, 10)) == 10


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 700, [0, 200, 400, 600]), (4.1, 5.9, [4.5, 5.0, 5.5]), (0, 0.01, [0, 0.002, 0.004, 0.006, 0.008, 0.01])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_log_ticks_and_numbers():
    assert log_ticks(0.02, 300) == pytest.approx([0.1, 1, 10, 100])
    assert len(log_ticks(0.9, 4)) >= 2
    assert [number(v) for v in (0.0003, 0.05, 2.5, 700.0, 12000.0, 1.5e6, 0)] == [
        "3e-4",
        "0.05",
        "2.5",
        "700",
        "12k",
        "1.5M",
        "0",
    ]


def test_quantile_by_hand():
    assert [quantile([3, 1, 2, 4], q) for q in (0.0, 0.25, 0.5, 1.0)] == [1, 1, 2, 4]


def film_of(*frames, pieces=("▒", "a", "b", "long piece")):
    names = ["mask", "kept", "filled", "changed", "prompt"]
    return {
        "states": names,
        "pieces": list(pieces),
        "frames": [{"tokens": list(t), "states": list(s)} for t, s in frames],
    }


def test_skipped_steps_are_not_lost():
    film = film_of(((0, 0, 3), (0, 0, 4)), ((1, 0, 3), (2, 0, 4)), ((2, 0, 3), (3, 0, 4)), ((2, 1, 3), (1, 2, 4)))
    assert recolored(film, [0, 1, 2, 3])[2] == ["changed", "mask", "prompt"]
    assert recolored(film, [0, 3])[1] == ["filled", "filled", "prompt"]
    assert recolored(film, [1, 3])[1] == ["changed", "filled", "prompt"]


def test_rows_are_spread_over_the_steps():
    assert chosen(5, 10) == [0, 1, 2, 3, 4]
    assert chosen(101, 5) == [0, 25, 50, 75, 100]


def test_the_window_goes_where_the_changes_are():
    still, moved = [1] * 40, [1] * 30 + [2] * 10
    film = film_of((still, [1] * 40), (moved, [1] * 30 + [3] * 10))
    shown = window(film, budget=12)
    assert shown.start >= 28 and len(shown.rows[0]) <= 12
    assert sum(cell.state == "changed" for cell in shown.rows[1]) == 10
    wide = film_of(([3, 3, 3], [1, 1, 1]))
    assert len(window(wide, budget=4).rows[0]) == 1  # one token always fits

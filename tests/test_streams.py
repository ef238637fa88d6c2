"""Streams: pure functions of seed and names, the same under any slicing, independent of each other."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from research_stack.streams import Draws, generator, seed_of


def test_same_names_give_the_same_numbers_and_any_difference_others():
    base = torch.rand(8, generator=generator(1, "corruption", 5))
    assert torch.equal(base, torch.rand(8, generator=generator(1, "corruption", 5)))
    for other in ((2, "corruption", 5), (1, "sampling", 5), (1, "corruption", 6), (1, "corruption")):
        assert not torch.equal(base, torch.rand(8, generator=generator(*other)))
    assert seed_of(1, "a", "b") != seed_of(1, "b", "a")
    assert len({seed_of(s, "x", i) for s in range(50) for i in range(50)}) == 2500


def test_streams_do_not_depend_on_the_global_generator():
    torch.manual_seed(0)
    one = Draws(1, "x", total=4).uniform(3)
    torch.manual_seed(1)
    assert torch.equal(one, Draws(1, "x", total=4).uniform(3))


@pytest.mark.parametrize(
    "draw",
    [
        lambda d: d.uniform(5),
        lambda d: d.integers(7, 5),
        lambda d: d.stratified(),
        lambda d: d.uniform(dtype=torch.float64),
    ],
)
def test_slices_are_rows_of_the_whole_draw_after_draw(draw):
    whole = Draws(3, "corruption", 2, total=10)
    parts = [Draws(3, "corruption", 2, total=10, rows=rows) for rows in (slice(0, 3), slice(3, 4), slice(4, 10))]
    for _ in range(3):
        assert torch.equal(draw(whole), torch.cat([draw(part) for part in parts]))


def test_neighbouring_streams_are_uncorrelated():
    """Steps and seeds next to each other: 2000 streams of 2 numbers, correlation and uniformity."""
    first = torch.stack([Draws(1, "corruption", step, total=1).uniform(2)[0] for step in range(2000)]).double()
    assert abs(stats.pearsonr(first[:-1, 0], first[1:, 0]).statistic) < 0.1
    assert abs(stats.pearsonr(first[:, 0], first[:, 1]).statistic) < 0.1
    assert stats.kstest(first[:, 0].numpy(), "uniform").pvalue > 1e-4


def test_stratified_levels_fill_each_stratum_once_in_any_order():
    levels = Draws(1, "t", total=64).stratified()
    assert (levels * 64).long().sort().values.tolist() == list(range(64))
    assert (levels * 64).long().tolist() != list(range(64))
    row = torch.stack([Draws(1, "t", step, total=8).stratified()[3] for step in range(2000)])
    assert stats.kstest(row.numpy(), "uniform").pvalue > 1e-4  # each row's level is uniform on its own

"""Draws by inversion at and between the edges; laws are in tests/exact."""

from __future__ import annotations

import pytest
import torch
from denoisers import M, positions, state

from research_stack.sampling.categorical import draw_from_probabilities
from research_stack.sampling.choosers import Temperature
from research_stack.sampling.logits import sharpen
from research_stack.sampling.proposers import VisibleTemperature

P = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float32), (7.0, torch.float32), (7.0, torch.float64)])
def test_a_draw_inverts_the_cumulative_distribution(scale, dtype):
    u_n = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw_from_probabilities((scale * P).to(dtype).expand(6, -1), u_n).tolist() == [1, 1, 3, 3, 4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_impossible_is_drawn_from_a_large_vocabulary(dtype):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(64, 50000, generator=generator, dtype=torch.float64).pow(20)
    p[:, torch.rand(50000, generator=generator) < 0.5] = 0
    p[:, -7:] = 0
    draw = torch.rand(64, generator=generator, dtype=torch.float64)
    draw[:2], draw[2:4] = 0, 1 - 2**-53
    index = draw_from_probabilities(p.to(dtype), draw)
    assert (p.gather(1, index[:, None]) > 0).all()


def test_greedy_takes_the_likeliest_and_the_first_of_equals():
    p = torch.tensor([[0.2, 0.4, 0.4], [0.6, 0.3, 0.1]])
    for proposer in (Temperature(0.0), VisibleTemperature(0.0)):
        assert proposer.propose(positions(p, [3, 3], draw=0.99), state([[3, 3]])).tolist() == [1, 0]


def test_visible_tokens_may_have_a_temperature_of_their_own():
    p = torch.tensor([[0.1, 0.9, 0.0], [0.1, 0.9, 0.0]])
    at = positions(p, [M, M + 1], draw=0.05)  # a draw that falls on the rare token
    for both in (Temperature(1.0), VisibleTemperature(1.0, visible_temperature=1.0)):
        assert both.propose(at, state([[M, M + 1]])).tolist() == [0, 0]
    assert VisibleTemperature(1.0, visible_temperature=0.0).propose(at, state([[M, M + 1]])).tolist() == [0, 1]
    with pytest.raises(ValueError, match="visible_temperature=-1 must be at least 0"):
        VisibleTemperature(1.0, visible_temperature=-1)


def test_sharpening_is_a_power():
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
    for temperature in (0.1, 0.5, 1.0, 4.0):
        power = p ** (1 / temperature)
        assert torch.allclose(sharpen(p, temperature), power / power.sum(), atol=1e-12)
    assert torch.equal(sharpen(p, 1e-6), torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64))


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, {3}), (0.75, {3, 1}), (1.0, {3, 1, 4})])
def test_a_nucleus_whose_mass_is_top_p_exactly_takes_no_more(top_p, kept):
    p = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]] * 400, dtype=torch.float64)
    at = positions(p, [3] * 400, draw=0.0)
    at = at._replace(draw_n=torch.arange(400, dtype=torch.float64) / 400)
    found = set(Temperature(top_p=top_p).propose(at, state([[3] * 400])).tolist())
    assert (
        len(found) == len(kept) and 3 in found and found <= {3, 1, 4}
    )  # of the two equal ones either may be the second


def test_a_nucleus_smaller_than_the_likeliest_token_is_greedy():
    for draw in (0.0, 0.3, 0.6, 0.999999):
        at = positions(P[None], [3], draw=draw)
        assert (
            Temperature(top_p=0.3).propose(at, state([[3]])).tolist()
            == [3]
            == Temperature(top_p=1e-9).propose(at, state([[3]])).tolist()
        )
        assert Temperature(top_p=1.0).propose(at, state([[3]])).tolist()[0] in (1, 3, 4)

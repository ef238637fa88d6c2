"""Confidence heads by hand: what they predict, what a miss costs, and where that is least."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from research_stack.lookahead.heads import BINS, HEADS, TOP, Scalar, Softplus, TwoHot

CENTRES = torch.arange(BINS, dtype=torch.float64) * TOP / (BINS - 1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(target):
    """(BINS,) the target's two-hot vector, by the distance to each centre."""
    return (1 - (CENTRES - min(max(target, 0.0), TOP)).abs() * (BINS - 1) / TOP).clamp_min(0)


def test_scalar_by_hand():
    head = Scalar(3).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    hidden = torch.tensor([[[1.0, 1.0, 2.0], [0.0, 3.0, -2.0]]], dtype=torch.float64)
    raw = head(hidden)
    assert raw.shape == (1, 2, 1)
    assert head.prediction(raw).tolist() == [[2.0, -5.0]]  # 1 - 2 + 1 + 2 and -6 - 1 + 2
    assert head.losses(raw, torch.tensor([[3.5, -5.0]])).tolist() == [[2.25, 0.0]]


def test_softplus_by_hand():
    head = Softplus(1).double()
    raw = torch.tensor([[0.0], [math.log(math.e - 1)], [-50.0], [30.0]], dtype=torch.float64)
    assert head.prediction(raw).tolist() == pytest.approx(
        [math.log(2), 1.0, math.exp(-50), 30 + math.exp(-30)], rel=1e-9
    )
    assert head.losses(raw, torch.tensor([0.0, 3.0, 2.0, 30.0])).tolist() == pytest.approx(
        [math.log(2) ** 2, 4.0, 4.0, 0.0], abs=1e-12
    )
    assert bool((head.prediction(100 * random(50, 1)) >= 0).all())


def test_two_hot_predicts_the_mean_of_its_distribution():
    head = TwoHot(4).double()
    raw = random(6, BINS)
    assert torch.allclose(
        head.prediction(raw), (raw.exp() / raw.exp().sum(-1, keepdim=True) * CENTRES).sum(-1), atol=1e-12
    )
    certain = torch.full((1, BINS), -torch.inf, dtype=torch.float64)
    certain[0, 5] = certain[0, 8] = 0.0
    assert float(head.prediction(certain)) == (1.25 + 2.0) / 2


def test_two_hot_is_cross_entropy_against_the_two_centres_around_the_target():
    for target, low, share in (
        (0.0, 0, 0.0),
        (0.1, 0, 0.4),
        (0.25, 1, 0.0),
        (1.0, 4, 0.0),
        (3.1875, 12, 0.75),
        (11.9, 47, 0.6),
        (12.0, 47, 1.0),
        (37.0, 47, 1.0),
        (-0.5, 0, 0.0),
    ):
        raw = random(BINS)
        by_hand = torch.zeros(BINS, dtype=torch.float64)
        by_hand[low], by_hand[low + 1] = 1 - share, share
        assert torch.allclose(by_hand, spread(target), atol=1e-9)
        expected = -(by_hand * raw.log_softmax(-1)).sum()
        assert float(TwoHot(4).double().losses(raw, torch.tensor(target, dtype=torch.float64))) == pytest.approx(
            float(expected), rel=1e-9
        )


def test_two_hot_equals_cross_entropy_with_probabilities_for_any_target():
    targets = 16 * torch.rand(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 2
    raw = random(3, 40, BINS)
    explicit = torch.stack([spread(float(t)) for t in targets.flatten()]).unflatten(0, (3, 40))
    assert torch.allclose(explicit.sum(-1), torch.ones(3, 40, dtype=torch.float64))
    assert torch.allclose((explicit @ CENTRES), targets.clamp(0, TOP))  # two-hot keeps the mean
    expected = F.cross_entropy(raw.flatten(0, 1), explicit.flatten(0, 1), reduction="none").view(3, 40)
    assert torch.allclose(TwoHot(4).double().losses(raw, targets), expected, rtol=1e-12)


def test_two_hot_learns_the_distribution_of_the_targets():
    """The loss over two humps is least at their share of each centre: there its gradient is zero, and it is the
    entropy.
    """
    targets = torch.tensor([1.25, 1.25, 1.25, 3.8, 3.8], dtype=torch.float64)
    distribution = torch.stack([spread(float(t)) for t in targets]).mean(0)
    raw, head = distribution.clamp_min(1e-30).log().requires_grad_(), TwoHot(4).double()
    loss = head.losses(raw.expand(5, -1), targets).mean()
    assert float(loss.detach()) == pytest.approx(float(torch.special.entr(distribution).sum()), rel=1e-9)
    assert torch.autograd.grad(loss, raw)[0].abs().max() < 1e-12
    assert float(head.prediction(raw.detach())) == pytest.approx(float(targets.mean()))
    for seed in range(20):
        other = raw.detach() + 0.1 * random(BINS, seed=seed)
        assert float(head.losses(other.expand(5, -1), targets).mean()) > float(loss.detach())


def test_a_fresh_head_predicts_two_nats_whatever_it_reads():
    for name in HEADS:
        head = HEADS[name](8)
        assert not bool(head.weight.any())
        exact = (
            2.0
            if name != "two_hot"
            else float((torch.exp(-0.5 * (CENTRES - 2) ** 2) / torch.exp(-0.5 * (CENTRES - 2) ** 2).sum()) @ CENTRES)
        )
        assert exact == pytest.approx(2.0, abs=0.05)
        assert torch.allclose(head.prediction(head(torch.randn(2, 3, 8))), torch.full((2, 3), exact), atol=1e-5)


def test_no_head_lets_a_gradient_into_its_target():
    for name in HEADS:
        head, target = HEADS[name](8).double(), torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
        raw = head(random(2, 3, 8))
        assert not head.losses(raw.detach(), target).requires_grad
        assert float(torch.autograd.grad(head.losses(raw, target).sum(), head.bias)[0].abs().max()) > 0


def test_the_gradient_of_each_loss_is_that_of_finite_differences():
    for name in HEADS:
        head, targets = HEADS[name](4).double(), torch.tensor([-1.0, 0.3, 2.05, 13.0], dtype=torch.float64)
        raw = random(4, head.bias.numel()).requires_grad_()
        assert torch.autograd.gradcheck(lambda r: head.losses(r, targets), raw)
        assert torch.autograd.gradcheck(lambda r: head.prediction(r), raw)


def test_low_precision_ends_before_the_head():
    for name in HEADS:
        head, hidden = HEADS[name](16), torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        torch.nn.init.normal_(head.weight)
        with torch.autocast("cpu", torch.bfloat16):
            raw = head(hidden.bfloat16())
        assert raw.dtype == torch.float32
        assert torch.equal(raw, head(hidden.bfloat16().float()))

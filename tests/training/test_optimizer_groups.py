"""Groups of parameters with learning rates of their own: each trained parameter once, names, factors, and nothing
changed without them.
"""

import copy

import pytest
import torch
from torch import nn

from research_stack.training.muon import CombinedOptimizer
from research_stack.training.optimization import Optimization, ParameterGroup


class Net(nn.Module):
    """Two parts with a matrix, a bias, a norm and a table, one frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.first, self.norm = nn.Embedding(7, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.second, self.frozen = nn.Linear(6, 7), nn.Linear(6, 6).requires_grad_(False)

    def forward(self, ids):
        return self.second(self.norm(self.first(self.table(ids))) + self.frozen(self.table(ids)))

    def groups(self, *factors):
        low, high = factors or (0.5, 2.0)
        return [
            ParameterGroup("low", [*self.table.parameters(), *self.first.parameters(), *self.norm.parameters()], low),
            ParameterGroup("high", [*self.second.parameters(), *self.frozen.parameters()], high),
        ]


def learn(net, optimizer, schedule, steps):
    rates = []
    for step in steps:
        ids = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(net(ids).flatten(0, 1), ids.flatten()).backward()
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups if "name" in group})
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return rates


def made(net, kind, groups, **options):
    optimization = Optimization(lr=0.02, optimizer=kind, weight_decay=0.1, schedule="cosine", warmup_steps=2, **options)
    optimizer = optimization.optimizer(net, groups)
    return optimization, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, optimization.factor(6))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_each_trained_parameter_is_in_one_group_with_its_name_and_decay(kind):
    net = Net()
    _, optimizer, _ = made(net, kind, net.groups())
    names = {id(p): name for name, p in net.named_parameters()}
    found = [
        (names[id(p)], group["name"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert sorted(found) == [
        ("first.bias", "low", 0.0),
        ("first.weight", "low", 0.1),
        ("norm.bias", "low", 0.0),
        ("norm.weight", "low", 0.0),
        ("second.bias", "high", 0.0),
        ("second.weight", "high", 0.1),
        ("table.weight", "low", 0.0),
    ]
    if kind == "muon":
        muon, adamw = optimizer.parts
        assert [[names[id(p)] for p in group["params"]] for group in muon.param_groups] == [
            ["first.weight"],
            ["second.weight"],
        ]
        assert [group["name"] for group in adamw.param_groups] == ["low", "high"]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_factors_hold_over_the_whole_schedule(kind):
    net = Net()
    optimization, optimizer, schedule = made(net, kind, net.groups())
    at = optimization.factor(6)
    for step, rates in enumerate(learn(net, optimizer, schedule, range(6))):
        assert rates["low"] == pytest.approx(0.01 * at(step)) and rates["high"] == pytest.approx(0.04 * at(step))
    assert optimizer.param_groups[0]["lr"] < 0.01


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_factor_moves_its_own_parameters_alone(kind):
    """At the first step the updates of AdamW and Muon are proportional to the learning rate; the gradients are the
    same.
    """
    moved = []
    for factors in ((1.0, 1.0), (1.0, 3.0)):
        net = Net()
        before = copy.deepcopy(net)
        optimizer = Optimization(lr=0.01, weight_decay=0.0, optimizer=kind).optimizer(net, net.groups(*factors))
        learn(net, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0), [0])
        moved.append(
            [
                a.detach() - b.detach()
                for part in ("first", "second")
                for a, b in zip(getattr(net, part).parameters(), getattr(before, part).parameters(), strict=True)
            ]
        )
    for one, other, times in zip(*moved, (1, 1, 3, 3), strict=True):
        assert one.any()
        torch.testing.assert_close(other, times * one, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_without_groups_and_with_factors_of_one_the_weights_are_the_same(kind):
    nets = [Net(), Net()]
    for net, groups in zip(nets, (None, nets[1].groups(1.0, 1.0)), strict=True):
        _, optimizer, schedule = made(net, kind, groups)
        learn(net, optimizer, schedule, range(4))
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert not torch.equal(nets[0].first.weight, Net().first.weight)


def test_without_groups_param_groups_and_state_are_those_of_older_checkpoints():
    net = Net()
    _, optimizer, schedule = made(net, "adamw", None)
    learn(net, optimizer, schedule, range(2))
    saved = optimizer.state_dict()
    assert [(len(group["params"]), group["weight_decay"]) for group in saved["param_groups"]] == [(2, 0.1), (5, 0.0)]
    assert all("name" not in group for group in saved["param_groups"])
    by_hand = Net()
    matrices = [by_hand.first.weight, by_hand.second.weight]
    others = [p for p in by_hand.parameters() if p.requires_grad and all(p is not m for m in matrices)]
    plain = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=0.02,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=True,
    )
    learn(by_hand, plain, torch.optim.lr_scheduler.LambdaLR(plain, Optimization(warmup_steps=2).factor(6)), range(2))
    assert all(map(torch.equal, net.parameters(), by_hand.parameters()))
    plain.load_state_dict(saved)  # the same sizes in the same order
    _, muon, _ = made(Net(), "muon", None)
    assert isinstance(muon, CombinedOptimizer) and [len(group["params"]) for group in muon.param_groups] == [2, 5]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_save_in_the_middle_changes_no_bit(kind, tmp_path):
    whole, first, second = Net(), Net(), Net()
    _, optimizer, schedule = made(whole, kind, whole.groups())
    learn(whole, optimizer, schedule, range(6))
    _, optimizer, schedule = made(first, kind, first.groups())
    learn(first, optimizer, schedule, range(3))
    torch.save([part.state_dict() for part in (first, optimizer, schedule)], tmp_path / "middle.pt")
    _, optimizer, schedule = made(second, kind, second.groups())
    for part, state in zip(
        (second, optimizer, schedule), torch.load(tmp_path / "middle.pt", weights_only=True), strict=True
    ):
        part.load_state_dict(state)
    assert {group["name"] for group in optimizer.param_groups} == {"low", "high"}
    learn(second, optimizer, schedule, range(3, 6))
    assert all(map(torch.equal, second.parameters(), whole.parameters()))


@pytest.mark.parametrize(
    "mistake, message",
    [
        (
            lambda net: net.groups()[:1],
            r"^groups=\['low'\] must hold each trained parameter once: second.weight is in none of them$",
        ),
        (
            lambda net: [*net.groups(), ParameterGroup("more", [net.first.weight])],
            "first.weight is in low and in more$",
        ),
        (
            lambda net: [ParameterGroup("low", list(net.parameters())), ParameterGroup("low", [])],
            "must have different names$",
        ),
        (lambda net: net.groups(1.0, 0.0), "^factor=0.0 of group high must be positive$"),
    ],
)
def test_groups_that_do_not_fit_are_refused(mistake, message):
    net = Net()
    with pytest.raises(ValueError, match=message):
        Optimization().optimizer(net, mistake(net))


def test_a_group_whose_parameters_are_frozen_is_left_out():
    net = Net()
    net.second.requires_grad_(False)
    assert {group["name"] for group in Optimization().optimizer(net, net.groups()).param_groups} == {"low"}

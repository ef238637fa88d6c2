"""The schedule's values, and what decays."""
import pytest
import torch
from torch import nn

from research_stack.training.optimization import Optimization


def test_cosine_with_warmup_has_the_values_of_its_formula():
    at = Optimization(warmup_steps=10, schedule="cosine", final_ratio=0.1).factor(110)
    assert at(0) == pytest.approx(0.1)
    assert at(9) == pytest.approx(1.0)
    assert at(10) == pytest.approx(1.0)
    assert at(60) == pytest.approx(0.55)  # half way: (1 + 0.1) / 2
    assert at(110) == pytest.approx(0.1)


def test_wsd_is_flat_and_then_linear():
    at = Optimization(warmup_steps=0, schedule="wsd", decay_share=0.25, final_ratio=0.0).factor(100)
    assert at(0) == at(75) == 1.0
    assert at(85) == pytest.approx(0.6)
    assert at(100) == pytest.approx(0.0)


def test_warmup_below_one_is_a_share_of_the_steps():
    at = Optimization(warmup_steps=0.1, schedule="constant").factor(50)
    assert [at(s) for s in (0, 4, 5)] == pytest.approx([0.2, 1.0, 1.0])


def test_decay_acts_on_matrices_only():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = Optimization(weight_decay=0.1).optimizer(module)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(module[1].weight)}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(module.parameters()))


@pytest.mark.parametrize("bad", [{"lr": 0}, {"final_ratio": 2}, {"clip": 0}, {"accumulate": 0}, {"ema": 1.0}])
def test_a_bad_value_is_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Optimization(**bad)


def test_the_average_follows_its_recursion():
    from research_stack.training.ema import Ema

    ema, model = Ema(decay=0.5), nn.Linear(1, 1, bias=False)
    average = torch.optim.swa_utils.AveragedModel(model, **ema._kwargs, use_buffers=False)
    expected = None
    for step, value in enumerate([4.0, 8.0, 0.0]):
        model.weight.data.fill_(value)
        average.update_parameters(model)
        decay = min(0.5, (1 + step) / (10 + step))  # the first update copies
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert average.module.weight.item() == pytest.approx(expected)

"""Steps that devices share are those of one: completions, losses and gradients add up; float64, no processes."""

import copy
import logging
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from research_stack.backbones.regressor import Regressor
from research_stack.data.tokenizers import specials_last
from research_stack.posttraining.advantages import GroupRelative, SetMarginal
from research_stack.posttraining.grpo import GRPO
from research_stack.posttraining.objectives import PolicyLoss
from research_stack.posttraining.policy import Policy
from research_stack.posttraining.polychromic import PolychromicSFT
from research_stack.posttraining.reward_model import RewardModel
from research_stack.posttraining.rollout import Rollouts
from research_stack.posttraining.sft import SFT
from research_stack.streams import Draws
from research_stack.training.module import TrainingModule, split_batch
from research_stack.training.optimization import Optimization

VOCAB = specials_last(9)
PROMPTS = ([3], [0, 4, 2], [7, 1], [5], [8, 8, 1], [2, 6])


class Vowels:
    """The share of letters that are a, e or i; all answers to a prompt that ends in d are of equal worth."""

    name = "vowels"
    loss_terms = ()

    def check(self):
        pass

    def __call__(self, prompts, completions):
        return np.array([0.5 if prompt[-1] == "d" else sum(letter in "aei" for letter in text) / max(len(text), 1)
                         for prompt, text in zip(prompts, completions, strict=True)])  # fmt: skip


class Lengths:
    """Embeds a text by its length."""

    def embed(self, texts):
        angles = np.array([len(text) for text in texts], dtype=float)
        return np.stack([np.cos(angles), np.sin(angles)], 1)


class Meeting:
    """Where devices, threads here, hand each other what they have."""

    def __init__(self, monkeypatch, world):
        self.world, self.brought, self.barrier = world, {}, threading.Barrier(world)
        monkeypatch.setattr(Policy, "gather_objects", lambda method, mine: self.all_of(method.global_rank, mine))
        monkeypatch.setattr(
            TrainingModule, "total_over_devices", lambda method, value: sum(self.all_of(method.global_rank, value))
        )

    def all_of(self, rank, mine):
        self.brought[rank] = mine
        self.barrier.wait(20)
        every = [self.brought[other] for other in range(self.world)]
        self.barrier.wait(20)
        return every

    def run(self, work):
        """work(rank) of each device."""
        found, failed = [None] * self.world, []

        def one(rank):
            try:
                found[rank] = work(rank)
            except BaseException as error:
                failed.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        for error in failed:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return found


def steps_of(method, batch, rank, world, steps, pieces):
    """Of each step: this device's share of the parts' means, the gradient and the rows; weights move in between."""
    rows, found = len(batch["tokens"]) // world, []
    mine = slice(rank * rows, (rank + 1) * rows)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for step in range(steps):
        method._trainer = SimpleNamespace(world_size=world, global_rank=rank, global_step=step, max_steps=10)
        draws = Draws(1, "corruption", step, total=rows * world, rows=mine)
        shared, denominator = method.prepare({name: tensor[mine] for name, tensor in batch.items()}, draws)
        denominator = method.total_over_devices(denominator).double().clamp_min(1)
        means, gradients = 0.0, [torch.zeros_like(p) for p in parameters]
        for piece in split_batch(shared, pieces):
            part = method.loss_sum(piece) / denominator
            of_piece = torch.autograd.grad((part * method._term_weights().double()).sum(), parameters)
            gradients, means = [a + b for a, b in zip(gradients, of_piece, strict=True)], means + part.detach()
        numbers = dict(vars(method).get("_numbers", {}))
        found.append((means, gradients, numbers, len(next(iter(shared.values())))))
        with torch.no_grad():
            noise = torch.Generator().manual_seed(step)
            for parameter in parameters:
                parameter += 0.03 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return found


def assert_shared(monkeypatch, make, batch, steps=1, numbers_are_of_shares=False):
    """On one device and on more, whole and in pieces."""
    found = {}
    for world, pieces in ((1, 1), (2, 1), (3, 2)):
        methods = [make() for _ in range(world)]
        with monkeypatch.context() as patched:
            shares = Meeting(patched, world).run(
                lambda rank, m=methods, w=world, p=pieces: steps_of(m[rank], batch, rank, w, steps, p)
            )
        found[world] = shares
    for world in (2, 3):
        for step in range(steps):
            means, gradients, numbers, rows = found[1][0][step]
            shares = [share[step] for share in found[world]]
            assert sum(share[3] for share in shares) == rows and min(share[3] for share in shares) > 0
            assert all(bool(g.any()) for g in gradients)
            torch.testing.assert_close(sum(share[0] for share in shares), means, rtol=0, atol=1e-10)
            summed = [sum(g) for g in zip(*(share[1] for share in shares), strict=True)]
            torch.testing.assert_close(summed, gradients, rtol=0, atol=1e-10)
            for name, value in numbers.items():
                each = [float(share[2][name]) for share in shares]
                assert np.mean(each) == pytest.approx(float(value), abs=1e-6), name
                assert numbers_are_of_shares or len(set(each)) == 1, name


def prompts_alone(prompts=PROMPTS):
    tokens = torch.tensor([list(prompt) + [VOCAB.pad] * (4 - len(prompt)) for prompt in prompts])
    given = torch.arange(4) < torch.tensor([len(prompt) for prompt in prompts])[:, None]
    return {"tokens": tokens, "eligible": torch.zeros_like(given), "attention_mask": given, "prompt": given}


def with_replies(prompts=PROMPTS):
    rows = [
        list(prompt) + [(3 * len(prompt) + i) % 9 for i in range(1 + number % 3)] + [VOCAB.end]
        for number, prompt in enumerate(prompts)
    ]
    tokens = torch.tensor([row + [VOCAB.pad] * (8 - len(row)) for row in rows])
    given, attend = (torch.arange(8) < torch.tensor([len(x) for x in xs])[:, None] for xs in (prompts, rows))
    return {"tokens": tokens, "eligible": attend & ~given, "attention_mask": attend, "prompt": given}


@pytest.mark.exact
def test_grpo(backbone, codec):
    """Spare prompts, minibatches, sampled subsets, distances, groups that are fewer than devices."""
    for options in (
        {},
        {"loss": PolicyLoss("bnpo"), "entropy_coef": 0.2, "beta": 0.3},
        {"num_groups": 2, "loss": PolicyLoss("grpo")},
        {"loss": PolicyLoss("dr_grpo"), "num_mini_batches": 2, "entropy_coef": 0.2},
        {"loss": PolicyLoss("gspo"), "num_mini_batches": 4, "num_iterations": 2, "advantage": GroupRelative("batch")},
        {"num_groups": 4, "num_mini_batches": 3, "advantage": SetMarginal("polychromic", 2, num_subsets=6)},
        {"advantage": SetMarginal("diversity", 2, diversity="distance"), "encoder": Lengths()},
        {"num_groups": 1, "mask_truncated_completions": True},
    ):
        with pytest.MonkeyPatch.context() as monkeypatch:
            model = backbone()

            def make():
                given = {"advantage": GroupRelative(), "loss": PolicyLoss("dapo"), **options}
                return GRPO(
                    copy.deepcopy(model),
                    VOCAB,
                    codec,
                    Optimization(),
                    1,
                    Vowels(),
                    Rollouts(5),
                    num_generations=4,
                    **given,
                )

            assert_shared(monkeypatch, make, prompts_alone(), steps=make().steps_per_batch)


@pytest.mark.exact
def test_polychromic(backbone, codec):
    for advantage in (SetMarginal("polychromic", 2, num_subsets=5), SetMarginal("diversity", 2, diversity="distance")):
        with pytest.MonkeyPatch.context() as monkeypatch:
            model = backbone()

            def make():
                return PolychromicSFT(
                    copy.deepcopy(model),
                    VOCAB,
                    codec,
                    Optimization(),
                    1,
                    Rollouts(5),
                    advantage,
                    Vowels(),
                    num_generations=3,
                    encoder=Lengths(),
                )

            batch = {name: torch.cat([tensor, tensor.flip(0), tensor]) for name, tensor in with_replies().items()}
            assert_shared(monkeypatch, make, batch, numbers_are_of_shares=True)


@pytest.mark.exact
def test_sft(backbone, monkeypatch):
    model = backbone()
    assert_shared(monkeypatch, lambda: SFT(copy.deepcopy(model), VOCAB, Optimization(), 1), with_replies())


@pytest.mark.exact
def test_what_dropout_leaves_out_of_a_reward_model_belongs_to_the_pair(monkeypatch):
    noise = torch.Generator().manual_seed(0)
    batch = {
        "tokens": torch.randn(12, 6, generator=noise, dtype=torch.float64),
        "target": torch.randn(12, generator=noise, dtype=torch.float64),
    }
    batch["features"] = batch["tokens"]

    def make(dropout=0.5):
        return RewardModel(Regressor(6, [7, 5], dropout, seed=2), Optimization(), 1).double()

    assert_shared(monkeypatch, make, batch, steps=2)
    rows = [make().prepare(batch, Draws(1, "corruption", step, total=12))[0]["uniform"] for step in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2]) and rows[0].shape == (12, 12)
    assert "uniform" not in make().eval().prepare(batch, Draws(1, "corruption", 0, total=12))[0]
    assert "uniform" not in make(0.0).prepare(batch, Draws(1, "corruption", 0, total=12))[0]


def test_a_device_without_a_completion_of_a_minibatch_is_refused_and_dropout_is_told(backbone, codec, caplog):
    def check(devices, model=None, accumulate=1, **options):
        method = GRPO(
            model or backbone(),
            VOCAB,
            codec,
            Optimization(accumulate=accumulate),
            1,
            Vowels(),
            Rollouts(5),
            GroupRelative(),
            PolicyLoss("dapo"),
            num_generations=4,
            **options,
        )
        method.check_devices(SimpleNamespace(batch_size=6), devices)

    with caplog.at_level(logging.INFO):
        check(2, num_mini_batches=12)
        check(1, model=backbone(dropout=0.1))
        check(2, model=backbone(dropout=0.1).eval())
        assert not caplog.messages
        check(2, model=backbone(dropout=0.1))
    assert caplog.messages == ["dropout: each device draws its own, so 2 devices agree with one in law, not in numbers"]
    check(3, num_mini_batches=2, num_groups=2)
    line = (
        "^method.num_mini_batches=13 must be at most 12 on 2 devices: each needs one of the 24 completions of a"
        " step for"
    )
    with pytest.raises(ValueError, match=line):
        check(2, num_mini_batches=13)
    with pytest.raises(
        ValueError, match="^method.num_mini_batches=3 must be at most 2 on 3 devices: each needs one of the 8 "
    ):
        check(3, num_mini_batches=3, num_groups=2)
    check(2, num_mini_batches=6, accumulate=2)
    with pytest.raises(ValueError, match="^optimization.accumulate=3 must be at most 2 on 2 devices"):
        check(2, num_mini_batches=6, accumulate=3)

"""Polychromic SFT: the diversity term's gradient is that of E[f], it is not zero, and no cut of a batch changes it."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from research_stack.backbones.transformer import Transformer
from research_stack.data.module import TokenData
from research_stack.data.sources.expressions import Expressions
from research_stack.data.tokenizers import Bytes, specials_last
from research_stack.posttraining import polychromic
from research_stack.posttraining.advantages import SetMarginal
from research_stack.posttraining.polychromic import PolychromicSFT
from research_stack.posttraining.rollout import Completions, Rollouts
from research_stack.posttraining.scored_completions import ScoredCompletions
from research_stack.posttraining.sft import SFT
from research_stack.streams import Draws
from research_stack.training.module import TrainingModule, split_batch
from research_stack.training.optimization import Optimization

VOCAB = specials_last(2)  # a, b; mask, pad, end
PROMPT = [1, 0]
OUTCOMES = [[VOCAB.end], *([a, b] for a in (0, 1) for b in (0, 1, VOCAB.end))]  # all completions of at most two tokens


class Two:
    """The letters a and b."""

    vocab = VOCAB

    def decode(self, ids):
        return "".join("ab"[i] for i in map(int, ids) if i < 2)


class Worth:
    """How many b; an empty text is worth a quarter, so that nothing is symmetric."""

    name = "worth"

    def check(self):
        """Nothing."""

    def __call__(self, prompts, completions):
        return np.array([text.count("b") / 2 + 0.25 * (not text) for text in completions])


@pytest.fixture
def make(alone):
    """Makes the method on a model in float64 with weights that have an effect."""

    def build(
        step=0, max_steps=10, fresh=False, accumulate=1, objective="polychromic", num_generations=4, length=2, **options
    ):
        model = Transformer(VOCAB.size, dim=8, layers=1, heads=2, causal=True, max_length=8, seed=2)
        noise = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=noise)
        advantage = SetMarginal(objective, 2, scale="unbiased")
        method = PolychromicSFT(
            model,
            VOCAB,
            Two(),
            Optimization(lr=1e-3, accumulate=accumulate, clip=None, warmup_steps=0),
            1,
            Rollouts(length),
            advantage,
            Worth(),
            num_generations=num_generations,
            **options,
        )
        return method if fresh else alone(method.double(), step, max_steps)

    return build


def pairs(count, seed=3):
    """A batch of that many pairs: the prompt and a reply of a letter and its end."""
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.tensor(PROMPT + [0, VOCAB.end, VOCAB.pad]).repeat(count, 1)
    tokens[:, 2] = torch.randint(2, (count,), generator=draws)
    attend = (tokens != VOCAB.pad).contiguous()
    return {"tokens": tokens, "attention_mask": attend, "prompt": (torch.arange(5) < 2).expand(count, 5).contiguous()}


def draws(batch, step=0):
    return Draws(1, "corruption", step, total=len(batch["tokens"]))


def vector(values):
    return torch.cat([value.flatten() for value in values])


def gradient(loss, method):
    return vector(torch.autograd.grad(loss, list(method.trainable_parameters().values()), allow_unused=False))


def laws(method):
    """(7,) probability of each outcome, written out, with its graph."""
    allowed, found = [0, 1, VOCAB.end], []
    for outcome in OUTCOMES:
        logits = method.model.read(torch.tensor([PROMPT + outcome]))[0] @ method.model.unembedding.T
        law = logits[:, allowed].log_softmax(-1)
        found.append(sum(law[1 + place, allowed.index(token)] for place, token in enumerate(outcome)).exp())
    return torch.stack(found)


def expected_f(method, gated):
    """E[f] of two independent completions."""
    texts = [Two().decode(outcome) for outcome in OUTCOMES]
    worth = torch.from_numpy(Worth()(texts, texts)) if gated else torch.ones(7, dtype=torch.float64)
    f = (worth[:, None] + worth) / 2 * torch.tensor([[float(a != b) for b in texts] for a in texts])
    p = laws(method)
    return p @ f.double() @ p


def along(method, direction, of, step=1e-5):
    """Central difference of a function of the method along a direction of its weights."""
    values, weights = [], list(method.trainable_parameters().values())
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for sign in (1, -1):
            for weight, old, part in zip(weights, before, direction.split([w.numel() for w in weights]), strict=True):
                weight.copy_(old + sign * step * part.view_as(weight))
            values.append(float(of()))
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    return (values[0] - values[1]) / (2 * step)


def directions(method, first):
    """The gradient's own and three others, of length 1."""
    noise = torch.Generator().manual_seed(7)
    others = torch.randn(3, len(first), generator=noise, dtype=torch.float64)
    return [first / first.norm(), *(other / other.norm() for other in others)]


# ---------------------------------------------------------------------------------------------- score function
def every_group(count):
    """Stands for `answers`: all groups of that many completions, each once."""
    chosen = list(itertools.product(range(len(OUTCOMES)), repeat=count))
    flat = [OUTCOMES[i] for group in chosen for i in group]
    tokens = torch.tensor([(PROMPT + outcome + [VOCAB.pad])[:4] for outcome in flat])
    rollout = Completions(
        tokens,
        torch.full((len(flat),), 2),
        torch.tensor([len(o) for o in flat]),
        torch.tensor([o[-1] == VOCAB.end for o in flat]),
    )
    texts = [[Two().decode(OUTCOMES[i]) for i in group] for group in chosen]
    reward = torch.from_numpy(np.stack([Worth()(group, group) for group in texts]))
    return torch.tensor(chosen), ScoredCompletions(rollout, texts, reward, {"worth": reward.numpy()})


@pytest.mark.exact
def test_the_expected_gradient_over_all_groups_is_that_of_the_expected_diversity(make):
    for objective, gated in (("polychromic", True), ("polychromic", False), ("diversity", False)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            method = make(objective=objective, gated=gated, num_generations=3)
            chosen, found = every_group(3)
            monkeypatch.setattr(polychromic, "generate_and_score", lambda *a: found)
            batch = pairs(len(chosen) * 3)
            rows, denominator = method.prepare(batch, draws(batch))
            chance = laws(method).detach()[chosen].prod(1)
            assert float(laws(method).sum().detach()) == pytest.approx(1, abs=1e-12) and float(
                chance.sum()
            ) == pytest.approx(1, abs=1e-12)
            assert int(denominator[1]) == len(chosen) * 3
            rows["advantage"] = rows["advantage"].double() * chance.repeat_interleave(3)
            ours = gradient(
                method.loss_sum(rows)[1] / 3, method
            )  # a batch that holds each group as often as the policy writes it
            exact = gradient(expected_f(method, gated), method)
            assert exact.norm() > 0.01
            torch.testing.assert_close(ours, exact, atol=1e-7, rtol=1e-6)
            for direction in directions(method, exact):
                assert float(ours @ direction) == pytest.approx(
                    along(method, direction, lambda: expected_f(method, gated)), abs=1e-7
                )


def test_so_is_the_mean_over_groups_that_the_policy_writes_itself(make):
    for gated in (True, False):
        method, batch = make(gated=gated), pairs(400)
        exact = gradient(expected_f(method, gated), method)
        found = []
        for step in range(12):
            rows, denominator = method.prepare(batch, draws(batch, step))
            found.append(gradient((method.loss_sum(rows) / denominator)[1], method))
        for direction in directions(method, exact):
            values = torch.stack([g @ direction for g in found])
            assert abs(float(values.mean() - exact @ direction)) < 5 * float(values.std()) / 12**0.5
        own = torch.stack([g @ (exact / exact.norm()) for g in found])
        assert float(own.mean()) > 10 * float(own.std()) / 12**0.5, "it points where it should, far beyond chance"


def test_gating_changes_it(make):
    batch = pairs(16)
    rows = [make(gated=gated).prepare(batch, draws(batch))[0] for gated in (True, False)]
    assert torch.equal(rows[0]["own_tokens"], rows[1]["own_tokens"]) and not torch.equal(
        rows[0]["advantage"], rows[1]["advantage"]
    )
    assert torch.equal(rows[1]["quality"], torch.ones(16)) and not torch.equal(rows[0]["quality"], torch.ones(16))


# -------------------------------------------------------------------------------------------------------- steps
@pytest.fixture
def gradients(fit, monkeypatch):
    """Of a method and a batch: what one step of a trainer has before it clips, and what it logs."""
    clip = TrainingModule.clip_gradients

    def of(method, batch):
        kept = {}

        def look(self):
            kept["g"] = vector([parameter.grad for parameter in self.trainable_parameters().values()])
            return clip(self)

        monkeypatch.setattr(TrainingModule, "clip_gradients", look)
        (row,) = fit(method.double(), [batch])
        return kept["g"], row

    return of


def test_the_loss_is_cross_entropy_less_weight_times_diversity(make, gradients):
    for estimator in ("score", "soft"):
        batch, found = pairs(16), {}
        for weight in (0.25, 1.0):
            found[weight], row = gradients(make(fresh=True, diversity_coef=weight, estimator=estimator), batch)
            assert row["train/loss"] == pytest.approx(
                row["train/loss_reply"] - weight * row["train/loss_diversity"], abs=1e-6
            )
            assert (
                row["train/loss_diversity"] != 0
                and 0 <= row["train/reward"] <= 1
                and 0 <= row["train/different_pairs"] <= 1
            )
        model = make(fresh=True)
        plain, row = gradients(SFT(model.model, VOCAB, Optimization(lr=1e-3, clip=None, warmup_steps=0), 1), batch)
        assert (found[1.0] - plain).norm() > 1e-3
        torch.testing.assert_close((found[0.25] - plain) * 4, found[1.0] - plain, atol=1e-6, rtol=1e-5)


def test_ascending_it_raises_what_it_is_the_gradient_of(make):
    """The sign: a step along minus the loss's gradient makes answers more diverse."""
    for estimator in ("score", "soft"):
        method, batch = make(estimator=estimator, gated=False), pairs(800)
        rows, denominator = method.prepare(batch, draws(batch))
        parts = method.loss_sum(rows) / denominator
        down = -gradient((parts * method._term_weights())[1], method)
        assert along(method, down / down.norm(), lambda m=method: expected_f(m, False)) > 1e-3


def test_cut_into_pieces_a_step_has_the_same_gradient(make, gradients):
    for estimator, pieces in (("score", (2, 3, 4)), ("soft", (2, 4))):
        batch = pairs(16)
        whole, row = gradients(make(fresh=True, estimator=estimator), batch)
        for accumulate in pieces:
            ours, cut_row = gradients(make(fresh=True, estimator=estimator, accumulate=accumulate), batch)
            torch.testing.assert_close(ours, whole, atol=1e-7, rtol=1e-5)
            for name in ("train/loss", "train/loss_reply", "train/loss_diversity", "train/reward"):
                assert cut_row[name] == pytest.approx(row[name], abs=1e-6)


def test_a_cut_through_a_group_is_refused_where_it_would_count(make):
    line = (
        r"^optimization.accumulate=3 must divide the 4 groups of a step: estimator=soft cannot cut a group apart;"
        r" choose another, or estimator=score$"
    )
    batch = pairs(16)
    with pytest.raises(ValueError, match=line):
        make(estimator="soft", accumulate=3).check_devices(SimpleNamespace(batch_size=16), 1)
    method = make(estimator="soft")
    rows = method.prepare(batch, draws(batch))[0]
    whole, parts = (
        float(method._soft(rows)),
        [sum(float(method._soft(piece)) for piece in split_batch(rows, pieces)) for pieces in (4, 3)],
    )
    assert parts[0] == pytest.approx(whole, rel=1e-5) and parts[1] != pytest.approx(whole, rel=1e-2), (
        "what the line is for"
    )


def test_warmup_is_plain_sft_and_then_it_begins(make, fit, monkeypatch):
    drawn, generate_and_score = [], polychromic.generate_and_score
    monkeypatch.setattr(
        polychromic,
        "generate_and_score",
        lambda policy, *a: drawn.append(policy.global_step) or generate_and_score(policy, *a),
    )
    method = make(fresh=True, diversity_start=0.5, num_generations=4)
    rows = fit(method, [pairs(8, seed) for seed in range(4)])
    assert drawn == [2, 3] and [row["train/loss_diversity"] != 0 for row in rows] == [False, False, True, True]
    assert (
        all(row["train/loss"] == row["train/loss_reply"] for row in rows[:2])
        and "train/reward" not in rows[1]
        and "train/reward" in rows[2]
    )
    plain = fit(
        SFT(make(fresh=True).model, VOCAB, Optimization(lr=1e-3, clip=None, warmup_steps=0), 1),
        [pairs(8, seed) for seed in range(4)],
    )
    assert [row["train/loss"] for row in plain[:2]] == [row["train/loss"] for row in rows[:2]] and plain[3][
        "train/loss"
    ] != rows[3]["train/loss"]


def test_validation_is_of_the_replies_alone_and_draws_nothing(make, fit, monkeypatch):
    drawn, generate_and_score = [], polychromic.generate_and_score
    monkeypatch.setattr(
        polychromic, "generate_and_score", lambda policy, *a: drawn.append(1) or generate_and_score(policy, *a)
    )
    held_out = pairs(6, 9)  # not a multiple of the group
    method, expected = make(fresh=True), []
    ends = method.on_validation_epoch_end
    monkeypatch.setattr(
        method,
        "on_validation_epoch_end",
        lambda: expected.append(float(method.reply(SFT.prepare(method, held_out, None)[0])) / 12) or ends(),
    )
    _, row = fit(method, [pairs(8), pairs(8, 4)], validation=[held_out])
    assert len(drawn) == 2 and len(expected) == 2
    assert (
        row["val/loss"] == row["val/loss_reply"] == pytest.approx(expected[0], rel=1e-5)
        and row["val/loss_diversity"] == 0
    )


# -------------------------------------------------------------------------------------------------- soft surrogate
def soft_written_out(method, rows, table):
    """The surrogate group by group and text by text, in float64, with its prefixes and this table held fixed."""
    total, allowed = 0.0, [0, 1, VOCAB.end]
    table = table - table.mean(0)
    for start in range(0, len(rows["own_tokens"]), method.num_generations):
        means = []
        for row in range(start, start + method.num_generations):
            width, made = int(rows["own_prompt_length"][row]), int(rows["own_completion_length"][row])
            logits = (
                method.model.read(rows["own_tokens"][row : row + 1, : width + made])[0] @ method.model.unembedding.T
            )
            law = logits[width - 1 : width + made - 1, allowed].softmax(-1)
            mean = (law @ table[allowed]).mean(0)
            means.append(mean / mean.norm())
        quality = rows["quality"][start : start + method.num_generations].double()
        distances = [
            (quality[i] * quality[j] * (1 - means[i] @ means[j]))
            for i in range(method.num_generations)
            for j in range(method.num_generations)
            if i != j
        ]
        total = total + sum(distances) / len(distances) * method.num_generations
    return total


@pytest.mark.exact
def test_the_surrogate_and_its_gradient_by_finite_differences(make):
    for gated in (True, False):
        method, batch = make(estimator="soft", gated=gated, num_generations=8), pairs(16)
        rows = method.prepare(batch, draws(batch))[0]
        assert torch.equal(rows["quality"], torch.ones(16)) != gated
        rows["quality"] = (
            torch.tensor([1, 0.5, 0.25, 1, 0, 0.75, 1, 0.5] * 2) if gated else rows["quality"]
        )  # each counts with its own weight
        table = method.model.unembedding.detach().clone()
        value = method.loss_sum(rows)[1]
        assert (
            float(value) == pytest.approx(float(soft_written_out(method, rows, table)), rel=1e-5)
            and float(value) > 0.02
        )
        ours = gradient(value, method)
        assert ours.norm() > 0.01
        for direction in directions(method, ours):
            assert float(ours @ direction) == pytest.approx(
                along(method, direction, lambda: soft_written_out(method, rows, table)), abs=1e-4 * float(ours.norm())
            )


def test_neither_padding_nor_other_groups_change_the_surrogate(make):
    method, batch = make(estimator="soft"), pairs(12)
    rows = method.prepare(batch, draws(batch))[0]
    whole = gradient(method._soft(rows), method)
    padded = {**rows, "own_tokens": torch.nn.functional.pad(rows["own_tokens"], (0, 3), value=0)}
    torch.testing.assert_close(gradient(method._soft(padded), method), whole, atol=1e-6, rtol=1e-5)
    groups = [{name: tensor[start : start + 4] for name, tensor in rows.items()} for start in (0, 4, 8)]
    torch.testing.assert_close(
        sum(gradient(method._soft(group), method) for group in groups), whole, atol=1e-6, rtol=1e-5
    )
    assert float(method._soft(rows)) == pytest.approx(sum(float(method._soft(group)) for group in groups), rel=1e-5)


def test_what_is_worth_nothing_adds_nothing_to_the_surrogate(make):
    method, batch = make(estimator="soft", num_generations=8), pairs(16)
    rows = method.prepare(batch, draws(batch))[0]
    half = {**rows, "quality": torch.cat([torch.ones(8), torch.zeros(8)])}
    first = {name: tensor[:8] for name, tensor in half.items()}
    assert float(method._soft(half)) == float(method._soft(first)) > 0
    assert float(method._soft({**rows, "quality": torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0] * 2)})) == 0, (
        "one answer of worth is apart from nobody"
    )


# ---------------------------------------------------------------------------------------------------- what is refused
def test_options_that_cannot_be(make):
    for options, message in (
        ({"num_generations": 1}, "num_generations=1 must be at least 2: diversity is a property of several answers"),
        ({"diversity_coef": 0.0}, "diversity_coef=0.0 must be above 0; without diversity it is experiment=sft"),
        ({"diversity_coef": -0.5}, "diversity_coef=-0.5 must be above 0"),
        ({"diversity_coef": math.nan}, "diversity_coef=nan must be above 0"),
        ({"diversity_coef": math.inf}, "diversity_coef=inf must be at most 1000"),
        ({"diversity_start": math.nan}, "diversity_start=nan must lie in"),
        ({"num_generations": 10**18}, "num_generations=1000000000000000000 must be at most 10,000"),
        ({"diversity_start": 1.0}, r"diversity_start=1.0 must lie in \[0, 1\)"),
        ({"num_generations": 2}, "size=2 must be less than num_generations=2"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            make(**options)
    with pytest.raises(
        ValueError,
        match="^encoder=null must be a sentence encoder: advantage=SetMarginal asks how far answers are apart$",
    ):
        method = make()
        PolychromicSFT(
            method.model,
            VOCAB,
            Two(),
            Optimization(),
            1,
            Rollouts(2),
            SetMarginal("diversity", 2, diversity="distance"),
            Worth(),
        )


def test_batches_that_are_not_of_whole_groups(tmp_path, alone):
    data = TokenData(Expressions(high=10, answers=5), Bytes(), 14, batch_size=8, cache_dir=str(tmp_path))
    data.prepare()

    def check(batch_size, num_generations=4, **options):
        data.batch_size = batch_size
        model = Transformer(data.vocab.size, dim=8, layers=1, heads=2, causal=True, max_length=32)
        optimization = Optimization(accumulate=options.pop("accumulate", 1))
        rollouts, advantage = Rollouts(options.pop("length", 4)), SetMarginal("polychromic", 2)
        method = PolychromicSFT(
            model,
            data.vocab,
            data.codec,
            optimization,
            1,
            rollouts,
            advantage,
            Worth(),
            num_generations=num_generations,
            **options,
        )
        method.check_data(data)
        method.check_devices(data, 1)

    check(8)
    check(12, accumulate=5)
    check(16, accumulate=2, estimator="soft")
    with pytest.raises(
        ValueError,
        match=(
            "^data.batch_size=10 must be a multiple of method.num_generations=4: one prompt of every so many pairs is"
            " answered$"
        ),
    ):
        check(10)
    with pytest.raises(
        ValueError, match="^optimization.accumulate=2 must divide the 3 groups of a step: estimator=soft"
    ):
        check(12, accumulate=2, estimator="soft")
    with pytest.raises(
        ValueError,
        match="^method.rollouts.max_completion_length=40 behind the longest prompt of 3 tokens exceeds"
        " model.max_length=32",
    ):
        check(8, length=40)


def test_a_devices_share_must_be_of_whole_groups(make):
    data = SimpleNamespace(batch_size=12)
    make().check_devices(data, 1)
    make().check_devices(data, 3)
    with pytest.raises(
        ValueError,
        match="^data.batch_size=12 on 2 devices must be a multiple of 2 x method.num_generations=4: a group stays on"
        " one device$",
    ):
        make().check_devices(data, 2)
    data.batch_size = 24
    make(accumulate=2).check_devices(data, 2)
    make(estimator="soft", accumulate=3).check_devices(data, 2)
    with pytest.raises(ValueError, match="^optimization.accumulate=2 must divide the 3 groups of a step: estimator=so"):
        make(estimator="soft", accumulate=2).check_devices(data, 2)

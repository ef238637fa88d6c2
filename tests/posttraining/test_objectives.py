"""Policy losses against their vectors, closed-form gradients and finite differences."""

import itertools
import math

import pytest
import torch

from research_stack.config.build import build
from research_stack.config.check_node import check_node
from research_stack.posttraining.advantages import GroupRelative
from research_stack.posttraining.objectives import PolicyLoss, k3
from research_stack.streams import generator

NAN = math.nan
EVERY = [
    PolicyLoss("grpo"),
    PolicyLoss("dapo", 0.2, 0.28),
    PolicyLoss("bnpo"),
    PolicyLoss("dr_grpo", delta=1.5),
    PolicyLoss("gspo", 0.02, 0.03),
    PolicyLoss("gspo", delta=1.3),
    PolicyLoss("cispo", epsilon_high=1.2),
]


def padded(rows, with_=NAN):
    return torch.tensor([row + [with_] * (4 - len(row)) for row in rows], dtype=torch.float64)


# What stands behind the end of a completion is NaN throughout: nothing may come of it.
LOGP = padded([[-1, -0.5, -2, -0.1], [-0.7, -1.2], [-0.3, -0.9, -1.5], [-2.5]])
OLD = padded([[-1.2, -0.5, -1.6, -0.4], [-0.4, -1.2], [-0.3, -1.4, -1.5], [-2.2]])
REF = padded([[-1.1, -0.6, -1.8, -0.2], [-0.7, -1], [-0.5, -0.9, -1.4], [-2]])
MASK = ~LOGP.isnan()
A = GroupRelative()(torch.tensor([[1.0, 0, 0, 1]], dtype=torch.float64))[0]


def parts(policy, logp, old, advantage, mask, ref=None, beta=0.0, longest=8):
    """(sum, denominator), as a trainer takes them."""
    loss_BT, _ = policy.per_token(logp, old, advantage, mask)
    if beta:
        loss_BT = loss_BT + beta * k3(ref, logp, mask)
    return (policy.weights(mask).double() * loss_BT).sum(), policy.denominator(mask, longest)


def loss(policy, logp=LOGP, old=OLD, advantage=A, mask=MASK, ref=REF, beta=0.0):
    above, below = parts(policy, logp, old, advantage, mask, ref, beta)
    return above / below.clamp_min(1)


def gradient(policy, logp=LOGP, **rest):
    logp = logp.clone().requires_grad_()
    return torch.autograd.grad(loss(policy, logp, **rest), logp)[0]


def random_batch(B=6, T=7, shift=0.4):
    rng = generator(0, "objectives")
    logp, noise, other = (torch.rand(B, T, generator=rng, dtype=torch.float64) for _ in range(3))
    length = torch.tensor([7, 3, 1, 5, 2, 6])
    logp = -2 * logp
    return {
        "logp": logp,
        "old": logp + shift * (2 * noise - 1),
        "ref": logp + 2 * other - 1,
        "mask": torch.arange(T) < length[:, None],
        "advantage": torch.tensor([1.3, -0.7, 0.4, -1.1, 0.9, -0.2], dtype=torch.float64),
    }


# --------------------------------------------------------------------------------------------------- vectors
@pytest.mark.exact
def test_off_policy_losses():
    for policy, beta, expected in (
        (PolicyLoss("grpo"), 0, 0.07746169),
        (PolicyLoss("bnpo"), 0, 0.05520675),
        (PolicyLoss("dr_grpo"), 0, 0.01725211),
        (PolicyLoss("dapo", 0.2, 0.28), 0, 0.04642653),
        (PolicyLoss("dapo", 0.2, delta=1.3), 0, 0.02501183),
        (PolicyLoss("gspo", 3e-4, 4e-4), 0, 0.09521214),
        (PolicyLoss("gspo", 0.2), 0, 0.05973134),
        (PolicyLoss("cispo", epsilon_high=1.2), 0, 0.03585702),
        (PolicyLoss("dapo"), 0.04, 0.05612651),
    ):
        assert float(loss(policy, beta=beta)) == pytest.approx(expected, abs=2e-8)


@pytest.mark.exact
def test_on_policy_the_loss_is_nothing_and_its_gradient_is_not():
    for kind, expected in (
        ("grpo", -0.054117),
        ("dapo", -0.086588),
        ("dr_grpo", -0.027059),
        ("bnpo", -0.086588),
        ("gspo", -0.054117),
    ):
        assert float(loss(PolicyLoss(kind), old=LOGP)) == pytest.approx(0, abs=1e-7)
        torch.testing.assert_close(
            gradient(PolicyLoss(kind), old=LOGP)[0], torch.full((4,), expected, dtype=torch.float64), atol=5e-7, rtol=0
        )


@pytest.mark.exact
def test_k3():
    difference = torch.tensor([0, 0.5, -0.5, 1, -1, 2], dtype=torch.float64)
    expected = torch.tensor(
        [0, 0.1487212707, 0.1065306597, 0.7182818285, 0.3678794412, 4.3890560989], dtype=torch.float64
    )
    torch.testing.assert_close(k3(difference - 1.5, torch.full_like(difference, -1.5)), expected, atol=1e-10, rtol=0)
    assert float(k3(REF, LOGP, MASK)[MASK].mean()) == pytest.approx(0.02299407, abs=1e-8)
    assert torch.equal(k3(REF, LOGP, MASK)[~MASK], torch.zeros(6, dtype=torch.float64))


@pytest.mark.exact
def test_the_mean_of_k3_under_the_policy_is_the_divergence():
    p, q = (torch.tensor(x, dtype=torch.float64).log_softmax(0) for x in ([0.3, -0.5, 1.1], [1.0, 0.2, -0.4]))
    assert float((p.exp() * k3(q, p)).sum()) == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-14)


def test_the_delta_vector_with_the_higher_clip():
    """A third token's ratio e^.5 with A < 0 is cut at delta, and e^.3 and e^.2 with A > 0 at 1 + epsilon_high."""
    a, r = float(A[0]), math.exp
    by_hand = -a * (min(r(0.2), 1.28) + 1 + r(-0.4) + 1.28 - 0.8 - 1 - 1 - 1.3 - 1 + r(-0.3)) / 10
    assert float(loss(PolicyLoss("dapo", 0.2, 0.28, 1.3))) == pytest.approx(by_hand, abs=1e-8)


# ------------------------------------------------------------------------------------------------- gradients
@pytest.mark.exact
def test_gradients_are_the_finite_differences_of_the_loss():
    for policy, beta in itertools.product([p for p in EVERY if p.loss_type != "cispo"], (0.0, 0.3)):
        batch = random_batch()
        analytic, numeric, h = gradient(policy, beta=beta, **batch), torch.zeros_like(batch["logp"]), 1e-6
        for place in batch["mask"].nonzero().tolist():
            step = torch.zeros_like(batch["logp"])
            step[tuple(place)] = h
            up, down = (loss(policy, beta=beta, **{**batch, "logp": batch["logp"] + s}) for s in (step, -step))
            numeric[tuple(place)] = (up - down) / (2 * h)
        assert analytic.abs().max() > 1e-3
        torch.testing.assert_close(analytic, numeric, atol=1e-8, rtol=0)


@pytest.mark.exact
def test_the_gradient_of_cispo_holds_the_ratio_fixed():
    batch, policy = random_batch(), PolicyLoss("cispo", epsilon_high=1.2)
    ratio_BT = (batch["logp"] - batch["old"]).exp().clamp_max(1.2)
    expected = -ratio_BT * batch["advantage"][:, None] * batch["mask"] / batch["mask"].sum()
    assert (ratio_BT[batch["mask"]] == 1.2).any()
    torch.testing.assert_close(gradient(policy, **batch), expected, atol=1e-12, rtol=0)


@pytest.mark.exact
def test_at_one_iteration_the_gradient_is_that_of_the_policy_times_the_advantage():
    for policy in EVERY:
        batch = random_batch(shift=0.0)
        weight_BT = policy.weights(batch["mask"]) / policy.denominator(batch["mask"], 8)
        torch.testing.assert_close(
            gradient(policy, **batch), -batch["advantage"][:, None] * weight_BT, atol=1e-8, rtol=0
        )


def test_a_group_of_equal_rewards_has_no_gradient():
    for policy in EVERY:
        advantage = GroupRelative()(torch.full((1, 6), 0.3))[0]
        batch = random_batch(shift=3.0) | {"advantage": advantage}
        assert torch.equal(gradient(policy, **batch), torch.zeros(6, 7, dtype=torch.float64))
        assert gradient(policy, beta=0.1, **batch).abs().max() > 1e-4  # the penalty goes on


# ------------------------------------------------------------------------------------- padding, pieces, masks
def pieces(batch, *sizes):
    return zip(*(x.split(sizes) for x in batch.values()), strict=True)


def test_padding_changes_nothing():
    for policy, garbage in itertools.product(EVERY, (0.0, -50.0, 300.0, NAN, -math.inf)):
        batch = random_batch()
        wide = {name: torch.nn.functional.pad(x, (0, 3), value=0) if x.dim() == 2 else x for name, x in batch.items()}
        for name, x in wide.items():
            if name in ("logp", "old", "ref"):
                x[~wide["mask"]] = garbage if name != "old" else -garbage
        torch.testing.assert_close(loss(policy, beta=0.1, **wide), loss(policy, beta=0.1, **batch), atol=1e-12, rtol=0)
        torch.testing.assert_close(
            gradient(policy, beta=0.1, **wide)[:, :7], gradient(policy, beta=0.1, **batch), atol=1e-12, rtol=0
        )
        assert torch.equal(gradient(policy, beta=0.1, **wide)[:, 7:], torch.zeros(6, 3, dtype=torch.float64))


def test_pieces_add_up_to_the_batch():
    for policy in EVERY:
        batch = random_batch()
        each = [parts(policy, beta=0.1, **dict(zip(batch, piece, strict=True))) for piece in pieces(batch, 1, 3, 2)]
        cut = sum(above for above, _ in each) / sum(below for _, below in each)
        torch.testing.assert_close(cut, loss(policy, beta=0.1, **batch), atol=1e-12, rtol=0)


def test_bnpo_is_the_token_mean_of_the_whole_batch_as_dapo_is():
    batch = random_batch()
    _, _, _, mask, advantage = batch.values()
    token_mean = PolicyLoss("grpo").per_token(batch["logp"], batch["old"], advantage, mask)[0][mask].mean()
    for kind in ("bnpo", "dapo"):
        torch.testing.assert_close(loss(PolicyLoss(kind), **batch), token_mean, atol=1e-12, rtol=0)


def test_truncated_completions_add_nothing():
    for policy in EVERY:
        batch = random_batch()
        masked = batch | {"mask": batch["mask"] & torch.tensor([True, False, True, True, False, True])[:, None]}
        rest = {name: x[[0, 2, 3, 5]] for name, x in batch.items()}
        per_completion = policy.loss_type in (
            "grpo",
            "gspo",
            "dr_grpo",
        )  # they stay in the count of completions; of tokens they have none
        expected = loss(policy, beta=0.1, **rest) * (4 / 6 if per_completion else 1)
        torch.testing.assert_close(loss(policy, beta=0.1, **masked), expected, atol=1e-7, rtol=0)
        assert torch.equal(gradient(policy, beta=0.1, **masked)[[1, 4]], torch.zeros(2, 7, dtype=torch.float64))


def test_a_batch_without_any_token_is_nothing():
    for policy in EVERY:
        batch = random_batch() | {"mask": torch.zeros(6, 7, dtype=torch.bool)}
        assert float(loss(policy, beta=0.1, **batch)) == 0
        assert torch.equal(gradient(policy, beta=0.1, **batch), torch.zeros(6, 7, dtype=torch.float64))


def test_weights_and_denominators():
    for kind, weights, denominator in (
        ("grpo", [0.25] * 4, 4),
        ("gspo", [0.25] * 4, 4),
        ("dr_grpo", [1] * 4, 32),
        *((kind, [1] * 4, 10) for kind in ("bnpo", "dapo", "cispo")),
    ):
        policy = PolicyLoss(kind, epsilon_high=1.2)
        weight_BT = policy.weights(MASK)
        assert weight_BT[0].tolist() == pytest.approx(weights)
        assert (weight_BT[~MASK] == 0).all()
        assert policy.denominator(MASK, 8).shape == () and float(policy.denominator(MASK, 8)) == denominator


# -------------------------------------------------------------------------------------------------- clipping
def test_where_the_clip_cuts():
    for policy, expected in (
        (PolicyLoss("grpo"), [[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),  # e^.2 > 1.2, e^.3; e^-.3 < .8
        (PolicyLoss("dapo", 0.2, 0.28), [[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
        (
            PolicyLoss("dapo", 0.2, delta=1.3),
            [[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
        ),  # e^.5 with A < 0
        # means .025, -.15, .167, -.3
        (PolicyLoss("gspo", 3e-4, 4e-4), [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
        (PolicyLoss("gspo"), [[0] * 4] * 4),
        (PolicyLoss("cispo", epsilon_high=1.2), [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]),
    ):
        cut_BT = policy.per_token(LOGP, OLD, A, MASK)[1]
        assert cut_BT.dtype == torch.bool and cut_BT.int().tolist() == expected
        if policy.loss_type != "cispo":
            assert torch.equal(gradient(policy) == 0, cut_BT | ~MASK)
        assert not policy.per_token(LOGP, LOGP, A, MASK)[1].any()
        if policy.loss_type != "cispo":
            assert not policy.per_token(LOGP, OLD, torch.zeros(4, dtype=torch.float64), MASK)[1].any()


@pytest.mark.exact
def test_the_clipped_objective_is_the_smaller_of_two():
    for policy in (PolicyLoss("grpo"), PolicyLoss("grpo", 0.1, 0.4), PolicyLoss("grpo", 0.2, 0.28, 2.0)):
        logp = torch.linspace(-2, 2, 401, dtype=torch.float64)[None]
        for advantage in (1.7, -0.6, 0.0):
            ratio, high = logp.exp(), policy.epsilon_high or policy.epsilon
            bounded = ratio.clamp_max(policy.delta or math.inf)
            expected = -torch.minimum(bounded * advantage, ratio.clamp(1 - policy.epsilon, 1 + high) * advantage)
            found, _ = policy.per_token(
                logp,
                torch.zeros_like(logp),
                torch.tensor([advantage], dtype=torch.float64),
                torch.ones_like(logp, dtype=torch.bool),
            )
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_ratio_beyond_all_numbers_is_cut_without_nan():
    for policy, sign in (
        (PolicyLoss("grpo"), 1),
        (PolicyLoss("grpo", delta=1.3), -1),
        (PolicyLoss("gspo"), 1),
        (PolicyLoss("gspo", delta=1.3), -1),
    ):
        logp = torch.tensor([[-1.0, -1.0]], requires_grad=True)
        found, cut = policy.per_token(
            logp, torch.tensor([[-900.0, -900.0]]), torch.tensor([float(sign)]), torch.ones(1, 2, dtype=torch.bool)
        )
        found.sum().backward()
        assert cut.all() and torch.isfinite(found).all() and torch.equal(logp.grad, torch.zeros(1, 2))


def test_an_advantage_of_nothing_costs_nothing_whatever_the_ratio():
    for policy in EVERY:
        logp = torch.tensor([[-1.0, -900.0, -1.0]], requires_grad=True)
        found, _ = policy.per_token(
            logp, torch.tensor([[-900.0, -1.0, -1.0]]), torch.zeros(1), torch.ones(1, 3, dtype=torch.bool)
        )
        found.sum().backward()
        assert torch.equal(found.abs(), torch.zeros(1, 3)) and torch.equal(logp.grad.abs(), torch.zeros(1, 3))


def test_behind_the_end_of_a_completion_each_token_is_nothing():
    for policy in EVERY:
        found, cut = policy.per_token(LOGP, OLD, A, MASK)
        assert (found[MASK] != 0).all() and (found[~MASK] == 0).all() and not cut[~MASK].any()


# -------------------------------------------------------------------------------------------------- refusals
def test_bad_arguments_are_refused_when_built_and_before():
    for arguments, message in (
        ({"epsilon": 1.0}, "epsilon=1.0 must lie in"),
        ({"epsilon_high": -0.1}, "epsilon_high=-0.1 must be positive"),
        ({"epsilon": NAN}, "epsilon=nan must lie in"),
        ({"epsilon_high": NAN}, "epsilon_high=nan must be positive"),
        ({"epsilon_high": math.inf}, "epsilon_high=inf must be positive and at most 1000"),
        ({"delta": NAN}, "delta=nan must be"),
        ({"delta": math.inf}, "delta=inf must be above 1 . epsilon=1.2 and at most 1000"),
        ({"loss_type": "cispo"}, "epsilon_high=None must be at least 1 for loss_type=cispo"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "epsilon_high=0.28 must be at least 1"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "delta": 9.0}, "delta=9.0 must be null for loss_type=cispo"),
        ({"delta": 1.1}, "delta=1.1 must be above 1 . epsilon"),
        ({"delta": 1.25, "epsilon_high": 0.28}, "delta=1.25 must be above 1 . epsilon_high"),
    ):
        node = {"_target_": "research_stack.posttraining.objectives.PolicyLoss", **arguments}
        with pytest.raises(ValueError, match=f"loss.{message}"):
            build(node, "loss")
        assert [p for p in check_node("loss", node)][0].message.startswith(f"loss.{message.split('=')[0]}=")


def test_a_config_builds_it():
    node = {
        "_target_": "research_stack.posttraining.objectives.PolicyLoss",
        "loss_type": "dapo",
        "epsilon_high": 0.28,
        "delta": None,
    }
    assert not list(check_node("loss", node)) and build(node, "loss") == PolicyLoss("dapo", 0.2, 0.28)
    assert list(check_node("loss", node | {"loss_type": "dapper"}))

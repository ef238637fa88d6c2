"""Advantages against their vectors and, for sets, against the definition by enumeration in plain Python."""

import itertools
import math
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research_stack.config.build import build
from research_stack.config.check_node import check_node
from research_stack.posttraining.advantages import (
    RLOO,
    GroupRelative,
    SetMarginal,
    all_subsets,
    marginal,
    sampled_subsets,
    set_values,
)
from research_stack.streams import generator

OBJECTIVES = [
    ("mean", "unique"),
    ("max", "unique"),
    ("polychromic", "unique"),
    ("diversity", "unique"),
    ("polychromic", "distance"),
    ("diversity", "distance"),
]
# 1 and 0 as a verifier gives them, and numbers that floats do not hold exactly.
rewards = st.sampled_from([0.0, 1.0, 0.1, 0.7, -0.3, 2.5])


def f64(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), atol=atol, rtol=0)


# ------------------------------------------------------------------------------------------------ the definition
def value(objective, diversity, subset, reward, kind, distance):
    """f(S) as `SetMarginal` words it."""
    n = len(subset)
    quality = max(reward[i] for i in subset) if objective == "max" else fmean(reward[i] for i in subset)
    if objective in ("mean", "max"):
        return quality
    if diversity == "unique":
        apart = (len({kind[i] for i in subset}) - 1) / (n - 1)
    else:
        apart = fmean(distance[i][j] for i in subset for j in subset if i != j)
    return apart if objective == "diversity" else quality * apart


def definition(objective, diversity, n, reward, kind, distance):
    """A and the standard deviation of f over all subsets."""
    N = len(reward)
    f = {s: value(objective, diversity, s, reward, kind, distance) for s in itertools.combinations(range(N), n)}
    return [fmean(v for s, v in f.items() if i in s) - fmean(f.values()) for i in range(N)], pstdev(f.values())


@st.composite
def groups(draw):
    N = draw(st.integers(3, 7))
    n = draw(st.integers(2, N - 1))
    reward = draw(st.lists(rewards, min_size=N, max_size=N))
    kind = draw(st.lists(st.integers(0, 3), min_size=N, max_size=N))
    distance = draw(
        st.lists(st.lists(st.floats(0, 2, width=16), min_size=N, max_size=N), min_size=N, max_size=N)
    )  # neither symmetric nor 0 on the diagonal
    return n, reward, kind, distance


@pytest.mark.exact
@pytest.mark.parametrize("objective, diversity", OBJECTIVES)
@given(groups())
@settings(max_examples=40, deadline=None)
def test_closed_forms_are_the_definition(objective, diversity, group):
    n, reward, kind, distance = group
    expected, sigma = definition(objective, diversity, n, reward, kind, distance)
    given_ = (f64(reward), torch.tensor([kind]), f64(distance))
    plain = SetMarginal(objective, n, diversity=diversity)
    assert plain.closed
    close(plain(*given_), [expected])
    N = len(reward)
    close(
        SetMarginal(objective, n, diversity=diversity, scale="unbiased")(*given_),
        [[a * n * N / (N - n) for a in expected]],
        atol=1e-11,
    )
    if sigma > 1e-9:
        for eps in ({"eps": 0.0}, {}):
            scaled = SetMarginal(objective, n, diversity=diversity, scale="sigma", **eps)(*given_)
            close(scaled, [[a / (sigma + eps.get("eps", 1e-4)) for a in expected]], atol=1e-9)


@pytest.mark.exact
def test_enumeration_is_the_definition():
    for objective, diversity in OBJECTIVES:
        rng = torch.Generator().manual_seed(1)
        reward_PN, answer_id_PN = (
            torch.rand(3, 6, generator=rng, dtype=torch.float64),
            torch.randint(3, (3, 6), generator=rng),
        )
        distance_PNN = torch.rand(3, 6, 6, generator=rng, dtype=torch.float64)
        index_PKn = all_subsets(6, 3).expand(3, -1, -1)
        f_PK = set_values(
            objective, index_PKn, reward_PN, answer_id_PN if diversity == "unique" else None, distance_PNN
        )
        found_PN = marginal(f_PK, index_PKn, 6, sampled=False)
        for p in range(3):
            expected, sigma = definition(
                objective, diversity, 3, reward_PN[p].tolist(), answer_id_PN[p].tolist(), distance_PNN[p].tolist()
            )
            close(found_PN[p], expected)
            assert float(f_PK[p].std(correction=0)) == pytest.approx(sigma)


def test_pass_at_k_of_a_large_group():
    N, n, right = 64, 8, 5
    reward_PN = (torch.arange(N) < right).double()[None]
    baseline = 1 - math.comb(N - right, n) / math.comb(N, n)
    wrong = 1 - math.comb(N - right - 1, n - 1) / math.comb(N - 1, n - 1) - baseline
    close(SetMarginal("max", n)(reward_PN), [[1 - baseline] * right + [wrong] * (N - right)])


# --------------------------------------------------------------------------------------------------- vectors
@pytest.mark.exact
def test_one_reward_against_the_group():
    for advantage, expected in ((GroupRelative(), 0.8658754298), (GroupRelative("none"), 0.5), (RLOO(), 2 / 3)):
        close(advantage(f64([1, 0, 0, 1])), [[expected, -expected, -expected, expected]], atol=1e-9)


@pytest.mark.exact
def test_rewards_with_a_tie():
    close(GroupRelative()(f64([0.1, 0.4, 0.4, 0.9])), [[-1.0549716, -0.1507102, -0.1507102, 1.3563921]], atol=1e-7)


@pytest.mark.exact
def test_pass_at_k_training():
    for k, right, wrong in ((1, 1.732051, -0.577350), (2, 1.074172, -0.358057), (4, 0.522233, -0.174078)):
        found = SetMarginal("max", k, scale="sigma", eps=0.0)(f64([0, 1, 0, 0, 1, 0, 0, 0]))
        close(found, [[wrong, right, wrong, wrong, right, wrong, wrong, wrong]], atol=1e-6)


@pytest.mark.exact
def test_polychromic():
    for n, kind, reward, baseline, expected in (
        (2, [0, 0, 1, 2], [1, 1, 1, 0], 0.5833333, [-0.0833333, -0.0833333, 0.25, -0.0833333]),
        (
            4,
            [0, 0, 0, 1, 2, 2, 3, 4],
            [1, 1, 1, 1, 0, 0, 0, 1],
            0.454762,
            [-0.011905] * 3 + [0.090476] + [-0.064286] * 2 + [-0.016667, 0.090476],
        ),
    ):
        reward_PN, answer_id_PN = f64(reward), torch.tensor([kind])
        close(SetMarginal("polychromic", n)(reward_PN, answer_id_PN), [expected], atol=1e-6)
        f_PK = set_values("polychromic", all_subsets(len(kind), n), reward_PN, answer_id_PN, None)
        assert float(f_PK.mean()) == pytest.approx(baseline, abs=1e-6)


@pytest.mark.exact
def test_the_mean_of_sets_is_the_reward_less_the_mean():
    reward_PN = torch.rand(3, 8, generator=generator(0, "test"), dtype=torch.float64)
    centred_PN = reward_PN - reward_PN.mean(1, keepdim=True)
    close(SetMarginal("mean", 4)(reward_PN), centred_PN / 7)
    close(SetMarginal("mean", 4, scale="unbiased")(reward_PN), RLOO()(reward_PN))
    close(SetMarginal("mean", 1, scale="unbiased")(reward_PN), SetMarginal("max", 1, scale="unbiased")(reward_PN))


# ------------------------------------------------------------------------------------------------ properties
def all_kinds_of(N, n):
    plain = [SetMarginal(o, n, diversity=d, scale=s) for o, d in OBJECTIVES for s in ("none", "unbiased", "sigma")]
    sampled = [SetMarginal(o, n, diversity=d, num_subsets=30) for o, d in OBJECTIVES]
    return [GroupRelative(), GroupRelative("batch"), GroupRelative("none"), RLOO(), *plain, *sampled]


def test_a_group_of_equal_sets_gets_exactly_nothing():
    for (N, n, kind), reward in itertools.product(
        (
            (7, 3, [0] * 7),
            (7, 3, list(range(7))),
            (4, 3, [0, 0, 1, 1]),
            (4, 3, [1, 0, 1, 0]),
            (7, 6, [0, 1, 2, 0, 1, 2, 0]),
            (33, 2, [5] * 33),
        ),
        (0.1, 0.0, -1 / 3),
    ):
        reward_PN, distance_PNN = (
            torch.full((2, N), reward, dtype=torch.float64),
            torch.full((2, N, N), 0.7, dtype=torch.float64),
        )
        distance_PNN.diagonal(dim1=1, dim2=2).zero_()
        assert (
            len({value("diversity", "unique", s, [0.0] * N, kind, None) for s in itertools.combinations(range(N), n)})
            == 1
        ), "the case tests nothing"
        for advantage in all_kinds_of(N, n):
            found_PN = advantage(reward_PN, torch.tensor([kind] * 2), distance_PNN, generator=generator(0, "test"))
            assert torch.equal(found_PN, torch.zeros_like(found_PN)), advantage


def random_groups(P=3, N=8):
    rng = generator(0, "groups")
    reward_PN = torch.randint(4, (P, N), generator=rng).double() / 3
    distance_PNN = torch.rand(P, N, N, generator=rng, dtype=torch.float64)
    return reward_PN, torch.randint(5, (P, N), generator=rng), distance_PNN


def test_advantages_add_up_to_nothing_and_are_not_all_zero():
    for advantage in all_kinds_of(8, 3):
        found_PN = advantage(*random_groups(), generator=generator(0, "test"))
        close(found_PN.sum(1), torch.zeros(3))
        assert (found_PN.abs().amax(1) > 1e-3).all()


def test_advantages_follow_the_order_of_the_completions():
    for advantage in [a for a in all_kinds_of(8, 3) if getattr(a, "num_subsets", None) is None]:
        reward_PN, answer_id_PN, distance_PNN = random_groups()
        order = torch.randperm(8, generator=generator(0, "order"))
        mixed_PN = advantage(reward_PN[:, order], answer_id_PN[:, order], distance_PNN[:, order][:, :, order])
        close(mixed_PN, advantage(reward_PN, answer_id_PN, distance_PNN)[:, order])


def test_a_prompt_gets_alone_what_it_gets_in_a_batch():
    for advantage in [
        a for a in all_kinds_of(8, 3) if a != GroupRelative("batch") and getattr(a, "num_subsets", None) is None
    ]:
        rows = random_groups()
        close(torch.cat([advantage(*(x[p : p + 1] for x in rows)) for p in range(3)]), advantage(*rows))


def test_a_constant_added_to_all_rewards_changes_nothing():
    for advantage in (
        GroupRelative(),
        GroupRelative("none"),
        GroupRelative("batch"),
        RLOO(),
        SetMarginal("mean", 3),
        SetMarginal("max", 3),
        SetMarginal("max", 3, scale="sigma"),
        SetMarginal("mean", 3, num_subsets=4),
    ):
        reward_PN = random_groups()[0]
        plain_PN = advantage(reward_PN, generator=generator(0, "test"))
        close(advantage(reward_PN + 5.25, generator=generator(0, "test")), plain_PN, atol=1e-11)
        if advantage != GroupRelative("batch"):  # the deviation over all of a batch sees constants that differ
            close(advantage(reward_PN + f64([3.5], [-2], [0.75]), generator=generator(0, "test")), plain_PN, atol=1e-11)


def test_a_bonus_for_the_whole_group_cancels_and_one_for_each_set_does_not():
    reward_PN, answer_id_PN, _ = random_groups()
    distinct_P1 = torch.tensor([[len(set(row))] for row in answer_id_PN.tolist()])
    assert len(set(distinct_P1.flatten().tolist())) > 1
    close(GroupRelative()(reward_PN + distinct_P1), GroupRelative()(reward_PN))
    flat_PN = torch.ones_like(reward_PN)
    assert (SetMarginal("polychromic", 3)(flat_PN, answer_id_PN).abs().amax(1) > 1e-3).all()
    close(SetMarginal("polychromic", 3)(flat_PN, answer_id_PN), SetMarginal("diversity", 3)(flat_PN, answer_id_PN))


def test_the_deviation_of_a_batch_is_that_of_all_its_rewards():
    reward_PN = random_groups()[0] + f64([0], [1], [1e4])
    close(GroupRelative("batch")(reward_PN), (reward_PN - reward_PN.mean(1, keepdim=True)) / (reward_PN.std() + 1e-4))


def test_the_dtype_of_the_rewards_is_kept_and_their_digits_are_not_lost():
    reward = [[1e4 + 0.25, 1e4, 1e4, 1e4 + 0.5]]
    single = GroupRelative("none")(torch.tensor(reward, dtype=torch.float32))
    assert single.dtype == torch.float32
    close(single, [[0.0625, -0.1875, -0.1875, 0.3125]], atol=0)
    for whole in (torch.tensor([[1, 0, 0, 1]]), torch.tensor([[True, False, False, True]])):
        assert SetMarginal("max", 2)(whole).dtype == torch.float32
        close(GroupRelative("none")(whole), [[0.5, -0.5, -0.5, 0.5]], atol=0)


def test_noise_of_rounding_does_not_become_an_advantage():
    """Rewards and distances that a model gives differ by rounding where they should be equal."""
    for advantage in all_kinds_of(4, 2):
        noise = 6e-8 * torch.tensor([0.0, 1, 0, 0], dtype=torch.float64)
        reward_PN = 0.5 + noise[None].repeat(2, 1)
        distance_PNN = 0.3 + (noise[:, None] + noise)[None].repeat(2, 1, 1)
        distance_PNN.diagonal(dim1=1, dim2=2).zero_()
        found = advantage(reward_PN, torch.zeros(2, 4, dtype=torch.int64), distance_PNN, generator=generator(0, "test"))
        assert found.abs().max() < 1e-3


# -------------------------------------------------------------------------------------------- sampled subsets
@pytest.mark.exact
def test_the_mean_over_all_samples_is_the_exact_advantage():
    for objective, diversity in OBJECTIVES:
        reward_PN, answer_id_PN, distance_PNN = (
            f64([1, 0.2, 0.2, 0.7]),
            torch.tensor([[0, 1, 1, 2]]),
            random_groups(1, 4)[2],
        )
        every_6n = all_subsets(4, 2)[0]
        total = torch.zeros(1, 4, dtype=torch.float64)
        for pair in itertools.product(range(6), repeat=2):
            index_PKn = every_6n[list(pair)][None]
            f_PK = set_values(
                objective, index_PKn, reward_PN, answer_id_PN if diversity == "unique" else None, distance_PNN
            )
            total += marginal(f_PK, index_PKn, 4, sampled=True)
        close(total / 36, SetMarginal(objective, 2, diversity=diversity)(reward_PN, answer_id_PN, distance_PNN))


def test_subsets_are_uniform_and_follow_the_generator():
    index_PKn = sampled_subsets(2, 3000, 5, 2, generator(0, "sets"))
    assert torch.equal(index_PKn, sampled_subsets(2, 3000, 5, 2, generator(0, "sets")))
    ordered_PKn = index_PKn.sort(2).values
    assert (ordered_PKn[..., 0] < ordered_PKn[..., 1]).all()
    _, counts = (ordered_PKn[..., 0] * 5 + ordered_PKn[..., 1]).unique(return_counts=True)
    assert len(counts) == 10
    assert float(((counts - 600.0) ** 2 / 600).sum()) < 27.9  # chi-square, 9 degrees of freedom, p = .001
    assert not torch.equal(index_PKn[0], index_PKn[1])


def test_more_samples_come_closer():
    rows, exact = random_groups(), SetMarginal("polychromic", 3)
    errors = [
        float(
            (SetMarginal("polychromic", 3, num_subsets=k)(*rows, generator=generator(0, "sets")) - exact(*rows))
            .abs()
            .max()
        )
        for k in (20, 20_000)
    ]
    assert errors[1] < 0.005 < errors[0] < 0.3


# -------------------------------------------------------------------------------------------------- refusals
def test_bad_arguments_are_refused_when_built_and_before():
    for arguments, message in (
        ({"objective": "max", "size": 0}, "size=0 must be at least 1"),
        ({"objective": "polychromic", "size": 1}, "size=1 must be at least 2 for objective=polychromic"),
        ({"objective": "max", "size": 2, "num_subsets": 1}, "num_subsets=1 must be at least 2"),
        (
            {"objective": "max", "size": 2, "num_subsets": 10**18},
            "num_subsets=1000000000000000000 must be at most 100,000",
        ),
        ({"objective": "max", "size": 2, "eps": -1.0}, "eps=-1.0 must be at least 0 and at most 1000"),
        ({"objective": "max", "size": 2, "eps": math.nan}, "eps=nan must be at least 0"),
        ({"objective": "max", "size": 2, "eps": math.inf}, "eps=inf must be at least 0"),
    ):
        node = {"_target_": "research_stack.posttraining.advantages.SetMarginal", **arguments}
        with pytest.raises(ValueError, match=f"advantage.{message}"):
            build(node, "advantage")
        told = (
            message
            if all(map(math.isfinite, (a for a in arguments.values() if isinstance(a, float))))
            else message.partition(" ")[0]
        )
        assert [p.message for p in check_node("advantage", node)][0].startswith(f"advantage.{told}")


def test_a_config_builds_them():
    for node in (
        {"_target_": "GroupRelative", "scale_rewards": "batch"},
        {"_target_": "RLOO"},
        {"_target_": "SetMarginal", "objective": "polychromic", "size": 4, "num_subsets": None},
    ):
        node = node | {"_target_": f"research_stack.posttraining.advantages.{node['_target_']}"}
        assert not list(check_node("advantage", node))
        advantage = build(node, "advantage")
        advantage.check(16)
        assert advantage.needs == ("answer_ids" if "size" in node else "nothing")
        assert list(check_node("advantage", node | {"scale_rewards": "grup"}))


def test_what_they_need():
    assert [SetMarginal(o, 2, diversity=d).needs for o, d in OBJECTIVES] == [
        "nothing",
        "nothing",
        "answer_ids",
        "answer_ids",
        "distances",
        "distances",
    ]


def test_groups_that_do_not_do():
    for advantage, group, message in (
        (GroupRelative(), 1, "num_generations=1 must be at least 2"),
        (RLOO(), 1, "num_generations=1 must"),
        (SetMarginal("mean", 1), 1, "num_generations=1 must"),
        (SetMarginal("max", 8), 8, "size=8 must be less than num_generations=8"),
        (SetMarginal("max", 9), 8, "size=9 must"),
        (
            SetMarginal("polychromic", 8, scale="sigma"),
            64,
            "num_subsets=null must be a number: scale=sigma of objective=polychromic .* 4426165368 of them",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            advantage.check(group)
        with pytest.raises(ValueError, match=message):
            advantage(torch.zeros(2, group), torch.zeros(2, group, dtype=torch.long))


def test_large_groups_are_no_matter_for_closed_forms_and_samples():
    for advantage in (
        SetMarginal("polychromic", 8),
        SetMarginal("max", 8, scale="sigma"),
        SetMarginal("polychromic", 8, scale="sigma", num_subsets=64),
    ):
        advantage.check(64)


def test_what_is_missing_is_named():
    reward_PN, answer_id_PN, distance_PNN = random_groups()
    with pytest.raises(ValueError, match=r"answer_id_PN=None must be a tensor of shape \(3, 8\)"):
        SetMarginal("polychromic", 2)(reward_PN)
    with pytest.raises(ValueError, match=r"distance_PNN=\(3, 8, 7\) must be a tensor of shape \(3, 8, 8\)"):
        SetMarginal("diversity", 2, diversity="distance")(reward_PN, answer_id_PN, distance_PNN[:, :, :7])
    with pytest.raises(ValueError, match="num_subsets=4 must come with a generator"):
        SetMarginal("max", 2, num_subsets=4)(reward_PN)

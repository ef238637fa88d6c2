"""n / (N - n) sum_i A_i grad log pi(y_i) is the gradient of E[f], exactly: by enumeration of all groups of a small
policy.
"""

import itertools

import pytest
import torch

from research_stack.posttraining.advantages import RLOO, SetMarginal, all_subsets, marginal, set_values

THETA = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, 0.6], dtype=torch.float64)
APART = torch.tensor([[0, 0.3, 1.1], [0.3, 0, 0.8], [1.1, 0.8, 0]], dtype=torch.float64)
VECTORS = {
    "mean": [0.09919128, -0.0777012, -0.02149008],
    "max": [0.12021905, -0.03512113, -0.08509792],
    "polychromic": [0.11115832, -0.00577982, -0.1053785],
}
CASES = [
    (o, d)
    for o in ("mean", "max", "polychromic", "diversity")
    for d in ("unique", "distance")
    if d == "unique" or o in ("polychromic", "diversity")
]


def outcomes(count):
    """(3^count, count): all draws of that many independent actions."""
    return torch.tensor(list(itertools.product(range(3), repeat=count)))


def rows(y_GN):
    """Rewards, kinds and distances of each group."""
    return REWARD[y_GN], y_GN, APART[y_GN[:, :, None], y_GN[:, None, :]]


def expected_f(theta, objective, diversity, n):
    """E[f] of n independent actions."""
    y_Gn = outcomes(n)
    reward, kind, distance = rows(y_Gn)
    f_G = set_values(
        objective, torch.arange(n).expand(len(y_Gn), 1, n), reward, kind if diversity == "unique" else None, distance
    )[:, 0]
    return (theta.log_softmax(0)[y_Gn].sum(1).exp() * f_G).sum()


def exact_gradient(objective, diversity, n):
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad(expected_f(theta, objective, diversity, n), theta)[0]


def mean_over_groups(advantage, N):
    """E[sum_i A_i grad log pi(y_i)] over all 3^N groups."""
    y_GN = outcomes(N)
    score_GN3 = torch.eye(3, dtype=torch.float64)[y_GN] - THETA.softmax(0)
    p_G = THETA.log_softmax(0)[y_GN].sum(1).exp()
    return torch.einsum("g,gn,gnv->v", p_G, advantage(*rows(y_GN)), score_GN3)


@pytest.mark.exact
def test_the_advantage_gives_the_gradient_of_the_set_objective():
    for (objective, diversity), (N, n) in itertools.product(CASES, ((4, 2), (4, 3), (5, 3))):
        expected = exact_gradient(objective, diversity, n)
        assert expected.abs().max() > 1e-3
        found = n / (N - n) * mean_over_groups(SetMarginal(objective, n, diversity=diversity), N)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        # scale=unbiased is made for the mean over completions.
        unbiased = mean_over_groups(SetMarginal(objective, n, diversity=diversity, scale="unbiased"), N) / N
        torch.testing.assert_close(unbiased, expected, atol=1e-12, rtol=0)


@pytest.mark.exact
def test_the_vectors():
    for objective in VECTORS:
        expected = torch.tensor(VECTORS[objective], dtype=torch.float64)
        torch.testing.assert_close(
            2 / (4 - 2) * mean_over_groups(SetMarginal(objective, 2), 4), expected, atol=5e-9, rtol=0
        )
        torch.testing.assert_close(exact_gradient(objective, "unique", 2), expected, atol=5e-9, rtol=0)


@pytest.mark.exact
def test_the_expectation_by_finite_differences():
    for objective, diversity in CASES:
        step = 1e-5 * torch.eye(3, dtype=torch.float64)
        differences = [
            (expected_f(THETA + h, objective, diversity, 2) - expected_f(THETA - h, objective, diversity, 2)) / 2e-5
            for h in step
        ]
        found = mean_over_groups(SetMarginal(objective, 2, diversity=diversity), 4)
        torch.testing.assert_close(found, torch.stack(differences), atol=1e-9, rtol=0)


@pytest.mark.exact
def test_enumerated_subsets_give_it_too():
    for objective, diversity in CASES:

        def enumerated(reward_PN, answer_id_PN, distance_PNN):
            index_PKn = all_subsets(4, 2).expand(len(reward_PN), -1, -1)
            return marginal(
                set_values(
                    objective, index_PKn, reward_PN, answer_id_PN if diversity == "unique" else None, distance_PNN
                ),
                index_PKn,
                4,
                sampled=False,
            )

        torch.testing.assert_close(
            mean_over_groups(enumerated, 4), exact_gradient(objective, diversity, 2), atol=1e-12, rtol=0
        )


@pytest.mark.exact
def test_leaving_one_out_is_the_gradient_of_the_mean_reward():
    torch.testing.assert_close(
        mean_over_groups(lambda r, k, d: RLOO()(r), 4) / 4, exact_gradient("mean", "unique", 1), atol=1e-12, rtol=0
    )


@pytest.mark.exact
def test_a_diversity_bonus_for_the_whole_group_has_no_gradient_and_the_set_marginal_has():
    def bonus(reward_PN, answer_id_PN, distance_PNN):
        distinct_P1 = torch.stack([(answer_id_PN == v).any(1) for v in range(3)]).sum(0)[:, None]
        return RLOO()((distinct_P1 - 1) / 3.0 + torch.zeros_like(reward_PN))

    assert torch.equal(mean_over_groups(bonus, 4), torch.zeros(3, dtype=torch.float64))
    assert mean_over_groups(SetMarginal("diversity", 3), 4).abs().max() > 0.01

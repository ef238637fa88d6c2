"""What one completion of a group is worth: the number that its log-probability's gradient is multiplied with.

A group is N completions of one prompt. `GroupRelative` and `RLOO` compare a completion's reward with the group's.
`SetMarginal` asks what a completion adds to a *set* of n: the mean of an objective f over the subsets of size n that
hold it, less the mean over all of them. With f = mean that is `RLOO` up to a factor, with f = max it is pass@k
training, with reward times diversity the polychromic objective. A number that is the same for the whole group cancels
in all of them.

Everything is computed in float64 and returned in the dtype of the rewards; a group whose f are all equal gets exactly
0. Rewards are taken to be finite.

Shapes: P prompts, N completions of a group, n completions of a subset (the size), K subsets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from research_stack.require import require

MAX_SUBSETS = 50_000  # that are enumerated; 16 prompts with as many take tens of milliseconds

Objective = Literal["mean", "max", "polychromic", "diversity"]


class Advantage(Protocol):
    """What the trainer asks of an advantage."""

    @property
    def needs(self) -> Literal["nothing", "answer_ids", "distances"]:
        """What it has to be given beside the rewards."""
        ...

    def check(self, num_generations: int) -> None:
        """Raise ValueError where groups of that many completions do not do."""

    def __call__(
        self,
        reward_PN: Tensor,
        answer_id_PN: Tensor | None = None,
        distance_PNN: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(P, N) advantages of the groups of a whole batch, those of all devices.

        - answer_id_PN: int64, completions of equal id give the same answer. distance_PNN: between completions, the mean
          of the two directions counts and the diagonal does not. Each only where `needs` says so.
        - generator: on the device of the rewards, for what samples subsets.

        Raises ValueError where something it needs is missing or the group does not do.
        """
        ...


# ------------------------------------------------------------------------------------------------ one reward
@dataclass(frozen=True)
class GroupRelative:
    """Reward less the group's mean, over a standard deviation: (r_i - mean) / (std + eps), std with ddof 1 (Shao et al.
    2024).

    - scale_rewards: whose deviation. `group`: the group's (GRPO); `batch`: that of all rewards of the batch (Hu et al.
      2025, REINFORCE++); `none`: no division (Dr.GRPO, Liu et al. 2025), eps is not used.
    - eps: in the unit of the reward.
    """

    scale_rewards: Literal["group", "batch", "none"] = "group"
    eps: float = 1e-4
    needs = "nothing"

    def __post_init__(self) -> None:
        require(0 <= self.eps <= 1000, f"eps={self.eps} must be at least 0 and at most 1000")

    def check(self, num_generations: int) -> None:
        """Raise ValueError for fewer than 2 completions."""
        _require_two(num_generations)

    def __call__(
        self,
        reward_PN: Tensor,
        answer_id_PN: Tensor | None = None,
        distance_PNN: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As in `Advantage`."""
        self.check(reward_PN.shape[1])
        centred_PN = _centred(reward_PN.double())
        if self.scale_rewards == "none":
            return _like(centred_PN, reward_PN)
        if self.scale_rewards == "group":
            std = (centred_PN.square().sum(1, keepdim=True) / (reward_PN.shape[1] - 1)).sqrt()
        else:
            std = reward_PN.double().std()
        return _like(_ratio(centred_PN, std + self.eps), reward_PN)


@dataclass(frozen=True)
class RLOO:
    """Reward less the mean reward of the others: N / (N - 1) (r_i - mean) (Ahmadian et al. 2024, equation 8)."""

    needs = "nothing"

    def check(self, num_generations: int) -> None:
        """Raise ValueError for fewer than 2 completions."""
        _require_two(num_generations)

    def __call__(
        self,
        reward_PN: Tensor,
        answer_id_PN: Tensor | None = None,
        distance_PNN: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As in `Advantage`."""
        N = reward_PN.shape[1]
        self.check(N)
        return _like(_centred(reward_PN.double()) * (N / (N - 1)), reward_PN)


def _require_two(num_generations: int) -> None:
    require(
        num_generations >= 2,
        f"num_generations={num_generations} must be at least 2: a completion is compared with the others of its prompt",
    )


def _centred(x_PN: Tensor) -> Tensor:
    """Values less their mean; exactly 0 for a constant row, whose mean is off by a rounding error."""
    shifted_PN = x_PN - x_PN[:, :1]
    return shifted_PN - shifted_PN.mean(1, keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, 0 where there is nothing to divide by."""
    return torch.where(below > 0, above / below, torch.zeros_like(above))


def _like(x_PN: Tensor, reward_PN: Tensor) -> Tensor:
    return x_PN.to(reward_PN.dtype if reward_PN.is_floating_point() else torch.get_default_dtype())


# ------------------------------------------------------------------------------------------------------ sets
@dataclass(frozen=True)
class SetMarginal:
    """A_i = mean over subsets of size n with i of f(S), less the mean over all subsets of size n of f(S).

    n / (N - n) sum_i A_i grad log pi(y_i) is unbiased for the gradient of E[f(y_1, ..., y_n)], n independent
    completions: A_i = (N - n) / N (mean of f over the sets with i - mean over those without), and the sets without y_i
    are a baseline that does not depend on it, as the other completions are in leave-one-out.

    - objective: f, of the rewards and the diversity of the n completions.
      `mean`: mean reward. A_i = (N - n) / (n (N - 1)) (r_i - mean).
      `max`: largest reward. For rewards 0 and 1 that is pass@n (Chen et al. 2025, "Pass@k Training").
      `polychromic`: mean reward times diversity (Hamid et al. 2025, "Polychromic Objectives for Reinforcement
      Learning"). `diversity`: diversity alone.
    - size: n, fewer than the group has: with n = N every advantage is 0.
    - num_subsets: None: exact, in closed form (only `sigma` of the two objectives with diversity is enumerated). A
      number: that many subsets are drawn for each prompt, and with the scales `none` and `unbiased` the advantage is
      unbiased for the exact one.
    - scale: `none`: as above. `unbiased`: times n N / (N - n), so that the *mean* over completions of A_i grad log
      pi(y_i) is unbiased for the gradient of E[f]; with f = mean that is `RLOO`, hence the scale that learning rates
      are used to. `sigma`: over the standard deviation of f over the subsets (ddof 0) + eps, as in pass@k training: for
      rewards 0 and 1 it is sqrt(p (1 - p)) with p the group's pass@n. Groups that differ in sigma are then weighed
      differently.
    - diversity: of a set. `unique`: (unique answers - 1) / (n - 1), in [0, 1]. `distance`: mean distance of two of the
      set.
    - eps: in the unit of f, for scale=sigma alone. Without it, rewards or distances that differ by rounding alone (a
      model's) have advantages of noise over noise.
    """

    objective: Objective
    size: int
    num_subsets: int | None = None
    scale: Literal["none", "unbiased", "sigma"] = "none"
    diversity: Literal["unique", "distance"] = "unique"
    eps: float = 1e-4

    #: See research_stack.config.smoke.
    smoke = {"size": 2}

    def __post_init__(self) -> None:
        require(self.size >= 1, f"size={self.size} must be at least 1")
        require(self.size <= 100_000, f"size={self.size} must be at most 100,000")
        require(
            self.size >= 2 or self.objective in ("mean", "max"),
            f"size={self.size} must be at least 2 for objective={self.objective}",
        )
        require(
            self.num_subsets is None or self.num_subsets >= 2,
            f"num_subsets={self.num_subsets} must be at least 2, or null for all of them",
        )
        require(
            self.num_subsets is None or self.num_subsets <= 100_000,
            f"num_subsets={self.num_subsets} must be at most 100,000",
        )
        require(0 <= self.eps <= 1000, f"eps={self.eps} must be at least 0 and at most 1000")

    @property
    def needs(self) -> Literal["nothing", "answer_ids", "distances"]:
        """What it has to be given beside the rewards."""
        if self.objective in ("mean", "max"):
            return "nothing"
        return "answer_ids" if self.diversity == "unique" else "distances"

    @property
    def closed(self) -> bool:
        """Whether a closed form gives it: no subset is looked at."""
        return self.num_subsets is None and (self.scale != "sigma" or self.needs == "nothing")

    def check(self, num_generations: int) -> None:
        """Raise ValueError for fewer than 2 completions, for no more than `size`, and for too many subsets to
        enumerate.
        """
        _require_two(num_generations)
        require(
            self.size < num_generations,
            f"size={self.size} must be less than num_generations={num_generations}: the only set of all completions"
            " compares nothing",
        )
        count = math.comb(num_generations, self.size)
        require(
            self.closed or self.num_subsets is not None or count <= MAX_SUBSETS,
            f"num_subsets=null must be a number: scale={self.scale} of objective={self.objective} looks at all subsets,"
            f" {count} of them (at most {MAX_SUBSETS})",
        )

    def __call__(
        self,
        reward_PN: Tensor,
        answer_id_PN: Tensor | None = None,
        distance_PNN: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As in `Advantage`."""
        N, n = reward_PN.shape[1], self.size
        self.check(N)
        reward_64 = reward_PN.double()
        answer_id_PN = _given("answer_id_PN", answer_id_PN, reward_PN.shape) if self.needs == "answer_ids" else None
        distance_64 = (
            _given("distance_PNN", distance_PNN, (*reward_PN.shape, N)).double() if self.needs == "distances" else None
        )
        if self.closed:
            advantage_PN, sigma_P1 = self._closed_form(reward_64, answer_id_PN, distance_64)
        else:
            index_PKn = self._subsets(reward_PN, generator)
            f_PK = set_values(self.objective, index_PKn, reward_64, answer_id_PN, distance_64)
            advantage_PN = marginal(f_PK, index_PKn, N, sampled=self.num_subsets is not None)
            sigma_P1 = _centred(f_PK).square().mean(1, keepdim=True).sqrt()
        if self.scale == "unbiased":
            advantage_PN = advantage_PN * (n * N / (N - n))
        elif self.scale == "sigma":
            advantage_PN = _ratio(advantage_PN, sigma_P1 + self.eps)
        return _like(advantage_PN, reward_PN)

    def _closed_form(
        self, reward_PN: Tensor, answer_id_PN: Tensor | None, distance_PNN: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Advantages (P, N) and sigma (P, 1), which is NaN where it has no closed form and is not asked for."""
        if self.objective == "mean":
            return mean_marginal(reward_PN, self.size)
        if self.objective == "max":
            return max_marginal(reward_PN, self.size)
        weight_PN = reward_PN if self.objective == "polychromic" else None
        if answer_id_PN is not None:
            advantage_PN = unique_marginal(answer_id_PN, self.size, weight_PN)
        else:
            assert distance_PNN is not None
            advantage_PN = distance_marginal(distance_PNN, self.size, weight_PN)
        return advantage_PN, torch.full_like(reward_PN[:, :1], math.nan)

    def _subsets(self, reward_PN: Tensor, generator: torch.Generator | None) -> Tensor:
        P, N = reward_PN.shape
        if self.num_subsets is None:
            return all_subsets(N, self.size, reward_PN.device).expand(P, -1, -1)
        if generator is None:
            raise ValueError(f"num_subsets={self.num_subsets} must come with a generator to draw them from")
        return sampled_subsets(P, self.num_subsets, N, self.size, generator)


def _given(name: str, x: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """The tensor, looked at for being there and its shape."""
    if x is None or x.shape != tuple(shape):
        raise ValueError(f"{name}={None if x is None else tuple(x.shape)} must be a tensor of shape {tuple(shape)}")
    return x


# ---------------------------------------------------------------------------------------------- closed forms
def mean_marginal(reward_PN: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The marginal (P, N) of the mean reward, and sigma (P, 1): that of a mean of n drawn without replacement."""
    N = reward_PN.shape[1]
    centred_PN = _centred(reward_PN)
    factor = (N - n) / (n * (N - 1))
    return factor * centred_PN, (factor * centred_PN.square().mean(1, keepdim=True)).sqrt()


def max_marginal(reward_PN: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The marginal (P, N) of the largest reward, and sigma (P, 1) of the largest reward. O(N log N).

    With r_1 <= ... <= r_N: a set that holds rank t has a largest rank of at least s > t unless its n - 1 others are all
    among the s - 2 below s, so that E[max | t] = r_t + sum over s > t of (r_s - r_{s-1}) (1 - C(s-2, n-1) / C(N-1,
    n-1)). Written by gaps, tied rewards get the very same number whichever stands first.
    """
    N = reward_PN.shape[1]
    sorted_PN, order_PN = reward_PN.sort(1)
    reached = [1 - math.comb(s - 2, n - 1) / math.comb(N - 1, n - 1) for s in range(2, N + 1)]
    gaps_PM = sorted_PN.diff(dim=1) * sorted_PN.new_tensor(reached)
    above_PN = torch.cat([gaps_PM.flip(1).cumsum(1).flip(1), torch.zeros_like(gaps_PM[:, :1])], dim=1)
    mean_PN = torch.empty_like(sorted_PN).scatter(1, order_PN, sorted_PN + above_PN)
    largest_N = sorted_PN.new_tensor(
        [math.comb(s - 1, n - 1) / math.comb(N, n) for s in range(1, N + 1)]
    )  # P(rank s is the largest)
    baseline_P1 = (sorted_PN * largest_N).sum(1, keepdim=True)
    return _centred(mean_PN), ((sorted_PN - baseline_P1).square() * largest_N).sum(1, keepdim=True).sqrt()


def unique_marginal(answer_id_PN: Tensor, n: int, weight_PN: Tensor | None = None) -> Tensor:
    """The marginal (P, N) of (unique answers - 1) / (n - 1), or of that times the mean of weight_PN. O(N^2)
    comparisons.

    distinct - 1 = (kinds of the group - 1) - sum_c [S misses kind c]. With m_c completions of kind c and i of another
    kind, S misses c with probability q_c = C(N-1-m_c, n-1) / C(N-1, n-1), and then its n - 1 others are uniform among
    the N-1-m_c that are neither i nor of kind c, which gives the mean of sum_S r * [S misses c] as well.
    """
    P, N = answer_id_PN.shape
    same = _SameAnswers(answer_id_PN)
    q_M, other_M = (torch.tensor(values, dtype=torch.float64, device=answer_id_PN.device) for values in _missing(N, n))
    missed_PN = same.sum_over_others(q_M[same.count_PN])  # E[missed kinds | i]
    if weight_PN is None:
        return _centred(-missed_PN / (n - 1))
    total_P1 = weight_PN.sum(1, keepdim=True)
    sum_PN = weight_PN + (n - 1) / (N - 1) * (total_P1 - weight_PN)  # E[sum_S r | i]
    each_PN = other_M[same.count_PN]  # P(S misses c and holds j | i), for a j that is neither i nor of kind c
    rest_PN = same.sum_over_others(each_PN) * (total_P1 - weight_PN) - same.sum_over_others(
        each_PN * same.sums(weight_PN)
    )
    return _centred((same.number_P1 - 1) * sum_PN - missed_PN * weight_PN - rest_PN) / (n * (n - 1))


class _SameAnswers:
    """Sums over the kinds of a group, at each completion (P, N)."""

    def __init__(self, answer_id_PN: Tensor) -> None:
        self.first_PN = (
            (answer_id_PN[:, :, None] == answer_id_PN[:, None, :]).to(torch.uint8).argmax(-1)
        )  # the first of its kind
        self.is_first_PN = self.first_PN == torch.arange(answer_id_PN.shape[1], device=answer_id_PN.device)
        self.number_P1 = self.is_first_PN.sum(1, keepdim=True)
        self.count_PN = self.sums(torch.ones_like(answer_id_PN))

    def sums(self, x_PN: Tensor) -> Tensor:
        """Sum of x over the completion's own kind, the same number at each completion of a kind."""
        return torch.zeros_like(x_PN).scatter_add(1, self.first_PN, x_PN).gather(1, self.first_PN)

    def sum_over_others(self, x_PN: Tensor) -> Tensor:
        """Sum over the kinds other than the completion's own of x, which is a number of the kind."""
        return (x_PN * self.is_first_PN).sum(1, keepdim=True) - x_PN


@cache
def _missing(N: int, n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """For a kind with m = 0..N completions, of which i is none: P(S misses it | i), P(S misses it and holds j | i)."""
    q = [math.comb(max(N - 1 - m, 0), n - 1) / math.comb(N - 1, n - 1) for m in range(N + 1)]
    return tuple(q), tuple(p * (n - 1) / (N - 1 - m) if N - 1 - m > 0 else 0.0 for m, p in enumerate(q))


def distance_marginal(distance_PNN: Tensor, n: int, weight_PN: Tensor | None = None) -> Tensor:
    """The marginal (P, N) of the mean distance of two of the set, or of that times the mean of weight_PN. O(N^2).

    The sums over pairs and over a completion and a pair are split by what coincides with i and with one another; 1, 2
    or 3 further completions are in S with the probabilities p1 = (n-1)/(N-1), p2 = p1 (n-2)/(N-2), p3 = p2 (n-3)/(N-3).
    """
    N = distance_PNN.shape[-1]
    some_P1 = (distance_PNN[:, 0, 1:2] + distance_PNN[:, 1, 0:1]) / 2
    # Less one of the distances, which comes back below as a factor of the mean reward: equal distances are then exactly
    # 0.
    d_PNN = (distance_PNN + distance_PNN.mT).div_(2).sub_(some_P1[:, :, None])
    d_PNN.diagonal(dim1=1, dim2=2).zero_()
    p1 = (n - 1) / (N - 1)
    p2 = p1 * (n - 2) / max(N - 2, 1)
    p3 = p2 * (n - 3) / max(N - 3, 1)
    to_PN = d_PNN.sum(2)  # sum of the pairs with i
    apart_PN = to_PN.sum(1, keepdim=True) / 2 - to_PN  # of the pairs without
    if weight_PN is None:
        return _centred(p1 * to_PN + p2 * apart_PN) * (2 / (n * (n - 1)))
    others_PN = weight_PN.sum(1, keepdim=True) - weight_PN
    far_PN = (d_PNN @ weight_PN[:, :, None]).squeeze(2)  # sum_l d_il r_l
    ends_PN = (
        (to_PN * weight_PN).sum(1, keepdim=True) - to_PN * weight_PN - far_PN
    )  # sum of d_kl (r_k + r_l), pairs without i
    with_i_PN = p1 * (weight_PN * to_PN + far_PN) + p2 * (to_PN * others_PN - far_PN)
    without_PN = p2 * (weight_PN * apart_PN + ends_PN) + p3 * (apart_PN * others_PN - ends_PN)
    return _centred(with_i_PN + without_PN) * (2 / (n * n * (n - 1))) + some_P1 * mean_marginal(weight_PN, n)[0]


# --------------------------------------------------------------------------------------------------- subsets
def all_subsets(N: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """(1, C(N, n), n) int64: every subset of size n of range(N)."""
    return torch.combinations(torch.arange(N, device=device), n)[None]


def sampled_subsets(P: int, K: int, N: int, n: int, generator: torch.Generator) -> Tensor:
    """(P, K, n) int64: K independent uniform subsets of size n of range(N) for each prompt."""
    return torch.rand((P, K, N), generator=generator, device=generator.device).topk(n, dim=2).indices


def set_values(
    objective: Objective, index_PKn: Tensor, reward_PN: Tensor, answer_id_PN: Tensor | None, distance_PNN: Tensor | None
) -> Tensor:
    """(P, K) float64: f of each subset, as defined in `SetMarginal`; diversity by kinds where they are given, else by
    distance.
    """
    reward_PKn = _take(reward_PN, index_PKn)
    if objective == "mean":
        return reward_PKn.mean(2)
    if objective == "max":
        return reward_PKn.amax(2)
    n = index_PKn.shape[2]
    if answer_id_PN is not None:
        diversity_PK = (_take(answer_id_PN, index_PKn).sort(2).values.diff(dim=2) != 0).sum(2).double() / (n - 1)
    else:
        assert distance_PNN is not None
        N, flat_PM = distance_PNN.shape[-1], ((distance_PNN + distance_PNN.mT) / 2).flatten(1)
        a_M, b_M = torch.combinations(torch.arange(n, device=index_PKn.device), 2).unbind(1)
        diversity_PK = _take(flat_PM, index_PKn[:, :, a_M] * N + index_PKn[:, :, b_M]).mean(2)
    return diversity_PK if objective == "diversity" else reward_PKn.mean(2) * diversity_PK


def _take(x_PN: Tensor, index_PKn: Tensor) -> Tensor:
    return x_PN.gather(1, index_PKn.flatten(1)).view(index_PKn.shape)


def marginal(f_PK: Tensor, index_PKn: Tensor, N: int, sampled: bool) -> Tensor:
    """(P, N) set-marginal advantages from the values of f on subsets.

    The marginal is N/n Cov([i in S], f(S)) for a uniform S, since the mean of f over the sets with i is E[[i in S]
    f(S)] N/n.

    - sampled: False: the subsets are all there are (the covariance itself). True: they were drawn independently, and
      the covariance with K - 1 in place of K is unbiased. Either way the advantages of a group add up to 0.
    """
    P, K, n = index_PKn.shape
    centred_PKn = _centred(f_PK)[:, :, None].expand(P, K, n)
    summed_PN = f_PK.new_zeros(P, N).scatter_add(1, index_PKn.flatten(1), centred_PKn.flatten(1))
    return summed_PN * (N / (n * (K - 1 if sampled else K)))

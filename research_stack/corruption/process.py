"""Diffusion processes over tokens: marginals, kernels, bound weights, and what a prediction means under them.

Every process mixes the clean token with noise, position by position:

    q_t(z|x) = keep_t [z = x] + mask_t [z = m] + (uniform_t / N) [z real],      keep_t + mask_t + uniform_t = 1.

States are indices: 0..N-1 the real tokens, N the mask. Functions take t and, where 1 - t would cancel, `rest` = 1 - t;
they work in the dtype of t, so float64 in gives float64 out.

Sources: absorbing, Sahoo et al. 2024 (MDLM) and Nie et al. 2025 (LLaDA); uniform, Schiff et al. 2024 (UDLM);
hybrid, von Ruette et al. 2025 (GIDD), with gamma = 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from research_stack.data.vocabulary import Vocabulary
from research_stack.require import require


class Coefficients(NamedTuple):
    """Probabilities of the three parts of q_t; `uniform` is spread over all N real tokens, the clean one included."""

    keep: Tensor
    mask: Tensor
    uniform: Tensor


class Weights(NamedTuple):
    """w_t(z, x) of the continuous-time bound where z is the mask, another token than x, and x itself."""

    mask: Tensor
    other: Tensor
    same: Tensor

    def at(self, is_mask: Tensor, is_same: Tensor) -> Tensor:
        """The weight of each position; t must broadcast against the positions."""
        return torch.where(is_mask, self.mask, torch.where(is_same, self.same, self.other))


@dataclass(frozen=True)
class Process(ABC):
    """Base of the processes. `n_real` is N, the number of real tokens (`bind` sets it)."""

    n_real: int = 0

    def bind(self, n_real: int) -> Self:
        """The same process over `n_real` real tokens."""
        return replace(self, n_real=n_real)

    @property
    @abstractmethod
    def has_masks(self) -> bool:
        """Whether tokens can become the mask."""

    @property
    @abstractmethod
    def has_uniform(self) -> bool:
        """Whether tokens can become other real tokens."""

    @abstractmethod
    def coefficients(self, t: Tensor, rest: Tensor | None = None) -> Coefficients:
        """keep, mask and uniform at t."""

    @abstractmethod
    def weights(self, t: Tensor, rest: Tensor | None = None) -> Weights:
        """w_t(z, x): the rate of jumping into z over q_t(z|x); infinite at t = 0 and 1."""

    @abstractmethod
    def keep_ratio(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        """k = keep / (uniform / N): how much likelier an unchanged token is than any one substitute, minus 1."""

    @abstractmethod
    def time_of(self, mask: Tensor, replaced: Tensor) -> Tensor:
        """The t at which this process comes nearest to the given fractions of masks and of substituted tokens."""

    # What follows from the coefficients ------------------------------------------------------------------------------

    def marginal(self, t: Tensor) -> Tensor:
        """q_t(z|x) for a scalar t, as rows x (N) by columns z (N + 1, the mask last)."""
        return self.kernel(torch.zeros_like(t), t)[: self.n_real]

    def kernel(self, s: Tensor, t: Tensor) -> Tensor:
        """q_{t|s}(z|y) for scalars s <= t, as rows y by columns z, (N + 1, N + 1)."""
        stay, mask, uniform = self.steps(s, t)
        n = self.n_real
        matrix = stay * torch.eye(n + 1, dtype=t.dtype, device=t.device)
        matrix[:, n] += mask
        matrix[:, :n] += uniform / n
        return matrix

    def steps(self, s: Tensor, t: Tensor) -> Coefficients:
        """The parts of q_{t|s}: staying, becoming the mask, becoming a uniform token."""
        before, after = self.coefficients(s), self.coefficients(t)
        stay = after.keep / before.keep
        return Coefficients(stay, after.mask - stay * before.mask, after.uniform - stay * before.uniform)

    def reverse(self, p_nN: Tensor, z_n: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """p(z_s | z_t) of a model that predicts x by p: q_{t|s}(z_t|z_s) q_s(z_s|p) / q_t(z_t|p), (n, N + 1).

        - p_nN: leave-one-out predictions; a one-hot row gives the exact posterior q(z_s | z_t, x).
        - z_n: states at t. s, t: scalars or (n,), s <= t. A state that cannot occur at t stays as it is.
        """
        s, t = s.reshape(-1, 1), t.reshape(-1, 1)
        now, step, n = self.coefficients(s), self.steps(s, t), self.n_real
        prior = torch.cat([now.keep * p_nN + now.uniform / n, now.mask.expand(len(p_nN), 1)], dim=1)
        is_mask = (z_n == n).unsqueeze(1)
        into = torch.where(is_mask, step.mask, step.uniform / n)  # from anywhere else
        joint = prior * into
        own = prior.gather(1, z_n.unsqueeze(1)) * step.keep
        joint = joint.scatter_add(1, z_n.unsqueeze(1), own)
        total = joint.sum(dim=1, keepdim=True)
        unchanged = torch.zeros_like(joint).scatter(1, z_n.unsqueeze(1), 1.0)
        return torch.where(total > 0, joint / total, unchanged)


@dataclass(frozen=True)
class Absorbing(Process):
    """Masks only: keep = 1 - t, mask = t."""

    @property
    def has_masks(self) -> bool:
        return True

    @property
    def has_uniform(self) -> bool:
        return False

    def coefficients(self, t: Tensor, rest: Tensor | None = None) -> Coefficients:
        return Coefficients(1 - t if rest is None else rest, t, torch.zeros_like(t))

    def weights(self, t: Tensor, rest: Tensor | None = None) -> Weights:
        rest = 1 - t if rest is None else rest
        return Weights(1 / (t * rest), torch.zeros_like(t), torch.zeros_like(t))

    def keep_ratio(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        return torch.full_like(t, torch.inf)

    def time_of(self, mask: Tensor, replaced: Tensor) -> Tensor:
        return mask


@dataclass(frozen=True)
class Uniform(Process):
    """Substitutions only: keep = 1 - t, uniform = t."""

    @property
    def has_masks(self) -> bool:
        return False

    @property
    def has_uniform(self) -> bool:
        return True

    def coefficients(self, t: Tensor, rest: Tensor | None = None) -> Coefficients:
        return Coefficients(1 - t if rest is None else rest, torch.zeros_like(t), t)

    def weights(self, t: Tensor, rest: Tensor | None = None) -> Weights:
        rest = 1 - t if rest is None else rest
        n = self.n_real
        return Weights(torch.zeros_like(t), 1 / (t * rest), 1 / (n * rest * (rest + t / n)))

    def keep_ratio(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        return self.n_real * (1 - t if rest is None else rest) / t

    def time_of(self, mask: Tensor, replaced: Tensor) -> Tensor:
        return (replaced * self.n_real / (self.n_real - 1)).clamp_max(1)


@dataclass(frozen=True)
class Hybrid(Process):
    """Masks and substitutions: [(1-t) x + t m + c_t u] / (1 + c_t), c_t = B sqrt(t (1-t)), B = 2 p_u / (1 - p_u).

    - p_u: the probability of the uniform part at t = 1/2, in [0, 1). 0 is the absorbing process.
    """

    p_u: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.p_u < 1, f"p_u={self.p_u} must lie in [0, 1)")

    @property
    def has_masks(self) -> bool:
        return True

    @property
    def has_uniform(self) -> bool:
        return self.p_u > 0

    @property
    def scale(self) -> float:
        """B of c_t."""
        return 2 * self.p_u / (1 - self.p_u)

    def coefficients(self, t: Tensor, rest: Tensor | None = None) -> Coefficients:
        rest = 1 - t if rest is None else rest
        c = self.scale * (t * rest).sqrt()
        return Coefficients(rest / (1 + c), t / (1 + c), c / (1 + c))

    def weights(self, t: Tensor, rest: Tensor | None = None) -> Weights:
        rest = 1 - t if rest is None else rest
        c = self.scale * (t * rest).sqrt()
        same = c / (2 * t * self.n_real) / (rest * (rest + c / self.n_real))
        return Weights(1 / (t * rest), 1 / (2 * t * rest), same)

    def keep_ratio(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        rest = 1 - t if rest is None else rest
        return self.n_real * (rest / t).sqrt() / self.scale if self.p_u else torch.full_like(t, torch.inf)

    def time_of(self, mask: Tensor, replaced: Tensor) -> Tensor:
        return (mask / (1 - replaced * self.n_real / (self.n_real - 1)).clamp_min(1e-12)).clamp_max(1)


def nearest(mask: float, replaced: float, n_real: int) -> Process:
    """The process that passes through the given fractions of masked and of substituted tokens.

    With c/(1+c) = uniform and t/(1+c) = mask, B = c / sqrt(t (1-t)); fractions that leave no token clean have no
    such process, so t is kept below 1.
    """
    if replaced == 0:
        return Absorbing(n_real)
    if mask == 0:
        return Uniform(n_real)
    uniform = min(replaced * n_real / (n_real - 1), 1 - mask)
    c = uniform / (1 - uniform)
    t = min(mask * (1 + c), 0.99)
    scale = c / (t * (1 - t)) ** 0.5
    return Hybrid(n_real, p_u=scale / (2 + scale))


# What logits mean at a visible position ------------------------------------------------------------------------------


def to_posterior(
    logits_nV: Tensor, z_n: Tensor, process: Process, t_n: Tensor, vocab: Vocabulary, rest_n: Tensor | None = None
) -> Tensor:
    """Logits of p(x_i | z) from those of the leave-one-out p(x_i | z without z_i).

    The posterior is proportional to the leave-one-out times q_t(z_i|x_i): at a visible position the token in place
    gains ln(1 + k), at a mask nothing changes. Under the absorbing process a visible token is certain.
    Shapes: logits (n, V), token ids z (n,), t (n,), rest = 1 - t where that cancels. Returns new logits, unnormalised.
    """
    return _shifted(logits_nV, z_n, torch.log1p(process.keep_ratio(t_n, rest_n)), vocab)


def to_leave_one_out(
    logits_nV: Tensor, z_n: Tensor, process: Process, t_n: Tensor, vocab: Vocabulary, rest_n: Tensor | None = None
) -> Tensor:
    """Logits of the leave-one-out p(x_i | z without z_i) from those of the posterior p(x_i | z).

    The inverse of `to_posterior`. A process without substitutions makes visible tokens certain, from which nothing
    can be recovered: their rows are returned as they are.
    """
    if not process.has_uniform:
        return logits_nV
    return _shifted(logits_nV, z_n, -torch.log1p(process.keep_ratio(t_n, rest_n)), vocab)


def _shifted(logits_nV: Tensor, z_n: Tensor, shift_n: Tensor, vocab: Vocabulary) -> Tensor:
    """Add to the logit of the token in place, except at masks."""
    shift_n = torch.where(z_n == vocab.mask, 0.0, shift_n).to(logits_nV.dtype).unsqueeze(1)
    certain = torch.isposinf(shift_n)
    shifted = logits_nV.scatter_add(1, z_n.unsqueeze(1), shift_n.masked_fill(certain, 0.0))
    if not bool(certain.any()):
        return shifted
    own = torch.full_like(logits_nV, -torch.inf).scatter(1, z_n.unsqueeze(1), 0.0)
    return torch.where(certain, own, shifted)

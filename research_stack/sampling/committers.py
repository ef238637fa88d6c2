"""How much of what is proposed is written in one step, and what becomes a mask again.

Only proposals that change their position are counted: an edit that changes nothing costs nothing.
At the last step of a block the sampler fills every mask that is left, whatever the committer says.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from research_stack.require import require
from research_stack.sampling.state import Decision, Proposal, State


class Committer(ABC):
    """Base of the committers."""

    remasks = False  #: whether tokens may become masks again, so that a sequence without masks is not done
    ranks_visible = False  #: whether it needs the probabilities of visible tokens

    @abstractmethod
    def __call__(self, proposal: Proposal, state: State) -> Decision:
        """What is written and what is masked."""


class PerStep(Committer):
    """The best `k` of each step."""

    def __init__(self, k: int = 1) -> None:
        require(k >= 1, f"k={k} must be at least 1")
        self.k = k

    def __call__(self, proposal: Proposal, state: State) -> Decision:
        return Decision(best(proposal.score_BG, torch.full_like(state.left_B, self.k)))


class Threshold(Committer):
    """All whose score reaches the threshold; the best mask if there are masks and none of them does, so that it goes
    on.

    - threshold: for masks. edit_threshold: for visible tokens; None: the same.
    """

    def __init__(self, threshold: float = 0.9, edit_threshold: float | None = None) -> None:
        require(threshold <= 1, f"threshold={threshold} must be at most 1: scores are probabilities")
        require(
            edit_threshold is None or edit_threshold <= 1, f"edit_threshold={edit_threshold} must be at most 1, or null"
        )
        self.threshold, self.edit_threshold = threshold, threshold if edit_threshold is None else edit_threshold

    def __call__(self, proposal: Proposal, state: State) -> Decision:
        score_BG, mask_BG = proposal.score_BG, state.mask_BG
        commit_BG = torch.isfinite(score_BG) & (score_BG >= torch.where(mask_BG, self.threshold, self.edit_threshold))
        stuck_B = ~(commit_BG & mask_BG).any(1)
        return Decision(commit_BG | best(score_BG.masked_fill(~mask_BG, -torch.inf), stuck_B.long()))


class Schedule(Committer):
    """As many as keep the number of masks on a schedule, which ends with none.

    - shape: of the number of masks over the steps. linear: ceil(masks left / steps left) at each step, which is LLaDA's
      (Nie et al. 2025); cosine: floor(masks at the start * cos(pi/2 * share of steps done)) are left (Chang et al.
      2022, MaskGIT).
    - fill: share of the steps after which there are no masks; the others only rewrite visible tokens.
    - revisions: writes per step where visible tokens may be rewritten, if that is more than the schedule asks for;
      None: positions / steps of the filling, rounded up.
    """

    def __init__(
        self, shape: Literal["linear", "cosine"] = "linear", fill: float = 1.0, revisions: int | None = None
    ) -> None:
        require(0 < fill <= 1, f"fill={fill} must lie in (0, 1]")
        require(revisions is None or revisions >= 1, f"revisions={revisions} must be at least 1, or null")
        self.shape, self.fill, self.revisions = shape, fill, revisions

    def __call__(self, proposal: Proposal, state: State) -> Decision:
        count_B = state.mask_BG.sum(1) - self.masks_after(state)
        rewrites_B = (torch.isfinite(proposal.score_BG) & ~state.mask_BG).any(1)
        extra_B = torch.maximum(count_B, self.rewrites(state))
        commit_BG = best(proposal.score_BG, torch.where(rewrites_B, extra_B, count_B))
        filled_B = state.done_B + 1 >= self.filling_steps(state)  # rewrites may have won over masks until here
        return Decision(commit_BG | (state.mask_BG & filled_B.unsqueeze(1)))

    def filling_steps(self, state: State) -> Tensor:
        """(B,) steps of the filling, at least 1."""
        return (state.total_B * self.fill).round().long().clamp_min(1)

    def rewrites(self, state: State) -> Tensor:
        """(B,) writes per step where visible tokens may be rewritten."""
        if self.revisions is not None:
            return torch.full_like(state.total_B, self.revisions)
        return ceil_div(state.inside_BG.sum(1), self.filling_steps(state))

    def masks_after(self, state: State) -> Tensor:
        """(B,) masks the schedule leaves after this step; fewer than there are, if there are any."""
        masks_B, steps_B = state.mask_BG.sum(1), self.filling_steps(state)
        if self.shape == "linear":
            return masks_B - ceil_div(masks_B, (steps_B - state.done_B).clamp_min(1))
        share_B = ((state.done_B + 1) / steps_B).clamp_max(1).double()
        target_B = (state.masks_at_start_B * (math.pi / 2 * share_B).cos() + 1e-9).floor().long()
        return torch.minimum(target_B, (masks_B - 1).clamp_min(0))


class Remasking(Schedule):
    """The same schedules, but all masks are written and then the least probable tokens, old or new, become masks again.

    Chang et al. 2022 (MaskGIT) without its noise, and with old tokens judged anew.
    """

    ranks_visible = True

    def __init__(self, shape: Literal["linear", "cosine"] = "linear", fill: float = 1.0) -> None:
        super().__init__(shape, fill)

    def __call__(self, proposal: Proposal, state: State) -> Decision:
        kept_BG = torch.where(state.mask_BG, proposal.p_token_BG, proposal.p_current_BG)
        worst_BG = kept_BG.neg().masked_fill(~state.inside_BG, -torch.inf)
        remask_BG = best(worst_BG, self.masks_after(state))
        return Decision(state.mask_BG & ~remask_BG, remask_BG & ~state.mask_BG)


class All(Committer):
    """Everything that is proposed, masks included: for proposals that are draws of a whole step."""

    remasks = True

    def __call__(self, proposal: Proposal, state: State) -> Decision:
        return Decision(torch.isfinite(proposal.score_BG))


class ReMDM(Committer):
    """Remasking diffusion (Wang et al. 2025): each token becomes a mask again with probability sigma, and masks are
    written more often to make up for it, so that the marginals stay those of the absorbing process.

    With alpha the share of tokens, from t to s: sigma <= min(1, (1 - alpha_s) / alpha_t), and a mask is written with
    probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t) (their eq. 5 and 6).

    - variant: rescale: sigma = eta * its maximum; cap: sigma = min(eta, its maximum); loop: alpha rises to `alpha_on`,
      is held between t_on and t_off while sigma = min(eta, its maximum), then rises to 1.
    - eta: see variant. t_on, t_off, alpha_on: of `loop`; times run from 1 down to 0.
    """

    remasks = True

    def __init__(
        self,
        variant: Literal["rescale", "cap", "loop"] = "rescale",
        eta: float = 0.04,
        t_on: float = 0.55,
        t_off: float = 0.05,
        alpha_on: float = 0.9,
    ) -> None:
        require(0 <= eta <= 1, f"eta={eta} must lie in [0, 1]")
        require(0 < t_off < t_on < 1, f"t_off={t_off} must lie between 0 and t_on={t_on}, and that below 1")
        require(0 < alpha_on < 1, f"alpha_on={alpha_on} must lie in (0, 1)")
        self.variant, self.eta, self.t_on, self.t_off, self.alpha_on = variant, eta, t_on, t_off, alpha_on

    def __call__(self, proposal: Proposal, state: State) -> Decision:
        t_B1 = (state.left_B / state.total_B).double().unsqueeze(1)
        s_B1 = ((state.left_B - 1) / state.total_B).double().unsqueeze(1)
        sigma_B1, write_B1 = self.probabilities(t_B1, s_B1)
        visible_BG = state.inside_BG & ~state.mask_BG
        return Decision(state.mask_BG & (state.coin_BG < write_B1), visible_BG & (state.coin_BG < sigma_B1))

    def probabilities(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(sigma, probability that a mask is written) of the step from t to s < t."""
        before, after = self.alpha(t), self.alpha(s)
        max_sigma = ((1 - after) / before).clamp(0, 1)
        sigma = self.eta * max_sigma if self.variant == "rescale" else max_sigma.clamp_max(self.eta)
        if self.variant == "loop":
            sigma = torch.where((t <= self.t_on) & (s >= self.t_off), sigma, 0.0)
        return sigma, (after - (1 - sigma) * before) / (1 - before)

    def alpha(self, t: Tensor) -> Tensor:
        """The share of positions that hold tokens at t."""
        if self.variant != "loop":
            return 1 - t
        rising = self.alpha_on * (1 - t) / (1 - self.t_on)
        ending = 1 - (1 - self.alpha_on) * t / self.t_off
        return torch.where(t > self.t_on, rising, torch.where(t < self.t_off, ending, self.alpha_on))


def best(score_BG: Tensor, count_B: Tensor) -> Tensor:
    """(B, G) bool: the `count_B` highest scores of each row that are not -inf; the leftmost among equal ones."""
    order_BG = score_BG.argsort(dim=1, descending=True, stable=True)
    first_BG = torch.arange(score_BG.shape[1], device=score_BG.device) < count_B.unsqueeze(1)
    return torch.zeros_like(first_BG.expand_as(order_BG)).scatter(1, order_BG, first_BG.expand_as(order_BG)) & (
        score_BG > -torch.inf
    )


def ceil_div(a: Tensor, b: Tensor) -> Tensor:
    """a / b rounded up, for whole numbers."""
    return -(-a // b)

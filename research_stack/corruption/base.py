"""Corruption: how a clean sequence becomes the one a model has to repair.

To add one, subclass `Corruption`, implement `rates` (the fractions masked, substituted and chosen-but-kept at a level)
and write a YAML with its `_target_`. Everything else is shared: levels, protection, position-dependent rates,
exact counts, substitutes that are never special and never the token they replace, and draws that are a pure
function of the stream and the row's index in the batch.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
from torch import Tensor

from research_stack.corruption.positions import Positional, spread
from research_stack.corruption.process import Process, nearest
from research_stack.corruption.protection import Protection
from research_stack.corruption.times import Times
from research_stack.data.vocabulary import Vocabulary
from research_stack.streams import Draws

_HALF_STEP = 2.0**-25  # of a float32 draw: keeps a draw of 0 off the ends of the intervals it is compared with


class Corrupted(NamedTuple):
    """A corrupted batch, B rows of L.

    - z_BL: the corrupted tokens.
    - masked_BL, replaced_BL: became the mask; became another real token. Disjoint.
    - selected_BL: chosen: masked, replaced, or kept as it was on purpose.
    - t_B: noise level of each row in [0, 1], float32: the t of `Corruption.process`.
    - mask_p_BL: probability with which the position was masked, float32; for weights 1/p.
    - select_p_BL: probability with which it was selected, float32.
    - open_BL: positions that could have been corrupted: eligible, real and unprotected.
    - slope_B: dt/ds where t was drawn through s (`Times.arcsine`), else 1; float32. Weighted losses multiply by it.
    """

    z_BL: Tensor
    masked_BL: Tensor
    replaced_BL: Tensor
    selected_BL: Tensor
    t_B: Tensor
    mask_p_BL: Tensor
    select_p_BL: Tensor
    open_BL: Tensor
    slope_B: Tensor


class Rates(NamedTuple):
    """Fractions of the open positions, one value per row, summing to at most 1."""

    mask: Tensor
    replace: Tensor
    keep: Tensor

    @property
    def total(self) -> Tensor:
        """The fraction that is chosen."""
        return self.mask + self.replace + self.keep


class Tables(NamedTuple):
    """Vocabulary lookups on one device: ids of real tokens, index of each id among them (-1: special), rarity."""

    real_N: Tensor
    index_V: Tensor
    rarity_V: Tensor


class Corruption(ABC):
    """Base of every corruption.

    - times: how the level of each sequence is drawn; default: stratified over the batch.
    - positions: position-dependent rates; None: the same everywhere.
    - protection: positions to leave alone; rates then are fractions of the others. None: none.
    """

    exact = False  #: whether z is a draw from `process`, so that bounds of the process hold for training

    def __init__(
        self, times: Times | None = None, positions: Positional | None = None, protection: Protection | None = None
    ) -> None:
        self.times, self.positions, self.protection = times or Times(), positions, protection

    @abstractmethod
    def rates(self, level_B: Tensor) -> Rates:
        """The fractions at each row's level in [0, 1] (float64)."""

    def bind(self, vocab: Vocabulary, counts_V: Tensor | None = None) -> Self:
        """A copy that knows the token space.

        - counts_V: counts of each id in the training data, for `Protection`; None: byte-pair order stands in.
        """
        if vocab.n_real < 2:
            raise ValueError(f"vocab={vocab.n_real} real tokens: a substitute needs at least 2")
        bound = copy.copy(self)
        bound.vocab, bound._counts_V, bound._tables = vocab, counts_V, {}
        bound.process = bound.process_over(vocab.n_real)
        return bound

    vocab: Vocabulary
    process: Process  #: the process this corruption draws from, or is nearest to
    _counts_V: Tensor | None
    _tables: dict[torch.device, Tables]

    def process_over(self, n_real: int) -> Process:
        """The diffusion process nearest to this corruption: the one through its fractions at the middle level."""
        middle = self.rates(torch.tensor([0.5], dtype=torch.float64))
        return nearest(float(middle.mask), float(middle.replace), n_real)

    def __call__(
        self, tokens_BL: Tensor, eligible_BL: Tensor, draws: Draws, prompt_BL: Tensor | None = None
    ) -> Corrupted:
        """Corrupt a batch. The order of the draws is fixed: level, choice, kinds, substitutes.

        - tokens_BL: int64 ids. eligible_BL: bool, positions that may be touched; special tokens never are.
        - draws: the rows' stream. prompt_BL: bool, for protection by the prompt.
        """
        tables = self.tables(tokens_BL.device)
        open_BL = eligible_BL & (tables.index_V[tokens_BL] >= 0)
        if self.protection is not None:
            open_BL = open_BL & ~self.protection(tokens_BL, open_BL, prompt_BL, tables.rarity_V)
        level_B, slope_B = self.times(draws)
        rates = self.rates(level_B)
        p_BL = self._probabilities(rates.total, open_BL)
        masked_BL, replaced_BL, selected_BL = self.choose(rates, p_BL, draws)
        z_BL = self.apply(tokens_BL, masked_BL, replaced_BL, draws)
        mask_share_B1 = (rates.mask / rates.total.clamp_min(1e-300)).unsqueeze(1)
        return Corrupted(
            z_BL,
            masked_BL,
            replaced_BL,
            selected_BL,
            self.time(level_B, rates).float(),
            (p_BL * mask_share_B1).float(),
            p_BL.float(),
            open_BL,
            slope_B.float(),
        )

    def time(self, level_B: Tensor, rates: Rates) -> Tensor:
        """The t of `process` that a row's fractions stand for."""
        return self.process.time_of(rates.mask, rates.replace)

    def choose(self, rates: Rates, p_BL: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """(masked, replaced, selected), each (B, L) bool, with exact counts in every row.

        Each count is its fraction times the number of open positions, rounded up or down at random without bias;
        where that is a whole number the count is that number. Which positions are chosen follows p_BL.
        """
        length = p_BL.shape[1]
        rounding_B = draws.uniform().double()
        selected_BL = systematic(p_BL, draws.uniform(length), rounding_B)
        # The same rounding draw for every cumulated fraction keeps each difference within 1 of its own fraction.
        share_B = 1 / rates.total.clamp_min(1e-300)
        size_B = p_BL.sum(1)
        masks_B = whole(size_B * rates.mask * share_B, rounding_B)
        noised_B = whole(size_B * (rates.mask + rates.replace) * share_B, rounding_B)
        rank_BL = ranks(draws.uniform(length).masked_fill(~selected_BL, 2.0))
        masked_BL = (rank_BL < masks_B.unsqueeze(1)) & selected_BL
        return masked_BL, (rank_BL < noised_B.unsqueeze(1)) & selected_BL & ~masked_BL, selected_BL

    def apply(self, tokens_BL: Tensor, masked_BL: Tensor, replaced_BL: Tensor, draws: Draws) -> Tensor:
        """The tokens with masks put in, and substitutes uniform over the N - 1 real tokens that are not in place."""
        tables = self.tables(tokens_BL.device)
        draw_BL = draws.integers(self.vocab.n_real - 1, tokens_BL.shape[1])
        own_BL = tables.index_V[tokens_BL]
        other_BL = tables.real_N[draw_BL + (draw_BL >= own_BL)]  # draw among N - 1 and step over the one in place
        return torch.where(replaced_BL, other_BL, tokens_BL).masked_fill(masked_BL, self.vocab.mask)

    def tables(self, device: torch.device) -> Tables:
        """The lookups on a device, made once."""
        if device not in self._tables:
            real_N = torch.from_numpy(self.vocab.real)
            index_V = torch.full((self.vocab.size,), -1)
            index_V[real_N] = torch.arange(len(real_N))
            rarity_V = torch.arange(self.vocab.size) if self._counts_V is None else -self._counts_V.cpu()
            self._tables[device] = Tables(real_N.to(device), index_V.to(device), rarity_V.to(device))
        return self._tables[device]

    def _probabilities(self, total_B: Tensor, open_BL: Tensor) -> Tensor:
        """(B, L) float64: the probability with which each position is selected."""
        if self.positions is None:
            return total_B.unsqueeze(1) * open_BL
        return spread(total_B, self.positions(open_BL), open_BL)


# Exact counts --------------------------------------------------------------------------------------------------------


def settled(value: Tensor) -> Tensor:
    """The value, or the whole number it misses by rounding errors: 0.7 * 10 is a little less than 7."""
    near = value.round()
    return torch.where((value - near).abs() < 1e-9, near, value)


def whole(value: Tensor, rounding: Tensor) -> Tensor:
    """`value` rounded up or down with its own expectation, given rounding ~ U[0, 1); whole numbers stay."""
    return (settled(value) + rounding + _HALF_STEP).floor()


def ranks(key_BL: Tensor) -> Tensor:
    """The rank of each element in its row's ascending order, 0-based."""
    order_BL = key_BL.argsort(dim=1, stable=True)
    place_BL = torch.arange(key_BL.shape[1], device=key_BL.device).expand_as(order_BL)
    return torch.empty_like(order_BL).scatter_(1, order_BL, place_BL)


def systematic(p_BL: Tensor, key_BL: Tensor, rounding_B: Tensor) -> Tensor:
    """(B, L) bool: positions chosen with inclusion probabilities p, whole(sum of p, rounding) of them in each row.

    Systematic sampling (Madow 1949) in a random order: lay the probabilities end to end and take every position in
    which a point of a unit grid falls. Equal probabilities give a simple random sample.

    - p_BL: float64 in [0, 1]. key_BL: U[0, 1) for the order. rounding_B: U[0, 1), the offset of the grid.
    """
    order_BL = key_BL.argsort(dim=1, stable=True)
    ends_BL = p_BL.gather(1, order_BL).cumsum(1)
    total_B1 = ends_BL[:, -1:]
    # Dividing by the sum itself makes a whole last end exact, whatever was rounded on the way.
    ends_BL = ends_BL / total_B1.clamp_min(1e-300) * settled(total_B1)
    grid_BL = (ends_BL + rounding_B.unsqueeze(1) + _HALF_STEP).floor()
    hit_BL = grid_BL.diff(dim=1, prepend=torch.zeros_like(grid_BL[:, :1])) > 0
    return torch.zeros_like(hit_BL).scatter_(1, order_BL, hit_BL)

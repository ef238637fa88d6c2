"""Randomness without state: every draw is a function of (seed, names).

One seed gives independent named streams ("init", "order", "corruption", "sampling", ...). A stream is opened
anew for each step from the seed, its name and the step, so nothing has to be saved for a killed run to draw
after its resume what the uninterrupted run would have drawn. Draws are made for the whole global batch and
each device takes its own rows, so any number of devices and any gradient accumulation sees the same numbers.
"""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import Tensor


def seed_of(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on every part: SHA-256 of `seed/name/name...`."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch.Generator on `device` for the named stream."""
    return torch.Generator(device=device).manual_seed(seed_of(seed, *names))


class Draws:
    """Random numbers for rows `start:stop` of a batch of `total` sequences.

    - seed, names: the stream, as in `generator`; usually (seed, "corruption", step).
    - total: rows of the whole batch over all devices.
    - rows: the slice of them this device holds; None for all.
    """

    def __init__(
        self, seed: int, *names: str | int, total: int, rows: slice | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.generator = generator(seed, *names, device=device)
        self.total, self.rows, self.device = total, rows or slice(0, total), device

    def whole(self) -> Draws:
        """The same stream, from its current state, for all rows of the whole batch."""
        every = copy.copy(self)
        every.rows = slice(0, self.total)
        return every

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """U[0, 1) of shape (rows, *shape)."""
        return torch.rand((self.total, *shape), generator=self.generator, device=self.device, dtype=dtype)[self.rows]

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in {0, ..., high - 1} of shape (rows, *shape), int64."""
        return torch.randint(high, (self.total, *shape), generator=self.generator, device=self.device)[self.rows]

    def stratified(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """(rows,) levels in [0, 1), one in each of `total` equal strata, in random order over the whole batch.

        Each is U[0, 1) on its own; together they cover the interval evenly, which cuts the variance of an
        average over the batch (low-discrepancy times, Kingma et al. 2021, appendix I.1).
        """
        order = torch.randperm(self.total, generator=self.generator, device=self.device)
        jitter = torch.rand(self.total, generator=self.generator, device=self.device, dtype=dtype)
        return ((order + jitter) / self.total).clamp_max(1 - 1e-12)[self.rows]

"""Which rows a training step sees, and the order of the validation rows, for one rank among several.

The training loader is endless and one item of it is one optimizer step: this rank's rows of the global batch. Which
rows a step sees is a function of (seed, step) alone, so a run resumed at a step goes on exactly where it was, with any
number of loader workers and any number of devices. There are two orders:

- shuffled: the rows of each epoch in an order drawn from the stream (seed, "order", epoch), laid end to end and cut
  into batches.
- contiguous: row b of a step goes on where row b of the step before stopped, for models that carry a state over steps.

Shapes: N rows, B sequences of a global batch, L tokens of a sequence.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from research_stack.streams import generator

if TYPE_CHECKING:
    from research_stack.data.packing import PackedRows

Batch = dict[str, Tensor]


class Rows(Protocol):
    """Rows that batches are made of."""

    def __len__(self) -> int:
        """N."""
        ...

    def take(self, rows: np.ndarray | slice) -> Self:
        """Some of the rows, in the order asked for."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """The entries of a batch, (N, ...) each."""
        ...


def rank_and_world_size() -> tuple[int, int]:
    """(rank, world size) of this process in torch.distributed; (0, 1) when nothing is distributed."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def batch_of(rows: Rows) -> Batch:
    """The rows as tensors: tokens int64 (B, L); eligible, attention_mask and prompt bool (B, L); of packed pairs
    seq_idx and position_ids int64 (B, L).
    """
    return {name: torch.from_numpy(array) for name, array in rows.arrays().items()}


class StepBatches(IterableDataset):
    """Endless steps' batches of one rank, from `start_step` on; what a step holds, `batch` says.

    - batch_size: B, over all devices.
    - rank, world: this device's share is rows rank*B/world : (rank+1)*B/world of each batch.
    - repeat: so many steps one after another see the same batch: step s that of number s // repeat.
    """

    def __init__(self, batch_size: int, start_step: int, rank: int, world: int, repeat: int = 1) -> None:
        self.batch_size, self.start_step, self.repeat = batch_size, start_step, repeat
        share = batch_size // world
        self.share = slice(rank * share, (rank + 1) * share)

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """This rank's B/world rows of the batch of this number, which is the step where repeat is 1."""

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()  # workers take turns, and DataLoader collects them in that order
        step, stride = (self.start_step + worker.id, worker.num_workers) if worker else (self.start_step, 1)
        while True:
            yield self.batch(step // self.repeat)
            step += stride


class TrainBatches(StepBatches):
    """The rows of each epoch in an order of its own, from the stream (seed, "order", epoch).

    - rows: the N training rows.
    """

    def __init__(
        self, rows: Rows, batch_size: int, seed: int, start_step: int, rank: int, world: int, repeat: int = 1
    ) -> None:
        super().__init__(batch_size, start_step, rank, world, repeat)
        self.rows, self.seed = rows, seed
        self._orders: dict[int, np.ndarray] = {}

    def order(self, epoch: int) -> np.ndarray:
        """(N,) the order of the rows in an epoch; the last one or two asked for are kept."""
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = torch.randperm(len(self.rows), generator=generator(self.seed, "order", epoch)).numpy()
        return self._orders[epoch]

    def indices(self, step: int) -> np.ndarray:
        """(B/world,) the rows of this rank at a step."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.share]
        epochs, indices = np.divmod(positions, len(self.rows))
        return np.concatenate([self.order(int(e))[indices[epochs == e]] for e in np.unique(epochs)])

    def batch(self, step: int) -> Batch:
        """This rank's B/world rows of a step."""
        return batch_of(self.rows.take(self.indices(step)))


class ContiguousBatches(StepBatches):
    """The rows of plain text laid end to end, cut into B equal stretches; row b of every step is a window of stretch b.

    The windows of a stretch begin L - overlap tokens apart. After the last that fits, all rows begin again at the
    first.

    - rows: the N training rows. overlap: tokens that a window has in common with the one before it, in [0, L).

    Raises ValueError in one line for pairs, and for a text that does not hold B windows.
    """

    def __init__(
        self, rows: PackedRows, batch_size: int, overlap: int, start_step: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(batch_size, start_step, rank, world)
        self.rows = rows
        if not rows.plain:
            raise ValueError(
                "order=contiguous needs plain text: the rows of this corpus are prompt and response pairs; use"
                " order=shuffled"
            )
        length = rows.tokens.shape[1]
        self.stretch, self.stride = rows.tokens.size // batch_size, length - overlap
        if self.stretch < length:
            raise ValueError(
                f"batch_size={batch_size} is too large for order=contiguous: the {rows.tokens.size} training tokens cut"
                f" into so many stretches leave {self.stretch} tokens each, less than sequence_length={length}; lower"
                " either, or use a larger corpus"
            )
        self.windows = (self.stretch - length) // self.stride + 1

    def starts(self, step: int) -> np.ndarray:
        """(B/world,) where the windows of this rank begin at a step, in tokens from the beginning of the text."""
        return np.arange(self.batch_size)[self.share] * self.stretch + step % self.windows * self.stride

    def batch(self, step: int) -> Batch:
        """This rank's rows of a step, and `fresh`, bool (B/world,): the row does not go on from the step before."""
        starts_B = self.starts(step)
        return {
            **batch_of(self.rows.windows(starts_B)),
            "fresh": torch.full((len(starts_B),), step % self.windows == 0),
        }


class ValidationBatches(IterableDataset):
    """The validation rows once, in order; rank r of w has rows r, r+w, r+2w, ... and all ranks have the same number."""

    def __init__(self, rows: Rows, batch_rows: int, rank: int, world: int) -> None:
        self.rows, self.batch_rows = rows, batch_rows
        self.mine = np.arange(len(rows) // world) * world + rank

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_rows)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.mine), self.batch_rows):
            yield batch_of(self.rows.take(self.mine[start : start + self.batch_rows]))

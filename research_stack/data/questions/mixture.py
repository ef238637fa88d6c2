"""Batches of a mixture of sources: which question stands in which row of a step is a function of (seed, step) alone.

Each source runs through shuffled epochs of its own. How many rows of a step are of which source follows from the
weights by systematic sampling (Madow and Madow 1944): within one of the exact share in every step, and on the long run
exact. The one number that a step's sampling needs is a term of the additive sequence of the golden ratio, which is
spread evenly over the steps.

Shapes: N questions, K sources, S steps, B questions of a global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from research_stack.data.batches import Batch, StepBatches, TrainBatches
from research_stack.streams import generator, seed_of

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio


@dataclass(frozen=True)
class QuestionRows:
    """Questions by number, int64 (N,), in the form that the batches of `module` ask for."""

    number_N: np.ndarray

    def __len__(self) -> int:
        return len(self.number_N)

    def take(self, rows: np.ndarray | slice) -> QuestionRows:
        """Some of them, in the order asked for."""
        return QuestionRows(self.number_N[rows])

    def arrays(self) -> dict[str, np.ndarray]:
        """`question`, int64 (N,)."""
        return {"question": self.number_N}


class MixedBatches(StepBatches):
    """Endless steps' batches {"question": int64 (B/world,)} of one rank; each row is of a source with the probability
    of its weight.

    - parts: the training questions of each source. weights: of each source, above 0; only their ratios count.
    - names: of the sources; the order of one depends on its name and not on the others.
    """

    def __init__(
        self,
        parts: Sequence[QuestionRows],
        weights: Sequence[float],
        names: Sequence[str],
        batch_size: int,
        seed: int,
        start_step: int,
        rank: int,
        world: int,
        repeat: int = 1,
    ) -> None:
        super().__init__(batch_size, start_step, rank, world, repeat)
        self.parts, self.seed = parts, seed
        self.epochs = [
            TrainBatches(part, 1, seed_of(seed, "source", name), 0, 0, 1)
            for part, name in zip(parts, names, strict=True)
        ]
        self.bounds_K = np.round(np.cumsum(weights) / np.sum(weights) * batch_size, 9)
        self._seen: tuple[int, np.ndarray] = (
            0,
            np.zeros(len(parts), np.int64),
        )  # a step, and the rows of each source before it

    def counts(self, steps_S: np.ndarray) -> np.ndarray:
        """(S, K) int64: the rows of each source in these steps; they sum to B."""
        offset = np.uint64(seed_of(self.seed, "mixture"))
        points = offset + steps_S.astype(np.uint64) * np.uint64(GOLDEN)  # modulo 2^64
        uniform_S = (points >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.diff(np.ceil(self.bounds_K - uniform_S[:, None]).astype(np.int64), axis=1, prepend=0)

    def before(self, step: int) -> np.ndarray:
        """(K,) int64: the rows of each source in all steps before this one."""
        at, rows_K = self._seen if self._seen[0] <= step else (0, np.zeros(len(self.parts), np.int64))
        self._seen = step, rows_K + self.counts(np.arange(at, step)).sum(0)
        return self._seen[1]

    def batch(self, step: int) -> Batch:
        """This rank's B/world questions of a step."""
        numbers = []
        for part, epochs, first, count in zip(
            self.parts, self.epochs, self.before(step), self.counts(np.array([step]))[0], strict=True
        ):
            numbers += [
                part.number_N[epochs.order(e)[i]]
                for e, i in (divmod(p, len(part)) for p in range(int(first), int(first + count)))
            ]
        order_B = torch.randperm(
            self.batch_size, generator=generator(self.seed, "mixture", step)
        ).numpy()  # no rank sees one source alone
        return {"question": torch.from_numpy(np.array(numbers, np.int64)[order_B[self.share]])}

"""What an evaluation gets: a trained method with its data, and the folder to write to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import nn

    from research_stack.corruption.base import Corruption
    from research_stack.data.module import TokenData
    from research_stack.sampling.denoiser import Denoiser
    from research_stack.sampling.sampler import Sampler

    class CorruptedDenoiser(Denoiser, Protocol):
        """A denoiser that knows the (bound) corruption it was trained under."""

        corruption: Corruption
        model: nn.Module


@dataclass
class Context:
    """A trained run, ready to be measured.

    - method: a denoiser in eval mode on `device`, with the averaged weights where an average is kept.
    - data: prepared. sampler: the run's own.
    - folder: the run folder; evaluations write tables/*.csv, figures/*.png, samples.jsonl and films/*.json there.
    - seed: of the evaluation's streams.
    - autocast: makes the context manager of the training precision.
    """

    method: CorruptedDenoiser
    data: TokenData
    sampler: Sampler
    folder: Path
    seed: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[None]]

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, training precision."""
        with torch.inference_mode(), self.autocast():
            yield


class Evaluation(Protocol):
    """One measurement: a class that the config builds and that is called on the context."""

    def unsuited(self, method: type) -> str | None:
        """Why methods of this class cannot be measured so, and what can measure them; None if they can. Asked before
        training.
        """
        ...

    def __call__(self, context: Context) -> dict[str, float]:
        """The numbers by name; they land in result.json as `<name of the evaluation>/<key>`."""
        ...

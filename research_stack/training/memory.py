"""A step that does not fit into memory: how that is told from other errors, and what must be as it was before the step
begins again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WORDS = ("not enough memory", "can't allocate memory")  # of the CPU's allocator on Windows, and elsewhere


class StepTooLarge(ValueError):
    """A step does not fit into memory, however it is cut."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the CPU's allocator, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in WORDS)


class BufferSnapshot:
    """Copies of the buffers of a module that training may change; those that no checkpoint holds are constants, and
    left out.
    """

    def __init__(self, module: nn.Module) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = [
            (buffer, buffer.clone())
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None and name not in part._non_persistent_buffers_set
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers the values they had."""
        for buffer, value in self.pairs:
            buffer.copy_(value)

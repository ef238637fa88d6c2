"""The exponential moving average of the weights."""

from __future__ import annotations

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class Ema(WeightAveraging):
    """Averages the parameters after each step; validation, checkpoints and evaluation see the average.

    The decay grows as min(decay, (1 + n) / (10 + n)) with the number n of updates, so that a short run is not
    still averaging its initial weights at the end.
    """

    def __init__(self, decay: float = 0.999) -> None:
        @torch.no_grad()
        def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            n = float(count)
            share = 1 - min(decay, (1 + n) / (10 + n))
            torch._foreach_lerp_(averaged, current, share)  # pyright: ignore[reportPrivateImportUsage]  not in the stubs

        # Buffers are constants here (some of them -inf, which an average would turn into nan).
        super().__init__(use_buffers=False, multi_avg_fn=update)

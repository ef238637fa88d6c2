"""A multilayer perceptron from a vector to one number.

Shapes: B rows, F inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research_stack.require import require
from research_stack.streams import generator


class Regressor(nn.Module):
    """Linear layers with GELU (Hendrycks & Gimpel 2016) between them, one number at the end.

    Each row of inputs is first brought to mean 0 and variance 1, since numbers of an embedding of length 1 are small.
    It computes in the precision of its weights, whatever the precision of training: what it costs is next to nothing.

    - inputs: F, numbers of a row; the data say how many.
    - hidden: units of each hidden layer; [] for a linear function.
    - dropout: share of the hidden units that are left out in training, in [0, 1); `forward` is told which.
    - seed: of the initial weights, drawn from the stream (seed, "init"). The last layer starts small: near 0 for every
      row.
    """

    def __init__(
        self, inputs: int | None = None, hidden: Sequence[int] = (256,), dropout: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        require(inputs is None or inputs >= 1, f"inputs={inputs} must be at least 1")
        require(all(units >= 1 for units in hidden), f"hidden={list(hidden)} must be numbers of units, each at least 1")
        require(
            all(units <= 1_000_000 for units in hidden),
            f"hidden={list(hidden)} must be numbers of units, each at most 1,000,000",
        )
        require(0 <= dropout < 1, f"dropout={dropout} must lie in [0, 1)")
        self.inputs, self.hidden, self.dropout = _given(inputs), list(hidden), dropout
        widths = [self.inputs, *hidden, 1]
        layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.layers = nn.ModuleList(layers)
        stream = generator(seed, "init")
        for index, layer in enumerate(layers):
            gain = 0.1 if index == len(hidden) else math.sqrt(2)
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features), generator=stream)
            nn.init.zeros_(layer.bias)

    @property
    def blocks(self) -> list[nn.Module]:
        """It is one: its layers are small."""
        return [self]

    @staticmethod
    def least_numbers(rows: int, hidden: Sequence[int]) -> int:
        """Weights, and the first hidden layer of a step, at the very least; the check reads it."""
        return (
            sum(hidden[i] * hidden[i + 1] for i in range(len(hidden) - 1))
            + sum(hidden)
            + (rows * hidden[0] if hidden else 0)
        )

    def forward(self, features_BF: Tensor, uniform_BH: Tensor | None = None) -> Tensor:
        """(B,) one number per row.

        - uniform_BH: of a row, a number in [0, 1) for each hidden unit of all layers: those below `dropout` are left
          out and the rest made larger for it. They belong to the row, whatever stands beside it. None: all stay.
        """
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        parts = [None] * len(self.hidden) if uniform_BH is None else uniform_BH.split(self.hidden, dim=1)
        with torch.autocast(features_BF.device.type, enabled=False):
            x = F.layer_norm(features_BF.to(first.weight.dtype), (self.inputs,))
            for layer, uniform_BU in zip(self.layers[:-1], parts, strict=True):
                x = F.gelu(layer(x))
                x = x if uniform_BU is None else x * (uniform_BU >= self.dropout) / (1 - self.dropout)
            return self.layers[-1](x).squeeze(-1)

    def flops_per_token(self, length: int = 1) -> float:
        """Of one forward pass of one row: 2 per weight of a matrix."""
        return 2.0 * sum(layer.weight.numel() for layer in self.layers if isinstance(layer, nn.Linear))


def _given(inputs: int | None) -> int:
    """The inputs that the data have named. It stands apart because the static check knows the config alone, where there
    are none yet.
    """
    if inputs is None:
        raise ValueError(
            "inputs=null: this data gives tokens and no vectors; choose a transformer, or data=replies_scored"
        )
    return inputs

"""What the autoregressive sampler asks of a model: to read texts from left to right and to say what may come next.

Shapes: B texts, L tokens, V vocabulary, n of the texts, k candidates for the next token of each.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from research_stack.data.vocabulary import Vocabulary


class NextTokenPrediction(NamedTuple):
    """What a model says behind the last token it has read.

    - logits_BV: of the next token, float32 or float64; -inf at tokens it never predicts.
    - confidence_B: the loss in nats that it predicts for itself at the token behind its own next one; None if it
      predicts none.
    - zscore_B: the same in running deviations from its running mean; 0 is as sure as usual.
    """

    logits_BV: Tensor
    confidence_B: Tensor | None = None
    zscore_B: Tensor | None = None


class IncrementalReader(Protocol):
    """B texts that are being read, and what is kept of them to go on.

    - predicts_loss: whether there are confidences, and `confidence_at` can be asked.
    """

    predicts_loss: bool

    def read(self, tokens_BL: Tensor) -> NextTokenPrediction:
        """Read these tokens, which follow those read before."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these texts only, indices (n,) in this order."""
        ...

    def confidence_at(self, tokens_nk: Tensor, rows: Tensor | None = None) -> Tensor:
        """(n, k) confidences there would be at each candidate if it were the next token; nothing is read.

        - rows: indices (n,) of the texts; None for all.
        """
        ...


class CausalModel(Protocol):
    """A model of the next token."""

    vocab: Vocabulary

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens."""
        ...

    def reader(self) -> IncrementalReader:
        """A reader that has read nothing yet."""
        ...

"""What samplers and bounds ask of a model: logits of the clean tokens, given corrupted ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from torch import Tensor

from research_stack.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from research_stack.corruption.base import Corruption

PredictionKind = Literal["posterior", "leave_one_out"]


class Denoiser(Protocol):
    """A model that predicts clean tokens.

    - vocab: its token space.
    - predicts: what its logits at a visible position mean: p(x_i | z), or p(x_i | z without z_i); at masks these are
      the same. `corruption.process` converts one into the other.
    """

    vocab: Vocabulary

    @property
    def predicts(self) -> PredictionKind:
        """The meaning of the logits at visible positions."""
        ...

    def logits(
        self,
        z_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        t_B: Tensor | None = None,
        where_BL: Tensor | None = None,
    ) -> Tensor:
        """Float logits (B, L, V), or (n, V) for the True positions of `where_BL` in row-major order; -inf at special
        tokens.

        - z_BL: token ids. attention_mask_BL: bool, False at padding; None: no padding. t_B: noise level in [0, 1].
        """
        ...


@runtime_checkable
class HasCorruption(Protocol):
    """A denoiser that knows the (bound) corruption it was trained under."""

    corruption: Corruption


@runtime_checkable
class HasMaxLength(Protocol):
    """A denoiser that tells how many tokens it takes at most."""

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens."""
        ...

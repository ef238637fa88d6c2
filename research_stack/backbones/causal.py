"""What post-training asks of a causal language model, whoever built it.

Shapes: B texts, L tokens of a pass, S tokens in the cache and then these L, D width, V rows of the unembedding, R rows
of a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

from torch import Tensor, nn


class CausalCache(Protocol):
    """Keys and values of the tokens read so far, one row a text."""

    @property
    def length(self) -> int:
        """Tokens in it, the same for every row: padding is among them."""
        ...

    def select(self, rows_R: Tensor) -> Self:
        """A cache of these rows (int64, may repeat), which grows by itself: the one it was taken from stays as it
        is.
        """
        ...


class CausalBackbone(Protocol):
    """A model in which each token sees itself and what is before it; `unembedding` makes logits of its hidden
    states. It is an `nn.Module`: what is called of one stands at the end.
    """

    max_length: int
    """Longest text, in tokens."""
    causal: bool
    """True."""
    checkpoint_blocks: bool
    """Whether blocks are computed again in the backward pass; such a model cannot fill a cache with gradients."""

    def read(
        self,
        tokens_BL: Tensor,
        position_ids_BL: Tensor | None = None,
        attention_mask_BLS: Tensor | None = None,
        cache: CausalCache | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D), normalised, ready for `head`.

        - tokens_BL: int64 ids.
        - position_ids_BL: int64 positions; None: they follow the cache.
        - attention_mask_BLS: bool, True where a query attends, its own token included. It is the whole rule: a token
          after the query that it marks is seen. A query that attends to nothing has a finite hidden state without a
          meaning. None: all of the cache, and of these tokens each sees itself and what is before it.
        - cache: grows by these tokens, which follow those in it.
        """
        ...

    @property
    def unembedding(self) -> Tensor:
        """(V, D): `head` is its product with the hidden states."""
        ...

    def head(self, hidden_xD: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        ...

    def new_cache(self) -> CausalCache:
        """An empty cache for `read`."""
        ...

    def without_adapters(self) -> AbstractContextManager[None]:
        """Within it, reading gives the model that the adapters were put on. Raises ValueError for a model that has
        none.
        """
        ...

    def flops_per_token(self, length: int, logits: bool = True) -> float:
        """Of one forward pass, for a token of a text of `length`: 2 per weight of a matrix (of the unembedding, if
        `logits`), and attention.
        """
        ...

    # Of nn.Module ----------------------------------------------------------------------------------------------------

    training: bool
    """Whether it is in training mode."""

    @property
    def blocks(self) -> nn.ModuleList:
        """Its transformer blocks."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `nn.Module.parameters`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As `nn.Module.state_dict`."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As `nn.Module.load_state_dict`."""
        ...

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`."""
        ...

    def eval(self) -> Self:
        """As `nn.Module.eval`."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As `nn.Module.requires_grad_`."""
        ...

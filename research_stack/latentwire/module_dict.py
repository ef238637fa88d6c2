"""A dictionary of modules of one class."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping, ValuesView
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


class TypedModuleDict(nn.ModuleDict, Generic[M]):
    """`nn.ModuleDict`, of whose values the type is known; to torch the two are the same."""

    if TYPE_CHECKING:

        def __init__(self, modules: Mapping[str, M]) -> None: ...
        def __getitem__(self, key: str) -> M: ...
        def items(self) -> ItemsView[str, M]: ...
        def values(self) -> ValuesView[M]: ...

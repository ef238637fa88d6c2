"""Nodes of a plain config: mappings with a `_target_`, which a constructor turns into objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every (path, node) with a `_target_` at and below a plain node, the outer ones first."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            yield from nodes(value, f"{path}.{index}")


def is_node(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether the value is a node, which a constructor turns into an object."""
    return isinstance(value, Mapping) and "_target_" in value


def is_built(value: Any) -> bool:
    """Whether the value is a node, or holds one, that another constructor turns into an object first."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(is_built(v) for v in value.values())
    return isinstance(value, list) and any(is_built(v) for v in value)

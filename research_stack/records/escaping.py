"""Text that OmegaConf takes as it is: saved configs hold no interpolation, whatever `${...}` their values spell.

No torch, no hydra.

A config is resolved when it is saved. What looks like an interpolation in a saved one was put there by hand, and
resolving it could read the environment of whoever opens the folder: it is refused with its line. A `${` that a value
itself spells is saved escaped, as `\\${`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from yaml import Node

_OPENING = re.compile(r"(\\*)\$\{")  # with an odd number of backslashes before it, it is text


def mapped(tree: Any, change: Any) -> Any:
    """The plain tree with every string changed by the function."""
    if isinstance(tree, Mapping):
        return {key: mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [mapped(value, change) for value in tree]
    return change(tree) if isinstance(tree, str) else tree


def escaped(tree: Any) -> Any:
    """The tree with each `${` written so that OmegaConf reads the same text back."""
    return mapped(tree, lambda text: _OPENING.sub(lambda found: found[1] * 2 + "\\${", text))


def unescaped(tree: Any) -> Any:
    """The opposite of `escaped`."""
    return mapped(tree, lambda text: _OPENING.sub(lambda found: found[1][: len(found[1]) // 2] + "${", text))


def as_config(tree: Mapping[str, Any]) -> DictConfig:
    """A config of plain values, each of which stays what it is."""
    from omegaconf import OmegaConf

    return cast("DictConfig", OmegaConf.create(escaped(tree)))


def refuse_interpolations(path: Path, text: str) -> None:
    """Raise ValueError with file:line for the first interpolation in a saved config."""
    import yaml

    for node in _scalars(yaml.compose(text, Loader=yaml.SafeLoader)):
        found = next((m for m in _OPENING.finditer(node.value) if len(m[1]) % 2 == 0), None)
        if found is not None:
            shown = node.value if len(node.value) <= 60 else f"{node.value[:57]}..."
            raise ValueError(
                f"{path}:{node.start_mark.line + 1}: {shown!r} is an interpolation, which no saved config holds: "
                "it is not resolved here; write the value itself"
            )


def _scalars(node: Node | None) -> Iterator[Node]:
    """Every scalar at and below a YAML node, keys included."""
    stack, seen = [node] if node is not None else [], set()
    while stack:
        node = stack.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node.value, str):
            yield node
        else:
            stack += [
                part
                for item in reversed(node.value)
                for part in (reversed(item) if isinstance(item, tuple) else (item,))
            ]

"""The one place that turns a config node into an object."""
from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf

#: Packages a `_target_` may name. A config is data that people mail to each other: it must not run anything else.
WHITELIST = ("research_stack", "lightning", "torch", "transformers")

#: What torch says of sizes that cannot be allocated or counted.
TOO_LARGE = ("can't allocate memory", "not enough memory", "out of memory", "overflow", "exceeds maximum")


def targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every (path, `_target_`) at and below a plain node."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node["_target_"]
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from targets(value, f"{path}.{index}")


def plain(node: Any) -> Any:
    """The node as dicts, lists and scalars, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def build(node: Any, path: str, /, **arguments: Any) -> Any:
    """Instantiate the config node that stands at `path`, with further constructor arguments from code.

    - node: a mapping with `_target_`; nested nodes are built first. Values arrive as plain Python, since a
      checkpoint whose hyperparameters hold a DictConfig cannot be loaded with `weights_only=True`.
    - path: where the node stands in the config; error messages of constructors get it put in front.
    - arguments: objects the config cannot hold (the vocabulary, the model, ...). They win over the node's keys.

    Raises ValueError when a target is outside the whitelist or a constructor refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    node = plain(node)
    for where, target in targets(node, path):
        if not isinstance(target, str) or target.split(".")[0] not in WHITELIST:
            raise ValueError(f"{where}._target_={target!r} lies outside the allowed packages: {', '.join(WHITELIST)}")
    try:
        # A partial keeps `arguments` out of OmegaConf, which would turn dataclasses into configs of themselves.
        factory = instantiate(node, _convert_="all", _partial_=True)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):
            inner = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
            raise type(error.__cause__)(f"{path}{'.' + inner if inner else ''}.{error.__cause__}") from error
        if error.__cause__ is not None and is_too_large(error.__cause__):
            raise ValueError(f"{path}: {_too_large(error.__cause__)}") from error
        raise
    assert isinstance(factory, functools.partial)
    with named(path):
        return factory(**arguments)


@contextmanager
def named(path: str) -> Iterator[None]:
    """Put the path of a config node in front of the ValueErrors its object raises, which open with a parameter."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}.{error}") from error
    except (MemoryError, OverflowError, RuntimeError) as error:
        if not is_too_large(error):
            raise
        raise ValueError(f"{path}: {_too_large(error)}") from error


def is_too_large(error: BaseException) -> bool:
    """Whether an error says that a size is beyond memory or 64 bits."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in TOO_LARGE)
    return isinstance(error, MemoryError | OverflowError)


def _too_large(error: BaseException) -> str:
    return f"a size is too large for this machine ({' '.join(str(error).split())[:200] or type(error).__name__})"


def target(node: Mapping[str, Any]) -> type:
    """The class that the node names."""
    from hydra.utils import get_class

    return get_class(node["_target_"])


def takes(node: Mapping[str, Any], name: str) -> bool:
    """Whether the constructor of the node's class has this parameter."""
    return name in inspect.signature(target(node)).parameters


def needs(node: Mapping[str, Any]) -> set[str]:
    """The parameters without a default of the node's class."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, parameter in inspect.signature(target(node)).parameters.items() if parameter.default is parameter.empty and parameter.kind in kinds}

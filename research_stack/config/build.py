"""The one place that turns a config node into an object."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf

from research_stack.config.check_node import literal_mistake
from research_stack.config.nodes import nodes
from research_stack.config.signatures import signature
from research_stack.config.targets import SPECIAL, refused, refused_object
from research_stack.records.redaction import refuse_masked

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # the errors here tell in one line what it tells in several

#: What torch says of sizes that cannot be allocated or counted.
TOO_LARGE = ("can't allocate memory", "not enough memory", "out of memory", "overflow", "exceeds maximum")


def plain(node: Any) -> Any:
    """The node as dicts, lists and scalars, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def build(node: Any, path: str, /, **arguments: Any) -> Any:
    """Instantiate the config node at `path`, with further constructor arguments from code.

    - node: a mapping with `_target_`; nested nodes are built first. Values arrive as plain Python, since a
      checkpoint whose hyperparameters hold a DictConfig cannot be loaded with `weights_only=True`.
    - path: the node's dotted key in the config; error messages of constructors get it put in front.
    - arguments: objects the config cannot hold (the vocabulary, the model, ...). They win over the node's keys.

    Raises ValueError when a target is none a config may name (`research_stack.config.targets`), or a constructor
    refuses its arguments.
    """
    node = plain(node)
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"{path}={node} must be a mapping with a _target_")
    refuse_masked({key: value for key, value in node.items() if key not in arguments}, path)
    for where, found in nodes(node, path):
        target(found, where)
        if special := next((name for name in SPECIAL if name in found), None):
            raise ValueError(f"{where}.{special}={found[special]} cannot be set: nodes are built one way")
    values = {key: _built(value, f"{path}.{key}") for key, value in node.items() if key not in arguments}
    with named(path):
        return _called(node, values | arguments)


def _built(value: Any, path: str) -> Any:
    """A value below a node: with the nodes in it built, the innermost first. Texts stay as they are, `${...}` included.

    Hydra's `instantiate` resolves values anew at each level, so that a text could reach the environment.
    """
    if isinstance(value, list | tuple):
        return [_built(part, f"{path}.{index}") for index, part in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    values = {key: _built(part, f"{path}.{key}") for key, part in value.items()}
    if "_target_" not in value:
        return values
    try:
        with named(path):
            return _called(value, values)
    except OSError as error:
        raise type(error)(f"{path}.{error}") from error


def _called(node: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """The node's class, called; what is still to be given (`???`) is left to its default."""
    given = {key: value for key, value in values.items() if not (isinstance(value, str) and value == "???")}
    if mistake := literal_mistake(signature(node["_target_"]), given):
        raise ValueError(mistake)
    return target(node)(**{key: value for key, value in given.items() if key != "_target_"})


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


def target(node: Mapping[str, Any], path: str = "") -> type:
    """The class that the node at `path` names. Raises ValueError for one that a config may not name."""
    from hydra.utils import get_object

    name = node["_target_"]
    said = f"{path}{'.' if path else ''}_target_={name}"
    if reason := refused(name):
        raise ValueError(f"{said} {reason}")
    try:
        found = get_object(name)
    except (ImportError, ValueError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{said} cannot be loaded: {type(cause).__name__}: {' '.join(str(cause).split())}") from error
    if reason := refused_object(found):
        raise ValueError(f"{said} {reason}")
    return found


def takes(node: Mapping[str, Any], name: str) -> bool:
    """Whether the constructor of the node's class has this parameter."""
    return name in inspect.signature(target(node)).parameters


def needs(node: Mapping[str, Any]) -> set[str]:
    """The parameters without a default of the node's class."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name
        for name, parameter in inspect.signature(target(node)).parameters.items()
        if parameter.default is parameter.empty and parameter.kind in kinds
    }

"""Whether a value of a config fits the annotation of a parameter, read from the source.

Scalars, Literal, None, unions, lists, tuples and mappings of them are understood; anything else cannot be told and
passes. bool is not int; an int will do for a float.
"""
from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from research_stack.signatures import Module

SCALARS: dict[str, Callable[[Any], bool]] = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "bool": lambda v: isinstance(v, bool),
    "None": lambda v: v is None,
}
LISTS = {"list", "List", "Sequence", "Iterable", "Collection"}
TUPLES = {"tuple", "Tuple"}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}


def fits(value: Any, annotation: ast.expr | None, where: Module | None, depth: int = 0) -> bool | None:
    """Whether the value is of the annotated type; None if the annotation says nothing simple."""
    if annotation is None or depth > 8 or is_built(value):
        return None
    if isinstance(annotation, ast.Constant):
        if annotation.value is None:
            return value is None
        return fits(value, parsed(annotation.value), where, depth + 1) if isinstance(annotation.value, str) else None
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _either([fits(value, a, where, depth + 1) for a in (annotation.left, annotation.right)])
    if isinstance(annotation, ast.Subscript):
        return _fits_generic(value, annotation, where, depth)
    name = _last(annotation)
    if name in SCALARS:
        return SCALARS[name](value)
    if name in LISTS | TUPLES:
        return isinstance(value, list | tuple)
    if name in MAPPINGS:
        return isinstance(value, Mapping)
    alias = where.names.get(name) if where and isinstance(annotation, ast.Name) else None
    return fits(value, alias, where, depth + 1) if isinstance(alias, ast.BinOp | ast.Subscript) else None


def _fits_generic(value: Any, annotation: ast.Subscript, where: Module | None, depth: int) -> bool | None:
    name, inner = _last(annotation.value), annotation.slice
    items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        return value in (allowed := literals(annotation)) and any(value == a and type(value) is type(a) for a in allowed)
    if name in ("Annotated", "Final"):
        return fits(value, items[0], where, depth + 1)
    if name == "Optional":
        return True if value is None else fits(value, items[0], where, depth + 1)
    if name == "Union":
        return _either([fits(value, a, where, depth + 1) for a in items])
    if name in MAPPINGS:
        return isinstance(value, Mapping) or None if not isinstance(value, str | int | float) else False
    if name in LISTS | TUPLES:
        if not isinstance(value, list | tuple):
            return False if not (isinstance(value, str) and name not in LISTS | TUPLES) else None
        if name in TUPLES and not (len(items) == 2 and _last(items[1]) == "..."):
            return _all([fits(v, a, where, depth + 1) for v, a in zip(value, items, strict=False)]) if len(value) == len(items) else False
        return _all([fits(v, items[0], where, depth + 1) for v in value])
    return None


def is_built(value: Any) -> bool:
    """Whether the value is a node, or holds one, that another constructor turns into an object first."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(is_built(v) for v in value.values())
    return isinstance(value, list) and any(is_built(v) for v in value)


def _either(answers: list[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers else False


def _all(answers: list[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def parsed(text: str) -> ast.expr | None:
    """The expression in a quoted annotation; None where it is no expression."""
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None


def _last(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return "None" if node.value is None else "..." if node.value is Ellipsis else ""
    return ast.unparse(node).rpartition(".")[2] if isinstance(node, ast.Name | ast.Attribute) else ""


def literals(annotation: ast.expr | None) -> list[Any]:
    """The values of every Literal in an annotation."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = parsed(annotation.value)
    found = []
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Subscript) and _last(node.value) == "Literal":
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            found += [i.value for i in items if isinstance(i, ast.Constant)]
    return found


def written(value: Any) -> str:
    """The value as a user would write it in YAML or on the command line."""
    if isinstance(value, str):
        return value if value and not re.search(r"[\s:,#\[\]{}]", value) else repr(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

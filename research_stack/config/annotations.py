"""Whether a value of a config fits the annotation of a parameter, read from the source.

Scalars, Literal, None, unions, classes, lists, tuples and mappings of them are understood; anything else cannot be
judged and passes. bool is not int; an int will do for a float; a float is finite; a class is what a node makes.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from research_stack.config import inheritance
from research_stack.config.nodes import is_node
from research_stack.config.signatures import Module

SCALARS: dict[str, Callable[[Any], bool]] = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**63,
    "float": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 2**1023 and math.isfinite(v),
    "str": lambda v: isinstance(v, str),
    "bool": lambda v: isinstance(v, bool),
    "None": lambda v: v is None,
}
LISTS = {"list", "List", "Sequence", "Iterable", "Collection"}
TUPLES = {"tuple", "Tuple"}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}


def fits(value: Any, annotation: ast.expr | None, where: Module | None, depth: int = 0) -> bool | None:
    """Whether the value is of the annotated type; None if the annotation says nothing that can be judged."""
    if annotation is None or depth > 8:
        return None
    if isinstance(annotation, ast.Constant):
        if annotation.value is None:
            return value is None
        return fits(value, parsed(annotation.value), where, depth + 1) if isinstance(annotation.value, str) else None
    if len(choices := arms(annotation)) > 1:
        return _either([fits(value, choice, where, depth + 1) for choice in choices])
    if isinstance(annotation, ast.Subscript):
        return _fits_generic(value, annotation, where, depth)
    name = _last(annotation)
    if name in SCALARS:
        return inheritance.is_number(value) if is_node(value) and name != "None" else SCALARS[name](value)
    if name in LISTS | TUPLES | MAPPINGS:
        return _is_collection(value, name)
    if alias := _alias(annotation, where):
        return fits(value, alias[1], alias[0], depth + 1)
    wanted = inheritance.class_of(annotation, where)
    return inheritance.fits_class(value, wanted) if wanted is not None else None


def arms(annotation: ast.expr | None) -> list[ast.expr]:
    """The members of a union, `X | Y`, Union[X, Y] or Optional[X]; else the annotation itself."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = parsed(annotation.value)
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return [*arms(annotation.left), *arms(annotation.right)]
    if isinstance(annotation, ast.Subscript) and _last(annotation.value) in ("Union", "Optional"):
        none = [ast.Constant(None)] if _last(annotation.value) == "Optional" else []
        return [arm for item in _items(annotation) for arm in arms(item)] + none
    return [annotation] if annotation is not None else []


def _items(annotation: ast.Subscript) -> list[ast.expr]:
    return annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]


def _is_collection(value: Any, name: str) -> bool | None:
    if is_node(value):
        return inheritance.is_collection(value)
    return isinstance(value, Mapping if name in MAPPINGS else (list, tuple))


def _fits_generic(value: Any, annotation: ast.Subscript, where: Module | None, depth: int) -> bool | None:
    name, items = _last(annotation.value), _items(annotation)
    if name == "Literal" and is_node(value):
        return inheritance.is_number(value)
    if name == "Literal":
        return any(value == a and type(value) is type(a) for a in literals(annotation))
    if name in ("Annotated", "Final"):
        return fits(value, items[0], where, depth + 1)
    if name not in LISTS | TUPLES | MAPPINGS:
        return None
    if not (right := _is_collection(value, name)) or is_node(value):
        return right
    if name in MAPPINGS:
        return _all([fits(v, items[-1], where, depth + 1) for v in value.values()])
    if name in TUPLES and not (len(items) == 2 and _last(items[1]) == "..."):
        if len(value) != len(items):
            return False
        return _all([fits(v, a, where, depth + 1) for v, a in zip(value, items, strict=True)])
    return _all([fits(v, items[0], where, depth + 1) for v in value])


def misfit(
    path: str, value: Any, annotation: ast.expr | None, where: Module | None
) -> tuple[str, Any, ast.expr | None, Module | None]:
    """(path, value, annotation, module) of the innermost key of a mapping that makes the value unfit."""
    for arm in arms(annotation):
        if alias := _alias(arm, where):
            return misfit(path, value, alias[1], alias[0])
        if not isinstance(arm, ast.Subscript) or _last(arm.value) not in MAPPINGS:
            continue
        if isinstance(value, Mapping) and not is_node(value):
            inner = _items(arm)[-1]
            wrong = next((k for k, v in value.items() if fits(v, inner, where) is False), None)
            if wrong is not None:
                return misfit(f"{path}.{wrong}", value[wrong], inner, where)
    return path, value, annotation, where


def _alias(annotation: ast.expr, where: Module | None) -> tuple[Module, ast.expr] | None:
    """(module, expression) of a name that is bound to another annotation."""
    found = inheritance.definition(annotation.id, where) if where and isinstance(annotation, ast.Name) else None
    source, bound = found or (None, None)
    return (source, bound) if source is not None and isinstance(bound, ast.BinOp | ast.Subscript) else None


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

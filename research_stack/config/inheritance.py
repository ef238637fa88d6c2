"""Whether an object of one class can be passed where another is annotated, judged from the sources alone.

True and False are certain; None is whatever a base class, a decorator or a name that cannot be followed leaves open.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from research_stack.config.signatures import Found, Module, UnknownTarget, attribute, module, resolve

#: Packages whose classes neither derive from a user's nor stand for a number, a text or a list.
LIBRARIES = {"lightning", "torch", "transformers", "peft", "numpy"}
#: Bases that plain values or mappings can be instances of.
OF_VALUES = {
    "int",
    "float",
    "str",
    "bool",
    "bytes",
    "list",
    "tuple",
    "dict",
    "set",
    "NamedTuple",
    "TypedDict",
    "Enum",
    "IntEnum",
    "StrEnum",
    "Flag",
    "Mapping",
    "Sequence",
    "Iterable",
    "Number",
}

#: Bases that give an object nothing a Protocol could ask for.
EMPTY = {"object", "abc.ABC", "typing.Protocol", "typing.Generic", "ABC", "Protocol", "Generic"}


def class_of(annotation: ast.expr, where: Module | None) -> Found | None:
    """The class that a name in an annotation refers to; None if it is none, or cannot be followed."""
    if where is None or not isinstance(annotation, ast.Name | ast.Attribute):
        return None
    first, *rest = ast.unparse(annotation).split(".")
    found = _named(where, first)
    for part in rest:
        found = _named(found, part) if isinstance(found, Module) else None
    return found if isinstance(found, Found) and isinstance(found.node, ast.ClassDef) else None


def definition(name: str, where: Module) -> tuple[Module, ast.AST] | None:
    """(module, statement or expression) that a name is bound to, imports followed."""
    for _ in range(8):
        bound = where.names.get(name)
        if not isinstance(bound, tuple):
            return (where, bound) if bound is not None else None
        source, original = bound
        origin = module(source) if original is not None else None
        if origin is None:
            return None
        where, name = origin, str(original)
    return None


def _named(where: Module, name: str) -> Found | Module | None:
    try:
        return attribute(where, name)
    except UnknownTarget:
        return None


def fits_class(value: Any, wanted: Found) -> bool | None:
    """Whether a value of a config can become, or be, an object of the wanted class."""
    if value is None:
        return False
    if not isinstance(value, Mapping) or "_target_" not in value:
        return _is_value(value, wanted)
    made = made_by(value)
    return None if made is None else is_a(made, wanted)


def made_by(node: Mapping[str, Any]) -> Found | None:
    """The class of the objects that a node makes; None if it names a function or something that cannot be followed."""
    if node.get("_partial_"):
        return None
    try:
        found = resolve(str(node["_target_"]))
    except UnknownTarget:
        return None
    return found if found is not None and isinstance(found.node, ast.ClassDef) else None


def is_a(made: Found, wanted: Found) -> bool | None:
    """Whether a class derives from another, or has all that a Protocol asks for; bases are read as far as needed."""
    if is_protocol(wanted):
        return _has_all(made, members(wanted))
    if any(isinstance(above, Found) and _same(above, wanted) for above in lineage(made)):
        return True
    return False if all(_is_foreign(name, wanted) for name in ancestors(made)[1]) else None


def is_number(node: Mapping[str, Any]) -> bool | None:
    """Whether the object that a node makes can be a number, a text or a truth value."""
    made = made_by(node)
    return None if made is None or not _holds_no_value(made) else False


def is_collection(node: Mapping[str, Any]) -> bool | None:
    """Whether the object that a node makes can be read like a list or a mapping."""
    made = made_by(node)
    if made is None or not _holds_no_value(made) or {"__getitem__", "__iter__", "__getattr__"} & members(made):
        return None
    return False


def _is_value(value: Any, wanted: Found) -> bool | None:
    if is_protocol(wanted):
        return None if all(hasattr(value, name) for name in members(wanted)) else False
    return False if _holds_no_value(wanted) else None


def _holds_no_value(found: Found) -> bool:
    return not any(name.rpartition(".")[2] in OF_VALUES or not _is_known(name) for name in ancestors(found)[1])


def is_protocol(found: Found) -> bool:
    """Whether the class itself is a Protocol."""
    names = (ast.unparse(base).partition("[")[0] for base in found.node.bases)  # type: ignore[union-attr]
    return any(name.rpartition(".")[2] == "Protocol" for name in names)


@cache
def ancestors(found: Found) -> tuple[tuple[Found, ...], tuple[str, ...]]:
    """(the class and every base that can be followed, dotted names of the others)."""
    chain = list(lineage(found))
    return tuple(c for c in chain if isinstance(c, Found)), tuple(c for c in chain if isinstance(c, str))


def lineage(found: Found, into: frozenset[str] = frozenset({"lightning"})) -> Iterator[Found | str]:
    """The class and its bases, nearest first, each read when its turn comes; of one not followed the name.

    - into: libraries whose sources are read too.
    """
    waiting: list[Found | str] = [found]
    while waiting:
        current = waiting.pop(0)
        yield current
        if isinstance(current, Found):
            waiting += [_base(current.module, base, into) for base in current.node.bases]  # type: ignore[union-attr]


def _base(where: Module, base: ast.expr, into: frozenset[str]) -> Found | str:
    name = base.value if isinstance(base, ast.Subscript) else base
    first, dot, rest = ast.unparse(name).partition(".")
    bound = where.names.get(first)
    source = (
        ".".join(filter(None, bound))
        if isinstance(bound, tuple)
        else f"{where.name}.{first}"
        if bound is not None
        else first
    )
    root = source.partition(".")[0]
    if root in LIBRARIES - into or root in sys.stdlib_module_names or (bound is None and not where.stars):
        return source + dot + rest
    return class_of(name, where) or source + dot + rest


def _is_known(name: str) -> bool:
    """Whether a base that is not followed is a built-in, or of a library that makes no numbers and texts."""
    root = name.partition(".")[0]
    return "." not in name or root in LIBRARIES or root in sys.stdlib_module_names


def _is_foreign(name: str, wanted: Found) -> bool:
    """Whether a base that is not followed certainly does not derive from the wanted class."""
    return _is_known(name) and name.partition(".")[0] != wanted.module.name.partition(".")[0]


def _same(a: Found, b: Found) -> bool:
    return (a.module.name, a.node.name) == (b.module.name, b.node.name)


@cache
def members(found: Found) -> frozenset[str]:
    """What objects of the class have: names of its body and of `self.NAME = ...`, its own and inherited."""
    return frozenset().union(*map(_own, ancestors(found)[0]))


@cache
def _own(found: Found) -> frozenset[str]:
    names = {
        n.attr
        for n in ast.walk(found.node)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and ast.unparse(n.value) == "self"
    }
    for statement in found.node.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(statement.name)
        targets = (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [statement.target]
            if isinstance(statement, ast.AnnAssign)
            else []
        )
        names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return frozenset(names - {"__init__", "__slots__", "__init_subclass__"})


def _has_all(made: Found, asked: frozenset[str]) -> bool | None:
    missing = asked
    for above in lineage(made):
        missing = missing - _own(above) if isinstance(above, Found) else missing
        if not missing:
            return True
    chain, outside = ancestors(made)
    decorated = any(
        d for c in chain for d in c.node.decorator_list if not ast.unparse(d).partition("(")[0].endswith("dataclass")
    )
    return None if decorated or "__getattr__" in members(made) or not set(outside) <= EMPTY else False

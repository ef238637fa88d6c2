"""Check one node of a config against the constructor that will get it, without importing it.

Keys must be parameters, values must fit simple annotations, and the `require(...)` conditions at the top of a
constructor must hold. What cannot be judged from the source passes: it is judged when the object is built. So an
error here is always a true one, and it comes in milliseconds instead of after `import torch`.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research_stack.config.annotations import arms, fits, literals, misfit, written
from research_stack.config.expressions import CannotSay, Evaluator, Opaque
from research_stack.config.hints import choices, did_you_mean, nearest, one_line
from research_stack.config.inheritance import class_of, definition
from research_stack.config.nodes import is_built, is_node
from research_stack.config.signatures import Module, Parameter, Signature, UnknownTarget, signature
from research_stack.config.targets import SPECIAL, refused

SCHEMA = "research_stack.config.schema.Experiment"  # what a config holds, as a class whose parameters are its keys
#: Nodes that the run hands further arguments, so that it knows itself what they lack.
COMPLETED = ("method", "model", "logger", "trainer")


@dataclass(frozen=True)
class Problem:
    """A mistake: the key it is about, one line about it, and further keys it depends on."""

    key: str
    message: str
    also: tuple[str, ...] = ()

    def named_in(self, typed: Sequence[str]) -> str | None:
        """The first of its keys that the command line sets."""
        return next((k for k in (self.key, *self.also) if any(k == t or k.startswith(t + ".") for t in typed)), None)


def experiment_signature() -> Signature:
    """What a whole config takes."""
    return signature(SCHEMA)


def check_node(path: str, node: Mapping[str, Any]) -> Iterator[Problem]:
    """The mistakes of one node."""
    target = node["_target_"]
    key = f"{path}._target_"
    if reason := refused(target):
        yield Problem(key, f"{key}={target} {reason}")
        return
    if special := next((name for name in SPECIAL if name in node), None):
        said = f"{path}.{special}={short(node[special])}"
        yield Problem(f"{path}.{special}", f"{said} cannot be set: nodes are built one way")
        return
    try:
        known = signature(target)
    except UnknownTarget as error:
        name = error.target.rpartition(".")
        near = nearest(name[2], error.names, count=1)
        guess = f"; did you mean '{name[0]}.{near[0]}'?" if near else choices(sorted(error.names), "there are")
        yield Problem(key, f"{key}={target}: {name[0]} has no '{name[2]}'{guess}")
        return
    given = {str(k): v for k, v in node.items() if k != "_target_"}
    problems = [*check_keys(path, known, given), *missing(path, known, node)]
    yield from problems or conditions(path, known, given)


def check_keys(path: str, known: Signature, given: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys that are no parameters, and values that do not fit their annotations."""
    for name, value in given.items():
        if name in known.parameters:
            yield from _value_problem(_joined(path, name), known.parameters[name], value, known.module)
        elif not known.open:
            hint = did_you_mean(name, list(known.parameters), "its parameters")
            yield Problem(
                f"{path}.{name}", f"{path}.{name}={short(value)}: {known.name} has no parameter '{name}'{hint}"
            )


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def missing(path: str, known: Signature, node: Mapping[str, Any]) -> Iterator[Problem]:
    """Parameters without a default that the node does not give, where nobody else does."""
    root, _, inner = path.removeprefix("logger.").partition(".")
    known_elsewhere = not inner and (root in COMPLETED or path.startswith("logger."))
    if known_elsewhere or {"_partial_", "_args_"} & set(node):
        return
    if path and path.split(".")[0] not in experiment_signature().parameters:
        return
    for name, parameter in known.parameters.items():
        of_the_run = bool(path) and name == "seed"
        if parameter.default is None and name not in node and not of_the_run:
            key = _joined(path, name)
            yield Problem(key, f"{key} is missing: {f'{known.name} needs it' if path else 'every config has one'}")


def _value_problem(key: str, parameter: Parameter, value: Any, where: Module | None) -> Iterator[Problem]:
    default = parameter.default
    implicit = value is None and isinstance(default, ast.Constant) and default.value is None
    if value == "???" or implicit or fits(value, parameter.annotation, where) is not False:
        return
    key, value, annotation, where = misfit(key, value, parameter.annotation, where)
    assert annotation is not None
    if allowed := _choices(annotation, where):
        yield Problem(key, f"{key}={short(value)} {_one_of(value, allowed)}")
        return
    if is_node(value):
        yield Problem(f"{key}._target_", f"{key}._target_={value['_target_']} must be {_type(annotation)}")
        return
    if any(class_of(arm, where) for arm in arms(annotation)):
        yield _no_node(key, value, _type(annotation))
        return
    kinds = {"NoneType": "null", "str": "a string", "bool": "a boolean", "dict": "a mapping", "list": "a list"}
    kind = kinds.get(type(value).__name__)
    endless = isinstance(value, float) and not math.isfinite(value) and "float" in _type(annotation)
    wanted = "a finite number" if endless else _type(annotation)
    yield Problem(key, f"{key}={short(value)} must be {wanted}{f', not {kind}' if kind else ''}")


def _no_node(key: str, value: Any, wanted: str) -> Problem:
    """A value where an object is wanted, and what to write instead."""
    if isinstance(value, Mapping):
        return Problem(f"{key}._target_", f"{key}._target_ is missing: it names the class of {key}, a {wanted}")
    if "." not in key:
        choose = f"; to choose an option write `- override /{key}: {value}` under defaults"
        return Problem(key, f"{key}={short(value)} must be a mapping{choose if isinstance(value, str) else ''}")
    leave = f"; to leave it out: ~{key}" if value is None else " (a mapping with _target_)"
    return Problem(key, f"{key}={short(value)} must be {wanted}{leave}")


def _type(annotation: ast.expr) -> str:
    quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return str(annotation.value) if quoted else ast.unparse(annotation)  # type: ignore[attr-defined]


def _one_of(value: Any, allowed: Sequence[Any]) -> str:
    near = nearest(str(value), [str(a) for a in allowed if a is not None], count=1)
    return f"must be one of {', '.join(dict.fromkeys(map(written, allowed)))}" + (
        f"; did you mean '{near[0]}'?" if near else ""
    )


def literal_mistake(known: Signature, given: Mapping[str, Any]) -> str | None:
    """`name=value must be one of ...` of the first value that is none of its parameter's `Literal`; None if all are."""
    for name, parameter in known.parameters.items():
        if name not in given or parameter.annotation is None:
            continue
        allowed = _choices(parameter.annotation, known.module)
        if allowed and fits(given[name], parameter.annotation, known.module) is False:
            return f"{name}={short(given[name])} {_one_of(given[name], allowed)}"
    return None


def _choices(annotation: ast.expr, where: Module | None) -> list[Any]:
    """The values of the Literals of an annotation, aliases followed."""
    found = []
    for arm in arms(annotation):
        alias = definition(arm.id, where) if where and isinstance(arm, ast.Name) else None
        is_type = alias is not None and isinstance(alias[1], ast.Subscript | ast.BinOp)
        found += literals(arm if alias is None else alias[1] if is_type else None)  # type: ignore[arg-type]
    return found


def short(value: Any, max_chars: int = 60) -> str:
    """The value as a user would write it, cut to a line's length."""
    text = written(value)
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."


# Conditions --------------------------------------------------------------------------------------------------------


def conditions(path: str, known: Signature, given: Mapping[str, Any]) -> Iterator[Problem]:
    """The `require(...)`, and `if ...: raise ValueError(...)`, at the top of a constructor that do not hold."""
    names = _names(known, given)
    for statement in known.body:
        if isinstance(statement, ast.Return | ast.Raise):
            return
        test, message = _condition(statement)
        if test is not None:
            evaluate = Evaluator(names, known.fields)
            try:
                holds = bool(evaluate(test))
            except CannotSay:
                continue
            if not holds:
                yield _violation(path, test, message, evaluate, known)
                return  # as when it is built: the first one counts
        for rebound in _assigned(statement):
            names[rebound] = Opaque


def _names(known: Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the names of the body stand for: the module's constants, defaults, and the config's values."""
    names: dict[str, Any] = {}
    for name, value in known.module.names.items() if known.module else ():
        if isinstance(value, ast.expr):
            names[name] = literal_value(value)
    for name, parameter in known.parameters.items():
        names[name] = given[name] if name in given else literal_value(parameter.default)
        if is_built(names[name]) or names[name] == "???":
            names[name] = Opaque
    return names


def literal_value(node: ast.expr | None) -> Any:
    """The value of an expression that is a literal; Opaque for any other."""
    try:
        return Opaque if node is None else ast.literal_eval(node)
    except (ValueError, TypeError):
        return Opaque


@functools.cache  # of statements that parsing keeps: the hundredth point of a sweep asks of the same ones
def _condition(statement: ast.stmt) -> tuple[ast.expr | None, ast.expr | None]:
    """(what must hold, message) of a statement, (None, None) if it is no check."""
    if isinstance(statement, ast.Expr) and isinstance(call := statement.value, ast.Call):
        if ast.unparse(call.func) in ("require", "require.require") and len(call.args) == 2:
            return call.args[0], call.args[1]
    if isinstance(statement, ast.If) and len(statement.body) == 1 and isinstance(error := statement.body[0], ast.Raise):
        made = error.exc
        if isinstance(made, ast.Call) and ast.unparse(made.func) == "ValueError" and len(made.args) == 1:
            return ast.UnaryOp(ast.Not(), statement.test), made.args[0]
    return None, None


@functools.cache
def _assigned(statement: ast.stmt) -> frozenset[str]:
    """Names that hold something else after the statement; `self.x` counts as x only in dataclasses."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr if ast.unparse(node.value) == "self" and not isinstance(statement, ast.Assign) else "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "object.__setattr__" and len(node.args) == 3:
            found.add(node.args[1].value if isinstance(node.args[1], ast.Constant) else "")
    return frozenset(found)


def _violation(path: str, test: ast.expr, message: ast.expr | None, evaluate: Evaluator, known: Signature) -> Problem:
    try:
        text = one_line(evaluate(message)) if message is not None else ""
    except CannotSay:
        text = ""
    text = text or f"the arguments must satisfy {ast.unparse(test)}"
    lead = re.match(r"([A-Za-z_]\w*)(\[\w+\])?=", text)
    names = [
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(test) if isinstance(n, ast.Name | ast.Attribute)
    ]
    used = [n for n in names if n in known.parameters]
    name = lead[1] if lead and lead[1] in known.parameters else None
    key, *also = dict.fromkeys(_joined(path, n) for n in ([name] if name else []) + used) or [path]
    return Problem(key, _joined(path, text) if name else f"{path or 'config'}: {text}", tuple(also))

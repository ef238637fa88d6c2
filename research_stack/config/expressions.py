"""A small interpreter for the conditions of `require(...)`: values of the config in, a truth value out.

Only what is listed here runs. Anything else raises CannotSay, and the check lets it pass: the constructor itself
will judge when it is built.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from research_stack import require

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "low": require.low,
    "high": require.high,
    "is_rate": require.is_rate,
    "len": len,
    "min": min,
    "max": max,
    "abs": abs,
    "sum": sum,
    "all": all,
    "any": any,
    "set": set,
    "sorted": sorted,
    "float": float,
    "int": int,
    "range": range,
    "math.isfinite": math.isfinite,
    "math.sqrt": math.sqrt,
    "math.log2": math.log2,
}
CONSTANTS = {"math.inf": math.inf, "math.pi": math.pi}
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple, "dict": dict}
FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, RecursionError)


class CannotSay(Exception):
    """The expression needs something that is not known here."""


class Opaque:
    """A value that exists only once it is built: any use of it raises CannotSay."""


class Evaluator(ast.NodeVisitor):
    """Evaluates expressions over `names`; `fields` lets `self.NAME` stand for NAME."""

    def __init__(self, names: Mapping[str, Any], fields: bool = False) -> None:
        self.names, self.fields = dict(names), fields

    def __call__(self, node: ast.expr) -> Any:
        """The value of the expression, or CannotSay."""
        try:
            return self.visit(node)
        except FAILURES as error:
            raise CannotSay(str(error)) from error

    def generic_visit(self, node: ast.AST) -> Any:
        """Every kind of expression without a method below."""
        raise CannotSay(type(node).__name__)

    def visit_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def visit_Name(self, node: ast.Name) -> Any:
        value = self.names.get(node.id, Opaque)
        if value is Opaque:
            raise CannotSay(node.id)
        return value

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        if isinstance(node.value, ast.Name):
            if node.value.id == "self" and self.fields:
                return self.visit(ast.Name(node.attr))
            if (text := f"{node.value.id}.{node.attr}") in CONSTANTS:
                return CONSTANTS[text]
        raise CannotSay(ast.unparse(node))

    def visit_Tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.visit(e) for e in node.elts)

    def visit_List(self, node: ast.List) -> Any:
        return [self.visit(e) for e in node.elts]

    def visit_Set(self, node: ast.Set) -> Any:
        return {self.visit(e) for e in node.elts}

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        stop, value = isinstance(node.op, ast.Or), None
        for part in node.values:
            value = self.visit(part)
            if bool(value) is stop:
                return value
        return value

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if type(node.op) not in UNARY:
            raise CannotSay(ast.unparse(node))
        return UNARY[type(node.op)](self.visit(node.operand))

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.visit(node.left), self.visit(node.right)
        if type(node.op) not in BINARY or not all(isinstance(v, int | float) for v in (left, right)):
            raise CannotSay(ast.unparse(node))
        return BINARY[type(node.op)](left, right)

    def visit_Compare(self, node: ast.Compare) -> Any:
        left = self.visit(node.left)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.visit(comparator)
            if not COMPARE[type(op)](left, right):
                return False
            left = right
        return True

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        return self.visit(node.body if self.visit(node.test) else node.orelse)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        return self.visit(node.value)[self.visit(node.slice)]

    def visit_Call(self, node: ast.Call) -> Any:
        name = ast.unparse(node.func)
        if name == "isinstance" and len(node.args) == 2:
            return isinstance(self.visit(node.args[0]), self._types(node.args[1]))
        function = FUNCTIONS.get(name.removeprefix("require."))
        if function is None or any(k.arg is None for k in node.keywords):
            raise CannotSay(name)
        return function(*(self.visit(a) for a in node.args), **{str(k.arg): self.visit(k.value) for k in node.keywords})

    def _types(self, node: ast.expr) -> tuple[type, ...]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self._types(node.left) + self._types(node.right)
        if isinstance(node, ast.Tuple):
            return tuple(t for e in node.elts for t in self._types(e))
        if isinstance(node, ast.Name) and node.id in TYPES:
            return (TYPES[node.id],)
        raise CannotSay(ast.unparse(node))

    def visit_GeneratorExp(self, node: ast.GeneratorExp | ast.ListComp) -> Any:
        loop = node.generators[0]
        if len(node.generators) != 1 or not isinstance(loop.target, ast.Name):
            raise CannotSay(ast.unparse(node))
        found = []
        for item in self.visit(loop.iter):
            inner = Evaluator(self.names | {loop.target.id: item}, self.fields)
            if all(inner.visit(test) for test in loop.ifs):
                found.append(inner.visit(node.elt))
        return found

    visit_ListComp = visit_GeneratorExp

    def visit_JoinedStr(self, node: ast.JoinedStr) -> str:
        return "".join(str(self.visit(part)) for part in node.values)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> str:
        value = self.visit(node.value)
        value = {-1: lambda v: v, 115: str, 114: repr, 97: ascii}[node.conversion](value)
        return format(value, self.visit(node.format_spec) if node.format_spec else "")

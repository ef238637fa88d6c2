"""Edit distance between syntax trees of Python programs (Zhang and Shasha 1989), unit costs. Standard library only."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

from research_stack.require import require

Labels = Literal["types", "values"]


class Tree(NamedTuple):
    """An ordered tree of N nodes in postorder: children from left to right, then their parent.

    - labels: of each node. leftmost: the number of the first leaf below each node.
    """

    labels: tuple[str, ...]
    leftmost: tuple[int, ...]


def tree_of(text: str, labels: Labels = "types") -> Tree | None:
    """The syntax tree of a Python program or expression; None for what does not parse. Nothing is run.

    - labels: "types", nodes are named by their type alone, so a + b and c + 1.5 differ in one node (a name, a constant)
      and a + b and b * a in the operator only; "values", names, attributes, constants and flags belong to the label.

    Whether a name is read or written is no node: it follows from where it stands.
    """
    require(labels in ("types", "values"), f"labels={labels} must be types or values")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the text's own style, such as invalid escapes
            root = ast.parse(text.strip())
    except (
        SyntaxError,
        ValueError,
        RecursionError,
        MemoryError,
    ):  # bad text, null bytes and huge integers, deep nesting
        return None
    return _postorder(root, labels)


def _postorder(root: ast.AST, labels: Labels) -> Tree:
    names: list[str] = []
    leftmost: list[int] = []
    stack: list[tuple[ast.AST, Iterator[ast.AST], int]] = [(root, _children(root), 0)]
    while stack:  # without recursion: a long sum is a deep tree
        node, children, first = stack[-1]
        child = next(children, None)
        if child is not None:
            stack.append((child, _children(child), len(names)))
        else:
            stack.pop()
            names.append(_label(node, labels))
            leftmost.append(first)
    return Tree(tuple(names), tuple(leftmost))


def _children(node: ast.AST) -> Iterator[ast.AST]:
    return (child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr_context))


def _label(node: ast.AST, labels: Labels) -> str:
    kind = type(node).__name__
    if labels == "types":
        return kind
    values = [(name, value) for name, value in ast.iter_fields(node) if not _holds_nodes(value)]
    return f"{kind}{values}" if values else kind


def _holds_nodes(value: object) -> bool:
    return (
        value is None
        or isinstance(value, ast.AST)
        or (isinstance(value, list) and all(v is None or isinstance(v, ast.AST) for v in value))
    )


def tree_distance(a: Tree, b: Tree) -> int:
    """Fewest insertions, deletions and renamings of nodes that turn an ordered tree into another: a metric.

    Deleting a node gives its children to its parent, in place. Zhang and Shasha (1989), lemmas 4 and 5.
    """
    if a == b:
        return 0
    between = [[0] * len(b.labels) for _ in a.labels]  # of the subtrees below each pair of nodes
    for i in _keyroots(a):
        for j in _keyroots(b):
            _forests(a, b, i, j, between)
    return between[-1][-1]


def _keyroots(tree: Tree) -> list[int]:
    """The highest node above each leftmost leaf, ascending: only their subtrees need a table of their own."""
    return sorted({first: i for i, first in enumerate(tree.leftmost)}.values())


def _forests(a: Tree, b: Tree, i: int, j: int, between: list[list[int]]) -> None:
    """Distances of all pairs of prefixes of the subtrees below i and j; those that are whole trees go into
    `between`.
    """
    first_a, first_b = a.leftmost[i], b.leftmost[j]
    width = j - first_b + 2
    labels_b = b.labels[first_b : j + 1]
    left_b = [left - first_b for left in b.leftmost[first_b : j + 1]]
    rows = [list(range(width))]
    for x in range(first_a, i + 1):
        left, label, into, above = a.leftmost[x], a.labels[x], between[x], rows[-1]
        before, whole = rows[left - first_a], left == first_a
        row = [above[0] + 1]
        for y in range(width - 1):
            best = min(above[y + 1], row[y]) + 1
            if whole and left_b[y] == 0:
                best = min(best, above[y] + (label != labels_b[y]))
                into[first_b + y] = best
            else:
                best = min(best, before[left_b[y]] + into[first_b + y])
            row.append(best)
        rows.append(row)

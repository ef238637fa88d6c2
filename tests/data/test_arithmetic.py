"""Values of expressions against Python's own parser over fractions, and everything that must have none."""

import ast
import operator
import random
import re
import sys
import time
from fractions import Fraction

import pytest

from research_stack.data.sources import arithmetic
from research_stack.data.sources.arithmetic import LONGEST, is_answer, operators, value

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def oracle(text):
    """Python's grammar over fractions; None where a sign stands in front, a literal is no integer or something is
    divided by zero.
    """

    def of(node):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](of(node.left), of(node.right))
        raise SyntaxError("not of the grammar")

    try:
        return of(ast.parse(text, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, ValueError):
        return None


def expression(draws, depth):
    """A random expression with more parentheses than it needs."""
    if depth == 0 or draws.random() < 0.2:
        return str(draws.choice([0, 1, 2, 7, 10, 12, 305]))
    inside = f"{expression(draws, depth - 1)}{draws.choice('+-*/')}{expression(draws, depth - 1)}"
    return f"({inside})" if draws.random() < 0.4 else inside


@pytest.mark.exact
def test_random_expressions_are_worth_what_python_says():
    draws, seen = random.Random(1), set()
    texts = [text for _ in range(3000) if len(text := expression(draws, 4)) <= LONGEST]
    for text in texts:
        assert value(text) == oracle(text), text
        seen.add(value(text))
    assert (
        len(texts) > 2500
        and None in seen
        and len(seen) > 1000
        and any(v is not None and v.denominator > 1 for v in seen)
    )


@pytest.mark.exact
def test_random_strings_have_a_value_exactly_where_python_gives_one():
    draws, worth = random.Random(2), 0
    for _ in range(30_000):
        text = "".join(draws.choices("0123+-*/()", k=draws.randint(1, 7)))
        expected = None if re.search(r"\*\*|//|(?<!\d)0\d", text) else oracle(text)  # Python reads 00 as 0
        assert value(text) == expected, text
        worth += expected is not None
    assert 500 < worth < 29_000


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1", 1),
        ("0", 0),
        ("8-3-2", 3),
        ("8/4/2", 1),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("1/3*3", 1),
        ("1/3+1/6", Fraction(1, 2)),
        ("3-5", -2),
        ("((((7))))", 7),
        ("12/(7-4)", 4),
        ("1/10+2/10", Fraction(3, 10)),
        ("9" * 30 + "-" + "9" * 30, 0),
        ("0*(1/1)", 0),
    ],
)
def test_known_values(text, expected):
    assert value(text) == expected and isinstance(value(text), Fraction)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1 +1",
        "1+1 ",
        "\n1",
        "1+1\n",
        "-1",
        "+1",
        "1+-1",
        "2**3",
        "2//1",
        "1+",
        "*1",
        "()",
        "(",
        ")",
        "(1",
        "1)",
        "((1)",
        ")1(",
        "1(2)",
        "(1)(2)",
        "(1)2",
        "01",
        "00",
        "1+01",
        "007",
        "1_0",
        "1.0",
        "1e3",
        "0x1",
        "1j",
        "x",
        "1=1",
        "1,2",
        "1/0",
        "1/(2-2)",
        "0/0",
        "1/(1/0)",
        "\u0661+1",
        "\u00b2",
        "\uff11+\uff11",
        "1\u22121",
        "1\u00d72",
        "1+1\x00",
        "__import__('os')",
        "1;1",
        "+".join(["1"] * LONGEST),
        "(" * LONGEST,
        "(" * 99 + ")" * 99,
        "1" * (LONGEST + 1),
    ],
)
def test_what_is_no_expression_has_no_value(text):
    assert value(text) is None and not is_answer(text, 1)


def test_the_longest_and_the_deepest_that_have_one():
    assert value("+".join(["1"] * (LONGEST // 2))) == LONGEST // 2
    deep = "(" * 99 + "5" + ")" * 99
    assert len(deep) == LONGEST - 1 and value(deep) == 5


def test_depth_costs_no_stack_that_a_caller_far_down_does_not_have():
    def down(n):
        return value("(" * LONGEST) if n == 0 else down(n - 1)

    assert down(sys.getrecursionlimit() - len(__import__("inspect").stack()) - 60) is None


def test_a_text_of_a_million_characters_is_refused_at_once_and_not_kept():
    arithmetic._value.cache_clear()
    start = time.perf_counter()
    for text in ("1+" * 500_000, "(" * 1_000_000, "9" * 1_000_000, "\u0661" * 1_000_000):
        assert value(text) is None
    assert time.perf_counter() - start < 0.2 and arithmetic._value.cache_info().currsize == 0


def test_an_answer_has_an_operator_and_the_exact_value():
    assert (
        is_answer("6*7", 42)
        and is_answer("(42+0)", 42)
        and is_answer("84/2", 42)
        and is_answer("1/3*3", 1)
        and is_answer("5-5", 0)
    )
    assert (
        not is_answer("42", 42)
        and not is_answer("(42)", 42)
        and not is_answer("6*8", 42)
        and not is_answer("85/2", 42)
        and not is_answer("", 0)
    )
    assert not is_answer("1/0", 0) and not is_answer("42=6*7", 42) and is_answer("6*7", 42) is True


def test_operators_of_a_text():
    assert operators("3*(4+1)") == {"*", "+"} and operators("12") == frozenset() and operators("1-1/1") == {"-", "/"}

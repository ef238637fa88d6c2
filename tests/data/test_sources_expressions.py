"""Every answer is right, all of a number differ, the same options give the same texts, and what cannot be had is one
line soon.
"""

import ast
import hashlib
import time
from collections import Counter

import numpy as np
import pytest

from research_stack.data.module import TokenData
from research_stack.data.sources import expressions as sources_expressions
from research_stack.data.sources.arithmetic import TOKEN, is_answer, operators
from research_stack.data.sources.expressions import Expressions, number_of, prompt_of
from research_stack.data.tokenizers import Bytes


@pytest.fixture(scope="module")
def standard():
    """The documents of the defaults."""
    return list(Expressions().documents())


@pytest.mark.exact
def test_all_answers_are_right_different_and_as_many_for_each_number(standard):
    assert len(standard) == 30 * 80 and Counter(document.prompt for document in standard) == {
        f"{n}=": 80 for n in range(1, 31)
    }
    for document in standard:
        assert is_answer(document.text, number_of(document.prompt)), (document.prompt, document.text)
    assert (
        len({(document.prompt, document.text) for document in standard})
        == len(standard)
        == len({document.key for document in standard})
    )
    assert all(document.group == document.prompt for document in standard)


def test_answers_keep_to_their_limits(standard):
    for text in (document.text for document in standard):
        numbers = [int(token) for token in TOKEN.findall(text) if token.isdigit()]
        assert len(text) <= 9 and 2 <= len(numbers) <= 3 and min(numbers) >= 1 and max(numbers) <= 12
    counts = Counter(len([c for c in document.text if c in "+-*/"]) for document in standard)
    assert set(counts) == {1, 2} and set.union(*(set(operators(document.text)) for document in standard)) == set("+-*/")
    assert (
        max(
            len(document.text)
            for document in Expressions(high=5, answers=10, operations=4, largest=3, longest=5).documents()
        )
        == 5
    )


def test_parentheses_stand_only_where_they_matter(standard):
    """Without them the text is read in another way."""
    with_some = {document.text for document in standard if "(" in document.text}
    assert len(with_some) > 100 and all(text.count("(") == 1 for text in with_some)  # two operators need no more
    for text in with_some:
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(text.replace("(", "").replace(")", ""))), text


def test_the_same_options_give_the_same_texts_and_the_defaults_these(standard):
    digest = hashlib.sha256("\n".join(f"{d.prompt}{d.text}" for d in standard).encode()).hexdigest()
    assert digest == "fc16c7a78f3ef1fb553ac87bdb325c02ebf72207e2dbf89dc19d69c3ca2c5769", (
        "texts of the defaults have changed: raise EXTRACTION, caches and finished runs hold the old ones"
    )
    few = [[d.text for d in Expressions(answers=5, seed=seed).documents()] for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2] and len(few[2]) == len(few[0])


def test_every_option_is_part_of_the_fingerprint():
    options = {"low": 2, "high": 31, "answers": 79, "operations": 3, "largest": 11, "longest": 10, "seed": 1}
    found = {Expressions(**{name: value}).fingerprint() for name, value in options.items()} | {
        Expressions().fingerprint()
    }
    assert len(found) == len(options) + 1


def test_no_answers_are_the_prompts_alone():
    documents = list(Expressions(low=3, high=6, answers=0).documents())
    assert [(d.prompt, d.text) for d in documents] == [("3=", ""), ("4=", ""), ("5=", ""), ("6=", "")]


@pytest.mark.parametrize(
    "options",
    [
        {"answers": 500, "high": 2, "longest": 5},
        {"low": 1000, "high": 1001, "answers": 1, "largest": 5},
        {"high": 30, "answers": 40, "longest": 3},
    ],
)
def test_counts_that_cannot_be_had_are_one_line(options, monkeypatch):
    monkeypatch.setattr(sources_expressions, "PATIENCE", 2_000)
    with pytest.raises(
        ValueError,
        match=(
            r"^source.answers=\d+ cannot be had: \d+ has \d+ expressions of at most \d+ operators, [^\n]* lower it, or"
            r" raise [^\n]*$"
        ),
    ):
        list(Expressions(**options).documents())


def test_and_that_line_comes_soon():
    start = time.process_time()
    with pytest.raises(
        ValueError,
        match=(
            "^source.answers=10 cannot be had: [0-9]+ has 0 expressions of at most 1 operators, numbers up to 2 and 9"
            " characters"
        ),
    ):
        list(Expressions(answers=10, operations=1, largest=2).documents())
    assert time.process_time() - start < 10
    assert sources_expressions.PATIENCE > 5 * 10_416  # what the defaults take at most


def test_what_is_rare_is_found_all_the_same():
    """All of one operator and of numbers up to 12 that are worth 2."""
    texts = {d.text for d in Expressions(low=1, high=2, answers=19, operations=1).documents() if d.prompt == "2="}
    assert texts == {f"{2 * n}/{n}" for n in range(1, 7)} | {f"{n + 2}-{n}" for n in range(1, 11)} | {
        "1+1",
        "1*2",
        "2*1",
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"low": -1}, "low=-1 must be at least 0"),
        ({"low": 5, "high": 5}, "high=5 must be greater than low=5"),
        ({"answers": -1}, "answers=-1 must be at least 0"),
        ({"operations": 0}, "operations=0 must be at least 1"),
        ({"largest": 1}, "largest=1 must be at least 2"),
        ({"longest": 2}, "longest=2 must be at least 3"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Expressions(**options)


def test_prompts_are_read_back():
    assert [number_of(prompt_of(n)) for n in (0, 7, 30, 123456)] == [0, 7, 30, 123456]
    assert [number_of(text) for text in ("", "=", "7", "x=", "-7=", "7==", " 7=", "\u0667=", "\u00b2=")] == [None] * 9


@pytest.mark.parametrize("answers", [20, 0])
def test_no_number_stands_on_both_sides_of_the_split(tmp_path, answers):
    data = TokenData(Expressions(answers=answers), Bytes(), 14 if answers else 4, batch_size=8, cache_dir=str(tmp_path))
    data.prepare()

    def numbers(rows):
        return Counter(
            data.codec.decode(tokens[:prompt].tolist())
            for tokens, (prompt, _) in zip(np.asarray(rows.tokens), rows.spans.tolist(), strict=True)
        )

    train, validation = numbers(data.train), numbers(data.validation)
    assert (
        not set(train) & set(validation)
        and set(train) | set(validation) == {f"{n}=" for n in range(1, 31)}
        and validation
    )
    assert set(train.values()) == {max(answers, 1)}

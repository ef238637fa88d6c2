"""Exact match and F1 against the vectors of the official scripts, FirstTok@k against sorting."""

import math
import re
import string
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research_stack.metrics.qa import RULES, AnswerScores, exact, f1, first_token_at, normalize, scores

NFC, NFD = unicodedata.normalize("NFC", "Zürich"), unicodedata.normalize("NFD", "Zürich")
VECTORS = [  # prediction, gold, SQuAD EM, F1, HotpotQA EM, F1
    ("The Cat!", "cat", 1, 1, 1, 1),
    ("", "Paris", 0, 0, 0, 0),
    ("Paris", "the Paris, France", 0, 2 / 3, 0, 2 / 3),
    ("red red fox", "red fox", 0, 0.8, 0, 0.8),
    ("red red fox", "red red fox cub", 0, 6 / 7, 0, 6 / 7),
    ("yes", "yes it is", 0, 0.5, 0, 0),
    ("no", "No.", 1, 1, 1, 1),
    ("10,000", "10000", 1, 1, 1, 1),
    ("well-known", "well known", 0, 0, 0, 0),
    ("U.S.A.", "usa", 1, 1, 1, 1),
    ("“fox”", "fox", 0, 0, 0, 0),
    ("theatre", "atre", 0, 0, 0, 0),
    ("Saint Bernadette Soubirous", "Bernadette Soubirous", 0, 0.8, 0, 0.8),
    (NFC, NFD, 0, 0, 0, 0),
]


@pytest.mark.exact
def test_the_vectors():
    for prediction, gold, em, score, hotpot_em, hotpot_score in VECTORS:
        for rule in ("squad", "squad_v2"):
            assert (exact(prediction, [gold], rule), f1(prediction, [gold], rule)) == (
                em,
                pytest.approx(score, abs=1e-12),
            )
        assert (exact(prediction, [gold], "hotpotqa"), f1(prediction, [gold], "hotpotqa")) == (
            hotpot_em,
            pytest.approx(hotpot_score, abs=1e-12),
        )


@pytest.mark.exact
def test_nothing_against_nothing():
    assert {rule: (exact("a an the", [""], rule), f1("a an the", [""], rule)) for rule in RULES} == {
        "squad": (1, 0), "squad_v2": (1, 1), "hotpotqa": (1, 0), "nq": (1, 0)}  # fmt: skip


@pytest.mark.exact
def test_composed_and_decomposed_letters_are_one_for_nq():
    assert NFC != NFD and exact(NFC, [NFD], "nq") == f1(NFC, [NFD], "nq") == 1
    assert exact(NFC, [NFD], "squad") == 0


def test_the_order_of_the_steps():
    assert normalize("The A.N. Other") == "other"  # punctuation goes before articles
    assert normalize("a-the") == "athe" and normalize("  The\n\tcat  ") == "cat"
    assert normalize("theatre an an a") == "theatre" and normalize("THE") == ""


def written_out(text):
    """As the scripts have it."""
    lowered = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", lowered).split())


words = st.lists(st.sampled_from(["a", "the", "fox", "Fox,", "red", "yes", "no", "é", "-", "an."]), max_size=6).map(
    " ".join
)


@given(words | st.text(max_size=20), words)
@settings(max_examples=300, deadline=None)
def test_laws_of_the_scores(prediction, gold):
    assert normalize(prediction) == written_out(prediction)
    for rule in RULES:
        score, em = f1(prediction, [gold], rule), exact(prediction, [gold], rule)
        assert 0 <= score <= 1 and em in (0, 1)
        assert score == pytest.approx(f1(gold, [prediction], rule))
        if em and normalize(gold, rule):
            assert score == 1
        assert f1(prediction, [gold, "fox"], rule) >= (score if normalize(gold, rule) else 0)
    left, right = written_out(prediction).split(), written_out(gold).split()
    rest, common = list(right), 0
    for word in left:  # every word of the gold answer is used once
        if word in rest:
            rest.remove(word)
            common += 1
    expected = (
        2 * (common / len(left)) * (common / len(right)) / (common / len(left) + common / len(right)) if common else 0
    )
    assert f1(prediction, [gold], "squad") == pytest.approx(expected)


def test_the_best_gold_answer_counts():
    assert f1("red fox", ["cub", "red fox cub", "fox"]) == 0.8
    assert exact("Fox.", ["cub", "a fox"]) == 1
    assert f1("yes", ["no", "Yes!"], "hotpotqa") == 1


def test_gold_answers_that_are_nothing_once_normalised():
    assert exact("", ["the", "Paris"], "squad_v2") == 0 and exact("", ["the", "Paris"], "squad") == 1
    assert f1("", ["the", "Paris"], "squad_v2") == 0
    assert exact("", ["the", ""], "squad_v2") == f1("", ["the", ""], "squad_v2") == 1
    assert f1("Paris", [""], "squad_v2") == 0


def test_scores_of_several_data_sets():
    found = scores(["yes", "the cat", ""], [["yes it is"], ["cat"], [""]], ["hotpotqa", "squad", "squad_v2"])
    assert isinstance(found, AnswerScores) and found.f1_n.tolist() == [0, 1, 1] and found.exact_n.tolist() == [0, 1, 1]
    assert scores(["yes"], [["yes it is"]]).f1_n.tolist() == [0.5]
    assert scores([], []).f1_n.shape == (0,)


def test_a_mistake_is_named():
    for call, said in (
        (lambda: exact("x", []), r"^golds=\[\] must"),
        (lambda: f1("x", "x"), "^golds='x' must"),
        (lambda: f1("x", ["x"], "trivia"), "^rule=trivia must be one of"),
        (lambda: scores(["x"], []), "^predictions=1 must"),
        (lambda: scores(["x"], [["x"]], ["squad", "nq"]), "^predictions=1 must"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


# --------------------------------------------------------------------------------------------------- first tokens
@pytest.mark.exact
def test_the_vectors_of_first_tokens():
    logits = [[0.1, 3, 2, 1]] * 2
    assert first_token_at(logits, [{2}, {1, 3}], (1, 2)).tolist() == [[0, 1], [1, 1]]


@given(st.integers(1, 12), st.data())
@settings(max_examples=200, deadline=None)
def test_first_tokens_by_sorting(size, data):
    logits = np.array(
        data.draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size)), dtype=np.float32
    )  # with ties
    ids = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    order = sorted(range(size), key=lambda i: (-logits[i], i))
    ks = (1, 2, 5, 20)
    found = first_token_at(logits[None], [ids], ks)[0]
    assert found.tolist() == [float(bool(ids & set(order[:k]))) for k in ks]
    assert first_token_at(logits[None], [{int(logits.argmax())}])[0].tolist() == [
        1,
        1,
        1,
    ]  # what greedy decoding takes is at 1


def test_a_reader_that_finds_all_alike_is_not_right():
    assert first_token_at(np.zeros((1, 50)), [{40, 30}], (1, 5, 30, 31)).tolist() == [[0, 0, 0, 1]]


def test_rows_without_a_first_token_have_no_score():
    found = first_token_at(np.eye(3), [{0}, set(), {0}], (1, 3))
    assert found[[0, 2]].tolist() == [[1, 1], [0, 1]] and np.isnan(found[1]).all()
    assert first_token_at(np.array([[-math.inf, 0.0]]), [{0}], (1, 2)).tolist() == [[0, 1]]


def test_mistakes_of_first_tokens():
    for arguments, said in (
        ((np.zeros(3), [{0}]), "^logits_BV="),
        ((np.zeros((2, 3)), [{0}]), "^logits_BV="),
        ((np.full((1, 3), np.nan), [{0}]), "^logits_BV=.* NaN"),
        ((np.zeros((1, 3)), [{3}]), r"^gold_ids=\[3\] must lie in 0 .. 2"),
        ((np.zeros((1, 3)), [{-1}]), r"^gold_ids=\[-1\]"),
        ((np.zeros((1, 3)), [{0}], (0, 1)), r"^ks=\(0, 1\) must"),
    ):
        with pytest.raises(ValueError, match=said):
            first_token_at(*arguments)

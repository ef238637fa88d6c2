"""Diversity: the vectors of the definitions, sacrebleu and apted as peers, enumeration of edit scripts, what is
undefined.
"""

import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research_stack.metrics.diversity import (
    ast_distances,
    cosine_distances,
    distinct_n,
    kinds,
    mean_ast_distance,
    mean_cosine_distance,
    mean_distance,
    per_prompt,
    self_bleu,
    share_parsed,
    unique_answers,
    vendi,
    vendi_cosine,
)
from research_stack.metrics.syntax import Tree, tree_distance, tree_of

T = ["the cat sat on the mat", "the cat sat on the mat", "a dog ran in the park", "the cat lay on the mat"]
K = np.array([[1, 1, 0, 0.5], [1, 1, 0, 0.5], [0, 0, 1, 0], [0.5, 0.5, 0, 1]])
E1, E2 = np.eye(2)


# ----------------------------------------------------------------------------------------------------- n-grams
@pytest.mark.exact
def test_the_vectors_of_n_grams():
    assert self_bleu(T) == pytest.approx(61.527120542, abs=5e-10)
    np.testing.assert_allclose([distinct_n(T, n) for n in (1, 2, 3)], [0.458333, 0.6, 0.6875], atol=5e-7)


def corpora(count, words=10, longest=12):
    rng = random.Random(0)
    for _ in range(count):
        known = [f"w{i}" for i in range(rng.randint(1, words))]
        yield [" ".join(rng.choices(known, k=rng.randint(1, longest))) for _ in range(rng.randint(2, 9))]


@pytest.mark.exact
def test_self_bleu_is_that_of_sacrebleu():
    bleu = pytest.importorskip("sacrebleu.metrics").BLEU

    def peer(texts, **options):
        measure = bleu(effective_order=True, **options)
        return np.mean([measure.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)])

    assert self_bleu(T) == pytest.approx(peer(T), abs=1e-9)
    for texts in corpora(120):
        assert self_bleu(texts) == pytest.approx(peer(texts, tokenize="none"), abs=1e-9)
    expressions = ["3*4+1", "4*3+1", "13*1", "26/2", "1+2", "(1+2)*4+1", "7"]
    assert self_bleu(expressions, "char") == pytest.approx(peer(expressions, tokenize="char"), abs=1e-9)


def test_bleu_by_hand():
    # 4 words against 6: 4/4, 3/3, 2/2, 1/1 and the penalty exp(1 - 6/4); the other way 4/6, 3/5, 2/4, 1/3.
    one, two = "a b c d", "a b c d e f"
    back = (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert self_bleu([one, two]) == pytest.approx(100 * (math.exp(-0.5) + back) / 2)
    # no bigram or longer in common: 2/3, (1/2)/2, (1/4)/1 of orders up to 3
    assert self_bleu(["a b c", "c b d"]) == pytest.approx(100 * (2 / 3 * 0.5 / 2 * 0.25) ** (1 / 3))


def test_the_ends_of_self_bleu():
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(100)
    assert self_bleu(["a", "a"]) == pytest.approx(100)
    assert self_bleu(["a b", "c d", "e f"]) == 0
    assert self_bleu(["", "a b", "c d"]) == 0
    assert self_bleu(["", "", "a b", "a b"]) == pytest.approx(100)  # empty copies are no diversity
    assert math.isnan(self_bleu(["a b c"])) and math.isnan(self_bleu([]))


def test_units():
    assert self_bleu(["3*4+1", "3*4+1", "2+3"]) == pytest.approx(200 / 3)  # one word each: not what expressions need
    assert 0 < self_bleu(["3*4+1", "1+4*3"], "char") < 100
    ids = [[7, 7, 1], [7, 1, 7, 7]]
    assert self_bleu(ids, "token") == pytest.approx(self_bleu([" ".join(map(str, row)) for row in ids]))
    assert distinct_n(["aab", "ab"], 1, "char") == 2 / 5 and distinct_n(["aab", "ab"], 2, "char") == 2 / 3
    assert distinct_n([np.array([1, 2]), np.array([1, 3])], 1, "token") == 3 / 4
    for texts, unit in [(["a b", "c"], "token"), ([[1], [2]], "word"), ([[1], [2]], "char"), (["a", "b"], "line")]:
        with pytest.raises(ValueError, match=f"unit={unit} must"):
            distinct_n(texts, 1, unit)


def test_distinct_n_where_it_is_not_defined():
    assert (
        math.isnan(distinct_n(["a b c"], 1)) and math.isnan(distinct_n([], 1)) and math.isnan(distinct_n(["a", "b"], 2))
    )
    assert distinct_n(["a b", "c d"], 2) == 1 and distinct_n(["a b", "a b"], 2) == 0.5
    with pytest.raises(ValueError, match="n=0"):
        distinct_n(["a", "b"], 0)


def test_self_bleu_falls_and_distinct_n_rises_with_new_words():
    bleus, distincts = [], []
    for fresh in (0, 3, 6):
        texts = [" ".join([f"n{i}{j}" if j < fresh else f"w{j}" for j in range(8)]) for i in range(6)]
        bleus.append(self_bleu(texts))
        distincts.append(distinct_n(texts, 2))
    assert bleus[0] > bleus[1] > bleus[2] and distincts[0] < distincts[1] < distincts[2]


# ------------------------------------------------------------------------------------------------------- kinds
def test_kinds_are_numbered_by_appearance():
    found = kinds(["b", "a", " b\n", "a  c", "a", "a c", "A"])
    assert found.tolist() == [0, 1, 0, 2, 1, 2, 3] and found.dtype == np.int64
    assert kinds(["e\u0301", "\u00e9"]).tolist() == [0, 0]
    assert kinds([(1, 2), [1, 2], (1,)]).tolist() == [0, 0, 1]
    assert kinds([]).tolist() == [] and unique_answers([]) == 0 and unique_answers(["a", "a ", "b"]) == 2


# ---------------------------------------------------------------------------------------------------- meanings
@pytest.mark.exact
def test_the_vectors_of_meanings():
    assert vendi(K) == pytest.approx(2.5834228274, abs=5e-11)
    assert mean_cosine_distance([E1, E1, E2, -E1]) == pytest.approx(1.1666667, abs=5e-8)


def test_cosine_distances():
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    distance = cosine_distances(vectors)
    for i, j in itertools.product(range(5), repeat=2):
        cosine = vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
        assert distance[i, j] == pytest.approx(1 - cosine, abs=1e-12)
    assert (np.diag(distance) == 0).all()
    np.testing.assert_allclose(cosine_distances(vectors * [[1], [2], [3], [4], [9]]), distance, atol=1e-12)
    assert mean_cosine_distance(vectors) == pytest.approx(mean_distance(distance)) == pytest.approx(distance.sum() / 20)


def test_a_zero_vector_has_no_direction():
    distance = cosine_distances(np.array([[1.0, 0], [0, 0], [0, 1]]))
    assert np.isnan(distance[1]).all() and np.isnan(distance[:, 1]).all() and distance[0, 2] == 1
    assert mean_cosine_distance([E1, 0 * E1, E2]) == 1 and math.isnan(mean_cosine_distance([E1, 0 * E1]))
    assert vendi_cosine([E1, 0 * E1, E2]) == pytest.approx(2) and math.isnan(vendi_cosine([E1, 0 * E1]))
    assert (
        math.isnan(mean_cosine_distance([E1])) and math.isnan(vendi_cosine([])) and math.isnan(mean_cosine_distance([]))
    )
    for wrong in ([[1.0, np.nan], [1, 2]], [1.0, 2.0]):
        with pytest.raises(ValueError, match="vectors_nD="):
            cosine_distances(np.array(wrong))


def test_vendi_counts():
    assert vendi(np.eye(7)) == pytest.approx(7) and vendi(np.ones((7, 7))) == pytest.approx(1)
    blocks = np.kron(np.eye(3), np.ones((4, 4)))
    assert vendi(blocks) == pytest.approx(3)
    uneven = np.equal.outer([0, 0, 0, 1], [0, 0, 0, 1]).astype(float)
    assert vendi(uneven) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert vendi_cosine([E1, E1, E2, E2]) == pytest.approx(2)
    assert math.isnan(vendi(np.ones((1, 1))))


def test_what_is_no_kernel():
    for kernel, text in (
        (np.ones((2, 3)), "square"),
        (np.array([[1, 0.5], [0.2, 1]]), "symmetric"),
        (2 * np.eye(2), "diagonal"),
        (np.array([[1, 2.0], [2, 1]]), "semidefinite"),
        (np.full((2, 2), np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=f"kernel_nn.* {text}|kernel_nn must be positive {text}"):
            vendi(kernel)


# ------------------------------------------------------------------------------------------------------ syntax
def tree(text):
    """A tree from nested letters, as in f(ab(c))."""
    labels, leftmost, starts = [], [], []

    def read(at):
        first, label = len(labels), text[at]
        at += 1
        if at < len(text) and text[at] == "(":
            at += 1
            while text[at] != ")":
                at = read(at)
            at += 1
        labels.append(label)
        leftmost.append(first)
        starts.append(first)
        return at

    read(0)
    return Tree(tuple(labels), tuple(leftmost))


def by_mappings(a, b):
    """The distance by its definition: over all mappings that keep ancestors and order, what is not mapped or is
    renamed.
    """
    n, m = len(a.labels), len(b.labels)
    best = n + m

    def below(t, x, y):
        return t.leftmost[y] <= x < y

    def extend(pairs, i):
        nonlocal best
        renamed = sum(a.labels[x] != b.labels[y] for x, y in pairs)
        best = min(best, n + m - 2 * len(pairs) + renamed)
        for x in range(i, n):
            for y in range((pairs[-1][1] + 1) if pairs else 0, m):
                if all(below(a, p, x) == below(b, q, y) for p, q in pairs):
                    extend([*pairs, (x, y)], x + 1)

    extend([], 0)
    return best


@pytest.mark.exact
def test_the_vectors_of_syntax():
    assert tree_distance(tree_of("a+b"), tree_of("b*a")) == 1
    assert tree_distance(tree_of("a+b", "values"), tree_of("b*a", "values")) == 3
    # the example of Zhang and Shasha (1989), figure 4
    assert tree_distance(tree("f(d(ac(b))e)"), tree("f(c(d(ab))e)")) == 2


shape = st.recursive(
    st.sampled_from("abc"),
    lambda inner: st.tuples(st.sampled_from("abc"), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=4,
)


def written(node):
    return node if isinstance(node, str) else f"{node[0]}({''.join(map(written, node[1]))})"


@pytest.mark.exact
@settings(max_examples=80, deadline=None)
@given(first=shape, second=shape, third=shape)
def test_tree_distance_by_its_definition(first, second, third):
    a, b, c = (tree(written(node)) for node in (first, second, third))
    if len(a.labels) + len(b.labels) <= 12:
        assert tree_distance(a, b) == by_mappings(a, b)
    assert tree_distance(a, b) == tree_distance(b, a)
    assert (tree_distance(a, b) == 0) == (a == b)
    assert tree_distance(a, c) <= tree_distance(a, b) + tree_distance(b, c)


PROGRAMS = [
    "def f(a, b):\n    return a * b + 1",
    "def g(x, y=2):\n    z = x\n    for i in range(y):\n        z += i\n    return z",
    "lambda x: x",
    "[f(i) for i in range(10) if i % 2]",
    "class A(B):\n    '''text'''\n    x: int = 3\n",
    "try:\n    f()\nexcept E as e:\n    raise",
    "1",
    "(3*4)+1",
    "x = {'a': 1, **b}; print(x['a'], sep='')",
    "with open(p) as f:\n    g(f.read())\n    global h",
    "",
    "3*(4+1)",
]


@pytest.mark.exact
@pytest.mark.parametrize("labels", ["types", "values"])
def test_tree_distance_is_that_of_apted(labels):
    apted = pytest.importorskip("apted")

    class Unit(apted.Config):
        def rename(self, one, other):
            return int(one[0] != other[0])

        def children(self, node):
            return node[1]

    def nested(t):
        stack = []
        for label, first in zip(*t, strict=True):
            below = []
            while stack and stack[-1][1] >= first:
                below.append(stack.pop()[0])
            stack.append(((label, below[::-1]), first))
        return stack[0][0]

    trees = [tree_of(text, labels) for text in PROGRAMS]
    found = []
    for a, b in itertools.combinations(trees, 2):
        found.append(tree_distance(a, b))
        assert found[-1] == apted.APTED(nested(a), nested(b), Unit()).compute_edit_distance()
    assert len(set(found)) > 10


def test_trees_of_programs():
    assert tree_of("a + b") == Tree(("Name", "Add", "Name", "BinOp", "Expr", "Module"), (0, 1, 2, 0, 0, 0))
    assert tree_of("(c  -\n 2)") == tree_of("  x - 3  # what for\n") != tree_of("x - y")
    assert tree_of("x = 1") != tree_of("x") and tree_of("a + b", "values") != tree_of("a + c", "values")
    for one, other in [
        ("f(x=1)", "f(y=1)"),
        ("a.b", "a.c"),
        ("1", "1.0"),
        ("import a", "import b"),
        ("def f(): global a", "def f(): global b"),
    ]:
        assert tree_of(one) == tree_of(other) and tree_of(one, "values") != tree_of(other, "values")
    for text in ("1 +", "a\0b", "(" * 300 + ")" * 300, "9" * 5000, "+".join("a" * 5000), "\ud800", "the cat sat"):
        assert tree_of(text) is None
    assert len(tree_of("+".join("a" * 300)).labels) == 300 + 2 * 299 + 2
    with pytest.raises(ValueError, match="labels=names must"):
        tree_of("a", "names")


@pytest.mark.filterwarnings("error")
def test_warnings_of_the_text_are_not_ours():
    assert tree_of("'\\d' is 1") is not None


def test_what_does_not_parse_is_left_out_and_not_0():
    texts = ["a+b", "1 +", "b*a", "a+b", "the cat"]
    distance = ast_distances(texts)
    assert np.isnan(distance[[1, 4]]).all() and np.isnan(distance[:, [1, 4]]).all()
    assert distance[np.ix_([0, 2, 3], [0, 2, 3])].tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert mean_ast_distance(texts) == pytest.approx(2 / 3) and share_parsed(texts) == 0.6
    assert mean_ast_distance(["a+b", "c+d"]) == 0 and mean_ast_distance(["a+b", "c+d"], "values") == 2
    for few in ([], ["a"], ["a", "1 +"], ["1 +", "2 +"]):
        assert math.isnan(mean_ast_distance(few))
    assert math.isnan(share_parsed([])) and share_parsed(["1 +"]) == 0


def test_relative_distances_lie_between_0_and_1():
    plain, relative = ast_distances(PROGRAMS), ast_distances(PROGRAMS, relative=True)
    sizes = np.array([len(tree_of(text).labels) for text in PROGRAMS])
    np.testing.assert_allclose(relative, 2 * plain / (np.add.outer(sizes, sizes) + plain))
    assert 0 <= relative.min() and 0.3 < relative.max() <= 1
    for i, j, k in itertools.product(range(len(PROGRAMS)), repeat=3):
        assert relative[i, k] <= relative[i, j] + relative[j, k] + 1e-12


# -------------------------------------------------------------------------------------------------- over prompts
def test_prompts_with_too_few_texts_are_counted_and_left_out():
    texts = [["a b", "a c"], ["a b"], [], ["a b", "a b", "c d"]]
    band = per_prompt(lambda of: distinct_n(of, 1), texts)
    assert band.value == pytest.approx((3 / 4 + 4 / 6) / 2) and (band.n, band.undefined) == (2, 2)
    assert (band.low, band.high) == pytest.approx((17 / 24 - 12.7062 / 24, 17 / 24 + 12.7062 / 24), abs=1e-5)
    nothing = per_prompt(self_bleu, [["a"], []])
    assert np.isnan(nothing[:3]).all() and nothing[3:] == (0, 2)
    count = per_prompt(unique_answers, texts, least=0)
    assert count.value == pytest.approx((2 + 1 + 0 + 2) / 4) and count.n == 4


def test_only_the_right_answers():
    texts = [["1+1", "1+1", "x", "y"], ["2*1", "1*2", "z", "z"]]
    right = [[True, True, False, False], [True, True, False, True]]
    assert per_prompt(unique_answers, texts, right).value == 2 and per_prompt(unique_answers, texts).value == 3
    vectors = [np.array([E1, E1, E2, -E1]), np.array([E1, E2, E1, E1])]
    assert per_prompt(mean_cosine_distance, vectors, right).value == pytest.approx((0 + 2 / 3) / 2)
    assert per_prompt(mean_cosine_distance, vectors).value == pytest.approx((7 / 6 + 1 / 2) / 2)
    only = per_prompt(mean_cosine_distance, vectors, [[True, False, False, False], [True, True, True, True]])
    assert only.value == pytest.approx(0.5) and (only.n, only.undefined) == (1, 1)
    for wrong in ([[True] * 4], [[True] * 4, [True] * 3]):
        with pytest.raises(ValueError, match="right_Pn="):
            per_prompt(unique_answers, texts, wrong)


def test_per_prompt_and_pooled_are_different_things():
    """A model that says one thing per prompt: pooled it looks diverse."""
    texts = [[f"w{i} v{i}"] * 4 for i in range(30)]
    assert distinct_n([text for of in texts for text in of], 1) == 1 / 4
    assert per_prompt(self_bleu, texts)[:3] == pytest.approx((100, 100, 100))
    assert per_prompt(unique_answers, texts).value == 1


def test_it_needs_no_torch():
    code = "import sys; from research_stack.metrics import diversity, passk, pareto; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

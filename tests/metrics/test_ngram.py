"""N-gram baselines against counts made by hand."""

import numpy as np
import pytest

from research_stack.data.vocabulary import Vocabulary
from research_stack.metrics.ngram import NOTHING, Baseline, NGram, contexts, discounts

VOCAB = Vocabulary(size=7, mask=0, pad=1, end=2, special=(0, 1, 2))  # real tokens 3..6
A, B, C, D, END = 3, 4, 5, 6, 2


def test_contexts_forget_what_stands_before_a_separator():
    u, v = contexts(np.array([A, B, END, C, D]), END)
    assert v.tolist() == [NOTHING, A, B, END, C]
    assert u.tolist() == [NOTHING, NOTHING, A, END, END]
    u, v = contexts(np.array([[A, B], [C, D]]), END)  # rows do not see each other
    assert v.tolist() == [[NOTHING, A], [NOTHING, C]]


def test_unigram_by_hand():
    # counts a 3, b 1, c 1, d 0: too few for estimated discounts, so 0.5 comes off each; 1.5 / 5 goes to 1/4 each.
    model = NGram(1, np.array([A, A, A, B, END, C]), VOCAB)
    p = model.probabilities(np.full(4, NOTHING), np.full(4, NOTHING), np.array([A, B, C, D]))
    np.testing.assert_allclose(p, np.array([2.5, 0.5, 0.5, 0.0]) / 5 + 0.3 / 4)


def test_bigram_by_hand():
    # pairs: ab ab ac ba ba. Distinct predecessors: a 1 (b), b 1 (a), c 1 (a).
    model = NGram(2, np.array([A, B, A, B, A, C]), VOCAB)
    unigram = np.array([0.5, 0.5, 0.5, 0.0]) / 3 + (1.5 / 3) / 4
    p = model.probabilities(np.full(4, NOTHING), np.full(4, A), np.array([A, B, C, D]))
    np.testing.assert_allclose(p, np.array([0.0, 1.5, 0.5, 0.0]) / 3 + (1.0 / 3) * unigram)
    unseen = model.probabilities(np.full(4, NOTHING), np.full(4, D), np.array([A, B, C, D]))
    np.testing.assert_allclose(unseen, unigram)


def test_after_a_separator_the_bigram_keeps_its_counts():
    stream = np.array([END, END, A, END, A, END, A, END, B])
    model = NGram(3, stream, VOCAB, target_n=np.arange(9) > 1)
    bigram = model.orders[1]
    keys = dict(zip(bigram.keys.tolist(), bigram.share.tolist(), strict=True))
    assert keys[(END + 1) * model.base + A] == pytest.approx(2.5 / 4)  # 3 of 4, not 1 of 2


def test_discounts_by_hand():
    # n1=4, n2=2, n3=1, n4=1: Y = .5; D1 = 1 - 2*.5*2/4, D2 = 2 - 3*.5*1/2, D3 = 3 - 4*.5*1/1
    assert discounts(np.array([1, 1, 1, 1, 2, 2, 3, 4])).tolist() == [0, 0.5, 1.25, 1.0]


def test_every_context_gives_a_distribution():
    for order in (1, 2, 3):
        rng = np.random.default_rng(0)
        stream = rng.choice([A, B, C, D, END], size=400, p=[0.5, 0.2, 0.15, 0.05, 0.1])
        model = NGram(order, stream, VOCAB)
        seen = [NOTHING, A, B, C, D, END]
        for u in seen:
            for v in seen:
                p = model.probabilities(np.full(4, u), np.full(4, v), np.array([A, B, C, D]))
                assert p.min() > 0
                assert p.sum() == pytest.approx(1, abs=1e-12)


def test_only_scored_positions_count_and_separators_are_context():
    stream = np.tile([A, B, C, END], 50)
    rows = np.array([[B, C, END, A], [A, B, D, END]])
    scored = np.isin(rows, VOCAB.real)
    scored[1, 2] = False
    baseline = Baseline(3, stream, VOCAB)
    one, two, three = baseline.models

    def by_hand(u, v, w, model):
        return -np.log(model.probabilities(np.array([u]), np.array([v]), np.array([w])))[0]

    expected = [
        by_hand(NOTHING, NOTHING, B, one) + by_hand(NOTHING, B, C, two) + by_hand(END, END, A, three),
        by_hand(NOTHING, NOTHING, A, one) + by_hand(NOTHING, A, B, two),
    ]
    np.testing.assert_allclose(baseline.nats(rows, scored), expected)
    assert baseline.nats(rows, scored & False).tolist() == [0, 0]


def test_more_context_helps_where_there_is_structure():
    rng = np.random.default_rng(1)
    words = rng.integers(0, 4, 3000)
    stream = A + np.cumsum(words // 3) % 4  # a slow walk: the next token is close to the last
    rows = stream[-400:].reshape(10, 40)
    nats = [Baseline(k, stream[:-400], VOCAB).nats(rows, np.ones_like(rows, bool)).sum() for k in (1, 2, 3)]
    assert nats[0] > nats[1] * 1.5
    assert nats[2] < nats[1] * 1.1


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match="tokens_n=2 tokens"):
        NGram(1, np.array([END, END]), VOCAB)


def test_prompts_are_context_but_not_learned():
    model = NGram(1, np.array([A, A, B, B]), VOCAB, target_n=np.array([False, False, True, True]))
    p = model.probabilities(*(np.full(2, NOTHING),) * 2, np.array([A, B]))
    assert p[1] > 0.7 > p[0]


def test_it_is_fast_enough_for_the_embedded_corpus():
    import time

    rng = np.random.default_rng(2)
    stream = (rng.zipf(1.3, 200_000) % 2000) + 3
    vocab = Vocabulary(size=2003, mask=0, pad=1, end=2, special=(0, 1, 2))
    started = time.process_time()
    Baseline(3, stream, vocab)
    assert time.process_time() - started < 5

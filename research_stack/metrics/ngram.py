"""N-gram baselines: interpolated modified Kneser-Ney over the real tokens, in vectorised numpy.

    p(w | c) = max(k(cw) - D(k(cw)), 0) / k(c) + g(c) p(w | c without its first token),      p(w | nothing) backs off to
    1 / N

with k the counts at the highest order and, below it, the number of distinct tokens seen before (Chen and Goodman 1999,
section 3; the discounts D for counts 1, 2 and 3 or more are theirs, equation 17). Every p(. | c) sums to 1 over the N
real tokens. Separators are never predicted and serve as context: what stands before one is forgotten.

Shapes: n tokens in a stream, (B, L) rows.
"""

from __future__ import annotations

import numpy as np

from research_stack.data.vocabulary import Vocabulary

NOTHING = -1  # a context position before the start of a row


def contexts(tokens_n: np.ndarray, end: int) -> tuple[np.ndarray, np.ndarray]:
    """(the token two before, the token before) each token of the last axis; `NOTHING` before the first ones.

    After a separator both are the separator: documents have nothing to do with each other.
    """
    before = np.full_like(tokens_n, NOTHING)
    before[..., 1:] = tokens_n[..., :-1]
    earlier = np.full_like(tokens_n, NOTHING)
    earlier[..., 2:] = tokens_n[..., :-2]
    return np.where(before == end, end, earlier), before


def discounts(counts: np.ndarray) -> np.ndarray:
    """(4,) amounts taken off counts 0, 1, 2 and 3 or more (Chen and Goodman 1999, equation 17).

    Corpora too small to have counts of 1 to 4 get one discount of 0.5.
    """
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    share = n1 / (n1 + 2 * n2)
    raw = np.array([0.0, 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3])
    return np.clip(raw, [0.0, 0.05, 0.05, 0.05], [0.0, 0.95, 1.95, 2.95])


class Order:
    """The discounted counts of one order.

    - context, word: the distinct (context key, token) pairs that were seen. counts: how often, one per pair.
    - size: keys are context * size + word.
    """

    def __init__(self, context: np.ndarray, word: np.ndarray, counts: np.ndarray, size: int) -> None:
        keys = context * size + word
        order = np.argsort(keys)
        self.size, self.keys = size, keys[order]
        context, counts = context[order], counts[order].astype(np.float64)
        taken = discounts(counts)[np.minimum(counts, 3).astype(np.int64)]
        self.contexts, first = np.unique(context, return_index=True)
        total = np.add.reduceat(counts, first)
        self.freed = np.add.reduceat(taken, first) / total  # g(c): the mass that goes to the order below
        self.share = (counts - taken) / np.repeat(total, np.diff([*first, len(counts)]))

    def interpolate(self, context: np.ndarray, word: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p(word | context) given that of the order below; contexts never seen hand everything down."""
        index, seen = _find(self.contexts, context)
        freed = np.where(seen, self.freed[index], 1.0)
        index, found = _find(self.keys, context * self.size + word)
        return np.where(found & seen, self.share[index], 0.0) + freed * lower


def _find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index of each key, whether it is there)."""
    index = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return index, sorted_keys[index] == keys


class NGram:
    """An n-gram model of order 1, 2 or 3 over the real tokens of a vocabulary.

    - tokens_n: the training stream, separators included.
    - target_n: bool, the positions whose token is to be learned (real tokens; no prompts). None: all real ones.

    Raises ValueError when there is nothing to learn from.
    """

    def __init__(self, order: int, tokens_n: np.ndarray, vocab: Vocabulary, target_n: np.ndarray | None = None) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"order={order} must be 1, 2 or 3")
        tokens_n = np.asarray(tokens_n, dtype=np.int64)
        real_n = np.isin(tokens_n, vocab.real)
        wanted_n = real_n if target_n is None else target_n & real_n
        u, v = contexts(tokens_n, vocab.end)
        if order > 1:
            wanted_n = wanted_n & ((v if order == 2 else u) != NOTHING)
        if not wanted_n.any():
            raise ValueError(
                f"tokens_n={len(tokens_n)} tokens: an n-gram model needs at least one real token to learn from"
            )
        self.order, self.vocab, self.base = order, vocab, vocab.size + 1
        self.orders = self._count(u[wanted_n], v[wanted_n], tokens_n[wanted_n])

    def _count(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> list[Order]:
        """Orders 1 to `order`: raw counts at the top, below it distinct predecessors."""
        base, orders = self.base, []
        keys, counts = np.unique(self._context(u, v, self.order) * base + w, return_counts=True)
        for order in range(self.order, 0, -1):
            context, word = np.divmod(keys, base)
            orders.append(Order(context, word, counts, base))
            if order > 1:
                # After a separator the one predecessor is the separator: its own count says more.
                start = (context == (self.vocab.end + 1) * (base + 1)) & (order == 3)
                shorter = (context % base if order == 3 else 0) * base + word
                keys, index = np.unique(shorter, return_inverse=True)
                counts = np.bincount(index, weights=np.where(start, counts, 1)).astype(np.int64)
        return orders[::-1]

    def _context(self, u: np.ndarray, v: np.ndarray, order: int) -> np.ndarray:
        """The key of the last order - 1 context tokens; ids are shifted by one so that none is negative."""
        if order == 1:
            return np.zeros_like(v)
        return v + 1 if order == 2 else (u + 1) * self.base + v + 1

    def probabilities(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        """p(w | u v) of real tokens w, elementwise; u is two before and v one before (lower orders ignore them)."""
        p = np.full(np.shape(w), 1 / self.vocab.n_real)
        for order, table in enumerate(self.orders, start=1):
            p = table.interpolate(self._context(u, v, order), w, p)
        return p


class Baseline:
    """The n-gram baseline of a given order: each position gets as much context as its row has.

    The first token of a row is predicted by a unigram model and the second by a bigram model, since whoever is
    compared with it does not see what stands before the row either.
    """

    def __init__(self, order: int, tokens_n: np.ndarray, vocab: Vocabulary, target_n: np.ndarray | None = None) -> None:
        self.models, self.vocab = [NGram(k, tokens_n, vocab, target_n) for k in range(1, order + 1)], vocab

    def nats(self, tokens_BL: np.ndarray, scored_BL: np.ndarray) -> np.ndarray:
        """(B,) -ln p of the scored positions of each row, summed."""
        tokens_BL = np.asarray(tokens_BL, dtype=np.int64)
        u_BL, v_BL = contexts(tokens_BL, self.vocab.end)
        u, v, w = u_BL[scored_BL], v_BL[scored_BL], tokens_BL[scored_BL]
        p = np.empty(len(w))
        known = (v != NOTHING).astype(np.int64) + (u != NOTHING)  # context tokens there are: 0, 1 or 2
        known = np.minimum(known, len(self.models) - 1)
        for count, model in enumerate(self.models):
            at = known == count
            p[at] = model.probabilities(u[at], v[at], w[at])
        nats_BL = np.zeros(tokens_BL.shape)
        nats_BL[scored_BL] = -np.log(p)
        return nats_BL.sum(1)

"""A causal model whose law is a table, for the tests of the autoregressive sampler."""

from __future__ import annotations

import itertools

import torch
from scipy.stats import chisquare

from research_stack.data.vocabulary import Vocabulary
from research_stack.sampling.causal import NextTokenPrediction

SMALL = Vocabulary(size=7, mask=4, pad=5, end=6, special=(4, 5, 6))
REAL = [0, 1, 2, 3]


class Table:
    """The next token and the confidence depend on the last two tokens (the separator stands before the first one).

    - sure: how far from uniform. predicts_loss: whether it has confidences. ends: whether `end` can come next.
    """

    vocab, max_length = SMALL, 12

    def __init__(self, sure=1.5, predicts_loss=False, ends=False):
        generator = torch.Generator().manual_seed(3)
        self.logits_uvV = sure * torch.randn(7, 7, 7, generator=generator, dtype=torch.float64)
        self.logits_uvV[..., [4, 5] if ends else [4, 5, 6]] = -torch.inf
        self.confidence_uv = 2 + torch.randn(7, 7, generator=generator, dtype=torch.float64)
        self.predicts_loss, self.readers = predicts_loss, []

    def reader(self):
        self.readers.append(TableReader(self))
        return self.readers[-1]

    def at(self, text):
        """(logits_V, confidence) behind a text."""
        u, v = ([SMALL.end, SMALL.end, *text])[-2:]
        return self.logits_uvV[u, v], self.confidence_uv[u, v]


class TableReader:
    """Writes down the shapes it is given."""

    def __init__(self, table):
        self.table, self.predicts_loss, self.text_BL, self.shapes = table, table.predicts_loss, None, []

    def read(self, tokens_BL):
        self.shapes.append(tuple(tokens_BL.shape))
        assert not torch.isin(tokens_BL, torch.tensor([SMALL.pad, SMALL.mask])).any()
        if self.text_BL is None:
            self.text_BL = torch.full((len(tokens_BL), 2), SMALL.end)
        self.text_BL = torch.cat((self.text_BL, tokens_BL), 1)
        u, v = self.text_BL[:, -2], self.text_BL[:, -1]
        confidence_B = self.table.confidence_uv[u, v]
        return NextTokenPrediction(
            self.table.logits_uvV[u, v], *([confidence_B, (confidence_B - 2) / 0.7] if self.predicts_loss else [])
        )

    def keep(self, rows):
        self.text_BL = self.text_BL[rows]

    def confidence_at(self, tokens_nk, rows=None):
        last = self.text_BL[:, -1:] if rows is None else self.text_BL[rows, -1:]
        return self.table.confidence_uv[last.expand_as(tokens_nk), tokens_nk]


def sequences_law(step_law, steps, prompt=(), tokens=REAL):
    """{sequence: probability} of `steps` tokens, from step_law(text) -> p_V."""
    distribution = {}
    for sequence in itertools.product(tokens, repeat=steps):
        p = 1.0
        for i, token in enumerate(sequence):
            p *= float(step_law([*prompt, *sequence[:i]])[token])
        distribution[sequence] = p
    assert abs(sum(distribution.values()) - 1) < 1e-9
    return distribution


def p_value(texts_nL, distribution):
    """Of the chi-square test of texts against a law; no text that the law excludes. Rare sequences count as one."""
    counts = dict.fromkeys(distribution, 0)
    for text in map(tuple, texts_nL.tolist()):
        assert distribution.get(text, 0) > 0, f"{text} cannot come"
        counts[text] += 1
    n = len(texts_nL)
    often = [s for s in distribution if distribution[s] * n >= 5]
    observed, expected = [counts[s] for s in often], [distribution[s] * n for s in often]
    rest = n - sum(expected)
    if rest >= 5:
        observed, expected = [*observed, n - sum(observed)], [*expected, rest]
    scale = sum(observed) / sum(expected)
    return chisquare(observed, [e * scale for e in expected]).pvalue

"""A small corpus and a denoiser whose likelihood is known."""

from __future__ import annotations

import contextlib

import pytest
import torch

from research_stack.corruption.diffusion import Diffusion
from research_stack.corruption.process import Hybrid
from research_stack.data.module import TokenData
from research_stack.data.sources.base import Document
from research_stack.data.tokenizers import Bytes
from research_stack.evaluation.context import Context


class Stories:
    """Forty short texts."""

    def check(self):
        pass

    def documents(self):
        for i in range(40):
            yield Document(f"story {i}: " + " ".join(f"word{i * j % 17}" for j in range(20 + i)), None, str(i))

    def fingerprint(self):
        return "stories"


class Fixed:
    """Predicts the same distribution at every position, whatever it sees."""

    predicts = "leave_one_out"

    def __init__(self, vocab, logits_V, corruption):
        self.vocab, self.corruption = vocab, corruption
        self.logits_V = logits_V.clone()
        self.logits_V[list(vocab.special)] = -torch.inf

    def logits(self, z_BL, attention_mask_BL=None, t_B=None, where_BL=None):
        count = z_BL.shape if where_BL is None else (int(where_BL.sum()),)
        return self.logits_V.expand(*count, -1).float()


@pytest.fixture
def data(tmp_path):
    """The stories in bytes, rows of 48."""
    module = TokenData(
        Stories(), Bytes(), sequence_length=48, batch_size=8, validation_fraction=0.2, cache_dir=str(tmp_path / "cache")
    )
    module.prepare()
    return module


@pytest.fixture
def context(data, tmp_path):
    """A run whose method predicts a fixed distribution."""
    corruption = Diffusion(Hybrid(p_u=0.1)).bind(data.vocab)
    method = Fixed(data.vocab, torch.zeros(data.vocab.size), corruption)
    return Context(
        method,
        data,
        sampler=None,
        folder=tmp_path / "run",
        seed=1,
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext,
    )

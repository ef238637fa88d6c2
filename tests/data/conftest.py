"""Corpora for the tests of the data package."""

from __future__ import annotations

import hashlib

import pytest

from research_stack.data.sources.base import Document


class Corpus:
    """A source that holds its documents: texts, or (prompt, text) pairs."""

    def __init__(self, *items):
        pairs = [(None, item) if isinstance(item, str) else item for item in items]
        self.items = [Document(text, prompt, str(i)) for i, (prompt, text) in enumerate(pairs)]

    def check(self):
        pass

    def documents(self):
        return iter(self.items)

    def fingerprint(self):
        return hashlib.sha256(repr(self.items).encode()).hexdigest()


@pytest.fixture
def corpus():
    """Makes a source of the given texts or (prompt, text) pairs."""
    return Corpus


@pytest.fixture
def stories():
    """Forty different short texts."""
    return [f"story {i}: " + " ".join(f"word{i * j % 17}" for j in range(20 + i)) for i in range(40)]

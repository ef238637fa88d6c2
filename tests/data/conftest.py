"""Corpora for the tests of the data package."""

from __future__ import annotations

import hashlib

import pytest

from research_stack.data.sources import embedded
from research_stack.data.sources.base import Document
from research_stack.data.sources.embedded import library_docstrings


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


@pytest.fixture(scope="session")
def library():
    """Every docstring of the standard library: parsing it takes seconds."""
    return list(library_docstrings())


@pytest.fixture
def parsed(monkeypatch, library):
    """The library is parsed once for all the tests that ask for this."""
    monkeypatch.setattr(embedded, "library_docstrings", lambda: iter(library))

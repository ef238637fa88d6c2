"""What a source of documents is: the protocol, a document, and how its text is cleaned. No torch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

# change it when the side of a pair, or what becomes of one that is long, changes: it is part of the fingerprint of
# sources of pairs
PAIRS = "pairs2"


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    - text: what is learned; for a pair, the response; "" for a prompt that stands alone.
    - prompt: what the response answers; None for plain text. It is never corrupted.
    - key: where it comes from (a file and a position), for messages.
    - group: documents of one group stand on one side of the split; empty for a document that stands alone.
    - value: what the response was worth to its readers, a count such as likes; None where nobody counted.
    """

    text: str
    prompt: str | None = None
    key: str = ""
    group: str = ""
    value: float | None = None


class HasDocuments(Protocol):
    """What holds documents. Their order is always the same."""

    def documents(self) -> Iterator[Document]:
        """Every document, in order; may be called several times."""
        ...


class Source(HasDocuments, Protocol):
    """A corpus."""

    def check(self) -> None:
        """Raise ValueError or OSError with one line when the corpus cannot be read; takes well under a second."""

    def fingerprint(self) -> str:
        """A text that changes whenever the documents may have changed."""
        ...


@runtime_checkable
class Described(Protocol):
    """A source that has more to say of itself than its fingerprint."""

    def describe(self) -> dict[str, Any]:
        """Facts by name that belong beside every number measured on the corpus."""
        ...


def encodable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, as question marks."""
    return text.encode(errors="replace").decode()


def clean(text: str) -> str:
    """Common indentation, trailing blanks and runs of blank lines removed."""
    lines = "\n".join(line.rstrip() for line in inspect.cleandoc(encodable(text)).splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()

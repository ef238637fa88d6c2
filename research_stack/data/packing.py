"""Documents to rows of token ids: the split by document, the cutting, and the rows that are read back. No torch.

- Split: a document's side is a function of its text alone (SHA-256), so copies of a text fall on one side; exact
  copies are removed. Of a pair the response decides, so one response never stands on both sides. Documents that a
  source puts into a group stay together: there the group's name decides.
- Plain text: documents, each closed by the end token, are laid end to end and cut into rows of L; the last,
  unfilled row is dropped. No padding.
- Pairs: one row each: prompt, response, end, padding. A response that does not fit is cut (and has no end token);
  a pair whose prompt takes more than half of the row is dropped. Both are counted.
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from research_stack.data.sources import Document, Source
from research_stack.data.tokenizers import Codec
from research_stack.data.vocabulary import Vocabulary

TRAIN, VALIDATION, DUPLICATE = range(3)
ENCODE_TOGETHER = 512  # documents per call of the tokenizer, which spreads them over the cores


def side_of(document: Document, validation_fraction: float) -> int:
    """TRAIN or VALIDATION, from the SHA-256 of the group, or of the text where there is none."""
    return VALIDATION if _rank(document) < validation_fraction else TRAIN


def _rank(document: Document) -> float:
    """A number in [0, 1) that depends on the group, or on the text, alone."""
    digest = hashlib.sha256((document.group or document.text).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(source: Source, validation_fraction: float) -> np.ndarray:
    """(documents,) uint8: the side of each document, DUPLICATE for exact copies and for blank texts.

    When chance leaves the validation side (or the train side) empty, the document nearest to the threshold crosses over.
    Raises ValueError when there are fewer than two different documents.
    """
    sides, ranks, seen = bytearray(), [], set()
    for document in source.documents():
        identity = hashlib.sha256(f"{document.prompt}\0{document.text}".encode()).digest()[:16]
        fresh = bool(document.text.strip()) and identity not in seen
        seen.add(identity)
        ranks.append(_rank(document))
        sides.append(side_of(document, validation_fraction) if fresh else DUPLICATE)
    result, rank = np.frombuffer(bytes(sides), np.uint8).copy(), np.array(ranks)
    texts = np.unique(rank[result != DUPLICATE])
    if len(texts) < 2:
        raise ValueError(
            f"validation_fraction={validation_fraction} cannot be kept: the source has {len(texts)} different "
            f"document{'s' * (len(texts) != 1)}, and a split by document into train and validation needs at least 2"
        )
    if not (result == VALIDATION).any():
        result[(rank == texts[0]) & (result != DUPLICATE)] = VALIDATION
    if not (result == TRAIN).any():
        result[(rank == texts[-1]) & (result != DUPLICATE)] = TRAIN
    return result


@dataclass
class Counts:
    """What became of the documents of one side. `bytes` and `tokens` are of the texts (responses), before cutting."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    rows: int = 0
    truncated: int = 0
    dropped: int = 0


class RowWriter:
    """Writes the rows of one side into `{name}.tokens` (rows, L) and `{name}.spans` (rows, 2) below the folder.

    A span is (prompt length, filled length) of its row. Rows of plain text come as they fill up.
    """

    def __init__(self, folder: Path, name: str, vocab: Vocabulary, length: int) -> None:
        self.vocab, self.length, self.counts = vocab, length, Counts()
        self.tokens_file = open(folder / f"{name}.tokens", "wb")
        self.spans_file = open(folder / f"{name}.spans", "wb")
        self.dtype = token_type(vocab)
        self.pending: list[int] = []

    def add(self, document: Document, text: list[int], prompt: list[int] | None) -> None:
        """Append one document: the ids of its text and, for a pair, of its prompt."""
        self.counts.documents += 1
        self.counts.bytes += len(document.text.encode())
        self.counts.tokens += len(text)
        if prompt is None:
            self.pending += [*text, self.vocab.end]
            self._cut()
        elif len(prompt) > self.length // 2:
            self.counts.dropped += 1
        else:
            ids = [*prompt, *text, self.vocab.end]
            self.counts.truncated += len(ids) > self.length
            filled = min(len(ids), self.length)
            row = ids[: self.length] + [self.vocab.pad] * (self.length - filled)
            self._write(np.array([row]), np.array([[len(prompt), filled]]))

    def _cut(self) -> None:
        rows = len(self.pending) // self.length
        if rows:
            filled = np.array(self.pending[: rows * self.length]).reshape(rows, self.length)
            self._write(filled, np.tile([0, self.length], (rows, 1)))
            del self.pending[: rows * self.length]

    def _write(self, rows: np.ndarray, spans: np.ndarray) -> None:
        self.tokens_file.write(rows.astype(self.dtype).tobytes())  # ndarray.tofile hides the reason when a disk is full
        self.spans_file.write(spans.astype(np.int32).tobytes())
        self.counts.rows += len(rows)

    def close(self) -> Counts:
        """Close the files; what is left of the last row is dropped."""
        self.tokens_file.close()
        self.spans_file.close()
        return self.counts


def token_type(vocab: Vocabulary) -> type[np.unsignedinteger]:
    """The smallest type that holds every id."""
    return np.uint16 if vocab.size <= 2**16 else np.uint32


def encoded(documents: Iterable[Document], codec: Codec) -> Iterator[tuple[Document, list[int], list[int] | None]]:
    """(document, ids of its text, ids of its prompt or None), in order."""
    documents = iter(documents)
    while chunk := list(islice(documents, ENCODE_TOGETHER)):
        texts = codec.encode_batch([d.text for d in chunk])
        prompts = iter(codec.encode_batch([d.prompt for d in chunk if d.prompt is not None]))
        for document, text in zip(chunk, texts, strict=True):
            yield document, text, None if document.prompt is None else next(prompts)


def pack(source: Source, sides: np.ndarray, codec: Codec, length: int, folder: Path) -> dict[str, dict[str, int]]:
    """Write both sides' rows below the folder; returns their counts by name."""
    writers = {
        TRAIN: RowWriter(folder, "train", codec.vocab, length),
        VALIDATION: RowWriter(folder, "validation", codec.vocab, length),
    }
    places = iter(sides)
    kept = ((side, document) for document in source.documents() if (side := int(next(places))) != DUPLICATE)
    chosen: list[int] = []  # the sides of the documents that the tokenizer has read but not returned yet

    def documents() -> Iterator[Document]:
        for side, document in kept:
            chosen.append(side)
            yield document

    for document, text, prompt in encoded(documents(), codec):
        writers[chosen.pop(0)].add(document, text, prompt)
    return {"train": asdict(writers[TRAIN].close()), "validation": asdict(writers[VALIDATION].close())}


def train_texts(source: Source, sides: np.ndarray) -> Iterator[str]:
    """Prompts and texts of the train side: all that a tokenizer may learn from."""
    for side, document in zip(sides, source.documents(), strict=True):
        if side == TRAIN:
            yield (document.prompt or "") + document.text


class Rows:
    """Packed rows, read from the cache without loading them.

    - tokens: (N, L) memmap, uint16 or uint32.
    - spans: (N, 2) memmap, int32: (prompt length, filled length) of each row.
    - vocab: whose special tokens are not eligible.
    """

    def __init__(self, tokens: np.ndarray, spans: np.ndarray, vocab: Vocabulary) -> None:
        self.tokens, self.spans, self.vocab = tokens, spans, vocab
        self._special = np.zeros(vocab.size, dtype=bool)
        self._special[list(vocab.special)] = True

    @classmethod
    def load(cls, folder: Path, name: str, vocab: Vocabulary, length: int) -> Rows:
        """The rows that `pack` wrote under the name."""
        tokens = np.memmap(folder / f"{name}.tokens", token_type(vocab), "r").reshape(-1, length)
        return cls(tokens, np.memmap(folder / f"{name}.spans", np.int32, "r").reshape(-1, 2), vocab)

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray | slice) -> Rows:
        """Some of the rows, in the order asked for, as arrays in memory."""
        return Rows(np.asarray(self.tokens[rows]), np.asarray(self.spans[rows]), self.vocab)

    def spread(self, count: int) -> Rows:
        """`count` rows evenly spread over all (all of them when there are fewer)."""
        return self if count >= len(self) else self.take(self.spread_indices(count))

    def spread_indices(self, count: int) -> np.ndarray:
        """Where the rows of `spread` stand."""
        count = min(count, len(self))
        return np.arange(count) * len(self) // max(count, 1)

    @property
    def plain(self) -> bool:
        """Whether every row is full and has no prompt: laid end to end, the rows are then the text they were cut from."""
        return bool((np.asarray(self.spans) == [0, self.tokens.shape[1]]).all())

    def windows(self, starts_B: np.ndarray) -> Rows:
        """Rows (B, L) of plain text that begin at these tokens of the rows laid end to end, as arrays in memory."""
        length = self.tokens.shape[1]
        tokens_BL = np.asarray(self.tokens.reshape(-1)[starts_B[:, None] + np.arange(length)])
        return Rows(tokens_BL, np.tile(np.array([0, length], np.int32), (len(starts_B), 1)), self.vocab)

    @property
    def document(self) -> np.ndarray:
        """(N,) the number of the document in which each row begins: how many have ended before it, or one a row for pairs."""
        if bool((self.spans[:, 0] > 0).any()):
            return np.arange(len(self))
        ends_N = (np.asarray(self.tokens) == self.vocab.end).sum(1)
        return np.cumsum(ends_N) - ends_N

    @property
    def attend(self) -> np.ndarray:
        """(N, L) bool: not padding."""
        return np.arange(self.tokens.shape[1]) < self.spans[:, 1:]

    @property
    def prompt(self) -> np.ndarray:
        """(N, L) bool: positions of the prompt."""
        return np.arange(self.tokens.shape[1]) < self.spans[:, :1]

    @property
    def eligible(self) -> np.ndarray:
        """(N, L) bool: may be corrupted and carry loss: neither prompt nor padding nor a special token."""
        return self.attend & ~self.prompt & ~self._special[self.tokens]

    def stream(self) -> np.ndarray:
        """(n,) int64: every token but padding, row after row, end tokens included (prompts too)."""
        return self.tokens[self.attend].astype(np.int64)

    def arrays(self) -> dict[str, np.ndarray]:
        """`tokens` int64, `eligible`, `attend` and `prompt` bool, each (N, L)."""
        tokens = self.tokens.astype(np.int64)
        return {"tokens": tokens, "eligible": self.eligible, "attend": self.attend, "prompt": self.prompt}



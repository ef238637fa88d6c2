"""Documents to rows of token ids: the split by document, the cutting, and the rows that are read back. No torch.

- Split: a document's side is a function of its text alone (SHA-256), so copies of a text fall on one side; exact
  copies are removed. Of a pair the prompt decides, so one prompt never stands on both sides, while one response ("yes")
  may: where all pairs have the same prompt, prompt and response decide. Documents that a source puts into a group stay
  together: there the group's name decides.
- Plain text: documents, each closed by the end token, are laid end to end and cut into rows of L; the last,
  unfilled row is dropped. No padding.
- Pairs: one row each: prompt, response, end, padding. What fits is kept. Of what does not, the response is cut (and has
  no end token), unless the prompt takes more than half of the row: then the pair is dropped. Both are counted.
- Packed pairs: several of them one after another in a row, each whole, so that less of a row is padding. What belongs
  together is marked, since no pair may see another.
- Prompts alone (a prompt with the text ""): one row each: prompt, padding. One that is longer than the row is dropped
  and counted. Nothing in such a row is eligible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from research_stack.data.sources.base import Document, HasDocuments, Source
from research_stack.data.tokenizers import Codec
from research_stack.data.vocabulary import Vocabulary

TRAIN, VALIDATION, DUPLICATE = range(3)
ENCODE_TOGETHER = 512  # documents per call of the tokenizer, which spreads them over the cores
OPEN_ROWS = 64  # rows that a packed pair may still go into; more fill better and cost more
PADDED, PROMPT, RESPONSE = range(3)  # marks of the positions of packed rows
FIRST = 4  # added to the mark of a pair's first position


def _alike(document: Document) -> str:
    """What documents on one side of the split have in common: the group, or the prompt, or the text that has
    neither.
    """
    return document.group or document.prompt or document.text


def _both(document: Document) -> str:
    """The same for pairs that all have one prompt: prompt and response."""
    return document.group or f"{document.prompt}\0{document.text}"


def _rank(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split(source: HasDocuments, validation_fraction: float) -> np.ndarray:
    """(documents,) uint8: the side of each document, DUPLICATE for exact copies and for blank texts.

    A prompt with the text "" stands for itself and is kept; a prompt with a text of blanks is not.
    When chance leaves the validation side (or the train side) empty, the document nearest to the threshold crosses
    over. Raises ValueError when there are fewer than two different documents.
    """
    for alike in (_alike, _both):
        fresh, rank = _ranked(source, alike)
        ranks = np.unique(rank[fresh])
        if len(ranks) >= 2:
            break
    else:
        raise ValueError(
            f"validation_fraction={validation_fraction} cannot be kept: the source has {len(ranks)} different "
            f"document{'s' * (len(ranks) != 1)}, and a split by document into train and validation needs at least 2"
        )
    result = np.where(fresh, np.where(rank < validation_fraction, VALIDATION, TRAIN), DUPLICATE).astype(np.uint8)
    if not (result == VALIDATION).any():
        result[(rank == ranks[0]) & fresh] = VALIDATION
    if not (result == TRAIN).any():
        result[(rank == ranks[-1]) & fresh] = TRAIN
    return result


def _ranked(source: HasDocuments, alike: Callable[[Document], str]) -> tuple[np.ndarray, np.ndarray]:
    """((documents,) bool: neither blank nor a copy; (documents,) the rank of each, equal where documents are alike)."""
    fresh, ranks, seen = bytearray(), [], set()
    for document in source.documents():
        identity = hashlib.sha256(f"{document.prompt}\0{document.text}".encode()).digest()[:16]
        said = document.text or document.prompt or ""
        fresh.append(bool(said.strip()) and identity not in seen)
        seen.add(identity)
        ranks.append(_rank(alike(document)))
    return np.frombuffer(bytes(fresh), np.bool_).copy(), np.array(ranks)


@dataclass
class Counts:
    """What became of the documents of one side. `bytes` and `tokens` are of the texts (of prompts alone: theirs),
    before cutting.
    """

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    rows: int = 0
    truncated: int = 0
    dropped: int = 0


class RowWriter:
    """Writes the rows of one side into `{name}.tokens` (rows, L) and `{name}.spans` (rows, 2) below the folder.

    A span is (prompt length, filled length) of its row. Rows of plain text come as they fill up.

    - begin: ids in front of each document and prompt that does not begin with them.
    """

    def __init__(self, folder: Path, name: str, vocab: Vocabulary, length: int, begin: Sequence[int] = ()) -> None:
        self.vocab, self.length, self.counts, self.begin = vocab, length, Counts(), list(begin)
        self.tokens_file = open(folder / f"{name}.tokens", "wb")
        self.spans_file = open(folder / f"{name}.spans", "wb")
        self.dtype = token_type(vocab)
        self.pending: list[int] = []

    def add(self, document: Document, text: list[int], prompt: list[int] | None) -> None:
        """Append one document: the ids of its text and, for a pair, of its prompt."""
        alone = prompt is not None and document.text == ""
        self.counts.documents += 1
        self.counts.bytes += len((document.text or document.prompt or "").encode())
        self.counts.tokens += len(prompt if prompt is not None and alone else text)
        if prompt is None:
            self.pending += [*self._begun(text), self.vocab.end]
            self._cut()
            return
        prompt = self._begun(prompt)
        ids = [*prompt] if alone else [*prompt, *text, self.vocab.end]
        if len(ids) > self.length and (alone or len(prompt) > self.length // 2):
            self.counts.dropped += 1
        else:
            self.counts.truncated += len(ids) > self.length
            self._place(ids[: self.length], len(prompt))

    def _begun(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self.begin)] == self.begin else [*self.begin, *ids]

    def _place(self, ids: list[int], prompt: int) -> None:
        """Write a row of its own for a pair, whose first `prompt` ids are its prompt."""
        row = ids + [self.vocab.pad] * (self.length - len(ids))
        self._write(np.array([row]), np.array([[prompt, len(ids)]]))

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


class PairPacker(RowWriter):
    """Writes rows of several pairs, and their marks into `{name}.marks` (rows, L) uint8.

    A pair goes into the first of the open rows that has room for it (first fit), else into a new one; of more than
    OPEN_ROWS open rows the fullest is written. The span of a row is (prompt length of its first pair, filled length).
    """

    def __init__(self, folder: Path, name: str, vocab: Vocabulary, length: int, begin: Sequence[int] = ()) -> None:
        super().__init__(folder, name, vocab, length, begin)
        self.marks_file = open(folder / f"{name}.marks", "wb")
        self.open: list[tuple[list[int], list[int]]] = []  # ids and marks of each row

    def _place(self, ids: list[int], prompt: int) -> None:
        """Append a pair to a row."""
        marks = [PROMPT] * prompt + [RESPONSE] * (len(ids) - prompt)
        marks[0] += FIRST
        row = next((row for row in self.open if len(row[0]) + len(ids) <= self.length), None)
        if row is None:
            self.open.append(row := ([], []))
        row[0].extend(ids)
        row[1].extend(marks)
        if len(self.open) > OPEN_ROWS:
            self._flush(max(range(len(self.open)), key=lambda i: len(self.open[i][0])))

    def _flush(self, index: int) -> None:
        """Write one of the open rows."""
        ids, marks = self.open.pop(index)
        rest = self.length - len(ids)
        prompt = next((i for i, mark in enumerate(marks) if mark & RESPONSE), len(marks))
        self._write(np.array([ids + [self.vocab.pad] * rest]), np.array([[prompt, len(ids)]]))
        self.marks_file.write(np.array(marks + [PADDED] * rest, np.uint8).tobytes())

    def close(self) -> Counts:
        """Write the rows that are still open, then close the files."""
        while self.open:
            self._flush(0)
        self.marks_file.close()
        return super().close()


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


def require_pairs(source: Source) -> None:
    """Raise ValueError at the first document that is no pair of a prompt and a response: it cannot be packed."""
    for document in source.documents():
        if document.prompt is None or document.text == "":
            what = (
                "plain text, which fills its rows anyway" if document.prompt is None else "a prompt without a response"
            )
            raise ValueError(
                f"pack=true needs pairs of a prompt and a response, and '{document.key[:200]}' of this corpus is"
                f" {what}; set pack=false"
            )


def pack(
    source: Source, sides: np.ndarray, codec: Codec, length: int, folder: Path, pairs: bool = False
) -> dict[str, dict[str, int]]:
    """Write both sides' rows below the folder, several pairs to a row with `pairs`; returns their counts by name."""
    writer = PairPacker if pairs else RowWriter
    writers = {
        side: writer(folder, name, codec.vocab, length, codec.begin)
        for side, name in ((TRAIN, "train"), (VALIDATION, "validation"))
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


class PackedRows:
    """Packed rows, read from the cache without loading them.

    - tokens: (N, L) memmap, uint16 or uint32.
    - spans: (N, 2) memmap, int32: (prompt length, filled length) of each row.
    - vocab: whose special tokens are not eligible.
    - marks: (N, L) memmap, uint8, where a row holds several pairs: PADDED, PROMPT or RESPONSE, plus FIRST where a pair
      begins; None where it holds one pair, one prompt or plain text.
    - ended: batches have end tokens to the end of the row behind each response, in place of padding, and these and the
      response's own may be corrupted and carry loss (`filled_with_ends`). What is said of the rows themselves does not
      change.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        spans: np.ndarray,
        vocab: Vocabulary,
        marks: np.ndarray | None = None,
        ended: bool = False,
    ) -> None:
        self.tokens, self.spans, self.vocab, self.marks, self.ended = tokens, spans, vocab, marks, ended
        self._special = np.zeros(vocab.size, dtype=bool)
        self._special[list(vocab.special)] = True

    @classmethod
    def load(cls, folder: Path, name: str, vocab: Vocabulary, length: int) -> PackedRows:
        """The rows that `pack` wrote under the name."""
        tokens = np.memmap(folder / f"{name}.tokens", token_type(vocab), "r").reshape(-1, length)
        spans = np.memmap(folder / f"{name}.spans", np.int32, "r").reshape(-1, 2)
        file = folder / f"{name}.marks"
        return cls(tokens, spans, vocab, np.memmap(file, np.uint8, "r").reshape(-1, length) if file.exists() else None)

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray | slice) -> PackedRows:
        """Some of the rows, in the order asked for, as arrays in memory."""
        marks = None if self.marks is None else np.asarray(self.marks[rows])
        return PackedRows(np.asarray(self.tokens[rows]), np.asarray(self.spans[rows]), self.vocab, marks, self.ended)

    def filled_with_ends(self) -> PackedRows:
        """The same rows for a method that learns where a response ends (Nie et al. 2025, section 2.3): see `ended`."""
        return PackedRows(self.tokens, self.spans, self.vocab, self.marks, ended=True)

    def evenly_spaced(self, count: int) -> PackedRows:
        """`count` rows evenly spread over all (all of them when there are fewer)."""
        return self if count >= len(self) else self.take(self.evenly_spaced_indices(count))

    def evenly_spaced_indices(self, count: int) -> np.ndarray:
        """Where the rows of `evenly_spaced` stand."""
        count = min(count, len(self))
        return np.arange(count) * len(self) // max(count, 1)

    @property
    def plain(self) -> bool:
        """Whether every row is full and has no prompt: laid end to end, the rows are then the text they were cut
        from.
        """
        return self.marks is None and bool((np.asarray(self.spans) == [0, self.tokens.shape[1]]).all())

    @property
    def prompts_only(self) -> bool:
        """Whether every row is a prompt without a response."""
        return self.marks is None and bool((self.spans[:, 0] == self.spans[:, 1]).all())

    @property
    def pairs(self) -> bool:
        """Whether rows hold one pair of a prompt and a response each, not several."""
        return self.marks is None and bool(((self.spans[:, 0] > 0) & (self.spans[:, 1] > self.spans[:, 0])).any())

    @property
    def filled(self) -> float:
        """The share of the positions that are not padding."""
        return int(self.spans[:, 1].sum(dtype=np.int64)) / max(self.tokens.size, 1)

    def windows(self, starts_B: np.ndarray) -> PackedRows:
        """Rows (B, L) of plain text that begin at these tokens of the rows laid end to end, as arrays in memory."""
        length = self.tokens.shape[1]
        tokens_BL = np.asarray(self.tokens.reshape(-1)[starts_B[:, None] + np.arange(length)])
        return PackedRows(tokens_BL, np.tile(np.array([0, length], np.int32), (len(starts_B), 1)), self.vocab)

    @property
    def document(self) -> np.ndarray:
        """(N,) the number of the document in which each row begins: how many have ended before it, or one a row for
        pairs.

        A row of several pairs counts as one document too: what is averaged by document is then averaged by row.
        """
        if self.marks is not None or bool((self.spans[:, 0] > 0).any()):
            return np.arange(len(self))
        ends_N = (np.asarray(self.tokens) == self.vocab.end).sum(1)
        return np.cumsum(ends_N) - ends_N

    @property
    def first(self) -> np.ndarray:
        """(N, L) bool: positions where a pair, or a prompt that stands alone, begins; nowhere in plain text."""
        if self.marks is not None:
            return (self.marks & FIRST) > 0
        return (np.arange(self.tokens.shape[1]) == 0) & (self.spans[:, :1] > 0)

    @property
    def attention_mask(self) -> np.ndarray:
        """(N, L) bool: not padding."""
        return np.arange(self.tokens.shape[1]) < self.spans[:, 1:]

    @property
    def prompt(self) -> np.ndarray:
        """(N, L) bool: positions of the prompt, or of each of the prompts."""
        if self.marks is not None:
            return (self.marks & PROMPT) > 0
        return np.arange(self.tokens.shape[1]) < self.spans[:, :1]

    @property
    def eligible(self) -> np.ndarray:
        """(N, L) bool: may be corrupted and carry loss: neither prompt nor padding nor a special token."""
        return self.attention_mask & ~self.prompt & ~self._special[self.tokens]

    @property
    def seq_idx(self) -> np.ndarray:
        """(N, L) int64: the number of the pair in its row, from 0; -1 at padding."""
        return np.where(self.attention_mask, np.cumsum(self.first, 1) - 1, -1)

    @property
    def position_ids(self) -> np.ndarray:
        """(N, L) int64: the position within the pair, from 0; 0 at padding."""
        at = np.broadcast_to(np.arange(self.tokens.shape[1]), self.tokens.shape)
        return np.where(self.attention_mask, at - np.maximum.accumulate(np.where(self.first, at, 0), 1), 0)

    def stream(self) -> np.ndarray:
        """(n,) int64: every token but padding, row after row, end tokens included (prompts too)."""
        return self.tokens[self.attention_mask].astype(np.int64)

    def segments(self) -> list[np.ndarray]:
        """The stream cut after each end token and before each pair, end tokens left out; some may be empty."""
        stream = self.stream()
        ends, firsts = np.flatnonzero(stream == self.vocab.end) + 1, np.flatnonzero(self.first[self.attention_mask])
        return [part[part != self.vocab.end] for part in np.split(stream, np.union1d(ends, firsts))]

    def arrays(self) -> dict[str, np.ndarray]:
        """`tokens` int64, `eligible`, `attention_mask` and `prompt` bool, each (N, L); of packed pairs also
        `seq_idx` and `position_ids`, int64.
        """
        tokens = self.tokens.astype(np.int64)
        if self.ended:
            rest = ~self.attention_mask & (self.spans[:, 1:] > self.spans[:, :1])
            tokens = np.where(rest, self.vocab.end, tokens)
            eligible = self.eligible | ((tokens == self.vocab.end) & ~self.prompt)
            return {
                "tokens": tokens,
                "eligible": eligible,
                "attention_mask": self.attention_mask | rest,
                "prompt": self.prompt,
            }
        packed = {} if self.marks is None else {"seq_idx": self.seq_idx, "position_ids": self.position_ids}
        return {
            "tokens": tokens,
            "eligible": self.eligible,
            "attention_mask": self.attention_mask,
            "prompt": self.prompt,
            **packed,
        }

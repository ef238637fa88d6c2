"""ScoredPairs: prompts with replies and what each reply earned, as embeddings and targets, served in batches.

The target of a pair is log(1 + engagement). Prompt and reply are embedded once by a frozen encoder, and the arrays are
cached under a fingerprint; a batch is then a lookup. Which rows a step sees is a function of (seed, step) alone, as in
`module`.

Shapes: U distinct texts, N pairs, D numbers of an embedding, B pairs of a batch, F = 2 D inputs (prompt, then reply).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from research_stack.data.batches import StepBatches, TrainBatches
from research_stack.data.dropped import check_dropped, check_split
from research_stack.data.packing import DUPLICATE, TRAIN, VALIDATION, split
from research_stack.data.sources.base import Document, Source
from research_stack.data.sources.record_reader import Selective
from research_stack.data.step_data import StepData, source_facts
from research_stack.require import require

log = logging.getLogger(__name__)

LAYOUT = 1  # raise it when split, target or file format change: it is part of the fingerprint
EMBED_TOGETHER = 4096  # texts per call of the encoder


class Encoder(Protocol):
    """Texts to vectors, frozen."""

    @property
    def dim(self) -> int:
        """D."""
        ...

    def check(self) -> None:
        """Raise ValueError or OSError in one line when the weights are not there; fast."""

    def embed(self, texts: list[str]) -> np.ndarray:
        """(n, D) float32."""
        ...

    def fingerprint(self) -> str:
        """A text that changes whenever the vectors may have changed."""
        ...


@dataclass(frozen=True)
class ScoredRows:
    """Pairs of one side of the split.

    - texts_UD: embeddings of all distinct texts. pair_N2: where prompt and reply of each pair stand among them.
    - target_N: float64, log(1 + engagement). group_N: int64, equal for pairs of one prompt (or of one group of the
      source).
    - length_N: int64, characters of each reply. number_N: int64, where each pair stands among the documents of the
      source.
    """

    texts_UD: np.ndarray
    pair_N2: np.ndarray
    target_N: np.ndarray
    group_N: np.ndarray
    length_N: np.ndarray
    number_N: np.ndarray

    def __len__(self) -> int:
        return len(self.target_N)

    def take(self, rows: np.ndarray | slice) -> ScoredRows:
        """Some of the pairs, in the order asked for."""
        return ScoredRows(
            self.texts_UD,
            *(column[rows] for column in (self.pair_N2, self.target_N, self.group_N, self.length_N, self.number_N)),
        )

    def evenly_spaced(self, count: int) -> ScoredRows:
        """`count` pairs evenly spread over all (all of them when there are fewer)."""
        return self if count >= len(self) else self.take(np.arange(count) * len(self) // count)

    @property
    def features(self) -> np.ndarray:
        """(N, F) float32: the prompt's embedding, then the reply's."""
        return np.asarray(self.texts_UD[self.pair_N2], dtype=np.float32).reshape(len(self), -1)

    def arrays(self) -> dict[str, np.ndarray]:
        """`features` (N, F) and `target` (N,), float32."""
        return {"features": self.features, "target": self.target_N.astype(np.float32)}


class ScoredPairs(StepData):
    """Prompts, replies and their engagement, embedded, cached and served in batches {"features": (B, F), "target":
    (B,)}, float32.

    - source: documents with a prompt, a text (the reply) and a value (the engagement, a count of at least 0).
    - encoder: of prompts and replies; frozen.
    - batch_size: B, pairs per optimizer step over all devices.
    - validation_fraction: share of the prompts kept for validation, in (0, 1). All replies to a prompt stand on one
      side.
    - validation_rows: at most so many validation pairs, spread evenly over all; None for all.
    - cache_dir: root of the caches; None for $RESEARCH_STACK_CACHE or ~/.cache/research_stack.
    - num_workers: loader processes. seed: of the order of the pairs; the split does not depend on it.
    - path: what the source reads, a label; the source takes it by interpolation, so that `data.path=FILE` works.
    - max_dropped: refuse the corpus where more than this share of its records is left out, since they are odd; in [0,
      1].

    `prepare()` must be called before the other attributes are used; it is idempotent, and Lightning calls it too.
    A row counts as a sequence of one token where a length is asked for; there is no vocabulary.
    """

    sequence_length = 1

    #: See research_stack.config.smoke.
    smoke = {"batch_size": 16}

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        batch_size: int = 64,
        validation_fraction: float = 0.2,
        validation_rows: int | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        path: str | list[str] | None = None,
        max_dropped: float = 0.5,
    ) -> None:
        super().__init__(
            batch_size, validation_fraction, validation_rows, num_workers, seed, path, max_dropped, cache_dir
        )
        self.source, self.encoder = source, encoder
        self.train: ScoredRows
        self.validation: ScoredRows

    def check(self) -> None:
        """Raise ValueError or OSError with one line when corpus or encoder cannot be had; reads little."""
        self.source.check()
        with _encoding():
            self.encoder.check()

    def load(self) -> None:
        """Embed, or open the cache. Raises ValueError (a pair without prompt, reply or engagement; a constant target)
        or OSError in one line.
        """
        with _encoding():
            encoder = self.encoder.fingerprint()
        parts = [LAYOUT, self.source.fingerprint(), encoder, self.validation_fraction]
        self.set_fingerprint(["scored", *parts])
        folder = self.open_cache()
        sides = self.meta["train"]["pairs"], self.meta["validation"]["pairs"]
        check_dropped(sum(sides), 0, self.meta.get("odd", {}), self.max_dropped, "")
        check_split(*sides, self.validation_fraction, "pairs")
        texts_UD = np.load(folder / "texts.npy", mmap_mode="r")
        self.train, self.validation = (self._rows(folder, name, texts_UD) for name in ("train", "validation"))
        self.validation = self.validation.evenly_spaced(self.validation_rows or len(self.validation))

    def build(self, folder: Path) -> dict[str, Any]:
        source = ByPrompt(self.source)
        sides = split(source, self.validation_fraction)
        indices: dict[str, int] = {}
        groups: dict[str, int] = {}
        meta: dict[str, Any] = {"duplicates": int((sides == DUPLICATE).sum())}
        documents = enumerate(zip(sides, source.documents(), strict=True))
        pairs = [
            (int(side), *_pair(document, indices, groups), number)
            for number, (side, document) in documents
            if side != DUPLICATE
        ]
        for name, which in (("train", TRAIN), ("validation", VALIDATION)):
            columns = np.array([pair[1:] for pair in pairs if pair[0] == which], dtype=np.float64)
            np.save(folder / f"{name}.npy", columns)
            meta[name] = {
                "pairs": len(columns),
                "prompts": len(np.unique(columns[:, 3])),
                "mean": float(columns[:, 2].mean()),
                "std": float(columns[:, 2].std()),
            }
        if meta["train"]["std"] < 1e-9:
            raise ValueError(
                f"source: all {meta['train']['pairs']} training pairs have the same engagement, there is nothing to"
                " learn"
            )
        if isinstance(self.source, Selective):
            meta["odd"] = self.source.odd.summary()
        log.info("embedding %d texts", len(indices))
        np.save(folder / "texts.npy", self._embedded(list(indices)))
        return meta

    def _embedded(self, texts: list[str]) -> np.ndarray:
        """(U, D) float32; ValueError for an encoder that gives another shape or a value that is not finite."""
        with _encoding():
            texts_UD = np.concatenate(
                [self.encoder.embed(texts[i : i + EMBED_TOGETHER]) for i in range(0, len(texts), EMBED_TOGETHER)]
            )
        require(
            texts_UD.shape == (len(texts), self.encoder.dim),
            f"encoder={texts_UD.shape} must give {(len(texts), self.encoder.dim)} numbers",
        )
        require(bool(np.isfinite(texts_UD).all()), f"encoder={type(self.encoder).__name__} must give finite numbers")
        return texts_UD.astype(np.float32)

    @staticmethod
    def _rows(folder: Path, name: str, texts_UD: np.ndarray) -> ScoredRows:
        columns = np.load(folder / f"{name}.npy")
        group_N, length_N, number_N = columns[:, 3:].T.astype(np.int64)
        return ScoredRows(texts_UD, columns[:, :2].astype(np.int64), columns[:, 2], group_N, length_N, number_N)

    @staticmethod
    def least_numbers(batch_size: int) -> int:
        """Of one batch at the very least; the check reads it."""
        return 64 * batch_size

    def for_model(self) -> dict[str, Any]:
        """Constructor arguments that a model may take from the data."""
        return {"inputs": self.features}

    def for_method(self) -> dict[str, Any]:
        """Constructor arguments that a method may take from the data."""
        return {"target_mean": self.target_mean, "target_std": self.target_std}

    def check_fit(self, model: Any, method: type) -> None:
        """Raise ValueError when the model does not take what the encoder gives."""
        inputs = getattr(model, "inputs", None)
        require(
            inputs == self.features,
            f"encoder: it gives {self.features} numbers for prompt and reply, and {type(model).__name__} "
            f"takes {'tokens' if inputs is None else inputs}; choose model=regressor, which asks the data",
        )

    @property
    def features(self) -> int:
        """F, the inputs of a model: prompt and reply, one behind the other."""
        return 2 * self.encoder.dim

    @property
    def target_mean(self) -> float:
        """Mean of log(1 + engagement) on the training side."""
        return float(self.meta["train"]["mean"])

    @property
    def target_std(self) -> float:
        """Standard deviation (ddof 0) of log(1 + engagement) on the training side."""
        return float(self.meta["train"]["std"])

    def describe(self) -> dict[str, Any]:
        """Fingerprints and sizes of both sides; mean and standard deviation of the target. What a source says of itself
        comes as `source_...`.
        """
        return {
            "fingerprint": self.fingerprint,
            "path": self.path,
            "source": self.source.fingerprint(),
            "encoder": self.encoder.fingerprint(),
            "target": "log1p(engagement)",
            "features": self.features,
            "duplicates": self.meta["duplicates"],
            **{key: round(value, 6) if isinstance(value, float) else value for key, value in self.of_sides().items()},
            "validation_rows_used": len(self.validation),
            **source_facts(self.source),
        }

    def train_batches(self, rank: int, world: int) -> StepBatches:
        """Shuffled anew each epoch."""
        return TrainBatches(self.train, self.batch_size, self.seed, self.start_step, rank, world, self.repeat)


@contextmanager
def _encoding() -> Iterator[None]:
    """What goes wrong in the encoder as a ValueError that says where it stands in the config."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"encoder.{error}") from error


@dataclass(frozen=True)
class ByPrompt:
    """A source whose documents without a group are grouped by their prompt, so that no prompt stands on both sides."""

    source: Source

    def documents(self) -> Iterator[Document]:
        """The documents, checked. Raises ValueError in one line for one without a prompt."""
        for document in self.source.documents():
            if not (document.prompt or "").strip():
                raise ValueError(
                    f"source: {document.key or 'a document'} has no prompt; replies with engagement are needed, as in"
                    " data=replies_scored"
                )
            yield document if document.group else replace(document, group=document.prompt or "")


def _pair(document: Document, indices: dict[str, int], groups: dict[str, int]) -> tuple[int, int, float, int, int]:
    """(index of the prompt, index of the reply, target, group, characters of the reply). Raises ValueError in one line
    without an engagement.
    """
    value = document.value
    where = document.key or "a reply"
    if value is None:
        raise ValueError(
            f"source: {where} has no engagement; replies with a number for each are needed, as in data=replies_scored"
        )
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"source: {where} has the engagement {value}, it must be a finite number of at least 0")
    assert document.prompt is not None  # `ByPrompt` has checked it
    prompt, reply = (indices.setdefault(text, len(indices)) for text in (document.prompt, document.text))
    return prompt, reply, math.log1p(value), groups.setdefault(document.group, len(groups)), len(document.text)

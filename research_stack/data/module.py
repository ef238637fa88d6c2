"""TokenData: the batches of a corpus, as a LightningDataModule that works without a trainer too (`step_data`)."""

from __future__ import annotations

import builtins
import hashlib
import json
import keyword
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from research_stack.data.batches import ContiguousBatches, StepBatches, TrainBatches
from research_stack.data.dropped import check_dropped, check_split
from research_stack.data.packing import DUPLICATE, PackedRows, pack, require_pairs, split, train_texts
from research_stack.data.sources.base import Source
from research_stack.data.sources.record_reader import Selective
from research_stack.data.step_data import StepData, source_facts
from research_stack.data.tokenizers import Codec, Tokenizer
from research_stack.data.vocabulary import Vocabulary
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.sampling.denoiser import HasMaxLength
    from research_stack.training.module import TrainingModule

PACKING = 1  # raise it when split, packing or file format change: it is part of the fingerprint


def codec_identity(codec: Codec) -> str:
    """12 hexadecimal digits that tell codecs apart by what they make of a text: ids of one codec mean nothing to a
    model of another.
    """
    ids = codec.encode(
        "\n".join(
            [
                string.printable,
                *(f"{word} {word.title()}{word}" for word in keyword.kwlist),
                builtins.__doc__ or "",
                str.__doc__ or "",
            ]
        )
    )
    return hashlib.sha256(json.dumps([codec.vocab.size, *ids]).encode()).hexdigest()[:12]


class TokenData(StepData):
    """A corpus, tokenized, packed, cached and served in batches.

    - source: the corpus. tokenizer: fitted to the training documents only.
    - sequence_length: L, tokens per row.
    - batch_size: B, sequences per optimizer step over all devices.
    - validation_fraction: share of the documents kept for validation, in (0, 1).
    - validation_rows: at most so many validation rows, spread evenly over all; None for all.
    - cache_dir: root of the caches; None for $RESEARCH_STACK_CACHE or ~/.cache/research_stack.
    - num_workers: loader processes; 0 reads in the training process, which is fast enough for a memory map.
    - seed: of the order of the rows. The split and the tokenizer do not depend on it.
    - path: what the source reads, a label; the source takes it by interpolation, so that `data.path=FILE` works.
    - order: of the training rows, `shuffled` anew each epoch, or `contiguous`: row b of a step goes on where row b of
      the step before stopped (plain text only), and batches have a further entry `fresh`, bool (B,), true where it does
      not.
    - overlap: with `contiguous`, the last tokens of a row that the next step's row begins with again, in [0, L).
    - pack: several pairs to a row. Batches have two further entries, int64 (B, L): `seq_idx`, the number of the pair
      in its row (-1 at padding), and `position_ids`, the position within the pair; a method that takes
      packed rows lets no pair see another.
    - max_dropped: refuse the corpus where more than this share of its records is dropped, since they do not fit, or
      left out, since they are odd; in [0, 1]. What is lost below it is told in one warning.

    Of prompts alone (documents with the text "") a row is the prompt and padding, and nothing is eligible:
    `prompts_only`.

    `prepare()` must be called before the other attributes are used; it is idempotent, and Lightning calls it too.
    """

    #: See research_stack.config.smoke.
    smoke = {"batch_size": 16, "validation_rows": 32}

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        sequence_length: int = 128,
        batch_size: int = 64,
        validation_fraction: float = 0.05,
        validation_rows: int | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        path: str | list[str] | None = None,
        order: Literal["shuffled", "contiguous"] = "shuffled",
        overlap: int = 0,
        pack: bool = False,
        max_dropped: float = 0.5,
    ) -> None:
        super().__init__(
            batch_size, validation_fraction, validation_rows, num_workers, seed, path, max_dropped, cache_dir
        )
        require(sequence_length >= 2, f"sequence_length={sequence_length} must be at least 2")
        require(
            0 <= overlap < sequence_length,
            f"overlap={overlap} must be at least 0 and below sequence_length={sequence_length}",
        )
        require(
            overlap == 0 or order == "contiguous",
            f"overlap={overlap} needs order=contiguous: shuffled rows do not follow one another",
        )
        require(not pack or order == "shuffled", f"pack={pack} needs order=shuffled: packed pairs have no other")
        self.source, self.tokenizer, self.sequence_length = source, tokenizer, sequence_length
        self.order, self.overlap, self.pack = order, overlap, pack
        self.writes_end = False  # whether methods are offered the end token as one they write (`serve`)
        self.codec: Codec
        self.train: PackedRows
        self.validation: PackedRows
        self._prompts_only: bool | None = None

    def check(self) -> None:
        """Raise ValueError or OSError with one line when corpus or tokenizer cannot be had; reads little."""
        self.source.check()
        self.tokenizer.check()

    def prepare_codec(self, folder: Path, prompts_only: bool, writes_end: bool = False) -> None:
        """Instead of `prepare()`, where there is a prompt to go on from and no corpus is read: the codec that
        `codec.save` wrote, and no rows.

        - prompts_only, writes_end: what the run said of its data (`describe`).
        """
        self.codec, self._prompts_only, self.writes_end = self.tokenizer.load(folder), prompts_only, writes_end

    def load(self) -> None:
        """Build or open the cache. Raises ValueError (no row, no validation document, no such order, no pairs to pack,
        too much lost) or OSError in one line.
        """
        parts = [
            PACKING,
            self.source.fingerprint(),
            self.tokenizer.fingerprint(),
            self.sequence_length,
            self.validation_fraction,
        ]
        parts += ["packed"] * self.pack  # caches of rows that are not packed keep the fingerprint they had
        self.set_fingerprint(parts)
        folder = self.open_cache()
        self._check_what_is_lost()
        self.codec = self.tokenizer.load(folder)
        self.train = PackedRows.load(folder, "train", self.vocab, self.sequence_length)
        if self.order == "contiguous":
            ContiguousBatches(
                self.train, self.batch_size, self.overlap
            )  # a corpus that has no such order shows now, not at the first step
        validation = PackedRows.load(folder, "validation", self.vocab, self.sequence_length)
        taken = validation.evenly_spaced_indices(self.validation_rows or len(validation))
        self.validation, self.validation_document = validation.take(taken), validation.document[taken]

    def build(self, folder: Path) -> dict[str, Any]:
        if self.pack:
            require_pairs(self.source)
        sides = split(self.source, self.validation_fraction)
        codec = self.tokenizer.fit(train_texts(self.source, sides))
        counts = pack(self.source, sides, codec, self.sequence_length, folder, self.pack)
        codec.save(folder)
        for name, count in counts.items():
            if count["dropped"] == count["documents"] > 0:
                raise ValueError(
                    f"sequence_length={self.sequence_length} is too short: all {count['documents']} {name} prompts take"
                    " more than their room, which is half a row before a response that does not fit, and a row where"
                    " they stand alone; lengthen it, or shorten the prompts"
                )
            if not count["rows"]:
                raise ValueError(
                    f"sequence_length={self.sequence_length} is too long: the {count['documents']} {name} documents"
                    f" have {count['tokens']} tokens, which fill no row; shorten it, or use a larger corpus or"
                    " validation_fraction"
                )
        odd = {"odd": self.source.odd.summary()} if isinstance(self.source, Selective) else {}
        return {"duplicates": int((sides == DUPLICATE).sum()), **counts, **odd}

    def _check_what_is_lost(self) -> None:
        """Say in one line what of the corpus is not used, and what is lopsided; ValueError where too much is lost."""
        train, validation = self.meta["train"], self.meta["validation"]
        documents, dropped, truncated = (
            train[name] + validation[name] for name in ("documents", "dropped", "truncated")
        )
        why = (
            f"they do not fit sequence_length={self.sequence_length}, and their prompt takes more than half of it"
            " (alone: all)"
        )
        check_dropped(documents - dropped, dropped, self.meta.get("odd", {}), self.max_dropped, why, truncated)
        check_split(train["documents"], validation["documents"], self.validation_fraction, "documents")

    @staticmethod
    def least_numbers(batch_size: int, sequence_length: int) -> int:
        """Of one batch at the very least; the check reads it."""
        return 2 * batch_size * sequence_length

    def for_model(self) -> dict[str, Any]:
        """Constructor arguments that a model may take from the data."""
        return {"vocab_size": self.vocab.size}

    def for_method(self) -> dict[str, Any]:
        """Constructor arguments that a method may take from the data."""
        return {"vocab": self.vocab, "codec": self.codec}

    def check_fit(self, model: HasMaxLength, method: type[TrainingModule]) -> None:
        """Raise ValueError when rows are longer than the model, or packed and the method does not keep their pairs
        apart.
        """
        length, longest = self.sequence_length, model.max_length
        require(
            length <= longest,
            f"sequence_length={length} exceeds model.max_length={longest}: raise one or lower the other",
        )
        require(
            not self.pack or method.isolates_packed_pairs,
            f"pack={self.pack} would let pairs of a row see one another under method={method.__name__}; set pack=false",
        )

    def serve(self, method: type[TrainingModule]) -> None:
        """Lay the rows out for a method of this class. One that learns to stop gets pairs whose rows are filled with
        end tokens, which it may write.
        """
        if method.learns_to_stop and self.train.pairs:
            self.writes_end = True
            self.train, self.validation = self.train.filled_with_ends(), self.validation.filled_with_ends()

    @property
    def vocab(self) -> Vocabulary:
        """Sizes and special ids of the codec; of pairs for a method that learns to stop, with an end token that is
        written (`serve`).
        """
        return self.codec.vocab.with_end_written() if self.writes_end else self.codec.vocab

    @property
    def prompts_only(self) -> bool:
        """Whether the corpus is prompts without responses, for methods that make their own."""
        return self.train.prompts_only if self._prompts_only is None else self._prompts_only

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 per real token of the validation texts: nats per token / (ln 2 * this) = bits per byte."""
        return self.meta["validation"]["bytes"] / self.meta["validation"]["tokens"]

    def train_tokens(self, limit: int | None = None) -> np.ndarray:
        """(n,) int64: the training rows' tokens one after another, end tokens included, padding left out; n <=
        limit.
        """
        rows = len(self.train) if limit is None else -(-limit // self.sequence_length)
        return self.train.take(slice(0, rows)).stream()[:limit]

    def validation_documents(self) -> list[str]:
        """The texts of the validation rows, cut at end tokens and, of pairs, before each prompt; the first and last may
        be incomplete.
        """
        texts = map(self.codec.decode, self.validation.segments())
        return [text for text in texts if text.strip()]

    def describe(self) -> dict[str, Any]:
        """Fingerprint and sizes: documents, bytes, tokens, rows of both sides; what was removed, cut, dropped and
        filled.

        `filled` is the share of the training rows that is not padding. What a source says of itself comes as
        `source_...`.
        """
        return {
            "fingerprint": self.fingerprint,
            "path": self.path,
            "vocab_size": self.vocab.size,
            "codec": codec_identity(self.codec),
            "sequence_length": self.sequence_length,
            "order": self.order,
            "overlap": self.overlap,
            "pack": self.pack,
            "prompts_only": self.prompts_only,
            **({"writes_end": True} if self.writes_end else {}),
            "filled": round(self.train.filled, 4),
            "duplicates": self.meta["duplicates"],
            **self.of_sides(),
            "bytes_per_token": round(self.bytes_per_token, 4),
            "validation_rows_used": len(self.validation),
            **source_facts(self.source),
        }

    def train_batches(self, rank: int, world: int) -> StepBatches:
        """Shuffled anew each epoch, or contiguous."""
        if self.order == "contiguous":
            return ContiguousBatches(self.train, self.batch_size, self.overlap, self.start_step, rank, world)
        return TrainBatches(self.train, self.batch_size, self.seed, self.start_step, rank, world, self.repeat)

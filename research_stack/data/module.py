"""TokenData: the batches of a corpus, as a LightningDataModule that works without a trainer too.

The training loader is endless and one item of it is one optimizer step: this device's rows of the global batch.
Which rows a step sees is a function of (seed, step) alone, so a run resumed at a step goes on exactly where it was,
with any number of loader workers and any number of devices. There are two orders:

- shuffled: the rows of each epoch in an order drawn from the stream (seed, "order", epoch), laid end to end and cut
  into batches.
- contiguous: row b of a step goes on where row b of the step before stopped, for models that carry a state over steps.

Shapes: N rows, B sequences of a global batch, L tokens of a sequence.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import keyword
import string
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from research_stack.data.cache import Cache
from research_stack.data.kept import judge_losses, judge_split
from research_stack.data.packing import DUPLICATE, Rows, pack, require_pairs, split, train_texts
from research_stack.data.sources.base import Described, Source
from research_stack.data.sources.record_reader import Selective
from research_stack.data.tokenizers import Codec, Tokenizer
from research_stack.data.vocabulary import Vocabulary
from research_stack.require import require
from research_stack.streams import generator

if TYPE_CHECKING:
    from research_stack.sampling.denoiser import HasMaxLength
    from research_stack.training.module import TrainingModule

PACKING = 1  # raise it when split, packing or file format change: it is part of the fingerprint
Batch = dict[str, Tensor]


def place() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) when nothing is distributed."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def batch_of(rows: Rows) -> Batch:
    """The rows as tensors: tokens int64 (B, L); eligible, attend and prompt bool (B, L); of packed pairs sample and
    place int64 (B, L).
    """
    return {name: torch.from_numpy(array) for name, array in rows.arrays().items()}


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


class StepBatches(IterableDataset):
    """Endless steps' batches of one rank, from `start_step` on; what a step holds, `batch` says.

    - rows: the N training rows.
    - batch_size: B, over all devices.
    - rank, world: this device's share is rows rank*B/world : (rank+1)*B/world of each batch.
    - repeat: so many steps one after another see the same batch: step s that of number s // repeat.
    """

    def __init__(self, rows: Rows, batch_size: int, start_step: int, rank: int, world: int, repeat: int = 1) -> None:
        self.rows, self.batch_size, self.start_step, self.repeat = rows, batch_size, start_step, repeat
        share = batch_size // world
        self.share = slice(rank * share, (rank + 1) * share)

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """This rank's B/world rows of the batch of this number, which is the step where repeat is 1."""

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()  # workers take turns, and DataLoader collects them in that order
        step, stride = (self.start_step + worker.id, worker.num_workers) if worker else (self.start_step, 1)
        while True:
            yield self.batch(step // self.repeat)
            step += stride


class TrainBatches(StepBatches):
    """The rows of each epoch in an order of its own, from the stream (seed, "order", epoch)."""

    def __init__(
        self, rows: Rows, batch_size: int, seed: int, start_step: int, rank: int, world: int, repeat: int = 1
    ) -> None:
        super().__init__(rows, batch_size, start_step, rank, world, repeat)
        self.seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def order(self, epoch: int) -> np.ndarray:
        """(N,) the order of the rows in an epoch; the last one or two asked for are kept."""
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = torch.randperm(len(self.rows), generator=generator(self.seed, "order", epoch)).numpy()
        return self._orders[epoch]

    def indices(self, step: int) -> np.ndarray:
        """(B/world,) the rows of this rank at a step."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.share]
        epochs, places = np.divmod(positions, len(self.rows))
        return np.concatenate([self.order(int(e))[places[epochs == e]] for e in np.unique(epochs)])

    def batch(self, step: int) -> Batch:
        """This rank's B/world rows of a step."""
        return batch_of(self.rows.take(self.indices(step)))


class ContiguousBatches(StepBatches):
    """The rows of plain text laid end to end, cut into B equal stretches; row b of every step is a window of stretch b.

    The windows of a stretch begin L - overlap tokens apart. After the last that fits, all rows begin again at the
    first.

    - overlap: tokens that a window has in common with the one before it, in [0, L).

    Raises ValueError in one line for pairs, and for a text that does not hold B windows.
    """

    def __init__(
        self, rows: Rows, batch_size: int, overlap: int, start_step: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(rows, batch_size, start_step, rank, world)
        if not rows.plain:
            raise ValueError(
                "order=contiguous needs plain text: the rows of this corpus are prompt and response pairs; use"
                " order=shuffled"
            )
        length = rows.tokens.shape[1]
        self.stretch, self.stride = rows.tokens.size // batch_size, length - overlap
        if self.stretch < length:
            raise ValueError(
                f"batch_size={batch_size} is too large for order=contiguous: the {rows.tokens.size} training tokens cut"
                f" into so many stretches leave {self.stretch} tokens each, less than sequence_length={length}; lower"
                " either, or use a larger corpus"
            )
        self.windows = (self.stretch - length) // self.stride + 1

    def starts(self, step: int) -> np.ndarray:
        """(B/world,) where the windows of this rank begin at a step, in tokens from the beginning of the text."""
        return np.arange(self.batch_size)[self.share] * self.stretch + step % self.windows * self.stride

    def batch(self, step: int) -> Batch:
        """This rank's rows of a step, and `fresh`, bool (B/world,): the row does not go on from the step before."""
        starts_B = self.starts(step)
        return {
            **batch_of(self.rows.windows(starts_B)),
            "fresh": torch.full((len(starts_B),), step % self.windows == 0),
        }


class ValidationBatches(IterableDataset):
    """The validation rows once, in order; rank r of w has rows r, r+w, r+2w, ... and all ranks have the same number."""

    def __init__(self, rows: Rows, batch_rows: int, rank: int, world: int) -> None:
        self.rows, self.batch_rows = rows, batch_rows
        self.mine = np.arange(len(rows) // world) * world + rank

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_rows)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.mine), self.batch_rows):
            yield batch_of(self.rows.take(self.mine[start : start + self.batch_rows]))


class TokenData(lightning.LightningDataModule):
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
    - pack: several pairs to a row. Batches have two further entries, int64 (B, L): `sample`, the number of the pair in
      its row (-1 at padding), and `place`, the position within the pair; a method that takes packed rows lets no pair
      see another.
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
        super().__init__()
        require(sequence_length >= 2, f"sequence_length={sequence_length} must be at least 2")
        require(batch_size >= 1, f"batch_size={batch_size} must be at least 1")
        require(0 < validation_fraction < 1, f"validation_fraction={validation_fraction} must lie between 0 and 1")
        require(
            validation_rows is None or validation_rows >= 1,
            f"validation_rows={validation_rows} must be at least 1, or null for all",
        )
        require(num_workers >= 0, f"num_workers={num_workers} must not be negative")
        require(num_workers <= 1_024, f"num_workers={num_workers} must be at most 1,024")
        require(order in ("shuffled", "contiguous"), f"order={order} must be shuffled or contiguous")
        require(
            0 <= overlap < sequence_length,
            f"overlap={overlap} must be at least 0 and below sequence_length={sequence_length}",
        )
        require(
            overlap == 0 or order == "contiguous",
            f"overlap={overlap} needs order=contiguous: shuffled rows do not follow one another",
        )
        require(not pack or order == "shuffled", f"pack={pack} needs order=shuffled: packed pairs have no other")
        require(0 <= max_dropped <= 1, f"max_dropped={max_dropped} must lie in [0, 1]")
        self.source, self.tokenizer, self.path = source, tokenizer, path
        self.sequence_length, self.batch_size = sequence_length, batch_size
        self.validation_fraction, self.validation_rows = validation_fraction, validation_rows
        self.cache_dir, self.num_workers, self.seed = cache_dir, num_workers, seed
        self.order, self.overlap, self.pack, self.max_dropped = order, overlap, pack, max_dropped
        self.start_step = 0
        self.repeat = 1  # so many steps one after another see the same shuffled batch; the method says it
        self.writes_end = False  # whether methods are offered the end token as one they write (`serve`)
        self.codec: Codec
        self.train: Rows
        self.validation: Rows
        self.fingerprint: str
        self._meta: dict[str, Any] | None = None
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

    def prepare(self) -> None:
        """Build or open the cache. Raises ValueError (no row, no validation document, no such order, no pairs to pack,
        too much lost) or OSError in one line.
        """
        if self._meta is not None:
            return
        self.check()
        parts = [
            PACKING,
            self.source.fingerprint(),
            self.tokenizer.fingerprint(),
            self.sequence_length,
            self.validation_fraction,
        ]
        parts += ["packed"] * self.pack  # caches of rows that are not packed keep the fingerprint they had
        self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
        folder, meta = Cache(self.cache_dir, self.fingerprint).folder(self._build)
        self._judge(meta)
        self.codec = self.tokenizer.load(folder)
        self.train = Rows.load(folder, "train", self.vocab, self.sequence_length)
        if self.order == "contiguous":
            ContiguousBatches(
                self.train, self.batch_size, self.overlap
            )  # a corpus that has no such order shows now, not at the first step
        validation = Rows.load(folder, "validation", self.vocab, self.sequence_length)
        taken = validation.spread_indices(self.validation_rows or len(validation))
        self.validation, self.validation_document = validation.take(taken), validation.document[taken]
        self._meta = meta

    def _build(self, folder: Path) -> dict[str, Any]:
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

    def _judge(self, meta: dict[str, Any]) -> None:
        """Tell in one line what of the corpus is not used, and what is lopsided; ValueError where too much is lost."""
        train, validation = meta["train"], meta["validation"]
        documents, dropped, truncated = (
            train[name] + validation[name] for name in ("documents", "dropped", "truncated")
        )
        why = (
            f"they do not fit sequence_length={self.sequence_length}, and their prompt takes more than half of it"
            " (alone: all)"
        )
        judge_losses(documents - dropped, dropped, meta.get("odd", {}), self.max_dropped, why, truncated)
        judge_split(train["documents"], validation["documents"], self.validation_fraction, "documents")

    @property
    def meta(self) -> dict[str, Any]:
        """What the cache says of itself. Raises RuntimeError before `prepare()`."""
        if self._meta is None:
            raise RuntimeError("call prepare() first")
        return self._meta

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
            not self.pack or method.keeps_pairs_apart,
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
        texts = map(self.codec.decode, self.validation.pieces())
        return [text for text in texts if text.strip()]

    def describe(self) -> dict[str, Any]:
        """Fingerprint and sizes: documents, bytes, tokens, rows of both sides; what was removed, cut, dropped and
        filled.

        `filled` is the share of the training rows that is not padding. What a source says of itself comes as
        `source_...`.
        """
        sides = {f"{side}_{name}": n for side in ("train", "validation") for name, n in self.meta[side].items()}
        facts = self.source.describe() if isinstance(self.source, Described) else {}
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
            **sides,
            "bytes_per_token": round(self.bytes_per_token, 4),
            "validation_rows_used": len(self.validation),
            **{f"source_{name}": fact for name, fact in facts.items()},
        }

    def prepare_data(self) -> None:
        """Lightning's hook on one process per node."""
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Lightning's hook on every process."""
        self.prepare()

    def train_dataloader(self) -> DataLoader:
        """Endless; item i is the batch of step `start_step + i`: this rank's B/world rows."""
        rank, world = place()
        if self.batch_size % world:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of the {world} devices it is shared by")
        where = self.start_step, rank, world
        if self.order == "contiguous":
            return self._loader(ContiguousBatches(self.train, self.batch_size, self.overlap, *where))
        return self._loader(TrainBatches(self.train, self.batch_size, self.seed, *where, self.repeat))

    def val_dataloader(self) -> DataLoader:
        """Finite, in a fixed order; with w devices the last len(validation) % w rows are left out."""
        rank, world = place()
        return self._loader(
            ValidationBatches(self.validation, max(1, self.batch_size // world), rank, world), workers=0
        )

    def _loader(self, dataset: IterableDataset, workers: int | None = None) -> DataLoader:
        workers = self.num_workers if workers is None else workers
        return DataLoader(dataset, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available())

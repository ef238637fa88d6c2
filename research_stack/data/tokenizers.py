"""Text to token ids and back: a byte-level BPE of our own, plain bytes, or any Hugging Face tokenizer. No torch.

A tokenizer is what the config asks for; fitting it to the training documents gives a codec, which the cache keeps.
Our own codecs put the special tokens last (mask, pad, end) and outside the tokenizer, so that no text, not even
one that spells "<|mask|>", can produce one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from research_stack.data.vocabulary import Vocabulary
from research_stack.require import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

MASK, PAD, END = "▒", "·", "■"  # how the special tokens are shown in pieces()
ALPHABET = 256
SPECIALS = 3


class Codec(Protocol):
    """A fitted tokenizer."""

    vocab: Vocabulary

    @property
    def begin(self) -> tuple[int, ...]:
        """Special tokens that stand in front of every document and prompt; most codecs have none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no special token is added."""
        ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the real tokens among the ids; special ones are left out."""
        ...

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """One printable string per token: a space is a space, a newline ⏎, a tab ⇥, mask ▒, pad ·, end ■."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` of the tokenizer needs; the folder exists."""

    def to_transformers(self) -> PreTrainedTokenizerBase:
        """A tokenizer of transformers that gives the same ids."""
        ...


class Tokenizer(Protocol):
    """A choice of tokenizer, not fitted yet."""

    def check(self) -> None:
        """Raise ValueError or OSError with one line when it cannot be had; takes well under a second."""

    def fit(self, texts: Iterable[str]) -> Codec:
        """The codec learned from the texts (those of the training documents only)."""
        ...

    def load(self, folder: Path) -> Codec:
        """The codec that `Codec.save` wrote."""
        ...

    def fingerprint(self) -> str:
        """A text that changes whenever the codec may change for the same texts."""
        ...


def specials_last(real: int) -> Vocabulary:
    """The vocabulary of `real` tokens followed by mask, pad and end."""
    return Vocabulary(real + SPECIALS, mask=real, pad=real + 1, end=real + 2, special=(real, real + 1, real + 2))


def printable(text: str) -> str:
    """The text with newlines as ⏎, tabs as ⇥ and whatever cannot be shown as �."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else "�" for c in shown)


def special_pieces(vocab: Vocabulary) -> dict[int, str]:
    """How each special id is shown."""
    return {**dict.fromkeys(vocab.special, "�"), vocab.pad: PAD, vocab.end: END, vocab.mask: MASK}


def to_transformers(backend: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    """transformers' tokenizer of one of ours, with mask, pad and end behind its tokens: the same ids.

    A text that spells one of the three becomes that token there, as with every tokenizer of transformers.
    """
    from transformers import PreTrainedTokenizerFast

    whole = tokenizers.Tokenizer.from_str(backend.to_str())
    whole.add_special_tokens(["<|mask|>", "<|pad|>", "<|end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        mask_token="<|mask|>",
        pad_token="<|pad|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )


class BytesCodec:
    """Ids 0..255 are the bytes of UTF-8; then mask, pad, end."""

    begin: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.vocab = specials_last(ALPHABET)
        self._special = special_pieces(self.vocab)

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes."""
        return list(text.encode())

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The UTF-8 bytes of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; bytes that form no character become �."""
        return bytes(i for i in map(int, ids) if i < ALPHABET).decode(errors="replace")

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """One printable character per byte; a byte of a longer character is �."""
        return [
            self._special[i] if i >= ALPHABET else printable(bytes([i]).decode(errors="replace")) for i in map(int, ids)
        ]

    def save(self, folder: Path) -> None:
        """Nothing to write."""

    def to_transformers(self) -> PreTrainedTokenizerFast:
        """The same ids from a tokenizer of transformers."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        backend = tokenizers.Tokenizer(
            models.BPE(vocab={letter: byte for byte, letter in bytes_to_unicode().items()}, merges=[])
        )
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        return to_transformers(backend)


class Bytes:
    """One token per byte of UTF-8, 259 in all; nothing is learned."""

    def check(self) -> None:
        """Always available."""

    def fit(self, texts: Iterable[str]) -> BytesCodec:
        """The codec; the texts are not read."""
        return BytesCodec()

    def load(self, folder: Path) -> BytesCodec:
        """The codec."""
        return BytesCodec()

    def fingerprint(self) -> str:
        """Constant."""
        return "bytes"


class ByteBPECodec:
    """A byte-level BPE; any text comes back from its ids unchanged.

    - tokenizer: a `tokenizers.Tokenizer` without special tokens.
    """

    begin: tuple[int, ...] = ()

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.real = tokenizer.get_vocab_size()
        self.vocab = specials_last(self.real)
        self._special = special_pieces(self.vocab)

    def encode(self, text: str) -> list[int]:
        """Ids of the text."""
        return self.tokenizer.encode(text).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, on all cores."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; bytes that form no character become �."""
        return self.tokenizer.decode([i for i in map(int, ids) if i < self.real], skip_special_tokens=False)

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """One printable string per token; part of a longer character is �."""
        return [self._special[i] if i >= self.real else printable(self.decode([i])) for i in map(int, ids)]

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str())

    def to_transformers(self) -> PreTrainedTokenizerFast:
        """The same ids from a tokenizer of transformers."""
        return to_transformers(self.tokenizer)


class ByteBPE:
    """Byte-level BPE learned from the training documents (Sennrich et al. 2016; bytes as in GPT-2).

    - vocab_size: tokens in all, the 256 bytes and the 3 special ones included; a small corpus may yield fewer.
    - max_token_chars: no token is longer, in bytes.
    """

    def __init__(self, vocab_size: int = 2048, max_token_chars: int = 24) -> None:
        require(vocab_size >= 259, f"vocab_size={vocab_size} must be at least 259 (256 bytes, mask, pad and end)")
        require(vocab_size <= 1_000_000, f"vocab_size={vocab_size} must be at most 1,000,000")
        require(max_token_chars >= 1, f"max_token_chars={max_token_chars} must be at least 1")
        self.vocab_size, self.max_token_chars = vocab_size, max_token_chars

    def check(self) -> None:
        """Always available."""

    def fit(self, texts: Iterable[str]) -> ByteBPECodec:
        """Learn the merges; the same texts in the same order give the same merges."""
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - SPECIALS,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            max_token_length=self.max_token_chars,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return ByteBPECodec(tokenizer)

    def load(self, folder: Path) -> ByteBPECodec:
        """The codec of tokenizer.json in the folder."""
        return ByteBPECodec(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))

    def fingerprint(self) -> str:
        """Options and the version of `tokenizers`, which decides ties."""
        return f"byte_bpe-{self.vocab_size}-{self.max_token_chars}-{tokenizers.__version__}"

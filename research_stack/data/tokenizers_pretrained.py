"""Any Hugging Face tokenizer, by local path or by name, with the special tokens that our batches need. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_stack.config.build import named
from research_stack.data.sources.record_reader import nearest
from research_stack.data.tokenizers import printable, special_pieces
from research_stack.data.vocabulary import Vocabulary
from research_stack.records.paths import expanded
from research_stack.require import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = "pretrained_tokenizer"
ANCHOR = "a"  # decoded before a piece, so that decoders that drop a leading space keep the piece's own


class PretrainedCodec:
    """A Hugging Face tokenizer as a codec; mask, pad and end tokens are added where it has none.

    The end token is its eos, or its sep where there is no eos.

    - add_bos: put its bos in front of every document and prompt. Raises ValueError where it has none.
    """

    def __init__(self, tokenizer: Any, add_bos: bool = False) -> None:
        require(
            not add_bos or tokenizer.bos_token_id is not None,
            f"add_bos={add_bos} needs a tokenizer with a bos token, and this one has none",
        )
        self.tokenizer = tokenizer
        bos: int | None = tokenizer.bos_token_id
        self.begin: tuple[int, ...] = (bos,) if add_bos and bos is not None else ()
        self._add("mask_token", "<|mask|>")
        self._add("pad_token", "<|pad|>")
        if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
            self._add("eos_token", "<|end|>")
        if tokenizer.pad_token_id == self._end():  # padding must be told from ends by its id
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        self.vocab = self._vocabulary()
        self._special = set(self.vocab.special)
        self._shown = special_pieces(self.vocab)
        self._anchor = self.encode(ANCHOR)[-1:]

    def _add(self, role: str, token: str) -> None:
        if self.tokenizer.special_tokens_map.get(role) is None:
            self.tokenizer.add_special_tokens({role: token})

    def _end(self) -> int:
        return self.tokenizer.sep_token_id if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id

    def _vocabulary(self) -> Vocabulary:
        tokenizer, end = self.tokenizer, self._end()
        ids = set(tokenizer.get_vocab().values())
        size = max(ids) + 1
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        holes = set(range(size)) - ids  # ids without a token are never drawn nor predicted either
        special = added | holes | set(tokenizer.all_special_ids) | {end}
        return Vocabulary(size, tokenizer.mask_token_id, tokenizer.pad_token_id, end, tuple(sorted(special)))

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone. A special token that is spelt out in the text becomes that token: never eligible."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the real tokens, as the tokenizer writes it (some lose spaces or case)."""
        real = [i for i in map(int, ids) if i not in self._special]
        return self.tokenizer.decode(real, clean_up_tokenization_spaces=False)

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """One printable string per token."""
        start = len(self.decode(self._anchor))
        return [
            self._shown[i] if i in self._special else printable(self.decode([*self._anchor, i])[start:])
            for i in map(int, ids)
        ]

    def save(self, folder: Path) -> None:
        """Write the tokenizer, added tokens included."""
        self.tokenizer.save_pretrained(str(folder / FOLDER))

    def to_transformers(self) -> PreTrainedTokenizerBase:
        """The tokenizer itself, added tokens included."""
        return self.tokenizer


class Pretrained:
    """A tokenizer that `transformers.AutoTokenizer` can load.

    - path: a folder that holds it, or its name on the hub.
    - revision: commit or tag on the hub; null for the newest.
    - add_bos: put the tokenizer's bos token in front of every document and prompt, as models that were trained with it
      expect.
    """

    def __init__(self, path: str, revision: str | None = None, add_bos: bool = False) -> None:
        self.path, self.revision, self.add_bos = path, revision, add_bos

    def check(self) -> None:
        """Raise OSError when a path that can only be local is not there or holds no tokenizer."""
        path = expanded(self.path)
        if not path.exists() and (path.is_absolute() or self.path.startswith((".", "~")) or self.path.count("/") > 1):
            raise FileNotFoundError(f"tokenizer.path={self.path} does not exist{nearest(path)}")
        if path.is_dir() and not any(path.glob("*token*")) and not any(path.glob("*.model")):
            raise FileNotFoundError(
                f"tokenizer.path={self.path} holds no tokenizer (no tokenizer.json, tokenizer_config.json or *.model)"
            )

    def fit(self, texts: Iterable[str]) -> PretrainedCodec:
        """The codec as it is; the texts are not read. Raises OSError when it cannot be loaded."""
        return self._load(str(expanded(self.path)) if expanded(self.path).exists() else self.path)

    def load(self, folder: Path) -> PretrainedCodec:
        """The codec kept in the cache."""
        return self._load(str(folder / FOLDER))

    def _load(self, path: str) -> PretrainedCodec:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, revision=self.revision or "main", trust_remote_code=False)
        except (
            Exception
        ) as error:  # a damaged file makes the loaders raise anything, KeyError and bare Exception included
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            raise OSError(f"tokenizer.path={self.path} holds no tokenizer that can be loaded: {line}") from error
        with named("tokenizer"):
            return PretrainedCodec(tokenizer, self.add_bos)

    def fingerprint(self) -> str:
        """Name and revision; of a local folder the SHA-256 of its tokenizer files."""
        path = expanded(self.path)
        digest = hashlib.sha256()
        for file in sorted({*path.glob("*token*"), *path.glob("*.model"), *path.glob("vocab*"), *path.glob("merges*")}):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return (
            f"pretrained-{self.path if not path.exists() else ''}-{self.revision}"
            f"-{digest.hexdigest()[:24]}{'-bos' * self.add_bos}"
        )

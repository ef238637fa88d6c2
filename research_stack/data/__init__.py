"""Corpora, tokenizers, packing, the cache, and the LightningDataModule that serves their batches.

Names are resolved when first used: the sources and tokenizers can be had without torch or lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Document": "sources.base",
    "Docstrings": "sources.embedded",
    "PythonDocs": "sources.embedded",
    "Source": "sources.base",
    "Hub": "sources.hub",
    "Instructions": "sources.messages",
    "Prompts": "sources.prompts",
    "PromptsOf": "sources.prompts",
    "Replies": "sources.replies",
    "Text": "sources.text",
    "ByteBPE": "tokenizers",
    "Bytes": "tokenizers",
    "Codec": "tokenizers",
    "Pretrained": "tokenizers_pretrained",
    "Vocabulary": "vocabulary",
    "TokenData": "module",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]  # it reads no computed list


def __getattr__(name: str) -> Any:
    """The public name, imported from its module at first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

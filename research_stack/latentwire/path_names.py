"""The ways in which a reader can be told a context (`paths`), by the names that tables and pages have for them."""

from __future__ import annotations

LATENT, SHUFFLED, ZEROS, NONE, TEXT = "latent", "shuffled", "zeros", "none", "text"
HEAD, TAIL, ZLIB, TOKENS = "text_bytes", "text_bytes_tail", "text_zlib", "text_tokens"
EQUAL_BYTES = (HEAD, TAIL, ZLIB)  # text of as many bytes as the message
FIRST = (1, 5, 10)  # K of FirstTok@K
POOLED = "all"  # the data set that holds the questions of all, where there are several
LONG = 4  # a context of so many times as many tokens as there are latents: where encoding should have paid off

"""Text of as many bytes: the vectors of the definitions, and every cut against trying all of them."""

import bz2
import lzma
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research_stack.latentwire.text_baselines import (
    deflated,
    deflated_bytes,
    deflated_fits,
    first_tokens,
    head,
    ratio_of_bytes,
    tail,
)

TEXT = (
    "Mira lives in Oslo. Mira eats rye bread. Mira works as a baker. Mira plays the cello. Mira drives a green van. "
    "Mira has a grey cat. Mira drinks mint tea. Mira was born on a Monday. "
)


@pytest.mark.exact
@pytest.mark.parametrize(
    "text, budget, expected",
    [
        ("naïve café", 3, "na"),
        ("naïve café", 4, "naï"),
        ("a🙂b", 4, "a"),
        ("a🙂b", 5, "a🙂"),
        ("a🙂b", 0, ""),
        ("a🙂b", 99, "a🙂b"),
    ],
)
def test_the_vectors_of_byte_equal_text(text, budget, expected):
    assert head(text, budget) == expected == text.encode()[:budget].decode("utf-8", "ignore")


@given(st.text(max_size=20), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_no_longer_beginning_or_end_fits(text, budget):
    def longest(cuts):
        return max((cut for cut in cuts if len(cut.encode()) <= budget), key=len)

    assert head(text, budget) == longest(text[:i] for i in range(len(text) + 1))
    assert tail(text, budget) == longest(text[i:] for i in range(len(text) + 1))


def test_ends_by_hand():
    assert tail("naïve café", 1) == "" and tail("naïve café", 2) == "é" and tail("naïve café", 0) == ""
    for cut in (head, tail, deflated_fits):
        with pytest.raises(ValueError, match="^budget=-1 must"):
            cut("abc", -1)


def longest(text, budget, size=deflated_bytes):
    fits = [i for i in range(len(text) + 1) if size(text[:i]) <= budget]
    return text[: max(fits, default=0)]


@pytest.mark.parametrize(
    "text",
    [TEXT, TEXT * 3, "a" * 500, "ab🙂" * 80, "".join(map(chr, np.random.default_rng(0).integers(32, 1000, 200))), ""],
)
def test_the_longest_compressed_beginning(text):
    for budget in (0, 1, 2, 3, 9, 12, 20, 36, 72, 144, 10**6):
        assert deflated_fits(text, budget) == longest(text, budget)


@given(st.text(alphabet="ab 🙂", max_size=120), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_the_longest_compressed_beginning_of_any_text(text, budget):
    assert deflated_fits(text, budget) == longest(text, budget)


def test_nothing_of_the_standard_library_packs_a_short_text_smaller():
    for length in (0, 1, 36, 72, 131, 170, 500):
        data = (TEXT * 3)[:length].encode()
        assert zlib.decompress(deflated(data.decode()), wbits=-15) == data  # read without a word on how it was made
        raw = [
            {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": lc, "pb": pb}
            for lc, pb in ((3, 2), (0, 0))
        ]
        others = [bz2.compress(data), *(lzma.compress(data, lzma.FORMAT_RAW, filters=[one]) for one in raw)]
        assert len(deflated(data.decode())) <= min(len(zlib.compress(data, 9)) - 6, *map(len, others))
    assert len(deflated_fits(TEXT, 72)) > 1.12 * len(
        longest(TEXT, 72, lambda text: len(zlib.compress(text.encode(), 9)))
    )


def test_compression_is_of_use_for_long_contexts_only():
    sample = TEXT[:131]
    assert len(sample.encode()) == 131 and 0.6 * 131 < deflated_bytes(sample) < 131
    assert deflated_bytes(TEXT[:36]) >= 36
    assert len(deflated_fits(TEXT, 36)) <= 36 < len(deflated_fits(TEXT, 120)) - 60


def test_first_tokens_and_ratios():
    assert first_tokens(range(5), 3) == [0, 1, 2] and first_tokens([1], 3) == [1] and first_tokens([1], 0) == []
    with pytest.raises(ValueError, match="^num_latents=-1 must"):
        first_tokens([1], -1)
    assert ratio_of_bytes([100, 40], [10, 20]) == (140 / 30, 6.0)
    for wrong, said in [
        (([1], [0]), "^wire_bytes_n=0 must"),
        (([], []), "^text_bytes_n="),
        (([1, 2], [1]), "^text_bytes_n="),
    ]:
        with pytest.raises(ValueError, match=said):
            ratio_of_bytes(*wrong)

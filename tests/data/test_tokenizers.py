"""Our own tokenizers: bytes and byte-level BPE."""

import numpy as np
import pytest

from research_stack.data.tokenizers import ByteBPE, Bytes

STRANGE = [
    "",
    " ",
    "\n\n\t x  ",
    "naïve 漢字 🙂👩‍👩‍👧",
    "a\r\nb\r",
    "<|mask|> ▒ ■ <s>",
    "\0\x1b\u200b\ufeff",
    "é" * 3000,
    "x" * 20_000,
]


@pytest.fixture(scope="module")
def codecs():
    learned = ["the quick brown fox jumps over the lazy dog. " * 20, "naïve 漢字\n" * 9]
    return {"bytes": Bytes().fit([]), "bpe": ByteBPE(300).fit(learned)}


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_any_text_comes_back(codecs, name):
    codec = codecs[name]
    for text in STRANGE:
        ids = codec.encode(text)
        assert codec.decode(ids) == text
        assert not set(ids) & set(codec.vocab.special)
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = bytes(rng.integers(0, 256, 40, dtype=np.uint8)).decode(errors="replace")
        assert codec.decode(codec.encode(text)) == text
    assert codec.encode_batch(STRANGE) == [codec.encode(t) for t in STRANGE]


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_specials_come_last_and_vanish_in_decode(codecs, name):
    codec = codecs[name]
    vocab = codec.vocab
    assert (
        sorted(vocab.special)
        == [vocab.size - 3, vocab.size - 2, vocab.size - 1]
        == sorted({vocab.mask, vocab.pad, vocab.end})
    )
    a, b = codec.encode("a"), codec.encode("b")
    assert codec.decode([*a, vocab.mask, vocab.end, *b, vocab.pad]) == "ab"


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_pieces_are_printable_one_per_token(codecs, name):
    codec = codecs[name]
    ids = [*codec.encode("a b\n\té\0"), codec.vocab.mask, codec.vocab.pad, codec.vocab.end]
    pieces = codec.token_strings(np.array(ids))
    assert len(pieces) == len(ids)
    assert all(p and p.isprintable() for p in pieces)
    assert "".join(pieces).startswith("a b⏎⇥") and pieces[-3:] == ["▒", "·", "■"]


def test_bpe_learns_at_most_what_is_asked(codecs):
    assert codecs["bpe"].vocab.size == 300
    assert len(codecs["bpe"].encode(" quick brown")) == 2
    tiny = ByteBPE(2048).fit(["aaaa"])
    assert 259 <= tiny.vocab.size < 270
    short = ByteBPE(400, max_token_chars=3).fit(["interesting " * 50])
    longest = [max(map(len, c.token_strings(c.vocab.real))) for c in (short, ByteBPE(400).fit(["interesting " * 50]))]
    assert longest[0] <= 3 < longest[1]


def test_bpe_is_deterministic_and_survives_saving(tmp_path):
    learned = [f"sentence {i} about {i * i} things" for i in range(300)]
    one, two = ByteBPE(500).fit(learned), ByteBPE(500).fit(learned)
    assert one.tokenizer.to_str() == two.tokenizer.to_str()
    one.save(tmp_path)
    again = ByteBPE(500).load(tmp_path)
    assert again.vocab == one.vocab and again.encode(learned[7]) == one.encode(learned[7])


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="^vocab_size=258 must be at least 259"):
        ByteBPE(258)

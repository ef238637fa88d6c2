"""The split by document, and the rows."""

import hashlib

import numpy as np
import pytest

from research_stack.data import Replies
from research_stack.data.packing import DUPLICATE, TRAIN, VALIDATION, PackedRows, pack, split, train_texts
from research_stack.data.sources.expressions import Expressions
from research_stack.data.tokenizers import ByteBPE, Bytes


def packed(source, folder, length=16, fraction=0.2, tokenizer=None):
    """(train rows, validation rows, counts, codec)."""
    sides = split(source, fraction)
    tokenizer = tokenizer or Bytes()
    codec = tokenizer.fit(train_texts(source, sides))
    counts = pack(source, sides, codec, length, folder)
    rows = [
        PackedRows.load(folder, name, codec.vocab, length) for name in ("train", "validation") if counts[name]["rows"]
    ]
    return *rows, counts, codec


def test_split_depends_on_the_text_alone_and_copies_stay_together(corpus, stories):
    sides = split(corpus(*stories), 0.3)
    assert {TRAIN, VALIDATION} == set(sides)
    reverse = split(corpus(*stories[::-1]), 0.3)
    assert (reverse[::-1] == sides).all()
    twice = split(corpus(*stories, *stories, " ", ""), 0.3)
    assert (twice[:40] == sides).all() and (twice[40:] == DUPLICATE).all()


@pytest.mark.parametrize("prompts, answers", [(500, 2), (100, 2), (500, 25), (1, 500)])
def test_the_prompt_decides_the_side_of_a_pair_and_answers_may_repeat(corpus, prompts, answers):
    """Labels, yes and no: all copies of one answer on one side would leave nothing to learn, or a share that nobody
    asked for.
    """
    source = corpus(
        *[
            (f"question {i % prompts}", f"answer {i // prompts if answers == 500 else (i + i // prompts) % answers}")
            for i in range(500)
        ]
    )
    sides = split(source, 0.3)
    found = [[d for d, s in zip(source.items, sides, strict=True) if s == side] for side in (TRAIN, VALIDATION)]
    assert abs(len(found[1]) / (len(found[0]) + len(found[1])) - 0.3) < 0.1
    if prompts > 1:  # with one prompt for all, prompt and response decide
        assert not {d.prompt for d in found[0]} & {d.prompt for d in found[1]}
        assert {d.text for d in found[0]} == {d.text for d in found[1]} == {f"answer {i}" for i in range(answers)}


def test_the_documented_splits_of_what_is_embedded_stay():
    """A change of the rule must not change what published numbers were measured on."""
    for source, fraction, validation, digest in (
        (Expressions(), 0.1, 160, "33dfc2d14bc7ce63"),
        (Replies(), 0.1, 451, "956c3a41675ecd4f"),
        (Replies(), 0.2, 785, "435eb8cde873e844"),
    ):
        sides = split(source, fraction)
        assert (sides == VALIDATION).sum() == validation and hashlib.sha256(sides.tobytes()).hexdigest()[:16] == digest


def test_split_share_is_about_what_is_asked(corpus):
    sides = split(corpus(*[f"text {i}" for i in range(4000)]), 0.1)
    assert abs((sides == VALIDATION).mean() - 0.1) < 0.02


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_neither_side_is_empty_when_there_are_two_documents(corpus, fraction):
    assert set(split(corpus("a", "b", "a"), fraction)) == {TRAIN, VALIDATION, DUPLICATE}


@pytest.mark.parametrize("texts", [[], ["only"], ["only", "only", "  "]])
def test_one_document_cannot_be_split(corpus, texts):
    with pytest.raises(ValueError, match="^validation_fraction=0.1 cannot be kept: the source has [01] different"):
        split(corpus(*texts), 0.1)


def test_packing_keeps_every_token_in_order_but_the_last_rows_rest(corpus, stories, tmp_path):
    source = corpus(*stories, stories[0])
    train, validation, counts, codec = packed(source, tmp_path, length=32)
    sides = split(source, 0.2)
    for side, rows, name in ((TRAIN, train, "train"), (VALIDATION, validation, "validation")):
        ids = [
            i for s, t in zip(sides, stories, strict=False) if s == side for i in [*codec.encode(t), codec.vocab.end]
        ]
        assert rows.stream().tolist() == ids[: len(ids) // 32 * 32]
        assert counts[name]["documents"] == (sides == side).sum()
        assert counts[name]["tokens"] == counts[name]["bytes"] == len(ids) - counts[name]["documents"]
        assert rows.attention_mask.all() and not rows.prompt.any()
        assert (rows.eligible == (rows.tokens != codec.vocab.end)).all()


def test_the_tokenizer_learns_from_the_train_side_only(corpus, stories, tmp_path):
    secret = "zyxwvu" * 50
    texts = next(
        t for i in range(99) if (t := [*stories, f"{i} {secret}"]) and split(corpus(*t), 0.2)[-1] == VALIDATION
    )
    *_, codec = packed(corpus(*texts), tmp_path, tokenizer=ByteBPE(1000))
    assert len(codec.encode("zyxwvu")) == 6
    assert len(codec.encode(" word")) == 1


def test_pairs_one_per_row_padded_cut_and_dropped(corpus, tmp_path):
    pairs = [(f"p{i}", f"response {i}") for i in range(30)]
    pairs += [(f"q{i}", f"a response much too long for its row {i}") for i in range(10)]
    pairs += [(f"a prompt that leaves no room {i}", "x") for i in range(5)]
    train, validation, counts, codec = packed(corpus(*pairs), tmp_path)
    total = {key: counts["train"][key] + counts["validation"][key] for key in counts["train"]}
    assert (total["documents"], total["rows"], total["truncated"], total["dropped"]) == (45, 40, 10, 5)
    found = {}
    for rows in (train, validation):
        assert not (rows.eligible & (rows.prompt | ~rows.attention_mask)).any()
        assert not np.isin(rows.tokens[rows.eligible], codec.vocab.special).any()
        assert (rows.tokens[~rows.attention_mask] == codec.vocab.pad).all()
        for row, prompt, attend in zip(rows.tokens, rows.prompt, rows.attention_mask, strict=True):
            found[codec.decode(row[prompt])] = (codec.decode(row[attend & ~prompt]), codec.vocab.end in row)
    assert found["p7"] == ("response 7", True)
    assert found["q7"] == ("a response muc", False)
    assert found.keys() == {p for p, _ in pairs[:40]}


def test_strange_documents(corpus, tmp_path):
    texts = ["", "\r\n", "é漢🙂" * 30, "x" * 50_000, "\0", "a", "<|mask|>"]
    train, validation, counts, codec = packed(corpus(*texts), tmp_path, length=1, fraction=0.5)
    assert counts["train"]["documents"] + counts["validation"]["documents"] == 5
    stream = np.concatenate([train.stream(), validation.stream()])
    found = [codec.decode(part) for part in np.split(stream, np.flatnonzero(stream == codec.vocab.end))]
    assert sorted(found) == sorted([*texts[2:], ""])


def test_a_large_vocabulary_is_stored_wider(corpus, stories, tmp_path):
    class Wide(Bytes):
        def fit(self, texts):
            codec = super().fit(texts)
            codec.vocab = type(codec.vocab)(
                70_000, mask=69_999, pad=69_998, end=69_997, special=(69_997, 69_998, 69_999)
            )
            return codec

    train, *_ = packed(corpus(*stories), tmp_path, tokenizer=Wide())
    assert train.tokens.dtype == np.uint32 and (train.stream() == 69_997).sum() > 10


def test_take_and_spread(corpus, stories, tmp_path):
    train, *_ = packed(corpus(*stories), tmp_path)
    some = train.take(np.array([5, 2, 5]))
    assert (some.tokens == train.tokens[[5, 2, 5]]).all()
    assert train.evenly_spaced(10**9) is train
    assert (
        len(train.evenly_spaced(7)) == 7 and (train.evenly_spaced(3).tokens[1] == train.tokens[len(train) // 3]).all()
    )


def test_a_codec_that_begins_texts_begins_each_document_and_prompt_once(corpus, tmp_path):
    class Beginning(Bytes):
        def fit(self, texts):
            codec = super().fit(texts)
            codec.begin = (ord("^"),)
            return codec

    for folder in ("pairs", "texts"):
        (tmp_path / folder).mkdir()
    pairs = corpus(*[(f"{'^' * (i % 2)}p{i:02}", f"r{i:02}") for i in range(40)])
    rows = packed(pairs, tmp_path / "pairs", tokenizer=Beginning())[0]
    prompts = [bytes(row[prompt].tolist()) for row, prompt in zip(rows.tokens, rows.prompt, strict=True)]
    assert len(prompts) > 20 and all(prompt.startswith(b"^p") and len(prompt) == 4 for prompt in prompts)
    texts = corpus(*[f"text {i:02}" for i in range(40)])
    stream = packed(texts, tmp_path / "texts", tokenizer=Beginning())[0].stream()
    ends = np.flatnonzero(stream == 258)[:-1]
    assert len(ends) > 20 and stream[0] == ord("^") and (stream[ends + 1] == ord("^")).all()

"""Prompts without responses: their rows, their split, the files they come from."""

import json
from itertools import islice

import pyarrow
import pyarrow.parquet
import pytest

from research_stack.data import Bytes, Docstrings, Prompts, PromptsOf, TokenData
from research_stack.data.packing import DUPLICATE, TRAIN, VALIDATION, split

PROMPTS = [(f"question {i}?", "") for i in range(60)]


@pytest.fixture
def data(corpus, tmp_path):
    """Makes a prepared TokenData over prompts with the given options."""

    def make(prompts=PROMPTS, **options):
        options = {
            "sequence_length": 16,
            "batch_size": 4,
            "validation_fraction": 0.2,
            "cache_dir": str(tmp_path / "cache"),
            **options,
        }
        made = TokenData(corpus(*prompts), Bytes(), **options)
        made.prepare()
        return made

    return make


def test_a_row_is_the_prompt_and_padding(data):
    d = data()
    assert d.prompts_only and d.describe()["prompts_only"] and len(d.train) + len(d.validation) == 60
    for batch in [*islice(d.train_dataloader(), 12), *d.val_dataloader()]:
        assert set(batch) == {"tokens", "eligible", "attention_mask", "prompt"}
        assert not batch["eligible"].any() and (batch["prompt"] == batch["attention_mask"]).all()
        assert (batch["tokens"] != d.vocab.end).all() and (
            batch["tokens"][~batch["attention_mask"]] == d.vocab.pad
        ).all()
        for tokens, prompt in zip(batch["tokens"], batch["prompt"], strict=True):
            assert (d.codec.decode(tokens[prompt]), "") in PROMPTS


def test_what_it_says_of_prompts(data):
    d = data()
    assert d.bytes_per_token == 1 and d.meta["train"]["tokens"] == d.train.attention_mask.sum() == len(d.train_tokens())
    assert d.validation_document.tolist() == list(range(len(d.validation)))
    assert sorted(d.validation_documents()) == sorted(d.codec.decode(row) for row in d.validation.tokens)


def test_pairs_and_texts_are_not_prompts_alone(data, corpus, tmp_path):
    assert not data([(f"q{i}", f"answer {i}") for i in range(40)]).prompts_only
    assert not data([*PROMPTS, ("with a", "response")]).prompts_only
    plain = TokenData(corpus(*(f"text {i}" for i in range(40))), Bytes(), sequence_length=16, cache_dir=str(tmp_path))
    plain.prepare()
    assert not plain.prompts_only


def test_the_prompt_decides_the_side_and_copies_are_left_out(corpus):
    sides = split(corpus(*PROMPTS), 0.3)
    assert set(sides) == {TRAIN, VALIDATION}
    assert (split(corpus(*PROMPTS[::-1]), 0.3)[::-1] == sides).all()
    twice = split(corpus(*PROMPTS, *PROMPTS, (" \n", ""), ("", ""), ("prompt", " "), " ", ""), 0.3)
    assert (twice[:60] == sides).all() and (twice[60:] == DUPLICATE).all()


def test_long_prompts_are_dropped_and_counted(data):
    prompts = [
        *PROMPTS[:30],
        *((f"{'x' * 13}{i:03}", "") for i in range(10)),
        *((f"{'y' * 14}{i:03}", "") for i in range(10)),
    ]
    d = data(prompts)  # of 16 and of 17 tokens; a row has 16
    assert sum(d.meta[side]["dropped"] for side in ("train", "validation")) == 10
    assert d.train.spans[:, 0].max() == 16 and len(d.train) + len(d.validation) == 40


def test_only_long_prompts(data, tmp_path):
    line = (
        r"^sequence_length=8 is too short: all \d+ train prompts take more than their room, .* lengthen it, or shorten"
        r" the prompts$"
    )
    with pytest.raises(ValueError, match=line):
        data(sequence_length=8)
    with pytest.raises(ValueError, match=line):
        data([(f"a long question {i}", f"x{i}") for i in range(20)], sequence_length=8)


# Files ------------------------------------------------------------------------------------------------------------


def complaint(source):
    with pytest.raises((ValueError, OSError)) as caught:
        source.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lines_records_and_columns(tmp_path):
    (tmp_path / "a.txt").write_text("one?\n\n  \ntwo?\r\nthree?")
    records = [{"prompt": "one?", "topic": 1}, {"prompt": " ", "topic": 1}, {"prompt": "two?\n", "topic": 2}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    lines = Prompts(str(tmp_path / "a.txt"))
    lines.check()
    expected = [
        ("", prompt, f"{tmp_path / 'a.txt'}:{number}") for prompt, number in (("one?", 1), ("two?", 4), ("three?", 5))
    ]
    assert [(d.text, d.prompt, d.key) for d in lines.documents()] == expected
    for name in ("a.jsonl", "a.parquet"):
        source = Prompts(str(tmp_path / name), group_field="topic", separator="\n")
        source.check()
        assert [(d.prompt, d.group) for d in source.documents()] == [("one?\n", "topic=1"), ("two?\n", "topic=2")]
    assert [d.prompt for d in Prompts(str(tmp_path / "a.txt"), limit=2).documents()] == ["one?", "two?"]
    assert [d.prompt for d in Prompts(str(tmp_path)).documents()] == [
        "one?",
        "two?\n",
        "one?",
        "two?\n",
        "one?",
        "two?",
        "three?",
    ]


def test_a_group_stays_on_one_side(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": f"q{i}", "topic": f"t{i % 20}"}) + "\n" for i in range(400))
    )
    source = Prompts(str(tmp_path / "a.jsonl"), group_field="topic")
    sides = split(source, 0.3)
    topics = [
        {d.group for d, s in zip(source.documents(), sides, strict=True) if s == side} for side in (TRAIN, VALIDATION)
    ]
    assert all(topics) and not topics[0] & topics[1]


def test_wrong_prompts_are_one_line(tmp_path):
    for name, text in {
        "e.txt": "",
        "b.txt": " \n",
        "a.md": "x",
        "j.jsonl": '{"prompt": "x"}\n{"text": "y"}\n',
        "n.jsonl": '{"prompt": 3}\n',
        "k.jsonl": "{\n",
        "g.jsonl": '{"prompt": "x", "topic": null}\n',
    }.items():
        (tmp_path / name).write_text(text)
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "other": [1]}), tmp_path / "a.parquet")
    said = {file.name: complaint(Prompts(str(file))) for file in tmp_path.iterdir() if file.name != "g.jsonl"}
    assert said["e.txt"].endswith("e.txt is an empty file")
    assert said["b.txt"].endswith("holds no text: every record is empty")
    assert said["a.md"].endswith("a.md has the unknown suffix '.md'; known: .txt .jsonl .parquet .jsonl.gz")
    assert f"path={tmp_path / 'j.jsonl'}:2 has no field 'prompt'; the fields there: text" in said["j.jsonl"]
    assert (
        "n.jsonl:1 field 'prompt' holds a int, not a text" in said["n.jsonl"]
        and "k.jsonl:1 is not JSON" in said["k.jsonl"]
    )
    assert "has no field 'prompt'; the fields there: body, other" in said["a.parquet"]
    assert "has no field 'prompt'" in complaint(Prompts(str(tmp_path / "a.parquet"), group_field="other"))
    assert "g.jsonl:1 field 'topic' must hold the name or number of a group, not None" in complaint(
        Prompts(str(tmp_path / "g.jsonl"), group_field="topic")
    )
    assert "g.jsonl:1 has no field 'subject'; the fields there: prompt, topic" in complaint(
        Prompts(str(tmp_path / "g.jsonl"), group_field="subject")
    )
    assert complaint(Prompts(str(tmp_path / "b.txt"), group_field="topic")).startswith("group_field=topic must be null")
    assert "must name at least one file" in complaint(Prompts([]))
    assert "does not exist" in complaint(Prompts(str(tmp_path / "nowhere.txt")))


def test_fingerprint_of_prompts(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    (tmp_path / "c.txt").write_text("one\ntoo\n")
    a, b, c = (Prompts(str(tmp_path / f"{n}.txt")).fingerprint() for n in "abc")
    others = [
        Prompts(str(tmp_path / "a.txt"), **option).fingerprint() for option in ({"separator": "\n"}, {"limit": 2})
    ]
    assert a == b != c and len({a, *others}) == 3


def test_the_prompts_of_pairs(corpus):
    pairs = corpus(*((f"question {i // 4}", f"answer {i}") for i in range(200)))
    source = PromptsOf(pairs)
    source.check()
    assert [(d.text, d.prompt) for d in source.documents()] == [("", f"question {i}") for i in range(50)]
    assert source.fingerprint() != pairs.fingerprint()
    with pytest.raises(ValueError, match="^source must hold pairs of a prompt and a response, and '1' is plain text"):
        list(PromptsOf(corpus(("p", "r"), "text")).documents())


def test_prompts_of_grouped_pairs_are_on_the_side_of_their_pairs(parsed):
    pairs = Docstrings(limit=1500)
    prompts = PromptsOf(pairs)
    sides = [
        {d.prompt: s for d, s in zip(source.documents(), split(source, 0.2), strict=True)}
        for source in (pairs, prompts)
    ]
    assert sides[0] == sides[1] and {TRAIN, VALIDATION} == set(sides[0].values())

"""Records that are odd, files that are hostile, links, and what of a corpus is lost: told in one line, or left out and
counted.
"""

import gzip
import json
import logging
import random

import pyarrow
import pyarrow.parquet
import pytest

from research_stack.data import Bytes, Hub, Instructions, Prompts, Replies, Text, TokenData
from research_stack.data.questions.hotpotqa import HotpotQA
from research_stack.data.questions.module import QuestionData
from research_stack.data.questions.nq import NaturalQuestions
from research_stack.data.questions.squad import Squad
from research_stack.data.sources.record_reader import MAX_NESTING, find_files

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SQUAD = {
    "id": "1",
    "context": "Ada lives in Rome.",
    "question": "Where?",
    "answers": {"text": ["Rome"], "answer_start": [13]},
}
HOTPOT = {
    "_id": "1",
    "question": "Who?",
    "answer": "Ada",
    "supporting_facts": [["T", 0]],
    "context": [["T", ["Ada lives."]]],
}
SPAN = {"start_token": 0, "end_token": 2}
NQ = {
    "example_id": 1,
    "question_text": "who",
    "document_text": "Ada lives .",
    "document_url": "x?title=Ada",
    "long_answer_candidates": [SPAN],
    "annotations": [
        {"long_answer": SPAN, "short_answers": [{"start_token": 0, "end_token": 1}], "yes_no_answer": "NONE"}
    ],
}
#: Each source of records with a good record of its own.
SOURCES = {
    "text": (lambda path, **o: Text(path, "response", "prompt", **o), {"prompt": "p", "response": "r"}),
    "messages": (Instructions, {"messages": TURNS}),
    "conversations": (
        Instructions,
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ),
    "replies": (Replies, {"prompt": "a", "reply": "b", "likes": 2, "shares": 1}),
    "prompts": (lambda path, **o: Prompts(path, group_field="topic", **o), {"prompt": "p", "topic": 1}),
    "squad": (Squad, SQUAD),
    "hotpotqa": (HotpotQA, HOTPOT),
    "nq": (lambda path, **o: NaturalQuestions(path, unanswerable=True, **o), NQ),
}
#: Bytes of a line that is no record of any source, and what is said of it.
HOSTILE = {
    b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": f"is nested more than {MAX_NESTING} levels deep",
    b'{"prompt": ' + b"[" * 300 + b"]" * 300 + b"}": f"is nested more than {MAX_NESTING} levels deep",
    b'{"prompt": ' + b"9" * 100_000 + b"}": "is not JSON: Exceeds the limit",
    b'{"prompt": "\xff"}': "is not UTF-8 text: invalid byte 0xff at offset",
    b'{"prompt": "\0"}': "is not text: NUL byte at offset",
    b"{]": "is not JSON:",
    b"[1]": "must be a JSON object",
    b"NaN": "must be a JSON object",
}


def read(source):
    source.check()
    return list(source.questions() if hasattr(source, "questions") else source.documents())


def lines(path, *rows):
    """A jsonl file of records, or of lines as they are."""
    content = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize("name", SOURCES)
def test_hostile_lines_are_one_line_with_file_and_line_or_left_out(name, tmp_path):
    make, good = SOURCES[name]
    for number, (line, message) in enumerate(HOSTILE.items()):
        path = lines(
            tmp_path / f"a{number}.jsonl{'.gz' * (number % 2)}",
            b"\xef\xbb\xbf" + json.dumps(good).encode() + b"\r",
            b"",
            line,
        )
        with pytest.raises(ValueError) as caught:
            read(make(path))
        assert (
            str(caught.value).startswith(f"path={path}:3 {message}")
            and "\n" not in str(caught.value)
            and len(str(caught.value)) < 400
        )
        source = make(path, strict=False)
        assert (
            len(read(source)) == 1
            and (source.odd.left_out, source.odd.read) == (1, 2)
            and source.odd.first.startswith(f"path={path}:3 ")
        )


VALUES = [
    None,
    True,
    -1,
    0,
    3.5,
    float("nan"),
    float("inf"),
    10**400,
    "",
    " ",
    "text",
    "\ud800",
    "\0",
    [],
    [None],
    ["x"],
    [[["x"]]],
    {},
    {"text": 3},
    {"text": ["a"]},
]


def spoilt(value, draws):
    """The value with one thing in it of another type, gone, or said twice."""
    if isinstance(value, dict) and value and draws.random() < 0.8:
        key = draws.choice(list(value))
        if draws.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: spoilt(value[key], draws)}
    if isinstance(value, list) and value and draws.random() < 0.8:
        at = draws.randrange(len(value))
        return [*value[:at], *([spoilt(value[at], draws)] * draws.choice([1, 2])), *value[at + 1 :]]
    return draws.choice(VALUES)


@pytest.mark.parametrize("name", SOURCES)
def test_a_value_of_another_type_anywhere_is_one_line_or_is_left_out(name, tmp_path):
    make, good = SOURCES[name]
    draws, refused = random.Random(name), 0
    for _ in range(150):
        path = lines(tmp_path / "a.jsonl", good, odd := spoilt(good, draws))
        try:
            read(make(path))
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"path={path}:2") and "\n" not in str(error), odd
            source = make(path, strict=False)
            assert len(read(source)) == 1 and source.odd.left_out == 1, odd
        for item in read(make(path, strict=False)):  # nothing is let through that cannot be stored
            repr(item).encode()
            (item.question if hasattr(item, "question") else f"{item.prompt}{item.text}").encode()
    assert refused > 20


def test_odd_records_of_parquet_files_and_data_sets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    table = pyarrow.table({"text": ["good", "", "fine"], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet:row 1 field 'n' holds a int, not a text; set strict=false"):
        read(Text(str(tmp_path / "a.parquet"), "n"))
    broken = pyarrow.StringArray.from_buffers(
        3, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xffc")
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="b.parquet:row 2 is not UTF-8 text"):
        read(Text(str(tmp_path / "b.parquet")))
    assert [d.text for d in read(Text(str(tmp_path / "b.parquet"), strict=False))] == ["a", "c"]
    rows = {"prompt": ["p", "q", "r"], "label": ["yes", None, " "]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "one")
    source = Hub(str(tmp_path / "one"), field="label", prompt_field="prompt")
    assert [d.prompt for d in read(source)] == ["p"] and source.odd.blank == 2


def test_messages_of_parts_and_of_the_other_layouts_names(tmp_path):
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
    ]
    source = Instructions(lines(tmp_path / "a.jsonl", {"messages": parts}, {"conversations": TURNS}))
    assert [(d.prompt, d.text) for d in read(source)] == [
        ("user:\na b\nassistant:\n", "c"),
        ("user:\nq\nassistant:\n", "a"),
    ]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, TURNS[1]]
    with pytest.raises(
        ValueError,
        match=(
            "a.jsonl:1 message 1 field 'content' part 1 is of the kind 'image_url'; only text is read; set strict=false"
        ),
    ):
        read(Instructions(lines(tmp_path / "a.jsonl", {"messages": image})))


# Links ------------------------------------------------------------------------------------------------------------


def test_links_are_followed_and_loops_end(tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "a.txt").write_text("a")
    root = tmp_path / "corpus"
    (root / "b.jsonl").mkdir(parents=True)  # a folder of that name is a folder
    (root / "b.jsonl" / "c.txt").write_text("c")
    (root / "linked").symlink_to(tmp_path / "real")
    (root / "file.txt").symlink_to(tmp_path / "real" / "deep" / "a.txt")
    for loop in ("one", "two"):
        (root / "b.jsonl" / loop).symlink_to(root)
    wanted = ["b.jsonl/c.txt", "file.txt", "linked/deep/a.txt"]
    for path in (root, root / "**" / "*.txt", root / "**"):
        assert [str(file.relative_to(root)) for file in find_files(str(path), (".txt",))] == wanted
    assert [d.text for d in read(Text(str(root)))] == ["c", "a", "a"]
    (root / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"^path=\S*gone.txt is a link to \S*nowhere, which does not exist$"):
        read(Text(str(root)))


# What is lost -----------------------------------------------------------------------------------------------------


def prepared(source, tmp_path, caplog, **options):
    """(data, the warnings it gave), prepared twice: the second time from the cache."""
    for _ in range(2):
        caplog.clear()
        data = TokenData(
            source,
            Bytes(),
            **{"sequence_length": 32, "validation_fraction": 0.2, "cache_dir": str(tmp_path / "cache"), **options},
        )
        with caplog.at_level(logging.WARNING):
            data.prepare()
    return data, [record.message for record in caplog.records]


def test_one_warning_says_what_is_lost_and_much_is_refused(corpus, tmp_path, caplog):
    pairs = [
        *((f"{'p' * 20}{i:02}", f"{i:02}") for i in range(60)),
        *((f"q{i:02}", f"{'r' * 40}{i}") for i in range(30)),
        *((f"{'s' * 30}{i:02}", f"{'t' * 9}{i}") for i in range(10)),
    ]
    data, warnings = prepared(corpus(*pairs), tmp_path, caplog)
    assert (
        data.meta["train"]["rows"] + data.meta["validation"]["rows"] == 90
    )  # a long prompt is no reason where the pair fits
    (line,) = warnings
    assert (
        line.startswith("of 100 records 10 (10.0 %) are dropped: they do not fit sequence_length=32")
        and "30 (30.0 %) are cut at the end" in line
    )
    with pytest.raises(
        ValueError,
        match=r"^max_dropped=0.05 is exceeded: of 100 records 10 \(10.0 %\) are dropped.*; raise it if that is meant$",
    ):
        prepared(corpus(*pairs), tmp_path, caplog, max_dropped=0.05)
    with pytest.raises(ValueError, match="^max_dropped=1.5 must lie in"):
        TokenData(corpus(*pairs), Bytes(), max_dropped=1.5)


def test_what_is_left_out_is_told_whether_the_corpus_is_read_or_cached(tmp_path, caplog):
    rows = [{"prompt": f"p{i}", "response": None if i % 10 == 0 else 3 if i % 10 == 1 else f"r{i}"} for i in range(100)]
    path = lines(tmp_path / "a.jsonl", *rows)
    source = Text(path, "response", "prompt", strict=False)
    _, (line,) = prepared(source, tmp_path, caplog)
    assert (
        line
        == f"of 100 records 10 (10.0 %) are left out, the first of them: path={path}:2 field 'response' holds a int,"
        " not a text; 10 (10.0 %) have an empty text and are passed over"
    )
    with pytest.raises(ValueError, match="max_dropped=0.01 is exceeded"):
        prepared(source, tmp_path, caplog, max_dropped=0.01)


def test_questions_that_are_lost_are_told_and_much_is_refused(tmp_path, caplog):
    records = [
        {
            **SQUAD,
            "id": str(i),
            "title": f"t{i}",
            "context": f"Ada {i} lives in Rome." + "!" * 100 * (i % 4 == 1),
            "answers": None if i % 4 == 2 else {"text": ["Rome"]},
        }
        for i in range(40)
    ]
    source = Squad(lines(tmp_path / "a.jsonl", *records), strict=False)
    options = {"max_context_bytes": 60, "long": "drop"}
    with caplog.at_level(logging.WARNING):
        QuestionData({"squad": source}, max_dropped=0.6, **options).prepare()
    assert (
        "of 40 records of squad 10 (25.0 %) are dropped: their context is longer" in caplog.text
        and "10 (25.0 %) are left out" in caplog.text
    )
    with pytest.raises(ValueError, match="^max_dropped=0.4 is exceeded"):
        QuestionData({"squad": source}, max_dropped=0.4, **options).prepare()


def test_a_lopsided_split_is_told(corpus, tmp_path, caplog):
    pairs = [(f"prompt {i % 3}", f"answer {i}") for i in range(100)]
    _, warnings = prepared(corpus(*pairs), tmp_path, caplog, validation_fraction=0.05)
    assert (
        len(warnings) == 1
        and warnings[0].startswith("validation_fraction=0.05: 3")
        and "equal texts, pairs of one prompt, groups" in warnings[0]
    )
    labels = [(f"review {i}\n", ("positive", "negative")[i % 2]) for i in range(200)]
    data, warnings = prepared(corpus(*labels), tmp_path, caplog, validation_fraction=0.1)
    assert not warnings and 10 <= data.meta["validation"]["documents"] <= 30

"""Documents from files, and what is said of files that are none."""

import json
import re
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from research_stack.data.sources.text import Text, stretches


def texts(path, **options):
    source = Text(str(path), **options)
    source.check()
    return [d.text for d in source.documents()]


def complaint(path, **options):
    """The one line that check() raises; it must be fast."""
    start = time.perf_counter()
    with pytest.raises((ValueError, OSError)) as caught:
        Text(path if isinstance(path, list) else str(path), **options).check()
    assert time.perf_counter() - start < 1
    message = str(caught.value)
    assert message.startswith("path=") and "\n" not in message
    return message


def write_jsonl(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_a_text_file_is_cut_at_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n\n\nfour\n")
    assert texts(tmp_path / "a.txt", document_chars=5) == ["one\ntwo", "three", "four"]
    assert texts(tmp_path / "a.txt") == ["one\ntwo\n\nthree\n\n\nfour"]


@pytest.mark.parametrize("seed", range(20))
def test_cutting_loses_nothing_but_blank_lines_and_bounds_the_size(seed):
    rng = np.random.default_rng(seed)
    alphabet = list("ab é漢🙂") + ["\n"] * 3
    lines = "".join(rng.choice(alphabet, 3000)).replace(" ", "x").split("\n") + ["z" * 500]
    parts = list(stretches(lines, 40))
    assert "".join(parts).replace("\n", "") == "".join(lines)
    assert max(map(len, parts)) <= 80
    assert len(parts) > 20


def test_a_huge_line_is_taken_in_parts(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 10_001)
    assert [len(t) for t in texts(tmp_path / "a.txt", document_chars=4000)] == [4000, 4000, 2001]


def test_crlf_and_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert texts(tmp_path / "a.txt") == ["one\ntwo"]
    write_jsonl(tmp_path / "b.jsonl", {"text": "one\r\ntwo"})
    assert texts(tmp_path / "b.jsonl") == ["one\ntwo"]


def test_unicode_and_lone_surrogates(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "naïve 漢字 🙂 \\ud800"}\n{"text": "  "}\n\n{"text": null}\n{"text": "end"}\n'
    )
    assert texts(tmp_path / "a.jsonl") == ["naïve 漢字 🙂 ?", "end"]


def test_folders_globs_and_lists(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.txt", ".hidden/d.txt", "e.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.md", "b.txt", "sub/c.txt"]
    assert texts(tmp_path / "*.txt") == ["b.txt"]
    assert texts(tmp_path / "**" / "c*.txt") == ["sub/c.txt"]
    source = Text([str(tmp_path / "b.txt"), str(tmp_path / "*.*"), str(tmp_path / "b.txt")])
    assert [d.text for d in source.documents()] == ["b.txt", "a.md"]


def test_jsonl_and_parquet_pairs(tmp_path):
    records = [{"q": "why?", "a": "because"}, {"q": "how?", "a": "so"}]
    write_jsonl(tmp_path / "a.jsonl", *records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        source = Text(str(tmp_path / name), field="a", prompt_field="q")
        source.check()
        assert [(d.prompt, d.text) for d in source.documents()] == [("why?", "because"), ("how?", "so")]


def test_a_missing_path_names_its_neighbour(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("x")
    assert f"did you mean {tmp_path / 'shakespeare.txt'}?" in complaint(tmp_path / "shakespere.txt")
    assert "does not exist either" in complaint(tmp_path / "nowhere" / "a.txt")
    assert complaint("nowhere.txt").startswith("path=nowhere.txt does not exist")


def test_files_that_hold_no_text(tmp_path):
    (tmp_path / "empty.txt").touch()
    assert "is an empty file" in complaint(tmp_path / "empty.txt")
    (tmp_path / "blank.txt").write_text(" \n\n \n")
    assert "holds no text" in complaint(tmp_path / "blank.txt")
    (tmp_path / "nul.txt").write_bytes(b"good line\nab\0c")
    assert "nul.txt:2 is not text: NUL byte at offset 12; set strict=false" in complaint(tmp_path / "nul.txt")
    (tmp_path / "latin.txt").write_bytes(b"good line\ncaf\xe9 au lait")
    assert "latin.txt:2 is not UTF-8 text: invalid byte 0xe9 at offset 13; set strict=false" in complaint(
        tmp_path / "latin.txt"
    )


def test_unknown_suffix_empty_folder_and_glob_without_match(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    assert "unknown suffix '.docx'; known: .txt .md .jsonl .parquet" in complaint(tmp_path / "a.docx")
    assert "is a folder without a file" in complaint(tmp_path)
    assert "matches no file" in complaint(tmp_path / "*.txt")
    assert "must name at least one file" in complaint([])


def test_malformed_records(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert f"path={tmp_path / 'bad.jsonl'}:2 is not JSON" in complaint(tmp_path / "bad.jsonl")
    (tmp_path / "list.jsonl").write_text('["text"]\n')
    assert "must be a JSON object with named fields, not a list" in complaint(tmp_path / "list.jsonl")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    assert "is not a parquet file" in complaint(tmp_path / "bad.parquet")


def test_missing_and_wrong_fields(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"content": "x", "n": 3})
    assert ":1 has no field 'contents'; the fields there: content, n; did you mean 'content'?" in complaint(
        path, field="contents"
    )
    assert "field 'n' holds a int, not a text" in complaint(path, field="n")
    pairs = write_jsonl(tmp_path / "b.jsonl", {"prompt": "x", "response": "y"})
    assert "for pairs set field=response prompt_field=prompt" in complaint(pairs)
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    assert "has no field 'text'; the fields there: body" in complaint(tmp_path / "a.parquet")


def test_a_bad_line_beyond_the_check_is_found_when_read(tmp_path):
    path = tmp_path / "big.jsonl"
    path.write_text(json.dumps({"text": "x" * 5_000_000}) + "\n" + '{"text": "y"}\noops\n')
    source = Text(str(path))
    source.check()
    with pytest.raises(ValueError, match=re.escape(f"path={path}:3 is not JSON")):
        list(source.documents())


def test_fingerprint_is_of_the_content_not_of_the_place(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same")
    one, two = Text(str(tmp_path / "one")), Text(str(tmp_path / "two"))
    assert one.fingerprint() == two.fingerprint() != Text(str(tmp_path / "one"), document_chars=9).fingerprint()
    (tmp_path / "two" / "a.txt").write_text("Same")
    assert one.fingerprint() != two.fingerprint()

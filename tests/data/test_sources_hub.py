"""Data sets that `datasets` loads, all of them local."""

import json

import datasets
import pytest

from research_stack.data.sources.hub import Hub

RECORDS = {"text": ["one", "  ", "three\r\n"], "question": ["a", "b", "c"], "n": [1, 2, 3]}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


def read(path, **options):
    source = Hub(str(path), **options)
    source.check()
    return [(d.prompt, d.text) for d in source.documents()]


def test_saved_to_disk(tmp_path):
    data = datasets.Dataset.from_dict(RECORDS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "several")
    assert read(tmp_path / "one") == [(None, "one"), (None, "three\n")]
    assert read(tmp_path / "several", split="test", prompt_field="question") == [("a", "one")]
    assert read(tmp_path / "one", limit=2) == [(None, "one")]
    with pytest.raises(ValueError, match="^source.split=dev is not among the splits train, test"):
        read(tmp_path / "several", split="dev")


def test_local_files(tmp_path):
    path = tmp_path / "folder" / "train.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("one", "two")))
    assert read(path) == read(path.parent) == [(None, "one"), (None, "two")]


def test_fingerprint_follows_the_data(tmp_path):
    for name, records in (("a", RECORDS), ("b", {**RECORDS, "text": ["x", "y", "z"]})):
        datasets.Dataset.from_dict(records).save_to_disk(tmp_path / name)
    a, b = Hub(str(tmp_path / "a")), Hub(str(tmp_path / "b"))
    assert a.fingerprint() == Hub(str(tmp_path / "a")).fingerprint()
    assert len({a.fingerprint(), b.fingerprint(), Hub(str(tmp_path / "a"), limit=2).fingerprint()}) == 3


def test_what_cannot_be_loaded(tmp_path):
    datasets.Dataset.from_dict(RECORDS).save_to_disk(tmp_path / "one")
    with pytest.raises(
        ValueError, match=r"row 0 has no field 'txt'; the fields there: text, question, n; did you mean 'text'"
    ):
        read(tmp_path / "one", field="txt")
    with pytest.raises(ValueError, match="field 'n' holds a int"):
        read(tmp_path / "one", field="n")
    with pytest.raises(FileNotFoundError, match="did you mean"):
        read(tmp_path / "oen")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is an empty folder"):
        read(tmp_path / "empty")
    (tmp_path / "bad.jsonl").write_text("{]")
    with pytest.raises(ValueError, match="^path=.*bad.jsonl cannot be loaded: [^\n]*$"):
        read(tmp_path / "bad.jsonl")

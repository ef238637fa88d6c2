"""The cache: built once, whole or absent."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research_stack.data.cache import FolderCache, default_root

SPAWN = multiprocessing.get_context("spawn")


def build(folder):
    (folder / "sub").mkdir()
    (folder / "a.bin").write_bytes(b"abc")
    (folder / "sub" / "b.bin").write_bytes(b"defg")
    return {"answer": 42}


def never(folder):
    raise AssertionError("built again")


def slow_build(folder):
    with open(folder.parent / "builders", "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.5)
    return build(folder)


def prepare(root, queue):
    path, meta = FolderCache(root, "f").folder(slow_build)
    queue.put(((path / "a.bin").read_bytes(), meta["answer"]))


def hang(root):
    def half(folder):
        (folder / "a.bin").write_bytes(b"a")
        (Path(root) / "started").touch()
        time.sleep(60)

    FolderCache(root, "f").folder(half)


def test_built_once_then_read(tmp_path):
    path, meta = FolderCache(tmp_path / "deep" / "root", "f").folder(build)
    assert path == tmp_path / "deep" / "root" / "f" and meta["answer"] == 42
    assert FolderCache(tmp_path / "deep" / "root", "f").folder(never) == (path, meta)
    assert sorted(p.name for p in path.parent.iterdir()) == ["f", "f.lock"]


def test_two_processes_prepare_once(tmp_path):
    queue = SPAWN.Queue()
    processes = [SPAWN.Process(target=prepare, args=(tmp_path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [(b"abc", 42)] * 2
    for process in processes:
        process.join()
    assert len((tmp_path / "builders").read_text().split()) == 1


def test_a_killed_builder_leaves_no_half_cache_and_its_rest_is_cleaned(tmp_path):
    process = SPAWN.Process(target=hang, args=(tmp_path,))
    process.start()
    deadline = time.time() + 60
    while not (tmp_path / "started").exists() and time.time() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "f").exists() and len(list(tmp_path.glob("f.tmp-*"))) == 1
    assert FolderCache(tmp_path, "f").folder(build)[1]["answer"] == 42
    assert not list(tmp_path.glob("f.tmp-*"))


@pytest.mark.parametrize("name", ["a.bin", "sub/b.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_damage_is_noticed_logged_and_mended(tmp_path, name, damage, caplog):
    path, _ = FolderCache(tmp_path, "f").folder(build)
    content = (path / name).read_bytes()
    if damage == "missing":
        (path / name).unlink()
    else:
        (path / name).write_bytes(content[:1] if damage == "cut" else b"\xff" + content[1:])
    with caplog.at_level(logging.WARNING):
        FolderCache(tmp_path, "f").folder(build)
    assert (path / name).read_bytes() == content
    assert (
        [r.levelname for r in caplog.records] == ["WARNING"]
        and "is damaged" in caplog.text
        and "\n" not in caplog.records[0].message
    )


def test_a_changed_count_in_the_description_is_noticed(tmp_path, caplog):
    path, _ = FolderCache(tmp_path, "f").folder(build)
    meta = path / "meta.json"
    for changed in (meta.read_text().replace("42", "43"), '{"files": ["a.bin"]}', "[" * 100_000):
        meta.write_text(changed)
        assert FolderCache(tmp_path, "f").folder(build)[1]["answer"] == 42 and caplog.text.count("is damaged") == 1
        caplog.clear()
    old = {key: value for key, value in json.loads(meta.read_text()).items() if key != "seal"}
    meta.write_text(json.dumps(old))
    assert FolderCache(tmp_path, "f").folder(never)[1]["answer"] == 42  # caches of earlier versions have no seal


def test_errors_of_the_builder_pass_and_leave_nothing(tmp_path):
    def wrong(folder):
        (folder / "a.bin").write_bytes(b"abc")
        raise ValueError("no row")

    def corpus_gone(folder):
        open("/nonexistent/corpus.txt")

    with pytest.raises(ValueError, match="^no row$"):
        FolderCache(tmp_path, "f").folder(wrong)
    with pytest.raises(FileNotFoundError, match="corpus.txt"):
        FolderCache(tmp_path, "f").folder(corpus_gone)
    assert [p.name for p in tmp_path.iterdir()] == ["f.lock"]


def test_a_root_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file" / "root", Path("/proc/research_stack")):
        with pytest.raises(OSError) as caught:
            FolderCache(root, "f").folder(build)
        assert str(caught.value).startswith(f"cache_dir={root} cannot be written: ") and "\n" not in str(caught.value)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    """A limit on file size makes write() fail as a full disk does."""
    script = f"""
import resource
from research_stack.data.cache import FolderCache
from research_stack.data.packing import split, pack
from research_stack.data.sources.embedded import PythonDocs
from research_stack.data.tokenizers import Bytes
def build(folder):
    source = PythonDocs(docstrings=False)
    return pack(source, split(source, .1), Bytes().fit([]), 64, folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    FolderCache({str(tmp_path)!r}, "f").folder(build)
except OSError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert out.stdout.startswith(f"cache_dir={tmp_path} cannot be written: File too large; set data.cache_dir"), out
    assert out.stdout.count("\n") == 1 and [p.name for p in tmp_path.iterdir()] == ["f.lock"]


def test_a_whole_cache_is_read_without_writing(tmp_path):
    path, _ = FolderCache(tmp_path, "f").folder(build)
    (tmp_path / "f.lock").unlink()
    FolderCache(tmp_path, "f").folder(never)
    assert not (tmp_path / "f.lock").exists()


def test_meta_lists_every_file(tmp_path):
    path, _ = FolderCache(tmp_path, "f").folder(build)
    assert json.loads((path / "meta.json").read_text())["files"].keys() == {"a.bin", "sub/b.bin"}


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("RESEARCH_STACK_CACHE", str(tmp_path))
    assert default_root() == FolderCache(None, "f").root == tmp_path
    monkeypatch.delenv("RESEARCH_STACK_CACHE")
    assert default_root() == Path.home() / ".cache" / "research_stack"

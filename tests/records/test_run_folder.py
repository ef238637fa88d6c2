"""Run folders: nothing is ever half there, two never share one, and a hash changes when the numbers can."""

import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from research_stack.records.config_hash import ABSENT, config_hash, differing_keys
from research_stack.records.files import (
    append_jsonl,
    atomic_path,
    atomic_write,
    read_json,
    read_jsonl,
    replace_last_jsonl,
    truncate_jsonl_after_step,
    write_json,
)
from research_stack.records.run_folder import Result, RunFolder, is_run

CONFIG = {
    "name": "flowlm",
    "seed": 1,
    "task": "train",
    "model": {"_target_": "x.Y", "dim": 128, "dropout": 0.0},
    "hardware": {"precision": "bf16-mixed", "devices": 1, "resources": {"gpus": 0}},
    "trainer": {"max_steps": 10},
}


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ------------------------------------------------------------------------------------------------ files
@pytest.mark.parametrize("broken", ["write_bytes", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(Path if broken == "write_bytes" else os, broken, full)
    with pytest.raises(OSError) as caught:
        write_json(path, {"new": 2})
    monkeypatch.undo()
    assert str(caught.value) == f"{path} cannot be written: No space left on device"
    assert caught.value.errno == errno.ENOSPC
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["result.json"]


LIMIT = """
import resource, signal, sys
from research_stack.records import files
folder = sys.argv[1]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
files.write_json(folder + "/a.json", "old")
files.append_jsonl(folder + "/b.jsonl", {"old": "x" * 50})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
writes = (lambda: files.write_json(folder + "/a.json", "x" * 1000),
          lambda: files.append_jsonl(folder + "/b.jsonl", {"new": "x" * 1000}))
for write in writes:
    try:
        write()
    except OSError as error:
        print(error)
"""


def test_when_the_kernel_stops_a_write_in_the_middle(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMIT, str(tmp_path)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == f"{tmp_path}/a.json cannot be written: File too large"
    assert second.startswith(f"{tmp_path}/b.jsonl cannot be written: ")
    assert read_json(tmp_path / "a.json") == "old" and sorted(os.listdir(tmp_path)) == ["a.json", "b.jsonl"]
    assert (tmp_path / "b.jsonl").read_text() == json.dumps({"old": "x" * 50}) + "\n"


def test_whatever_stops_the_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "figure.png") as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/x\.json cannot be written: "):
        write_json(tmp_path / "file" / "x.json", 1)


def test_text_and_bytes_and_folders(tmp_path):
    atomic_write(tmp_path / "a" / "b" / "text", "größer")
    atomic_write(tmp_path / "bytes", b"\xff")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "größer".encode() and (
        tmp_path / "bytes"
    ).read_bytes() == b"\xff"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "bytes").stat().st_mode & 0o777 == 0o666 & ~umask  # not the 0600 of temporary files


def test_json_is_strict_and_takes_numpy(tmp_path):
    write_json(
        tmp_path / "x",
        {"nan": math.nan, "inf": [math.inf], "np": numpy.float32(0.5), "a": numpy.arange(3), "p": tmp_path, 1: True},
    )
    text = (tmp_path / "x").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {"nan": None, "inf": [None], "np": 0.5, "a": [0, 1, 2], "p": str(tmp_path), "1": True}


@pytest.mark.parametrize("content", [b"", b'{"a": 1, "b', b"\xff\xfe\x00", b"[1, 2"])
def test_damaged_json_is_one_line(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert "is not valid JSON" in str(caught.value)


# ---------------------------------------------------------------------------------------------- histories
def append(path, writer, count):
    for index in range(count):
        append_jsonl(path, {"writer": writer, "index": index, "text": "x" * (997 * (index % 7))})


def test_eight_writers_of_fifty_lines(tmp_path):
    path = tmp_path / "history.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append, args=(path, writer, 50)) for writer in range(8)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()]  # strictly: no line may be torn
    assert sorted((row["writer"], row["index"]) for row in rows) == [(w, i) for w in range(8) for i in range(50)]
    for writer in range(8):
        assert [row["index"] for row in rows if row["writer"] == writer] == list(range(50))


@given(cut=st.integers(1, 25))
def test_a_torn_last_line_costs_only_itself(cut):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.jsonl"
        append_jsonl(path, [{"step": 1, "loss": 0.123456}, {"step": 2, "loss": 0.123456}])
        os.truncate(path, path.stat().st_size - cut)
        assert [row["step"] for row in read_jsonl(path)] == ([1, 2] if cut == 1 else [1])
        append_jsonl(path, {"step": 3})
        assert [row["step"] for row in read_jsonl(path)] == ([1, 2, 3] if cut == 1 else [1, 3])


def test_a_torn_line_in_the_middle_is_reported(tmp_path, caplog):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n\xff\n[]\n{"step": 2}\n{"s')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    assert [f"{path}:{line}" in caplog.text for line in (2, 3, 6)] == [True, True, False]
    assert read_jsonl(tmp_path / "none") == []


def test_a_short_write_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    append_jsonl(path, {"step": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
    with pytest.raises(OSError, match="No space left"):
        append_jsonl(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n'


def test_the_last_row_can_grow(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    append_jsonl(path, [{"step": 1}, {"step": 2}])
    replace_last_jsonl(path, {"step": 2, "val/loss": 3.0})
    assert path.read_text() == '{"step": 1}\n{"step": 2, "val/loss": 3.0}\n'
    replace_last_jsonl(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    write, calls = os.pwrite, []

    def short(descriptor, data, offset):
        calls.append(data)
        return write(descriptor, data[:5] if len(calls) == 1 else data, offset)

    monkeypatch.setattr(os, "pwrite", short)
    with pytest.raises(OSError, match="No space left"):
        replace_last_jsonl(path, {"step": 7, "more": 1})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    one = tmp_path / "one.jsonl"
    append_jsonl(one, {"step": 1})
    replace_last_jsonl(one, {"step": 1, "x": 2})
    assert read_jsonl(one) == [{"step": 1, "x": 2}]


def test_truncate_after_step(tmp_path):
    path = tmp_path / "m.jsonl"
    append_jsonl(path, [{"step": step} for step in range(1, 6)] + [{"note": "kept"}])
    assert truncate_jsonl_after_step(path, 3) == 2
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 3}, {"note": "kept"}]
    before = path.stat().st_ino
    assert truncate_jsonl_after_step(path, 3) == 0 and path.stat().st_ino == before
    assert truncate_jsonl_after_step(tmp_path / "none", 3) == 0 and not (tmp_path / "none").exists()


# --------------------------------------------------------------------------------------------------- hash
def changed(key, value):
    config = OmegaConf.create(CONFIG)
    OmegaConf.update(config, key, value, force_add=True)
    return config


@pytest.mark.parametrize(
    "key, value",
    [
        ("task", "eval"),
        ("run", "x"),
        ("prompt", "hello"),
        ("dry_run", True),
        ("name", "other"),
        ("logger", {"wandb": {"project": "x"}}),
        ("callbacks", {"x": 1}),
        ("hardware.devices", 8),
        ("hardware.resources.gpus", 4),
        ("launcher", "slurm"),
        ("data.cache_dir", "/tmp"),
        ("trainer.log_every_n_steps", 5),
        ("model.dropout", 0),
        ("model.dim", 128.0),
    ],
)
def test_what_changes_no_number_changes_no_hash(key, value):
    assert config_hash(changed(key, value)) == config_hash(CONFIG)


@pytest.mark.parametrize(
    "key, value",
    [
        ("seed", 2),
        ("model.dim", 256),
        ("model.dropout", 0.1),
        ("model.new", None),
        ("hardware.precision", "32-true"),
        ("model._target_", "x.Z"),
        ("trainer.max_steps", 11),
        ("model.dim", "128"),
        ("model.dropout", False),
    ],
)
def test_what_changes_a_number_changes_the_hash(key, value):
    assert config_hash(changed(key, value)) != config_hash(CONFIG)


def test_a_hash_is_of_the_resolved_config_in_any_order():
    a = OmegaConf.create({"model": {"dim": 4, "x": "${seed}"}, "seed": 3, "l": [1, {"a": 2}]})
    b = {"l": (1, {"a": 2.0}), "seed": 3, "model": {"x": 3, "dim": 4}}
    assert config_hash(a) == config_hash(b)
    assert len(config_hash(a)) == 12 and set(config_hash(a)) <= set("0123456789abcdef")


def test_a_hash_is_the_same_in_another_process():
    code = f"from research_stack.records.config_hash import config_hash; print(config_hash({CONFIG!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == config_hash(CONFIG)


def test_differing_keys():
    new = changed("model.dim", 256)
    OmegaConf.update(new, "model.extra", [1, 2], force_add=True)
    new.task, new.model.dropout = "eval", 0
    del new.trainer.max_steps
    assert differing_keys(CONFIG, new) == [
        ("model.dim", 128, 256), ("model.extra", ABSENT, [1, 2]), ("trainer", ABSENT, {}),
        ("trainer.max_steps", 10, ABSENT)]  # fmt: skip


# ----------------------------------------------------------------------------------------------- folders
def test_the_life_of_a_run(tmp_path):
    run_folder = RunFolder(tmp_path / "run")
    assert not is_run(run_folder)
    with run_folder.lock():
        run_folder.write_config(OmegaConf.create({"a": 1e-5, "b": "${a}", "c": [1, "x"], "d": None}))
        run_folder.start("abc")
        assert Result.load(run_folder.path).status == "running" and is_run(run_folder)
        done = run_folder.finish({"eval/bound": 5.25, "eval/odd": math.nan}, steps=7)
    assert run_folder.read_config() == {"a": 1e-5, "b": 1e-5, "c": [1, "x"], "d": None}
    assert (done.status, done.steps, done.hash, done.error) == ("ok", 7, "abc", None)
    assert done.metrics["eval/bound"] == 5.25 and math.isnan(done.metrics["eval/odd"])
    assert Result.load(run_folder).metrics["eval/bound"] == 5.25
    assert run_folder.merge_metrics({"eval/bound": 5.0, "new": 1}).metrics["eval/bound"] == 5.0
    value = read_json(run_folder.result_json)
    assert value["status"] == "ok" and value["metrics"]["new"] == 1 and value["started"] <= value["finished"]


def test_failed_and_interrupted(tmp_path):
    run_folder = RunFolder(tmp_path)
    run_folder.start("abc")
    failed = run_folder.fail(ValueError("lr=9 must\nbe small"), steps=3)
    assert (failed.status, failed.error, failed.steps) == ("failed", "ValueError: lr=9 must be small", 3)
    run_folder.start("abc", resumed=True)
    assert (run_folder.interrupted(4).status, Result.load(run_folder).error) == ("interrupted", None)


def test_a_resumed_run_counts_its_time_on(tmp_path):
    run_folder = RunFolder(tmp_path)
    run_folder.start("abc")
    started = read_json(run_folder.result_json)["started"]
    append_jsonl(run_folder.metrics_jsonl, {"step": 1, "time": 100.0})  # then killed
    time.sleep(0.02)
    again = RunFolder(tmp_path)
    again.start("abc", resumed=True)
    assert 100 < again.finish({}, 2).seconds < 101
    assert read_json(run_folder.result_json)["started"] == started
    fresh = RunFolder(tmp_path)
    fresh.start("abc")
    assert fresh.finish({}, 2).seconds < 1


def merge(folder, writer):
    for index in range(10):
        RunFolder(folder).merge_metrics({f"{writer}/{index}": index})


def test_evaluations_at_the_same_time_lose_nothing(tmp_path):
    RunFolder(tmp_path).start("abc")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=merge, args=(tmp_path, writer)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert len(Result.load(tmp_path).metrics) == 40


HOLD = """
import sys, time
from research_stack.records.run_folder import RunFolder
run_folder = RunFolder(sys.argv[1])
with run_folder.lock():
    run_folder.start("abc")
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_never_share_a_folder_and_a_kill_frees_it(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        run_folder = RunFolder(tmp_path)
        assert run_folder.is_live() and run_folder.load_result().status == "running"
        with (
            pytest.raises(OSError, match=rf"run={tmp_path} is in use by pid {holder.pid} on host \S+$"),
            run_folder.lock(),
        ):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert not run_folder.is_live() and run_folder.load_result().status == "interrupted"
    with run_folder.lock():
        assert run_folder.is_live()
        with pytest.raises(OSError, match=f"pid {os.getpid()}"), RunFolder(tmp_path).lock():
            pass
    assert not run_folder.is_live()


def open_files(pid):
    return {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    run_folder = RunFolder(tmp_path)
    with run_folder.lock():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        child.start()
        try:
            deadline = time.monotonic() + 5  # the child may not have run yet
            while open_files(child.pid) & {str(tmp_path / ".lock")} and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not open_files(child.pid) & {str(tmp_path / ".lock")} and run_folder.is_live()
            assert open_files(os.getpid()) & {str(tmp_path / ".lock")}
        finally:
            child.kill()
            child.join()


def test_a_lock_is_freed_by_an_error(tmp_path):
    run_folder = RunFolder(tmp_path)
    with pytest.raises(RuntimeError), run_folder.lock():
        raise RuntimeError
    assert not run_folder.is_live()


def test_old_temporary_files_are_cleared(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    old, new = tmp_path / "checkpoints" / ".tmp-1-ab-last.ckpt", tmp_path / ".tmp-1-cd-x"
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (0, 0))
    with RunFolder(tmp_path).lock():
        assert not old.exists() and new.exists()


@pytest.mark.parametrize("files, message", [
    ({}, "is no run: it has no result.json"),
    ({"result.json": "{}"}, "lacks status or metrics"),
    ({"result.json": '{"status": "ok"'}, "may be truncated"),
])  # fmt: skip
def test_a_folder_that_is_no_run(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Result.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "", "- 1", "a: \xff\x00"])
def test_a_config_that_is_none(tmp_path, text):
    with pytest.raises(ValueError, match="no run: it has no config.yaml"):
        RunFolder(tmp_path).read_config()
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        RunFolder(tmp_path).read_config()
    assert "\n" not in str(caught.value) and "config.yaml" in str(caught.value)

"""What a model, a corpus or somebody's folder says stays text: on a terminal, in a table; its links lead nowhere."""

import csv
import io
import os
import socket
import sys

import pytest

from research_stack.cli.command import complain
from research_stack.data.cache import FolderCache
from research_stack.records import csv_tables, files, sweep_table, terminal
from research_stack.records.files import atomic_write
from research_stack.records.run_folder import RunFolder
from research_stack.running.logs import log_file
from research_stack.training.loggers import _csv

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "@SUM(A1)", "-2+3", "\t=1", "'=1", "''@x"]


def test_texts_of_a_table_are_no_formulas_and_are_read_back():
    harmless = ["a=1", "-1.5", "+2e3", "-inf", "", "'tis", "x\ny", -1.5, 3, None, "-", "="]
    assert [csv_tables.cell(value) for value in harmless] == harmless
    text = csv_tables.as_csv(["=name", "value"], [*([f, -1.5] for f in FORMULAS), {"value": "-7"}])
    cells = [row[0] for row in csv.reader(io.StringIO(text, newline=""))]
    assert not [cell for cell in cells if len(cell) > 1 and cell[0] in "=+-@\t\r"]
    assert [row["=name"] for row in csv_tables.read_csv(text)] == [*FORMULAS, ""] and csv_tables.read_csv(text)[-1][
        "value"
    ] == "-7"
    assert csv_tables.cell("a\rb\r\nc") == "a\nb\nc"
    assert _csv([{"step": 1, "=x": -2.0}]) == "step,'=x\n1,-2.0\n"


def test_the_table_of_a_sweep_holds_no_formula(tmp_path):
    for number, word in enumerate(("=cmd|x", "@b")):
        run_folder = RunFolder(tmp_path / str(number))
        run_folder.write_config({"name": "x", "seed": 1, "model": {"word": word}})
        (run_folder.path / "run.json").write_text("{}")
        run_folder.start("h")
        run_folder.fail("=HYPERLINK(1)")
    text = sweep_table.as_csv(sweep_table.collect([tmp_path / "0", tmp_path / "1"]), tmp_path)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["model.word"] for row in rows] == ["'=cmd|x", "'@b"] and {row["error"] for row in rows} == {
        "'=HYPERLINK(1)"
    }


def test_a_terminal_shows_control_characters(monkeypatch, capsys):
    hostile = "a\x1b]0;x\x07\x1b[2J\r\x9b1mb\x00\x7f\u202ec\td\né日"
    shown = "a\\x1b]0;x\\x07\\x1b[2J\\r\\x9b1mb\\x00\\x7f\\u202ec\td\né日"
    assert terminal.visible(hostile) == shown
    terminal.write(hostile)
    assert capsys.readouterr().out == hostile  # a pipe or a file gets what there is
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.write(hostile)
    assert capsys.readouterr().out == shown
    complain(hostile)
    err = capsys.readouterr().err
    assert err.startswith("research-stack: error: a\\x1b]0;x") and "\x1b" not in err and err.count("\n") == 1
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    terminal.write("é日")
    narrow.flush()
    assert narrow.buffer.getvalue() == b"\\xe9\\u65e5"


def others(folder):
    """(what it is, path) of names that are no plain file, each beside a victim whose content must stay."""
    victim = folder / "victim"
    victim.write_text("precious")
    for kind in ("link", "dangling", "hard", "pipe", "folder", "socket"):
        path = folder / kind
        if kind == "link":
            path.symlink_to(victim)
        elif kind == "dangling":
            path.symlink_to(folder / "made-by-nobody")
        elif kind == "hard":
            path.hardlink_to(victim)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(path))
            server.close()
        yield kind, path, victim


def test_a_lock_is_a_plain_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    for kind, path, victim in others(tmp_path):
        root = tmp_path / f"cache-{kind}"
        root.mkdir()
        path.rename(root / "f00.lock")
        with pytest.raises(OSError, match="must be a plain file") as error:
            FolderCache(root, "f00").folder(lambda folder: {})
        assert (
            "\n" not in str(error.value)
            and victim.read_text() == "precious"
            and not (tmp_path / "made-by-nobody").exists()
        )
        for name, hold in {
            ".lock": lambda run_folder: run_folder.lock(),
            ".result.lock": lambda run_folder: run_folder._result_lock(),
        }.items():
            run_folder = RunFolder(tmp_path / f"run-{kind}{name}")
            run_folder.path.mkdir()
            (root / "f00.lock").rename(run_folder.path / name)
            with pytest.raises(OSError, match="cannot be written.*must be a plain file"), hold(run_folder):
                pass
            (run_folder.path / name).rename(root / "f00.lock")
        assert victim.read_text() == "precious"
    run_folder = RunFolder(tmp_path / "own")
    run_folder.path.mkdir()
    (run_folder.path / ".lock").write_text("precious")
    with pytest.raises(OSError, match="must be a lock, and holds something else"), run_folder.lock():
        pass
    assert (run_folder.path / ".lock").read_text() == "precious"
    with RunFolder(tmp_path / "plain").lock():
        assert (tmp_path / "plain" / ".lock").read_text().startswith("pid ")


def test_what_is_appended_follows_no_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    for name in ("a.jsonl", "run.log"):
        (tmp_path / name).symlink_to(victim)
    for attempt in (
        lambda: files.append_jsonl(tmp_path / "a.jsonl", {}),
        lambda: files.replace_last_jsonl(tmp_path / "a.jsonl", {}),
    ):
        with pytest.raises(OSError, match="a.jsonl cannot be written"):
            attempt()
    with pytest.raises(OSError, match="run.log is a link"), log_file(tmp_path / "run.log"):
        pass
    atomic_write(tmp_path / "a.jsonl", "new")
    assert victim.read_text() == "precious\n" and not (tmp_path / "a.jsonl").is_symlink()

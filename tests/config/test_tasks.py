"""The table of tasks: read from the source, of every package that configs may name."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from research_stack import run
from research_stack.config import packages
from research_stack.config.hints import UserError
from research_stack.config.tasks import FOLDER, find_task, tasks

TABLE = '''"""Tasks of the toy."""
import torch_is_not_there_yet
from research_stack.config.tasks import Task

TASKS = (
    Task("count", "countlib.work.count", "count to a number", needs_run=True, reads=("model",), writes="a number"),
    Task(name="shout", run="countlib.work.shout", help="say it aloud"),
)
'''
FUNCTIONS = """
from research_stack.records.run_folder import Result

def count(run_folder, up_to: int, prompt: str, steps: float = 1.0):
    (run_folder.path / "count").write_text(f"{prompt} {up_to} {steps}")

def shout(cfg, name):
    return Result(name, cfg.task)
"""


@pytest.fixture
def table(conf, monkeypatch):
    """A package with two tasks beside the toy project."""
    folder = conf.parent / "classes" / "countlib"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "tasks.py").write_text(TABLE)
    (folder / "work.py").write_text(FUNCTIONS)
    monkeypatch.setenv(packages.VARIABLE, "toylib,countlib")
    yield folder
    for name in ("countlib", "countlib.work"):
        sys.modules.pop(name, None)


def test_each_of_ours_leads_to_a_function_of_those_parameters():
    assert list(tasks())[:5] == ["train", "eval", "sample", "export", "compare"] and {"send", "receive"} <= set(tasks())
    for task in tasks().values():
        function = task.load()
        assert set(task.parameters) == set(inspect.signature(function).parameters), task.name
        assert task.takes_folder or not task.needs_run
        assert "\n" not in task.help and set(FOLDER).isdisjoint(task.keys)
    with pytest.raises(UserError, match=r"^task=evl must be one of train, eval, .*; did you mean 'eval'\?$"):
        find_task("evl")


def test_a_projects_own_is_checked_listed_completed_and_run(table, trained, command, monkeypatch):
    given = ("task=count", f"run={trained}", "prompt=to, say")
    for arguments, said in (
        (given, "up_to is missing: task=count needs up_to=..."),
        ((*given, "up_to=many"), "up_to=many must be int, not a string (command line)"),
        ((*given[:2], "up_to=3"), "prompt is missing: task=count needs prompt=..."),
        ((*given, "up_to=3", "trainer.max_steps=9"), "trainer.max_steps=9 cannot be set with task=count"),
        (("task=eval", f"run={trained}", "up_to=3"), "up_to=3: there is no 'up_to' in the config"),
        (("task=cout", f"run={trained}"), "did you mean 'count'"),
        (("-m", "task=shout"), "task=shout is no sweep: leave out -m"),
        (("task=count",), "task=count needs run=FOLDER"),
    ):
        code, _, err = command(*arguments)
        assert code == 2 and said in err and err.count("\n") == 1, err
    assert "count to a number" in command("--help")[1] and "; writes a number" in command("list", "task")[1]
    monkeypatch.setenv("COMP_LINE", "research-stack task=co")
    assert command("-sc", "query=bash")[1].split() == ["task=compare", "task=count"]


def test_a_task_gets_what_its_parameters_name(table, trained):
    cfg = {"task": "count", "run": str(trained), "up_to": 3, "prompt": "to", "dry_run": False, "name": "n"}
    assert run(OmegaConf.create(cfg)).folder == trained and (trained / "count").read_text() == "to 3 1.0"
    assert run(OmegaConf.create({**cfg, "task": "shout"})).status == "shout"


def test_a_table_that_cannot_be_read_is_said_in_one_line(table):
    for table_text, said in (
        ("TASKS = (Task(name='eval', run='a.b', help=''),)", "task=eval is in two tables: "),
        ("X = 1\nTASKS = (Task(name=X, run='a.b', help=''),)", "tasks.py:2: a task is written Task("),
        ("TASKS = (Task(name='x', run='a.b', hlp=''),)", "tasks.py:1: a task is written Task("),
        ("TASKS = ('x',)", "tasks.py:1: a task is written Task("),
        ("TASKS = (", "tasks.py cannot be read"),
    ):
        (table / "tasks.py").write_text(table_text)
        with pytest.raises(UserError) as caught:
            tasks()
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_reading_the_tables_imports_no_torch():
    code = "import sys; from research_stack.config.tasks import tasks; tasks(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_task_that_is_no_name_is_refused_in_one_line():
    for value in ([], {"a": 1}, None, 3):
        with pytest.raises(UserError, match="must be one of train, eval"):
            find_task(value)

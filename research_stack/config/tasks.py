"""Tasks: what can be done with a config (`task=...`), each one row of a table that is read without importing its code.

A module `tasks.py` of a package that configs may name (ours, or a user's), at its top or beside one of its families,
holds a tuple `TASKS = (Task(...), ...)` of literals. It is read from the source, so that the command line, completion
and the check know every task and load nothing; the function behind a task is imported when the task is run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from research_stack.config import signatures
from research_stack.config.check_node import experiment_signature
from research_stack.config.hints import UserError, did_you_mean, nearest
from research_stack.config.packages import packages
from research_stack.config.signatures import Parameter, UnknownTarget, signature
from research_stack.records.paths import key_of, shown

FILE = "tasks.py"
CORE = "running"  # the folder of the tasks that are listed first
#: Parameters of a task's function that stand for the run's folder.
FOLDER = ("run_folder", "context")
#: Keys that the command line may set for every task about a finished run.
EVERY_TASK = ("task", "run", "hardware", "launcher", "logger", "dry_run", "seed")


@dataclass(frozen=True)
class Task:
    """One row of the table.

    - name: the value of `task`.
    - run: the dotted name of the function that does it. It gets what its parameters name: `cfg`, the config;
      `run_folder`, the RunFolder it works in; `context`, the finished run opened; any other is a key of the config. One
      that no config has is a key of this task alone, checked against its annotation.
    - help: one line.
    - needs_run: whether it is about a finished run, `run=FOLDER`. The config is then the saved one.
    - reads: of a task that needs a run: groups and keys that the command line may set beside those of EVERY_TASK.
    - writes: what comes of it, for the list of tasks.
    """

    name: str
    run: str
    help: str
    needs_run: bool = False
    reads: tuple[str, ...] = ()
    writes: str = ""

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """What its function takes, read from the source; nothing where it cannot be found."""
        try:
            return signature(self.run).parameters
        except UnknownTarget:
            return {}

    @property
    def keys(self) -> dict[str, Parameter]:
        """The keys of a config that its function takes."""
        return {name: what for name, what in self.parameters.items() if name not in (*FOLDER, "cfg")}

    @property
    def takes_folder(self) -> bool:
        """Whether it works in a run's folder, which is made if it is not there."""
        return bool(set(FOLDER) & set(self.parameters))

    @property
    def settable(self) -> tuple[str, ...]:
        """The groups and keys that the command line may set beside a saved config."""
        return tuple(dict.fromkeys((*EVERY_TASK, *self.reads, *self.keys)))

    def load(self) -> Callable[..., Any]:
        """The function. Raises UserError where there is none of that name."""
        module, _, name = self.run.rpartition(".")
        try:
            return vars(import_module(module))[name]
        except (ModuleNotFoundError, KeyError) as error:
            if isinstance(error, ModuleNotFoundError) and not f"{module}.".startswith(f"{error.name}."):
                raise
            raise UserError(f"task={self.name}: there is no function {self.run}") from error


def tasks() -> dict[str, Task]:
    """{name: task} of all packages that a config may name. Raises UserError for a table that cannot be read."""
    return _tasks_of(packages())


def find_task(name: Any) -> Task:
    """The task of that name; UserError with the nearest one if there is none."""
    known = tasks()
    if isinstance(name, str) and name in known:
        return known[name]
    near = did_you_mean(str(name), list(known)) if nearest(str(name), known) else ""
    raise UserError(f"task={name} must be one of {', '.join(known)}{near}")


def with_task_keys(overrides: Sequence[str]) -> list[str]:
    """The overrides with the keys of the chosen task alone, which no config file has, set as new ones (`++key=`)."""
    chosen = [o.partition("=")[2] for o in overrides if key_of(o) == "task"]
    task = tasks().get(chosen[-1]) if chosen else None
    own = set(task.keys) - set(experiment_signature().parameters) if task is not None else set()
    return [f"++{o}" if o.partition("=")[0] in own else o for o in overrides]


@cache
def _tasks_of(names: tuple[str, ...]) -> dict[str, Task]:
    found: dict[str, tuple[Task, Path]] = {}
    for file in (file for name in names for file in _files(name)):
        for task in read_tasks(file):
            if task.name in found:
                raise UserError(f"task={task.name} is in two tables: {shown(found[task.name][1])}, {shown(file)}")
            found[task.name] = task, file
    return {name: task for name, (task, _) in found.items()}


def _files(package: str) -> list[Path]:
    """The tables of a package: its own, and those of its subpackages."""
    folder = signatures.package_folder(package)
    if folder is None:
        return []
    below = sorted(folder.glob(f"*/{FILE}"), key=lambda file: (file.parent.name != CORE, file))
    return [file for file in (folder / FILE, *below) if file.is_file() and file != Path(__file__)]


def read_tasks(file: Path) -> Iterator[Task]:
    """The tasks of one file, `TASKS = (Task(...), ...)`; UserError with file:line for what is no literal."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{shown(file)} cannot be read: {error}") from error
    for table in signatures.assigned(tree.body, "TASKS"):
        for row in table.elts if isinstance(table, ast.Tuple | ast.List) else [table]:
            try:
                yield _task(row)
            except (TypeError, ValueError) as error:
                where = f"{shown(file)}:{row.lineno}"
                raise UserError(
                    f"{where}: a task is written Task(name=..., run=..., help=...) of literals: {error}"
                ) from error


def _task(row: ast.expr) -> Task:
    if not isinstance(row, ast.Call) or ast.unparse(row.func).rpartition(".")[2] != "Task":
        raise ValueError(f"found {ast.unparse(row)[:60]}")
    given = dict(zip((field.name for field in fields(Task)), map(ast.literal_eval, row.args), strict=False))
    return Task(**given, **{str(keyword.arg): ast.literal_eval(keyword.value) for keyword in row.keywords})

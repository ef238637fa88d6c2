"""A run folder as a report needs it: whatever of it can be read, read when it is asked for. No torch.

A report is written for failed and interrupted runs too, so a file that is missing or torn is an absence that the
report names, never an error.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from research_stack.records.csv_tables import read_csv
from research_stack.records.files import read_json, read_jsonl
from research_stack.records.paths import expanded
from research_stack.records.run_folder import RunFolder

log = logging.getLogger(__name__)

Table = list[dict[str, str]]


@dataclass
class RunFiles:
    """What the files of a run say.

    - problems: one line per file that is there but cannot be read.
    """

    folder: Path
    status: str = "unknown"
    error: str | None = None
    seconds: float = 0.0
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    problems: list[str] = field(default_factory=list)
    _tables: dict[str, Table] = field(default_factory=dict)
    _json: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.config.get("name") or self.run.get("name") or self.folder.name)

    def setting(self, path: str) -> Any:
        """The config's value at a dotted path; None where there is none."""
        node: Any = self.config
        for key in path.split("."):
            if not isinstance(node, Mapping) or key not in node:
                return None
            node = node[key]
        return node

    def metric(self, name: str) -> float:
        """A metric of result.json; NaN where there is none."""
        return self.metrics.get(name, math.nan)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return read_jsonl(RunFolder(self.folder).metrics_jsonl)

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The rows of samples.jsonl."""
        return read_jsonl(RunFolder(self.folder).samples_jsonl)

    def table(self, name: str) -> Table:
        """The rows of tables/<name>.csv; [] where there is none. What is wrong with it is a problem."""
        if name not in self._tables:
            self._tables[name] = table_of(RunFolder(self.folder), name, self.problems)
        return self._tables[name]

    def json(self, name: str) -> dict[str, Any]:
        """The mapping in a JSON file of the folder; {} where there is none. What is wrong with it is a problem."""
        if name not in self._json:
            self._json[name] = _mapping(self.folder / name, self.problems)
        return self._json[name]

    @cached_property
    def earlier(self) -> list[RunFiles]:
        """The runs whose weights this one began with, the first of them first."""
        return _earlier(self)


def read(folder: str | Path, status: str | None = None) -> RunFiles:
    """What the folder says of its run: its result, its config and where it comes from.

    - status: of the run, in place of what its files say.
    """
    run_folder, found = RunFolder(folder), RunFiles(Path(folder))
    _read_result(run_folder, found)
    found.status = status or found.status
    found.run = _mapping(run_folder.run_json, found.problems)
    if run_folder.config_yaml.is_file():
        try:
            found.config = run_folder.read_config()
            found.config_text = run_folder.config_yaml.read_text(errors="replace")
        except (ValueError, OSError) as error:
            found.problems.append(str(error))
    return found


def begun_from(run: Mapping[str, Any], folder: Path) -> Path | None:
    """The folder that run.json's `init_from` names, which is relative to where the run was started; None without one.

    Where runs were moved together it is looked for beside the folders above the run. A folder that is not found is
    returned as it was written.
    """
    if not run.get("init_from"):
        return None
    written = expanded(str(run["init_from"]))
    bases = [Path(str(run.get("cwd") or ".")), *folder.resolve().parents, Path.cwd()]
    return next((base / written for base in bases if (base / written).is_dir()), written)


def _earlier(found: RunFiles) -> list[RunFiles]:
    """The phases before a run; one that is gone or that refers back to itself ends the search and is named."""
    phases: list[RunFiles] = []
    seen = {found.folder.resolve()}
    at = begun_from(found.run, found.folder)
    while at is not None:
        if not at.is_dir() or at.resolve() in seen:
            found.problems.append(
                f"{at}, whose weights the run began with,"
                f" {'refers back to itself' if at.is_dir() else 'is no longer there'}: that phase is not shown"
            )
            break
        seen.add(at.resolve())
        phases.insert(0, read(at))
        found.problems += phases[0].problems
        at = begun_from(phases[0].run, at)
    return phases


def table_of(run_folder: RunFolder, name: str, problems: list[str] | None = None) -> Table:
    """The rows of tables/<name>.csv, [] if there is none; what is wrong with it goes to the problems.

    A torn row lacks its last cells.
    """
    path = run_folder.tables / f"{name}.csv"
    if not path.is_file():
        return []
    try:
        return read_csv(path.read_text(errors="replace"))
    except (csv.Error, OSError) as error:
        if problems is not None:
            problems.append(f"{path} cannot be read: {error}")
        return []


def _read_result(run_folder: RunFolder, found: RunFiles) -> None:
    if not run_folder.result_json.is_file():
        return
    try:
        loaded = run_folder.load_result()
    except (ValueError, OSError) as error:
        found.problems.append(str(error))
        return
    found.result = _mapping(run_folder.result_json, found.problems)
    found.status, found.error, found.seconds, found.steps = loaded.status, loaded.error, loaded.seconds, loaded.steps
    found.metrics = {key: float(value) for key, value in loaded.metrics.items()}


def _mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """The mapping in a JSON file, {} if there is none; what is wrong with it goes to the problems."""
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except (ValueError, OSError) as error:
        problems.append(str(error))
        return {}
    return value if isinstance(value, dict) else {}


def reals(row: Mapping[str, Any], *names: str) -> tuple[float, ...]:
    """The numbers of a row by column; NaN where there is none."""
    return tuple(real(row.get(name)) for name in names)


def real(text: Any) -> float:
    """A number of a table; NaN if it is none."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan

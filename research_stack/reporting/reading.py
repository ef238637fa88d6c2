"""A run folder as a report needs it: whatever of it can be read. Standard library and records alone.

A report is written for failed and interrupted runs too, so a file that is missing or torn is an absence that the
report names, never an error.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research_stack.records.csv_tables import read_csv
from research_stack.records.files import read_json, read_jsonl
from research_stack.records.paths import expanded
from research_stack.records.run_folder import RunFolder

log = logging.getLogger(__name__)

# tables/*.csv beside the likelihood
TABLES = (
    "next_token",
    "future_loss",
    "reliability",
    "risk_coverage",
    "abstention",
    "generated_prefix",
    "passk",
    "passk_curve",
    "passk_prompts",
    "reward_heldout",
    "reward_reliability",
    "reward_points",
)
DYNAMICS = "dynamics.json"
Table = list[dict[str, str]]


@dataclass
class RunFiles:
    """What the files of a run say.

    - problems: one line per file that is there but cannot be read.
    - likelihood: rows of tables/likelihood.csv; tables: {name: rows} of the others in TABLES. films: {sampler: film}.
    - dynamics: what dynamics.json holds. earlier: the runs whose weights this one began with, the first of them first,
      without their histories, tables and samples.
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
    history: list[dict[str, Any]] = field(default_factory=list)
    likelihood: Table = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    films: dict[str, dict[str, Any]] = field(default_factory=dict)
    dynamics: dict[str, Any] = field(default_factory=dict)
    earlier: list[RunFiles] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

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


def read(folder: str | Path, status: str | None = None) -> RunFiles:
    """Everything in the folder that can be read.

    - status: of the run, in place of what its files say.
    """
    place, found = RunFolder(folder), read_phase(folder, status)
    found.earlier = _earlier(found)
    found.history = read_jsonl(place.metrics_jsonl)
    found.samples = read_jsonl(place.samples_jsonl)
    found.likelihood = table_of(place, "likelihood", found.problems)
    found.tables = {name: rows for name in TABLES if (rows := table_of(place, name, found.problems))}
    if place.films.is_dir():
        films = {path.stem: _json(path, found) for path in sorted(place.films.glob("[!.]*.json"))}
        found.films = {name: film for name, film in films.items() if film.get("frames") and film.get("pieces")}
    return found


def read_phase(folder: str | Path, status: str | None = None) -> RunFiles:
    """What a phase says of itself: result, config, where it comes from, and its dynamics; the runs before it are left
    out.
    """
    place, found = RunFolder(folder), RunFiles(Path(folder))
    _read_result(place, found)
    found.status = status or found.status
    found.run = _json(place.run_json, found)
    if place.config_yaml.is_file():
        try:
            found.config, found.config_text = place.read_config(), place.config_yaml.read_text(errors="replace")
        except (ValueError, OSError) as error:
            found.problems.append(str(error))
    path = place.path / DYNAMICS
    found.dynamics = _json(path, found)
    if (
        path.is_file()
        and not isinstance(found.dynamics.get("points"), list)
        and not any(str(path) in problem for problem in found.problems)
    ):
        found.problems.append(f"{path} has no list of points")
    if not path.is_file() and found.status == "ok" and found.steps and found.setting("callbacks.dynamics"):
        found.problems.append(f"{path} is missing though callbacks.dynamics is on")
    return found


def begun_from(run: Mapping[str, Any], folder: Path) -> Path | None:
    """The folder that run.json's `init_from` names, which is relative to where the run was started; None without one.

    Where runs were moved together it is looked for beside the folders above the run. A folder that is not found is
    returned as it was written.
    """
    if not run.get("init_from"):
        return None
    written = expanded(str(run["init_from"]))
    places = [Path(str(run.get("cwd") or ".")), *folder.resolve().parents, Path.cwd()]
    return next((place / written for place in places if (place / written).is_dir()), written)


def _earlier(found: RunFiles) -> list[RunFiles]:
    """The phases before a run, the first one first; one that is gone or that leads back to itself ends the search and
    is named.
    """
    phases: list[RunFiles] = []
    seen = {found.folder.resolve()}
    at = begun_from(found.run, found.folder)
    while at is not None:
        if not at.is_dir() or at.resolve() in seen:
            found.problems.append(
                f"{at}, whose weights the run began with,"
                f" {'leads back to itself' if at.is_dir() else 'is no longer there'}: that phase is not shown"
            )
            break
        seen.add(at.resolve())
        phases.insert(0, read_phase(at))
        found.problems += phases[0].problems
        at = begun_from(phases[0].run, at)
    return phases


def table_of(place: RunFolder, name: str, problems: list[str] | None = None) -> Table:
    """The rows of tables/<name>.csv, [] if there is none; what is wrong with it goes to the problems. A torn row lacks
    its last cells.
    """
    path = place.tables / f"{name}.csv"
    if not path.is_file():
        return []
    try:
        return read_csv(path.read_text(errors="replace"))
    except (csv.Error, OSError) as error:
        if problems is not None:
            problems.append(f"{path} cannot be read: {error}")
        return []


def _read_result(place: RunFolder, found: RunFiles) -> None:
    if not place.result_json.is_file():
        return
    try:
        loaded = place.load_result()
    except (ValueError, OSError) as error:
        found.problems.append(str(error))
        return
    found.result = _json(place.result_json, found)
    found.status, found.error, found.seconds, found.steps = loaded.status, loaded.error, loaded.seconds, loaded.steps
    found.metrics = {key: float(value) for key, value in loaded.metrics.items()}


def _json(path: Path, found: RunFiles) -> dict[str, Any]:
    """The mapping in a JSON file, {} if there is none; what is wrong with it goes to the problems."""
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except (ValueError, OSError) as error:
        found.problems.append(str(error))
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

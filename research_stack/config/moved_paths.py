"""Where the files of a saved run lie now.

Relative paths are those of where it was started, and what has moved may be said again.
That what lies there is the same, the fingerprints tell when it is opened. No torch, no hydra.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research_stack.config.hints import UserError, did_you_mean
from research_stack.records.config_hash import flatten, is_movable_path, is_path
from research_stack.records.files import read_json, to_json
from research_stack.records.paths import expanded, shown
from research_stack.records.run_folder import RunFolder


def moved(config: dict[str, Any], new_paths: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """The plain config of a saved run with the paths that the command gives again, its relative paths as found from
    here.

    - new_paths: {dotted key: value}. What held the same path in the same node changes too: a source copies `data.path`.

    Raises UserError for a path that the run does not have.
    """
    leaves = flatten(config)
    for key, value in new_paths.items():
        if key not in leaves:
            near = did_you_mean(key, own, "its paths") if (own := sorted(filter(is_movable_path, leaves))) else ""
            raise UserError(f"{key}={value} is no path of that run{near} ({shown(folder.config_yaml)})")
    moved_to = {(key.split(".")[0], to_json(leaves[key])): value for key, value in new_paths.items()}
    moved_to |= {
        ("data", old): value for (node, old), value in list(moved_to.items()) if node == "model"
    }  # a tokenizer of the model's folder
    cwd = _started_in(folder)
    for key, value in leaves.items():
        if is_path(key, value):
            _set(config, key, moved_to.get((key.split(".")[0], to_json(value)), _found(value, cwd)))
    for key, value in new_paths.items():
        _set(config, key, value)
    return config


def _started_in(folder: RunFolder) -> Path | None:
    """The working directory the run was started in; None where it is this one or is not recorded."""
    cwd = read_json(folder.run_json).get("cwd") if folder.run_json.is_file() else None
    return Path(cwd) if isinstance(cwd, str) and Path(cwd) != Path.cwd() else None


def _found(value: Any, cwd: Path | None) -> Any:
    """The location as it is found from here: below where the run was started, else as it is written."""
    if isinstance(value, list | tuple):
        return [_found(path, cwd) for path in value]
    path = expanded(value)
    if cwd is None or path.is_absolute() or not value:
        return value
    there = cwd / path
    return str(there) if os.path.lexists(there) or any(_matches(there)) else value


def _matches(pattern: Path) -> Iterator[str]:
    return glob.iglob(str(pattern), recursive=True) if glob.has_magic(str(pattern)) else iter(())


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; numbers are indices of lists."""
    *above, last = key.split(".")
    node: Any = config
    for part in above:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[int(last) if isinstance(node, list) else last] = value

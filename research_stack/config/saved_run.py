"""The config that a command really runs: a saved run's with what the command may change, or one made small."""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research_stack.config import hints, moved_paths
from research_stack.config.composer import Composed, is_hydra
from research_stack.config.hints import UserError
from research_stack.config.smoke import shrink
from research_stack.config.tasks import find_task, tasks
from research_stack.records import provenance, redaction
from research_stack.records.config_hash import (
    MAX_STEPS,
    differences,
    extension,
    is_hashed,
    is_movable_path,
    plain_config,
)
from research_stack.records.escaping import as_config, escaped
from research_stack.records.paths import key_of, known_runs, shown
from research_stack.records.run_folder import RunFolder, is_run

#: Keys that resuming a folder may add to the command without their being a config of its own.
OF_RESUMING = ("run", "task", "dry_run", "logger", "hardware", "callbacks", "launcher", "name")
#: Checkpoints of a run; not the hidden `.tmp-...-best.ckpt` that a process leaves which is killed while it writes one
#: (`files.atomic_path`).
CHECKPOINTS = "[!.]*.ckpt"


def effective(composed: Composed) -> Composed:
    """The config a command really runs: with `run=FOLDER`, that of the saved run and what the command may change; with
    debug=smoke, made small.
    """
    cfg = composed.cfg
    if cfg.get("run") in (None, "new"):
        task = tasks().get(str(cfg.get("task")))
        if task is not None and task.needs_run:
            newest = known_runs()
            raise UserError(
                f"task={cfg.task} needs run=FOLDER, a finished run"
                f"{f'; the newest is run={shlex.quote(shown(newest[0]))}' if newest else ''}"
            )
        if cfg.get("smoke"):
            shrink(cfg, composed.overrides)
        return composed
    saved = RunFolder(str(cfg.run)).config_yaml
    return Composed(composed.overrides, of_saved_run(cfg, composed.overrides), composed.hydra, saved)


def of_saved_run(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The saved config of the folder `cfg.run`, changed as the command line says.

    - a task about a finished run (eval, sample, ...): nodes that the task lets the command line set (`Task.settable`)
      replace the saved ones; any other key is refused, but for paths (`data.path=...`) of what has moved.
    - task=train: the run goes on with its own config. A command that says only `run=FOLDER` needs no more, and
      `trainer.max_steps=N` beside it makes the run longer; one that makes another config is refused with the keys
      that differ, the typed ones first.

    Relative paths of the run are those of where it was started. Raises UserError if the folder is no run.
    """
    folder = run_folder(str(cfg.run))
    said = [o for o in overrides if not is_hydra(o)]
    new_paths = {key_of(o): OmegaConf.select(cfg, key_of(o)) for o in said if is_movable_path(key_of(o))}
    moved = moved_paths.moved(folder.read_config(), new_paths, folder)
    saved, said = _given_again(moved, cfg, [o for o in said if key_of(o) not in new_paths])
    named = {key_of(o).split(".")[0].split("/")[0]: o for o in said}
    task = find_task(cfg.task)
    if task.needs_run:
        trained(folder)
    sound_checkpoint(folder)
    provenance.refuse_edited(folder)
    if not task.needs_run:
        keys = {key_of(o) for o in said}
        if all(_of_resuming(key) for key in keys):
            return _with_nodes(saved, cfg, said)
        _refuse_another(folder, saved, cfg, sorted(keys))
        return cfg
    for key, override in named.items():
        if key not in task.settable:
            raise UserError(
                f"{override} cannot be set with task={cfg.task}: the run's own config says it; "
                f"the command line may set {', '.join(task.settable)} ({shown(folder.config_yaml)})"
            )
    return _with_nodes(saved, cfg, said)


def _given_again(saved: dict[str, Any], cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The saved config with the masked values that the command gives again, and the other overrides."""
    texts, lost, rest = dict(redaction.leaves(saved)), {}, []
    for override in overrides:
        text, value = texts.get(key_of(override), ""), OmegaConf.select(cfg, key_of(override))
        if redaction.MASKED in text and isinstance(value, str):
            lost |= {path: value for path, other in texts.items() if other == text}  # what copied it was masked alike
        else:
            rest.append(override)
    return as_config(redaction.filled(saved, lost)), rest


def _of_resuming(key: str) -> bool:
    """Whether a key may stand beside `run=FOLDER` without the rest of the run's config."""
    if key.startswith("trainer."):
        return key == MAX_STEPS or not is_hashed(key)
    return key.split(".")[0].split("/")[0] in OF_RESUMING


def _with_nodes(saved: DictConfig, cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """The saved config with what these overrides set in the new one: whole nodes for groups, else single keys."""
    merged = saved.copy()
    resolved = as_config(plain_config(cfg))
    own = [key for key in ("run", "task", "dry_run", "prompt", "format") if key in resolved]
    for key in (*own, *map(key_of, overrides)):
        key = "hardware" if key == "launcher" else key
        value = OmegaConf.select(resolved, key)
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        OmegaConf.update(merged, key, escaped(plain), merge=False, force_add=True)
    return merged


def _refuse_another(folder: RunFolder, saved: DictConfig, cfg: DictConfig, typed: Sequence[str]) -> None:
    """Raise UserError for another config, but for one that makes the run longer."""
    said = differences(saved, cfg, typed)
    if said and extension(saved, cfg) is None:
        run = f"run={shlex.quote(shown(folder.path))}"
        raise UserError(
            f"{run} was started with another config ({said}); give the same overrides, or only {run} to go on with its"
            f" own, and {MAX_STEPS}=N to make it longer"
        )


def run_folder(path: str) -> RunFolder:
    """The run folder at the path; UserError with the nearest runs if it is none."""
    folder = RunFolder(Path(path))
    if is_run(folder):
        return folder
    why = "no such folder" if not folder.path.exists() else "has no config.yaml and run.json"
    if folder.path.is_file():
        why = "is a file"
    below = sorted({p.parent for p in folder.path.glob("*/run.json")}) if folder.path.is_dir() else []
    near = [shown(p) for p in below] or hints.nearest(path, [shown(p) for p in known_runs()], cutoff=0.0)
    raise UserError(f"run={path} is no run folder ({why}){hints.choices(near[:3], 'the nearest runs are')}")


def trained(folder: RunFolder) -> None:
    """Raise UserError if the run has no checkpoint."""
    if not any(folder.checkpoints.glob(CHECKPOINTS)):
        raise UserError(f"run={shown(folder.path)} has no checkpoint in {shown(folder.checkpoints)}")


def sound_checkpoint(folder: RunFolder, advice: str = "") -> None:
    """Raise UserError for a checkpoint of the run that was cut off: the end of the file is read, no more."""
    for path in sorted(p for p in folder.checkpoints.glob(CHECKPOINTS) if p.is_file()):
        if not zipfile.is_zipfile(path):
            raise UserError(
                f"{shown(path)} is no whole checkpoint ({path.stat().st_size} bytes; the file is truncated or"
                f" damaged){advice}"
            )

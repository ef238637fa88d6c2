"""Runs that begin with the weights of another one: `init_from`.

`init_from` is the folder of a finished run, or an experiment with overrides: `sft`, or `'sft trainer=short'`. That one then has this
run's seed and hardware, and is looked for among the finished runs of its experiment; where there is none it is trained first. So the
points of a sweep that begin alike share one first phase.
"""
from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from research_stack import paths, results
from research_stack.hints import UserError, did_you_mean, nearest
from research_stack.results import RunFolder


def is_folder(init_from: str) -> bool:
    """Whether it names a folder and not an experiment."""
    return Path(init_from).expanduser().is_dir() or "/" in init_from.split(" ")[0]


def first_phase(cfg: DictConfig) -> DictConfig:
    """The checked config of the experiment that `cfg.init_from` names. Raises UserError in one line."""
    from research_stack.compose import compose

    name, *overrides = str(cfg.init_from).split()
    known = paths.groups([paths.CONF])["experiment"]
    if name not in known:
        raise UserError(f"init_from={cfg.init_from} is neither the folder of a run nor an experiment{did_you_mean(name, known)}")
    try:
        phase = compose(f"experiment={name}", *overrides, f"seed={cfg.seed}")
    except UserError as error:
        raise UserError(f"init_from={cfg.init_from}: {error}") from error
    OmegaConf.update(phase, "hardware", cfg.hardware, merge=False)
    return phase


def check(cfg: DictConfig) -> None:
    """Raise UserError in one line when the run cannot begin as `init_from` says; trains nothing."""
    if not cfg.get("init_from"):
        return
    if not is_folder(cfg.init_from):
        first_phase(cfg)
        return
    place = RunFolder(Path(cfg.init_from).expanduser())
    if not results.is_run(place.path):
        why = "no such folder" if not place.path.exists() else "has no config.yaml and run.json"
        near = nearest(str(cfg.init_from), [paths.shown(path) for path in paths.known_runs()], cutoff=0.0)
        raise UserError(f"init_from={cfg.init_from} is no run folder ({why}){f'; did you mean {near[0]}?' if near else ''}")
    if not (place.checkpoints / "last.ckpt").is_file():
        raise UserError(f"init_from={cfg.init_from} has no checkpoint in {paths.shown(place.checkpoints)}")


def folder_of(cfg: DictConfig) -> RunFolder:
    """The folder of the first phase; for an experiment the one that its config leads to, whether it has been trained or not."""
    if is_folder(cfg.init_from):
        return RunFolder(Path(cfg.init_from).expanduser())
    phase = first_phase(cfg)
    return RunFolder(paths.OUTPUTS / paths.slug(str(phase.name)) / f"phase_{results.config_hash(phase)}")

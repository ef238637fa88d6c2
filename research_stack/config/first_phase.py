"""Runs that begin with the weights of another one: `init_from`.

`init_from` is the folder of a finished run, or an experiment with overrides: `sft`, or `"sft trainer=short"`. That one
then has this run's seed and hardware, and is looked for among the finished runs of its experiment; where there is none
it is trained first. So the points of a sweep that begin alike share one first phase.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research_stack.config.check import check_points
from research_stack.config.composer import Composer, job_composer
from research_stack.config.hints import UserError, did_you_mean, nearest
from research_stack.config.saved_run import effective
from research_stack.records import paths
from research_stack.records.config_hash import config_hash, plain_config
from research_stack.records.paths import expanded, names_folder
from research_stack.records.run_folder import RunFolder, is_run

#: What the words of a first phase may not set: it is trained, as it is, with this run's seed and hardware.
RESERVED = ("seed", "hardware", "launcher", "task", "run", "runs", "dry_run", "prompt", "hydra")
#: Keys of a model under which the same weights compute something else, so that nothing would show when they are loaded.
SAME_FUNCTION = ("causal", "heads", "activation", "qk_norm", "positions")
#: Keys of a model that loading would tell apart, but only once the first phase has been trained.
SAME_SHAPE = ("_target_", "path", "dim", "layers")


def first_phase_config(cfg: DictConfig, composer: Composer | None = None) -> DictConfig:
    """The checked config of the experiment that `cfg.init_from` names. Raises UserError in one line."""
    name, *overrides = str(cfg.init_from).split() or [""]
    composer = composer or job_composer()
    known = composer.groups()["experiment"]
    if name not in known:
        raise UserError(
            f"init_from={cfg.init_from} is neither the folder of a run nor an experiment{did_you_mean(name, known)}"
        )
    for override in overrides:
        if (key := re.split(r"[./=]", override.lstrip("+~"), maxsplit=1)[0]) in RESERVED:
            raise UserError(
                f"init_from={cfg.init_from}: {override} cannot be set there: a first phase is trained with the seed and"
                f" hardware of this run, so leave {key} out"
            )
    try:
        trial = ["debug=smoke"] if cfg.get("smoke") else []
        composed = effective(composer.compose([f"experiment={name}", *trial, *overrides, f"seed={cfg.seed}"]))
        check_points([composed], composer)
        phase = composed.cfg
        check_init_from(phase, composer)
    except UserError as error:
        raise UserError(f"init_from={cfg.init_from}: {error}") from error
    OmegaConf.update(phase, "hardware", cfg.hardware, merge=False)
    return phase


def check_init_from(cfg: DictConfig, composer: Composer | None = None) -> None:
    """Raise UserError in one line when the run cannot begin as `init_from` says; trains nothing.

    A run that has begun has its own checkpoint: it needs no first phase any more.
    """
    if not cfg.get("init_from") or has_begun(cfg):
        return
    if not names_folder(cfg.init_from):
        phase = first_phase_config(cfg, composer)
        refuse_other_model(cfg, phase, (*SAME_SHAPE, *SAME_FUNCTION))
        theirs, ours = (OmegaConf.select(config, "data.tokenizer._target_") for config in (phase, cfg))
        if theirs != ours:
            raise UserError(
                f"init_from={cfg.init_from}: its tokens would mean others: data.tokenizer is {short(theirs)} there,"
                f" {short(ours)} here"
            )
        return
    run_folder = RunFolder(expanded(cfg.init_from))
    if not is_run(run_folder.path):
        why = "no such folder" if not run_folder.path.exists() else "has no config.yaml and run.json"
        near = nearest(str(cfg.init_from), [paths.shown(path) for path in paths.known_runs()], cutoff=0.0)
        raise UserError(
            f"init_from={cfg.init_from} is no run folder ({why}){f'; did you mean {near[0]}?' if near else ''}"
        )
    if not (run_folder.checkpoints / "last.ckpt").is_file():
        raise UserError(f"init_from={cfg.init_from} has no checkpoint in {paths.shown(run_folder.checkpoints)}")
    refuse_other_model(cfg, run_folder.read_config(), SAME_FUNCTION)


def has_begun(cfg: DictConfig) -> bool:
    """Whether `cfg.run` is a folder with a checkpoint of its own: what goes on from it, measures it or samples from
    it.
    """
    return cfg.get("run") not in (None, "new") and (RunFolder(cfg.run).checkpoints / "last.ckpt").is_file()


def refuse_other_model(cfg: DictConfig, theirs: Any, keys: Sequence[str]) -> None:
    """Raise UserError where the first phase's model, in its config `theirs`, differs from this run's in one of the keys
    that both have.
    """
    there, here = (plain_config(config).get("model") or {} for config in (theirs, cfg))
    differing = [
        f"model.{key}: {short(there[key])} there, {short(here[key])} here"
        for key in keys
        if key in there and key in here and there[key] != here[key]
    ]
    if differing:
        raise UserError(
            f"init_from={cfg.init_from}: that run's model is another one ({'; '.join(differing)}); say the same in both"
        )


def short(value: Any) -> str:
    """A value, of a class its name alone."""
    return str(value).rpartition(".")[2] if str(value).startswith("research_stack.") else str(value)


def first_phase_folder(cfg: DictConfig) -> RunFolder:
    """The folder of the first phase; for an experiment that of its config, trained or not."""
    if names_folder(cfg.init_from):
        return RunFolder(expanded(cfg.init_from))
    phase = first_phase_config(cfg)
    return RunFolder(paths.OUTPUTS / paths.slug(str(phase.name)) / f"phase_{config_hash(phase)}")

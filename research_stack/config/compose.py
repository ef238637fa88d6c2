"""The way from overrides to a checked config, the same for the command line, a sweep and Python.

compose (Hydra) -> effective (a saved run's config; debug=smoke) -> preflight (every check that needs no torch)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from research_stack.config.check import check_points
from research_stack.config.composer import Composed, Composer
from research_stack.config.first_phase import check_init_from
from research_stack.config.quoting import quoted, with_settable_paths
from research_stack.config.saved_run import effective
from research_stack.config.tasks import with_task_keys


def compose(*overrides: str | Iterable[str], check: bool = True) -> DictConfig:
    """The config of the given overrides, as on the command line: `compose("model=small", "seed=3")`.

    - overrides: strings or lists of them, in Hydra's grammar.
    - check: also check every key and value against the constructors that will get them.

    Raises UserError (a ValueError) with one clear line: key, value, where it was set, nearest valid choice.
    """
    flat = [o for part in overrides for o in ([part] if isinstance(part, str) else part)]
    composer = Composer()
    composed = effective(composer.compose(with_task_keys(flat)))
    if check:
        preflight([composed], composer)
    return composed.cfg


def for_run(folder: str | Path, overrides: Sequence[str] = (), task: str = "eval") -> DictConfig:
    """The config of a saved run with the nodes the overrides name: `for_run(result.folder, ["sampler=llada"])`.

    The same as `task=eval run=FOLDER ...` on the command line, with the same checks. Raises UserError.
    """
    composer = Composer()
    composed = effective(
        composer.compose(with_task_keys([*with_settable_paths(overrides), f"run={quoted(folder)}", f"task={task}"]))
    )
    preflight([composed], composer)
    return composed.cfg


def preflight(points: Sequence[Composed], composer: Composer) -> None:
    """Check every point of a command before the first one starts: its config, its inputs, and what it begins from.

    Raises UserError for the first mistake, with where it was set and the point it is of.
    """
    check_points(points, composer)
    for point in points:
        check_init_from(point.cfg, composer)

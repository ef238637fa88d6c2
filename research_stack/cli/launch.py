"""From a checked command to runs: the folder of a run, the folders of a sweep, Hydra's main, the collected table."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from research_stack.cli.command import Command, complain
from research_stack.config.hints import UserError
from research_stack.config.quoting import quoted
from research_stack.records import paths
from research_stack.records.run_folder import InUse

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from research_stack.config.composer import Composed, Composer

log = logging.getLogger(__name__)


def start(flags: Sequence[str], overrides: Sequence[str]) -> None:
    """Have Hydra run the job, or the jobs of a sweep; errors come back as they are."""
    from research_stack.running import jobs

    jobs.typed[:] = sys.argv
    hand_over(jobs.job, flags, overrides)


def hand_over(job: Callable[[DictConfig], object], flags: Sequence[str], overrides: Sequence[str]) -> None:
    """Call Hydra's main on these arguments; errors come back as they are."""
    import hydra

    from research_stack.config.composer import search_packages

    search_packages()
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *flags, *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print and exit
    try:
        hydra.main(config_path=str(paths.CONF), config_name="config", version_base="1.3")(job)()
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)


# One run -----------------------------------------------------------------------------------------------------------


def single(command: Command, composer: Composer) -> int:
    """Compose, check, choose the folder, run."""
    from omegaconf import OmegaConf

    from research_stack.config.compose import preflight
    from research_stack.config.saved_run import effective
    from research_stack.config.tasks import find_task
    from research_stack.running.jobs import HYDRA
    from research_stack.running.logs import set_up_logging

    composed = effective(composer.compose(command.overrides))
    preflight([composed], composer)
    if OmegaConf.select(composed.cfg, "hardware.submit") and "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            "launcher=slurm submits sweeps only: add -m (a sweep of one is fine), or leave launcher=slurm out to run"
            " here"
        )
    set_up_logging()
    if not find_task(composed.cfg.task).takes_folder:
        return guarded(lambda: execute_here([(composed.cfg, None)]))
    chosen = chosen_folder(composed)
    if composed.cfg.dry_run:
        folder = chosen or paths.next_run_folder(composed.cfg.name)
        return guarded(lambda: execute_here([(composed.cfg, folder)]), folder)

    def run_in(folder: Path) -> int:
        extra = [*(o for o in HYDRA if not _sets(command.overrides, o)), f"hydra.run.dir={quoted(folder)}"]
        overrides, training = [*command.overrides, *extra], composed.cfg.task == "train"
        return guarded(lambda: start(command.hydra_arguments(), overrides), folder, training=training)

    try:
        return run_in(chosen or unfinished_run(composed.cfg) or paths.new_run_folder(composed.cfg.name))
    except InUse:  # another process took up the unfinished run in the same moment
        if chosen is not None:
            raise
        return run_in(paths.new_run_folder(composed.cfg.name))


def guarded(run: Callable[[], None], folder: Path | None = None, again: str = "", training: bool = True) -> int:
    """Run, and turn how it ended into an exit code: mistakes to one line, Ctrl-C to the way to go on.

    - folder: the run's, removed when nothing came of it; None for a task without one.
    - again: what goes on with an interrupted run; `run=FOLDER` by default. training: whether that is what was going on.
    """
    from research_stack.running.errors import is_mistake, message_of
    from research_stack.running.jobs import Escape

    again = again or (f"research-stack run={shlex.quote(paths.shown(folder))}" if folder else "the same command")
    try:
        with paths.removed_if_empty(folder) if folder else nullcontext():
            run()
    except KeyboardInterrupt:
        return complain(f"interrupted; to go on: {again}", code=130)
    except SystemExit as stop:  # a signal that the run itself answered, by saving a checkpoint
        code = stop.code if isinstance(stop.code, int) else 1
        return complain(f"stopped; to go on: {again}", code) if code > 128 else code
    except Escape as escape:
        error = escape.__cause__
        assert error is not None
        if not is_mistake(error) or isinstance(error, InUse):
            raise error from None
        trained = training and folder is not None and (folder / "checkpoints" / "last.ckpt").exists()
        kept = f"; what was trained is kept, to go on: {again}" if trained else ""
        return complain(message_of(error) + kept)
    return 0


def execute_here(points: Sequence[tuple[DictConfig, Path | None]]) -> None:
    """Run configs in this process without Hydra and without making their folders (dry_run)."""
    from research_stack.running.jobs import Escape, execute

    for cfg, folder in points:
        try:
            execute(cfg, folder)
        except Exception as error:
            raise Escape from error


def chosen_folder(composed: Composed) -> Path | None:
    """The folder that the command names for a single run; None where it names none."""
    cfg = composed.cfg
    if cfg.run not in (None, "new"):
        return Path(cfg.run)
    named = any(paths.key_of(o) == "hydra.run.dir" for o in composed.overrides)
    return Path(str(composed.hydra.run.dir)) if named else None


def unfinished_run(cfg: DictConfig) -> Path | None:
    """The newest run below outputs/<name> of the same config that can go on and that no process holds; None with
    run=new.
    """
    from research_stack.config.saved_run import sound_checkpoint
    from research_stack.records.config_hash import config_hash
    from research_stack.records.run_folder import Result, RunFolder

    wanted, earlier = config_hash(cfg), (paths.OUTPUTS / paths.slug(cfg.name)).glob("*/result.json")
    for path in sorted(earlier, reverse=True) if cfg.run is None else ():
        try:
            result = Result.load(path.parent)
        except ValueError as error:
            log.warning("%s", error)
            continue
        if result.can_go_on and result.hash == wanted and not RunFolder(path.parent).is_live():
            sound_checkpoint(RunFolder(path.parent), "; run=new starts a new run")
            log.info("going on with the unfinished run %s (run=new starts a new one)", path.parent)
            return path.parent
    return None


def _sets(overrides: Sequence[str], wanted: str) -> bool:
    """Whether the user sets the same key."""
    return any(paths.key_of(o) == paths.key_of(wanted) for o in overrides)


# Sweeps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepPoint:
    """A checked point of a sweep and its folder."""

    composed: Composed
    folder: Path


def sweep(command: Command, composer: Composer) -> int:
    """Check every point, run what is missing, collect."""
    from research_stack.config.compose import preflight
    from research_stack.config.tasks import find_task
    from research_stack.running.compare import collect
    from research_stack.running.jobs import HYDRA, POINTS, finished
    from research_stack.running.logs import set_up_logging

    folder, points = plan(command, composer)
    preflight([p.composed for p in points], composer)
    set_up_logging()
    for task in {p.composed.cfg.task for p in points}:
        if not find_task(task).takes_folder:
            raise UserError(f"task={task} is no sweep: leave out -m")
    if all(p.composed.cfg.dry_run for p in points):
        return guarded(lambda: execute_here([(p.composed.cfg, p.folder) for p in points]), folder, "the same command")
    for p in points:
        put_aside(p)
    missing = [p for p in points if finished(p.composed.cfg, p.folder) is None]
    log.info("sweep of %d points in %s, %d of them to run", len(points), paths.shown(folder), len(missing))
    extra = [*(o for o in HYDRA if not _sets(command.overrides, o)), f"hydra.sweep.dir={quoted(folder)}", POINTS]
    given = [o for o in command.overrides if paths.key_of(o) != "hydra.sweep.dir"]
    code = 0
    try:
        if missing:
            code = guarded(lambda: start(command.hydra_arguments(), [*given, *extra]), folder, "the same command")
    finally:
        failed = collect(folder, [p.folder for p in points])
    if code == 0 and failed:
        names = "; ".join(failed[:3]) + (f"; and {len(failed) - 3} more" if len(failed) > 3 else "")
        return complain(
            f"{len(failed)} of {len(points)} points failed ({names}); the same command runs only what is missing",
            code=1,
        )
    return code


def plan(command: Command, composer: Composer) -> tuple[Path, list[SweepPoint]]:
    """The sweep's folder, and every point with its config and folder; UserError for the first bad point."""
    from research_stack.config.saved_run import effective

    if _sets(command.overrides, "hydra.sweep.subdir="):
        raise UserError("hydra.sweep.subdir cannot be set: a point's folder is named by its overrides")
    master, lists = composer.points(command.overrides)
    hydra = [o for o in command.overrides if paths.key_of(o).startswith(("hydra.", "hydra/"))]
    composed = []
    for number, overrides in enumerate(lists, start=1):
        try:
            composed.append(effective(composer.compose_point(overrides, hydra)))
        except UserError as error:
            raise UserError(f"{error} (point {number} of {len(lists)}: {' '.join(overrides)})") from error
    group = master.hydra.runtime.choices.get("sweep")
    folder = paths.sweep_folder([str(c.cfg.name) for c in composed], group, composer.swept(command.overrides, master))
    if _sets(command.overrides, "hydra.sweep.dir="):
        folder = Path(str(master.hydra.sweep.dir))
    points = [SweepPoint(c, _point_folder(c, folder, o)) for c, o in zip(composed, lists, strict=True)]
    refuse_shared(points, lists)
    return folder, points


def refuse_shared(points: Sequence[SweepPoint], lists: Sequence[Sequence[str]]) -> None:
    """Raise UserError where two points that train would share a folder.

    They then differ in keys alone that change no number and name no folder.
    """
    first: dict[Path, int] = {}
    for number, (point, overrides) in enumerate(zip(points, lists, strict=True), start=1):
        other = first.setdefault(point.folder, number)
        if differing := sorted({paths.key_of(o) for o in set(overrides) ^ set(lists[other - 1])}):
            if point.composed.cfg.task == "train":
                raise UserError(
                    f"points {other} and {number} of {len(points)} are one run: they differ in "
                    f"{', '.join(differing)} alone, which changes no number"
                )


def _point_folder(composed: Composed, folder: Path, overrides: Sequence[str]) -> Path:
    if composed.cfg.run not in (None, "new"):
        return Path(composed.cfg.run)
    return folder / paths.point_name(o for o in overrides if not o.startswith(("hydra.", "hydra/")))


def put_aside(point: SweepPoint) -> None:
    """Rename a point's folder that holds a run of another config (or any, with run=new): neither overwrites the
    other.
    """
    from research_stack.records.config_hash import config_hash
    from research_stack.records.run_folder import Result, RunFolder

    run_folder = RunFolder(point.folder)
    if (
        point.composed.cfg.task != "train"
        or point.composed.cfg.run not in (None, "new")
        or not run_folder.result_json.is_file()
    ):
        return
    old, again = Result.load(point.folder).hash, point.composed.cfg.run == "new"
    if not again and (not old or old == config_hash(point.composed.cfg)):
        return
    with run_folder.lock():  # nobody begins in it meanwhile
        aside = paths.claim(point.folder.with_name(f"{point.folder.name}.{old}"))
        os.rename(point.folder, aside)
    log.info("%s is kept as %s", point.folder, aside)

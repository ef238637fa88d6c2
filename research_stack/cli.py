"""The `research-stack` command: compose, check everything, then hand over to Hydra. Imports no torch.

Every point of a command is composed and checked before the first one starts. Mistakes are one line on standard
error and exit code 2; a failed point of a sweep is exit code 1, Ctrl-C is 130; only a bug shows a traceback.
"""
from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from research_stack import paths
from research_stack.hints import UserError, choices, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from research_stack.compose import Composed, Composer

log = logging.getLogger(__name__)
SWITCHES = {"-m": "--multirun", "-r": "--run", "-sc": "--shell-completion", "-h": "--help", "--hydra-help": "--hydra-help",
            "--version": "--version", "--resolve": "--resolve"}  # fmt: skip
VALUED = {"-c": "--cfg", "-p": "--package", "-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir"}
SHOWING = ("--cfg", "--info", "--shell-completion", "--hydra-help", "--version")
EXAMPLES = """\
  research-stack                                       train and measure the default experiment
  research-stack experiment=llada trainer=short        another experiment, another budget
  research-stack model.dim=256 seed=2                  change any key
  research-stack -m sweep=corruption_matrix seed=1,2   a sweep: commas are points, [a,b] is a list
  research-stack run=FOLDER                            go on with an interrupted run
  research-stack task=eval run=FOLDER eval=likelihood  measure a finished run
  research-stack task=sample run=FOLDER prompt="..."   sample from it
  research-stack task=compare runs=[A,B]               one table of several runs
  research-stack dry_run=true                          show config, parameters, memory, steps; train nothing
  research-stack why trainer.max_steps                 every file and line that sets a key
  research-stack --cfg job                             print the composed config
  eval "$(research-stack -sc install=bash)"            tab completion (also zsh, fish)"""


@dataclass
class Command:
    """A parsed command line: overrides, and Hydra's flags as {long name: value}."""

    overrides: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)

    @property
    def multirun(self) -> bool:
        """Whether it is a sweep."""
        return "--multirun" in self.flags

    def hydra_arguments(self) -> list[str]:
        """The flags as Hydra reads them."""
        return [part for name, value in self.flags.items() for part in (name, value) if part]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Command:
        """Sort arguments into flags and overrides; UserError for a flag there is none of."""
        command, rest = cls(), list(arguments)
        while rest:
            word = rest.pop(0)
            name, glued, value = word.partition("=") if word.startswith("--") else (word, "", "")
            name = (SWITCHES | VALUED | {"-i": "--info"}).get(name, name)
            if not word.startswith("-") or word == "-":
                command.overrides.append(word)
            elif name == "--info":
                command.flags[name] = value or (rest.pop(0) if rest and "=" not in rest[0] and rest[0][0] != "-" else "all")
            elif name in VALUED.values():
                if not glued and not rest:
                    raise UserError(f"{word} needs a value")
                command.flags[name] = value if glued else rest.pop(0)
            elif name in SWITCHES.values():
                command.flags[name] = ""
            else:
                known = [*SWITCHES.values(), *VALUED.values(), "--info"]
                raise UserError(f"{word} is no option{choices(nearest(word, known, count=1), 'did you mean')}; see research-stack --help")
        if not command.multirun:  # a prompt is text: commas and brackets in it mean nothing
            command.overrides = [_as_text(o) if o.startswith("prompt=") else o for o in command.overrides]
        return command


def _as_text(override: str) -> str:
    key, _, value = override.partition("=")
    return override if value[:1] in ("'", '"') or value == "null" else f"{key}={quoted(value)}"


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return dispatch(arguments)
    except UserError as error:
        return complain(str(error))
    except KeyboardInterrupt:
        return complain("interrupted", code=130)
    except BrokenPipeError:  # `research-stack --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        from research_stack.jobs import is_mistake, said

        if not is_mistake(error):
            raise
        return complain(said(error))


def complain(message: str, code: int = 2) -> int:
    """Write one line on standard error and return the exit code."""
    sys.stderr.write(f"research-stack: {'error: ' if code == 2 else ''}{' '.join(message.split())}\n")
    return code


def dispatch(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    if arguments and arguments[0] == "why":
        return why(arguments[1:])
    command = Command.parse(arguments)
    if "--help" in command.flags:
        sys.stdout.write(help_text())
        return 0
    if "--cfg" in command.flags and command.flags["--cfg"] not in ("job", "hydra", "all"):
        raise UserError(f"--cfg {command.flags['--cfg']}: must be one of job, hydra, all")
    if any(flag in command.flags for flag in SHOWING):
        return show(command)
    if "why" in command.overrides:
        raise UserError("'why' comes first: research-stack why KEY [overrides]")
    composer = composer_of(command)
    return sweep(command, composer) if command.multirun else single(command, composer)


def composer_of(command: Command) -> Composer:
    """A composer over the config folders of the command."""
    from research_stack.compose import CONFIG, Composer

    extra = command.flags.get("--config-dir")
    if extra is not None and not Path(extra).is_dir():
        raise UserError(f"--config-dir {extra}: no such folder")
    conf = Path(command.flags.get("--config-path", str(paths.CONF)))
    return Composer(conf, Path(extra) if extra else None, command.flags.get("--config-name", CONFIG).removesuffix(".yaml"))


def help_text() -> str:
    """The answer of --help."""
    listed = paths.groups([paths.CONF])
    width = max(map(len, listed), default=0)
    rows = "\n".join(f"  {group:<{width}}  {', '.join(options)}" for group, options in listed.items())
    return f"""\
Usage: research-stack [-m] [key=value ...]
       research-stack why KEY [key=value ...]

{EXAMPLES}

Groups (group=option):
{rows}

Options:
  -m, --multirun       sweep over every combination of the values given with commas
  -c, --cfg job|all    print the composed config and stop (--resolve: interpolations too; -p NODE: one node)
  -i, --info [WHAT]    config|defaults|defaults-tree|searchpath|plugins
  -cd, --config-dir D  a further config folder
  -sc                  shell completion (install=bash|zsh|fish)
  --hydra-help         Hydra's own help
"""


def why(arguments: Sequence[str]) -> int:
    """`research-stack why KEY [overrides]`."""
    from research_stack.compose import Composer
    from research_stack.why import report

    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        raise UserError("why needs a key: research-stack why trainer.max_steps [overrides]")
    sys.stdout.write(report(arguments[0], arguments[1:], Composer()) + "\n")
    return 0


def show(command: Command) -> int:
    """--cfg, --info, completion and the like: Hydra's own, with our one-line errors."""
    with hydra_errors(command):
        hand_over(command.hydra_arguments(), command.overrides)
    return 0


@contextmanager
def hydra_errors(command: Command) -> Iterator[None]:
    """One-line errors for what Hydra raises while it composes; only then is a composer of ours made."""
    try:
        yield
    except Exception as error:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        from research_stack import hints

        if not isinstance(error, HydraException | OmegaConfBaseException | YAMLError | ValueError):
            raise
        if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
            raise UserError(str(error)) from error
        raise UserError(hints.explain(error, composer_of(command), command.overrides)) from error


def hand_over(flags: Sequence[str], overrides: Sequence[str]) -> None:
    """Call Hydra's main on these arguments; errors come back as they are."""
    import hydra

    from research_stack import jobs

    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    jobs.typed[:] = argv
    sys.argv = [argv[0], *flags, *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print and exit
    try:
        hydra.main(config_path=str(paths.CONF), config_name="config", version_base="1.3")(jobs.job)()
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)


# One run -----------------------------------------------------------------------------------------------------------


def single(command: Command, composer: Composer) -> int:
    """Compose, check, choose the folder, run."""
    from omegaconf import OmegaConf

    from research_stack import check
    from research_stack.compose import settle
    from research_stack.jobs import HYDRA, set_up_logging

    composed = settle(composer.compose(command.overrides))
    check.preflight([composed], composer)
    if OmegaConf.select(composed.cfg, "hardware.submit") and "SLURM_JOB_ID" not in os.environ:
        raise UserError("launcher=slurm submits sweeps only: add -m (a sweep of one is fine), or leave launcher=slurm out to run here")
    set_up_logging()
    if composed.cfg.task == "compare":
        return compare(composed.cfg)
    folder = run_folder(composed)
    if composed.cfg.dry_run:
        return guarded(lambda: execute_here([(composed.cfg, folder)]), folder)
    extra = [o for o in HYDRA if not _sets(command.overrides, o)]
    if not _sets(command.overrides, "hydra.run.dir=") or composed.cfg.run:
        extra.append(f"hydra.run.dir={quoted(folder)}")
    return guarded(lambda: hand_over(command.hydra_arguments(), [*command.overrides, *extra]), folder)


def guarded(run: Callable[[], None], folder: Path, again: str = "") -> int:
    """Run, and turn how it ended into an exit code: mistakes to one line, Ctrl-C to the way to go on.

    - again: what goes on with an interrupted run; `run=FOLDER` by default.
    """
    from research_stack.jobs import Escape, is_mistake, said

    again = again or f"research-stack run={shlex.quote(paths.shown(folder))}"
    existed = folder.exists()
    try:
        run()
    except KeyboardInterrupt:
        return complain(f"interrupted; to go on: {again}", code=130)
    except Escape as escape:
        error = escape.__cause__
        assert error is not None
        if not is_mistake(error):
            raise error from None
        kept = f"; what was trained is kept, to go on: {again}" if any(folder.glob("checkpoints/*.ckpt")) else ""
        return complain(said(error) + kept)
    finally:
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # nothing came of it
    return 0


def execute_here(points: Sequence[tuple[DictConfig, Path]]) -> None:
    """Run configs in this process without Hydra and without making their folders (dry_run)."""
    from research_stack.jobs import Escape, execute

    for cfg, folder in points:
        try:
            execute(cfg, folder)
        except Exception as error:
            raise Escape from error


def run_folder(composed: Composed) -> Path:
    """The folder of a single run: the given one, the same config's unfinished one, or a new one."""
    cfg, chosen = composed.cfg, [o for o in composed.overrides if o.startswith("hydra.run.dir=")]
    if cfg.run not in (None, "new"):
        return Path(cfg.run)
    if chosen:
        return Path(str(composed.hydra.run.dir))
    if cfg.run is None and not cfg.dry_run:
        unfinished = unfinished_run(cfg)
        if unfinished is not None:
            log.info("going on with the unfinished run %s (run=new starts a new one)", unfinished)
            return unfinished
    return paths.new_run_folder(cfg.name)


def unfinished_run(cfg: DictConfig) -> Path | None:
    """The newest run below outputs/<name> of the same config that was interrupted and that no process holds."""
    from research_stack.results import Result, RunFolder, config_hash

    wanted = config_hash(cfg)
    for path in sorted((paths.OUTPUTS / paths.slug(cfg.name)).glob("*/result.json"), reverse=True):
        try:
            result = Result.load(path.parent)
        except ValueError as error:
            log.warning("%s", error)
            continue
        if result.status == "interrupted" and result.hash == wanted and not RunFolder(path.parent).is_live():
            return path.parent
    return None


def quoted(value: Path | str) -> str:
    """A value as Hydra's grammar reads it back unchanged."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _sets(overrides: Sequence[str], wanted: str) -> bool:
    """Whether the user sets the same key."""
    return any(paths.key_of(o) == paths.key_of(wanted) for o in overrides)


# Sweeps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A checked point of a sweep and its folder."""

    composed: Composed
    folder: Path


def sweep(command: Command, composer: Composer) -> int:
    """Check every point, run what is missing, collect."""
    from research_stack import check
    from research_stack.jobs import HYDRA, POINTS, set_up_logging

    folder, points = plan(command, composer)
    check.preflight([p.composed for p in points], composer)
    set_up_logging()
    if any(p.composed.cfg.task == "compare" for p in points):
        raise UserError("task=compare is no sweep: leave out -m and give runs=[A,B]")
    if all(p.composed.cfg.dry_run for p in points):
        return guarded(lambda: execute_here([(p.composed.cfg, p.folder) for p in points]), folder, "the same command")
    for p in points:
        put_aside(p)
    log.info("sweep of %d points in %s", len(points), paths.shown(folder))
    extra = [*(o for o in HYDRA if not _sets(command.overrides, o)), f"hydra.sweep.dir={quoted(folder)}", POINTS]
    given = [o for o in command.overrides if paths.key_of(o) != "hydra.sweep.dir"]
    code = 1
    try:
        code = guarded(lambda: hand_over(command.hydra_arguments(), [*given, *extra]), folder, "the same command")
    finally:
        failed = collect(folder, [p.folder for p in points])
    if code == 0 and failed:
        names = "; ".join(failed[:3]) + (f"; and {len(failed) - 3} more" if len(failed) > 3 else "")
        return complain(f"{len(failed)} of {len(points)} points failed ({names}); the same command runs only what is missing", code=1)
    return code


def plan(command: Command, composer: Composer) -> tuple[Path, list[Point]]:
    """The sweep's folder, and every point with its config and folder; UserError for the first bad point."""
    from research_stack.compose import settle

    if _sets(command.overrides, "hydra.sweep.subdir="):
        raise UserError("hydra.sweep.subdir cannot be set: a point's folder is named by its overrides")
    master, lists = composer.points(command.overrides)
    hydra = [o for o in command.overrides if paths.key_of(o).startswith(("hydra.", "hydra/"))]
    composed = []
    for number, overrides in enumerate(lists, start=1):
        try:
            composed.append(settle(composer.compose_point(overrides, hydra)))
        except UserError as error:
            raise UserError(f"{error} (point {number} of {len(lists)}: {' '.join(overrides)})") from error
    group = master.hydra.runtime.choices.get("sweep")
    folder = paths.sweep_folder([str(c.cfg.name) for c in composed], group, composer.swept(command.overrides, master))
    if _sets(command.overrides, "hydra.sweep.dir="):
        folder = Path(str(master.hydra.sweep.dir))
    points = [Point(c, _point_folder(c, folder, o)) for c, o in zip(composed, lists, strict=True)]
    return folder, points


def _point_folder(composed: Composed, folder: Path, overrides: Sequence[str]) -> Path:
    if composed.cfg.run not in (None, "new"):
        return Path(composed.cfg.run)
    return folder / paths.point_name(o for o in overrides if not o.startswith(("hydra.", "hydra/")))


def put_aside(point: Point) -> None:
    """Rename a point's folder that holds a run of another config (or any, with run=new): neither overwrites the other."""
    from research_stack.results import Result, RunFolder, config_hash

    place = RunFolder(point.folder)
    if point.composed.cfg.task != "train" or point.composed.cfg.run not in (None, "new") or not place.result_json.is_file():
        return
    old, again = Result.load(point.folder).hash, point.composed.cfg.run == "new"
    if not again and (not old or old == config_hash(point.composed.cfg)):
        return
    if place.is_live():
        raise UserError(f"{paths.shown(point.folder)} is in use by another process")
    aside, number = point.folder.with_name(f"{point.folder.name}.{old}"), 1
    while aside.exists():
        number += 1
        aside = point.folder.with_name(f"{point.folder.name}.{old}_{number}")
    os.rename(point.folder, aside)
    log.info("%s is kept as %s", point.folder, aside)


def collect(folder: Path, points: Sequence[Path]) -> list[str]:
    """Write the table and the report of the points that exist; returns the failed ones, as `point: error`."""
    from research_stack import sweeps
    from research_stack.reporting.sweep_report import write_sweep_report

    if not any((p / "result.json").is_file() for p in points):
        return []
    table = sweeps.collect(list(dict.fromkeys(points)))
    sweeps.write_table(folder, table)
    report = write_sweep_report(folder, table)
    sys.stdout.write(f"{table.as_text(shutil.get_terminal_size().columns).rstrip()}\n\n{paths.shown(report)}\n")
    return [f"{f.folder.name}: {f.error or f.status}" for f in table.failures]


def compare(cfg: DictConfig) -> int:
    """task=compare runs=[...]: one table and one report of finished runs."""
    from research_stack import sweeps
    from research_stack.jobs import said

    if not cfg.runs:
        raise UserError("task=compare needs runs=[FOLDER,FOLDER]: run folders, or a sweep's folder for its points")
    try:
        runs = sweeps.expand(list(cfg.runs))
    except (ValueError, OSError) as error:
        raise UserError(said(error)) from error
    parents = {p.parent for p in runs}
    folder = parents.pop() if len(parents) == 1 and len(cfg.runs) == 1 else paths.new_run_folder("compare")
    try:
        collect(folder, runs)
    except OSError as error:
        return complain(said(error))
    return 0

"""What Hydra calls for a run or a point of a sweep, here or inside a cluster job."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from research_stack.config import targets
from research_stack.config.composer import Composed
from research_stack.config.hints import UserError, one_line
from research_stack.config.saved_run import effective
from research_stack.records.config_hash import config_hash
from research_stack.records.paths import PACKAGE, point_name, shown
from research_stack.records.redaction import Formatter
from research_stack.records.run_folder import Refused, Result, RunFolder, Stopped, is_run

log = logging.getLogger(__name__)
#: Overrides that hand the naming of points, and nothing of logging or config files, to us. A cluster job resolves
#: the name too: it imports this module to find `job`.
OmegaConf.register_new_resolver("point_name", lambda typed: point_name(OmegaConf.to_container(typed)), replace=True)
HYDRA = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
typed: list[str] = []  # sys.argv as it was before ours joined Hydra's; what a run records as its command
POINTS = "hydra.sweep.subdir='${point_name:${hydra.overrides.task}}'"


class Escape(BaseException):
    """Carries the error of a single run (its cause) past Hydra, which would print lines of its own about it."""


class _Terminal(logging.Handler):
    """Writes to whatever sys.stderr is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


def set_up_logging() -> None:
    """One line per message on standard error; the run folder gets its own file. Hydra's own lines are dropped."""
    root = logging.getLogger()
    if not any(isinstance(h, _Terminal) for h in root.handlers):
        handler = _Terminal()
        handler.setFormatter(Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in ("hydra", "httpx", "urllib3", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)


def is_mistake(error: BaseException) -> bool:
    """Whether an error is one that our code raised to tell the user something, or the system's word on a file.

    A ValueError from inside a library is a bug of ours: it keeps its traceback.
    """
    if isinstance(error, UserError | OSError | Refused | Stopped):
        return True
    return isinstance(error, ValueError | ArithmeticError) and _origin(error.__traceback__).is_relative_to(PACKAGE)


def _origin(trace: TracebackType | None) -> Path:
    """The file in which an error was raised."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return Path(trace.tb_frame.f_code.co_filename) if trace is not None else Path()


def said(error: BaseException) -> str:
    """The error on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{shown(os.fsdecode(error.filename))}: {error.strerror}"
    return one_line(error) or type(error).__name__


def job(cfg: DictConfig) -> Result:
    """Run one composed config in the folder Hydra made for it."""
    hydra = HydraConfig.get()
    sys.argv = typed or sys.argv
    targets.search_working_directory()  # in a cluster job too
    set_up_logging()
    folder = Path(shown(OmegaConf.to_container(hydra.runtime)["output_dir"]))  # a `${` in a name is no reference
    try:
        composed = effective(Composed(tuple(OmegaConf.to_container(hydra.overrides.task)), cfg, hydra))
        if hydra.mode == RunMode.MULTIRUN:
            return point(composed.cfg, folder)
        return execute(composed.cfg, folder)
    except Exception as error:
        raise Escape from error


def execute(cfg: DictConfig, folder: Path) -> Result:
    """Run the config; Ctrl-C reaches the caller as KeyboardInterrupt even where Lightning turned it into an exit."""
    from research_stack.running.run import run

    if cfg.run == "new":
        cfg.run = None
    if cfg.run is not None:
        folder = Path(cfg.run)
    try:
        return run(cfg, folder)
    except SystemExit as error:
        if error.code == 1 and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def point(cfg: DictConfig, folder: Path) -> Result:
    """Run a point of a sweep, unless it has an ok result; an error is recorded and the other points go on.

    The error is not raised: Hydra would stop later batches, and the sweep's exit code comes from the folders.
    """
    kept = finished(cfg, folder)
    if kept is not None:
        log.info("reusing %s", folder)
        return kept
    log.info("running %s", folder)
    try:
        return execute(cfg, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this point
        log.error("%s failed: %s", folder, said(error))
        if not is_mistake(error):
            log.error("%s", "".join(traceback.format_exception(error)))
        return record(cfg, folder, error)


def finished(cfg: DictConfig, folder: Path) -> Result | None:
    """The folder's result if it is ok and of this config."""
    if cfg.task != "train" or not is_run(folder) or not (folder / "result.json").is_file():
        return None
    result = Result.load(folder)
    return result if result.status == "ok" and result.hash == config_hash(cfg) else None


def record(cfg: DictConfig, folder: Path, error: Exception) -> Result:
    """The point's failed result, written if the run itself did not come to it."""
    from research_stack.running.worker import is_helper_rank

    place = RunFolder(folder)
    if isinstance(error, Refused | Stopped):  # the run's own records say all there is to say
        return Result(folder, place.load_result().status, error=said(error))
    if place.result_json.is_file() and place.load_result().status == "failed":
        return place.load_result()
    if place.is_live() or cfg.task != "train" or is_helper_rank():  # the folder is not ours to write
        return Result(folder, "failed", error=said(error))
    if not place.config_yaml.is_file():
        place.write_config(cfg)
    return place.fail(said(error))

"""What Hydra calls for a run or a point of a sweep, here or inside a cluster job."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from research_stack.config import packages
from research_stack.config.composer import Composed, config_folders
from research_stack.config.saved_run import effective
from research_stack.records.config_hash import config_hash
from research_stack.records.paths import point_name, shown
from research_stack.records.run_folder import Refused, Result, RunFolder, Stopped, is_run
from research_stack.running.errors import is_mistake, message_of
from research_stack.running.logs import set_up_logging
from research_stack.running.ranks import is_helper_rank
from research_stack.running.run import run

log = logging.getLogger(__name__)


def _unresolved(config: DictConfig | ListConfig) -> Any:
    """A part of Hydra's config as plain values; a `${` in a name or a prompt is no reference."""
    return OmegaConf.to_container(config)


#: Overrides that hand the naming of points, and nothing of logging or config files, to us. A cluster job resolves
#: the name too: it imports this module to find `job`.
OmegaConf.register_new_resolver("point_name", lambda typed: point_name(_unresolved(typed)), replace=True)
HYDRA = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
typed: list[str] = []  # sys.argv as it was before ours joined Hydra's; what a run records as its command
POINTS = "hydra.sweep.subdir='${point_name:${hydra.overrides.task}}'"


class Escape(BaseException):
    """Carries the error of a single run (its cause) past Hydra, which would print lines of its own about it."""


def job(cfg: DictConfig) -> Result:
    """Run one composed config in the folder Hydra made for it."""
    hydra = cast(DictConfig, HydraConfig.get())  # annotated as its schema
    sys.argv = typed or sys.argv
    packages.search_working_directory()  # in a cluster job too
    set_up_logging()
    folder = Path(shown(_unresolved(hydra.runtime)["output_dir"]))
    try:
        composed = effective(Composed(tuple(_unresolved(hydra.overrides.task)), cfg, hydra))
        with config_folders(*_folders(hydra)):
            return (point if hydra.mode == RunMode.MULTIRUN else execute)(composed.cfg, folder)
    except Exception as error:
        raise Escape from error


def _folders(hydra: DictConfig) -> tuple[Path | None, Path | None, list[Path]]:
    """(the folder of config.yaml, of --config-dir, of hydra.searchpath): a cluster job has no command line to ask."""
    sources = [(str(s.provider), Path(s.path)) for s in hydra.runtime.config_sources if s.schema == "file"]
    given = dict(reversed(sources))
    last = [folder for provider, folder in sources if provider.startswith("hydra.searchpath")]
    return given.get("main"), given.get("command-line"), last


def execute(cfg: DictConfig, folder: Path | None) -> Result:
    """Run the config; Ctrl-C reaches the caller as KeyboardInterrupt even where Lightning turned it into an exit."""
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
        log.error("%s failed: %s", folder, message_of(error))
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
    run_folder = RunFolder(folder)
    if isinstance(error, Refused | Stopped):  # the run's own records say all there is to say
        return Result(folder, run_folder.load_result().status, error=message_of(error))
    if run_folder.result_json.is_file() and run_folder.load_result().status == "failed":
        return run_folder.load_result()
    if run_folder.is_live() or cfg.task != "train" or is_helper_rank():  # the folder is not ours to write
        return Result(folder, "failed", error=message_of(error))
    if not run_folder.config_yaml.is_file():
        run_folder.write_config(cfg)
    return run_folder.fail(message_of(error))

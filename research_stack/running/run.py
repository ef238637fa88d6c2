"""`run`: from a composed config to what its task does; the command line, sweeps, cluster jobs and scripts call it."""

from __future__ import annotations

import inspect
from pathlib import Path

from omegaconf import DictConfig

from research_stack.config.tasks import FOLDER, find_task
from research_stack.records import paths
from research_stack.records.run_folder import Result, RunFolder


def run(cfg: DictConfig, folder: str | Path | None = None) -> Result:
    """Do what `cfg.task` says, in `folder` (default: `cfg.run`, else a new one below outputs/).

    The function behind the task gets those of its parameters that it names: the config (`cfg`), the folder
    (`run_folder`), the opened run (`context`), and keys of the config.

    Training goes on from the folder's last checkpoint if it has one. Raises ValueError or OSError with one clear
    line for a mistake of the user's; the folder then says `failed` and keeps what was there.
    """
    task = find_task(cfg.task)
    if cfg.dry_run and task.takes_folder:
        from research_stack.running.describe import describe

        return describe(cfg, RunFolder(folder if folder is not None else cfg.run or paths.next_run_folder(cfg.name)))
    function = task.load()
    parameters = inspect.signature(function).parameters
    arguments = {key: cfg[key] for key in parameters if key not in FOLDER and key != "cfg" and key in cfg}
    if "cfg" in parameters:
        arguments["cfg"] = cfg
    if not task.takes_folder:
        return function(**arguments)
    run_folder = RunFolder(folder if folder is not None else cfg.run or paths.new_run_folder(cfg.name))
    with paths.removed_if_empty(run_folder.path):
        if "run_folder" in parameters:
            arguments["run_folder"] = run_folder
        if "context" in parameters:
            from research_stack.running.open_run import open_run

            arguments["context"] = open_run(cfg, run_folder)
        result = function(**arguments)
        return result if isinstance(result, Result) else run_folder.load_result()

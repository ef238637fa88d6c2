"""Loggers: metrics.jsonl and metrics.csv always; wandb and tensorboard by choice (conf/logger).

A row of metrics.jsonl is {"step", "time", metric: value, ...}: step counts the optimizer steps done, time the
seconds since the run began, earlier parts of a resumed run included. Everything logged at one step shares a row.
"""

from __future__ import annotations

import hashlib
import netrc
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlparse

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from research_stack.records import csv_tables
from research_stack.records.config_hash import config_hash
from research_stack.records.files import (
    append_jsonl,
    atomic_write,
    read_jsonl,
    replace_last_jsonl,
    truncate_jsonl_after_step,
)
from research_stack.records.paths import expanded
from research_stack.records.redaction import redact_override
from research_stack.records.run_folder import RunFolder
from research_stack.require import require


class JsonlLogger(Logger):
    """Writes metrics.jsonl as the run goes, and metrics.csv when it ends.

    - folder: the run's folder.
    - start_step: optimizer steps done before; rows beyond it, of a part that was killed after its last checkpoint,
      are dropped. 0 starts afresh.

    Each row is on disk when `log_metrics` returns: what was logged before a checkpoint outlives a kill after it.
    """

    def __init__(self, folder: str | os.PathLike[str], start_step: int = 0) -> None:
        super().__init__()
        self.folder = RunFolder(folder)
        self._row: dict[str, Any] = {}  # the last one, which may still grow
        self._begun, self._before = time.monotonic(), 0.0
        self._start_step: int | None = start_step  # until it has been opened

    @rank_zero_only
    def open(self) -> None:
        """Drop the rows beyond the start step; the first row that is logged does so too.

        Making the object changes no file: a config can ask for that.
        """
        if self._start_step is None:
            return
        path, start_step, self._start_step = self.folder.metrics_jsonl, self._start_step, None
        truncate_jsonl_after_step(path, start_step if start_step > 0 else -1)
        rows = read_jsonl(path)
        self._row = rows[-1] if rows else {}
        self._before = max((float(row.get("time") or 0.0) for row in rows), default=0.0)

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.folder.path.name

    @property
    def version(self) -> str:
        """None is kept: a run has one folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.folder.path)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config is in config.yaml already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add the metrics to the row of the step.

        - step: Lightning's count, of the step just made, from 0; written as the number of steps done.
        """
        self.open()
        done = self._row.get("step", 0) if step is None else step + 1
        values = {name: value for name, value in metrics.items() if name != "epoch"}  # batches are endless: always 0
        if self._row.get("step") != done:
            self._row = {"step": done, "time": round(self._before + time.monotonic() - self._begun, 3), **values}
            append_jsonl(self.folder.metrics_jsonl, self._row)
        elif any(name not in self._row or self._row[name] != value for name, value in values.items()):
            self._row |= values
            replace_last_jsonl(self.folder.metrics_jsonl, self._row)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write metrics.csv: one column per metric, in order of first appearance."""
        rows = read_jsonl(self.folder.metrics_jsonl)
        if rows:
            atomic_write(self.folder.metrics_csv, _csv(rows))


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    return csv_tables.as_csv(list(dict.fromkeys(name for row in rows for name in row)), rows)


class RowBeforeCheckpoint(Callback):
    """Logs a training step's row before other callbacks save a checkpoint of that step: put it first.

    Lightning logs after its callbacks; a kill between the two would leave a resumed run without that row.
    """

    def __init__(self, logger: JsonlLogger) -> None:
        self.logger = logger

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log this step's `train/...` values."""
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  set by a part of the trainer
        if every and trainer.global_step % every == 0:
            values = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("train/")}
            self.logger.log_metrics(values, step=trainer.global_step - 1)


class Wandb(WandbLogger):
    """Weights & Biases: one run per run folder, kept in the folder, offline unless logged in.

    - folder: the run's folder, with its config.yaml.
    - project, group, tags: how wandb files the run.
    - offline: None decides by WANDB_MODE, then by whether there is a key (WANDB_API_KEY or netrc).

    Raises ValueError for names that wandb does not take, and for online without a key.


    The id is made of the run's name, config hash and folder, so that a resumed run goes on in the same wandb run.
    `wandb sync FOLDER/wandb/offline-run-*` uploads an offline run later.
    """

    _open: ClassVar[Wandb | None] = None  # the one whose wandb run is not finished

    def __init__(
        self,
        folder: str | os.PathLike[str],
        project: str = "research_stack",
        group: str | None = None,
        tags: Sequence[str] = (),
        offline: bool | None = None,
    ) -> None:
        import wandb
        from wandb.errors import UsageError

        if Wandb._open is not None:  # an earlier run of this process ended before its training did
            Wandb._open.finalize("failed")
        run_folder = RunFolder(folder)
        config = run_folder.read_config()
        identity = re.sub(
            r"[^\w-]+",
            "-",
            f"{config.get('name')}-{config_hash(config)}-{hashlib.sha256(str(run_folder.path.resolve()).encode()).hexdigest()[:6]}",
        )
        mode = os.environ.get("WANDB_MODE") if offline is None else None
        if mode is None:
            mode = "offline" if (not logged_in() if offline is None else offline) else "online"
        require(
            mode != "online" or logged_in(),
            f"offline={offline} needs a key: wandb login, or WANDB_API_KEY; offline=null stays offline without one",
        )
        try:
            wandb.Settings(project=project, run_group=group, run_tags=tuple(tags))
        except (UsageError, ValueError) as error:
            said = " ".join(str(error).split())
            what = f"project={project}, group={group}, tags={list(tags)}"
            raise ValueError(f"{what}: wandb refuses them ({said})") from error
        super().__init__(
            name=f"{config.get('name')} {run_folder.path.name}",
            save_dir=run_folder.path,
            project=project,
            id=identity,
            config=config,
            group=group,
            tags=list(tags),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),
        )
        Wandb._open = self

    @property
    def experiment(self) -> Any:
        """The wandb run; it is begun when it is first used, and keeps the command with its secrets masked."""
        argv = sys.argv
        sys.argv = [argv[0], *map(redact_override, argv[1:])]
        try:
            return super().experiment
        finally:
            sys.argv = argv

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the wandb run, however training ended; a later run of the same process opens its own."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None
        if Wandb._open is self:
            Wandb._open = None


def logged_in() -> bool:
    """Whether wandb would find an API key: in WANDB_API_KEY or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    path = expanded(os.environ.get("NETRC", "~/.netrc"))
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Tensorboard(TensorBoardLogger):
    """TensorBoard event files in FOLDER/tensorboard.

    - folder: the run's folder.
    - flush_seconds: how long values may wait in memory.

    On resume, events beyond the step the run goes on from are hidden.
    """

    def __init__(self, folder: str | os.PathLike[str], flush_seconds: int = 30) -> None:
        rows = read_jsonl(RunFolder(folder).metrics_jsonl)
        purge = {"purge_step": rows[-1]["step"]} if rows else {}
        try:
            super().__init__(
                save_dir=os.fspath(folder),
                name="",
                version="tensorboard",
                default_hp_metric=False,
                flush_secs=flush_seconds,
                **purge,
            )
        except ModuleNotFoundError as error:
            raise ValueError(
                "package=tensorboard is not installed: pip install 'research-stack[tensorboard]'"
            ) from error

"""A run folder on disk: the names of its files, its lock, and the status and metrics of the run. No torch, no hydra.

Everything a run leaves behind is a file that is either whole or absent (see `files`). JSON has no NaN: a metric that
is not finite is null in result.json and is read as NaN.
"""

from __future__ import annotations

import fcntl
import io
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from research_stack.records.config_hash import plain_config
from research_stack.records.escaping import as_config, refuse_interpolations, unescaped
from research_stack.records.files import (
    atomic_write,
    flock,
    open_lock,
    read_json,
    read_jsonl,
    remove_stale,
    unwritable,
    write_json,
)
from research_stack.records.redaction import masked, redact

Status = Literal["running", "ok", "failed", "interrupted"]


class Stopped(ValueError):
    """Training has stopped below `trainer.max_steps`, by no error: the run is interrupted and can go on."""


class Refused(ValueError):
    """A run that has begun cannot go on as it is asked to: its records are left as they were."""


def now() -> str:
    """The time in UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a run: its config, and a record that it was started."""
    folder = Path(folder)
    return (folder / "config.yaml").is_file() and any((folder / f).is_file() for f in ("run.json", "result.json"))


@dataclass(frozen=True)
class Result:
    """What a run came to.

    - folder: the run's folder.
    - status: running, ok, failed or interrupted; one that was killed in the middle reads as interrupted.
    - metrics: final numbers by name ("likelihood/bound", ...).
    - seconds: wall time over all parts of the run.
    - error: one line, if it failed.
    - trained: whether all its steps are made: only evaluations and report can be left.
    """

    folder: Path
    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    hash: str = ""
    error: str | None = None
    trained: bool = False

    @property
    def can_go_on(self) -> bool:
        """Whether its command goes on with it: it was interrupted, or it failed when all its steps were made."""
        return self.status == "interrupted" or (self.status == "failed" and self.trained)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Result:
        """Read a run's result.json; ValueError in one line if the folder is no run or the file is damaged."""
        return RunFolder(folder).load_result()


_held: set[int] = set()  # descriptors of the locks of this process


def _forget_locks() -> None:
    """A forked child (a data worker) must not keep the folder locked after the run has died."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget_locks)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


class InUse(OSError):
    """Another process holds the run folder."""


class RunFolder(os.PathLike[str]):
    """The folder of one run: the names of its files, its lock and its status."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_yaml = self.path / "config.yaml"
        self.run_json = self.path / "run.json"
        self.result_json = self.path / "result.json"
        self.metrics_jsonl = self.path / "metrics.jsonl"
        self.metrics_csv = self.path / "metrics.csv"
        self.samples_jsonl = self.path / "samples.jsonl"
        self.report_html = self.path / "report.html"
        self.figures = self.path / "figures"
        self.tables = self.path / "tables"
        self.films = self.path / "films"
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self._begun = time.monotonic()
        self._before = 0.0  # seconds of the earlier parts of a resumed run

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    # ---- config
    def write_config(self, config: Any) -> None:
        """Save the resolved config, its secrets masked, as config.yaml."""
        from omegaconf import OmegaConf

        atomic_write(self.config_yaml, OmegaConf.to_yaml(as_config(masked(plain_config(config)))))

    def read_config(self) -> dict[str, Any]:
        """The saved config as plain Python; ValueError in one line if the folder is no run or the file is damaged.

        Nothing in it is resolved: an interpolation, which only somebody's hand can have put there, is refused.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        if not self.config_yaml.is_file():
            raise ValueError(f"run={self.path} is no run: it has no config.yaml")
        try:
            text = self.config_yaml.read_text(encoding="utf-8")
            config = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
        except (YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
            raise ValueError(f"{self.config_yaml} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(config, dict) or not config:
            raise ValueError(f"{self.config_yaml} holds no config")
        refuse_interpolations(self.config_yaml, text)
        return unescaped(config)

    # ---- lock
    @contextmanager
    def lock(self, patience: float = 0.5) -> Iterator[None]:
        """Hold the folder for the life of a run; InUse names the holder if another process has it.

        - patience: seconds to wait for the other process.

        The kernel frees the lock when the process ends, however it ends. The .lock file itself stays.
        """
        descriptor = self._open_lock(patience)
        _held.add(descriptor)
        try:
            remove_stale(self.path)
            yield
        finally:
            if descriptor in _held:  # not in a forked child
                _held.remove(descriptor)
                flock(descriptor, fcntl.LOCK_UN)  # at once, whatever else may still have it open
                os.close(descriptor)

    def _open_lock(self, patience: float) -> int:
        """The descriptor of the lock; a moment's patience, for `is_live` of others looks by locking."""
        path, deadline = self.path / ".lock", time.monotonic() + patience
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                descriptor = open_lock(path)
            except OSError as error:
                raise unwritable(path, error) from error
            try:
                flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(path, descriptor):  # else the folder was put aside meanwhile
                    break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                    os.close(descriptor)
                    raise InUse(f"run={self.path} is in use by {holder or 'another process'}") from error
                time.sleep(0.02)
            os.close(descriptor)
        if os.pread(descriptor, 4, 0) not in (b"", b"pid "):
            os.close(descriptor)
            raise OSError(f"{path} must be a lock, and holds something else: move it away")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
        return descriptor

    def is_live(self) -> bool:
        """Whether a process holds the folder now."""
        if not (self.path / ".lock").exists():
            return False
        descriptor = open_lock(self.path / ".lock")
        try:
            flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    # ---- status
    def seconds(self) -> float:
        """Wall time of this run so far, earlier parts of a resumed run included."""
        return self._before + time.monotonic() - self._begun

    def start(self, hash: str, resumed: bool = False) -> None:
        """Record that the run has begun, or goes on after an earlier part (whose time counts on)."""
        old = self._read_result() if resumed and self.result_json.is_file() else {}
        rows = read_jsonl(self.metrics_jsonl) if resumed else []
        self._before = max([float(old.get("seconds") or 0.0), *(float(row.get("time") or 0.0) for row in rows)])
        self._begun = time.monotonic()
        fresh = {"status": "running", "hash": hash, "metrics": {}, "seconds": self._before, "started": now()}
        write_json(self.result_json, fresh | {"started": old.get("started") or now(), "finished": None, "steps": 0})

    def trained(self, steps: int) -> None:
        """All optimizer steps are made: what comes now can be made again without them."""
        if self.result_json.is_file():
            self._update({"steps": int(steps), "trained": True})

    def measured(self, metrics: Mapping[str, float]) -> Result:
        """The final metrics, and how long it took; the status follows by `finish`, once the report is there."""
        kept = self._read_result()["metrics"]
        self._update({"metrics": {**kept, **metrics}, "seconds": round(self.seconds(), 3), "finished": now()})
        return self.load_result()

    def _update(self, changed: Mapping[str, Any]) -> None:
        with self._result_lock():
            write_json(self.result_json, {**self._read_result(), **changed})

    def finish(self, metrics: Mapping[str, float], steps: int) -> Result:
        """The run ended well: status ok, its final metrics and its optimizer steps. Nothing may be left to do."""
        return self._end("ok", steps, metrics)

    def fail(self, error: BaseException | str, steps: int = 0) -> Result:
        """The run ended by an error, kept as one line."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return self._end("failed", steps, {}, redact(" ".join(text.split())) or "unknown error")

    def interrupted(self, steps: int = 0) -> Result:
        """The run was stopped (Ctrl-C, preemption) and can go on."""
        return self._end("interrupted", steps, {})

    def _end(self, status: Status, steps: int, metrics: Mapping[str, float], error: str | None = None) -> Result:
        with self._result_lock():
            value = self._read_result() if self.result_json.is_file() else {"hash": "", "metrics": {}, "started": None}
            value |= {"status": status, "metrics": {**value["metrics"], **metrics}}
            value |= {} if value.get("finished") else {"finished": now(), "seconds": round(self.seconds(), 3)}
            value |= {} if value.get("trained") else {"steps": int(steps)}
            value |= {"error": error} if error else {}
            write_json(self.result_json, value)
        return self.load_result()

    def merge_metrics(self, metrics: Mapping[str, float], measured: Mapping[str, Any] | None = None) -> Result:
        """Add metrics to result.json as they come, replacing those of the same name; safe with several writers.

        - measured: the evaluations they come from, {name: node}; kept, since config.yaml says how others were made.
        """
        with self._result_lock():
            value = self._read_result()
            changed = {
                "metrics": {**value["metrics"], **metrics},
                "measured": {**value.get("measured", {}), **(measured or {})},
            }
            write_json(self.result_json, value | changed)
        return self.load_result()

    def load_result(self) -> Result:
        """What the run came to so far; ValueError in one line if the folder is no run or the file is damaged."""
        value = self._read_result()
        status = value["status"]
        if status == "running" and not self.is_live():
            value = self._read_result()  # its process may have ended since: it says how before it lets go of the folder
            status = "interrupted" if value["status"] == "running" else value["status"]
        metrics = {k: math.nan if v is None else v for k, v in value["metrics"].items()}
        seconds, steps = float(value.get("seconds") or 0.0), int(value.get("steps") or 0)
        hash, trained = value.get("hash") or "", bool(value.get("trained"))
        return Result(self.path, status, metrics, seconds, steps, hash, value.get("error"), trained)

    def _read_result(self) -> dict[str, Any]:
        if not self.result_json.is_file():
            raise ValueError(f"run={self.path} is no run: it has no result.json")
        value = read_json(self.result_json)
        if not isinstance(value, dict) or "status" not in value or not isinstance(value.get("metrics"), dict):
            raise ValueError(f"{self.result_json} is not the result of a run: it lacks status or metrics")
        return value

    @contextmanager
    def _result_lock(self) -> Iterator[None]:
        """One reader-and-writer of result.json at a time."""
        path = self.path / ".result.lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = open_lock(path)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

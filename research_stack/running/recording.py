"""What a run leaves behind: its status, its log, and what it refuses to go on with.

At the end come the weights, the numbers, the report, and only then the status ok. A run that was killed before that is
found again as interrupted, and does what is missing.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from research_stack.records import provenance, terminal
from research_stack.records.config_hash import MAX_STEPS, config_hash, differences, differing_keys, extension
from research_stack.records.files import atomic_write, read_json, read_jsonl
from research_stack.records.redaction import Formatter
from research_stack.records.run_folder import Refused, Result, RunFolder, Stopped, is_run

if TYPE_CHECKING:
    from lightning import LightningDataModule

    from research_stack.data.module import TokenData

log = logging.getLogger(__name__)


@contextmanager
def recorded(cfg: DictConfig, place: RunFolder) -> Iterator[dict[str, float]]:
    """Keep the folder's status, provenance, history and report true, however the block ends; it fills in the metrics.

    A resumed run that is refused has its records as they were.
    """
    from research_stack.reporting import write_report

    resumed = (place.checkpoints / "last.ckpt").is_file()
    before = _records(place) if resumed else {}
    _begin(cfg, place, resumed and is_run(place))
    metrics: dict[str, float] = {}
    reporting = False
    try:
        yield metrics
        place.measured(metrics)
        reporting = True
        write_report(place.path, status="ok")
    except Refused:
        _put_back(before)
        raise
    except BaseException as error:
        _end_badly(cfg, place, error, report=not reporting)
        raise
    place.finish(metrics, steps_done(place))
    provenance.history(place.path, cfg)


def _begin(cfg: DictConfig, place: RunFolder, resumed: bool) -> None:
    """Config, provenance and status of a run that begins or goes on; Refused before anything of the old is touched."""
    if resumed:
        provenance.refuse_edited(place)
        refuse_another(cfg, place)
    place.write_config(cfg)
    provenance.begin(place.path, cfg, resumed=resumed)
    place.start(config_hash(cfg), resumed=resumed)


def _end_badly(cfg: DictConfig, place: RunFolder, error: BaseException, report: bool) -> None:
    """Record that the run was stopped or has failed; what goes wrong meanwhile must not hide the error.

    - report: whether to write one; not when it is what failed.
    """
    from research_stack.reporting import write_report

    stopped = isinstance(error, KeyboardInterrupt | SystemExit | Stopped)
    try:
        place.interrupted(steps_done(place)) if stopped else place.fail(error, steps_done(place))
        provenance.history(place.path, cfg)
        if report:
            write_report(place.path)
    except Exception as second:
        bug = not isinstance(second, OSError)
        log.error("the end of %s could not be recorded: %s", place.path, second, exc_info=bug)


def _records(place: RunFolder) -> dict[Path, bytes]:
    paths = (place.config_yaml, place.run_json, place.result_json)
    return {path: path.read_bytes() for path in paths if path.is_file()}


def _put_back(records: Mapping[Path, bytes]) -> None:
    for path, content in records.items():
        atomic_write(path, content)


def is_finished(cfg: DictConfig, place: RunFolder) -> bool:
    """Whether the folder holds this very run with status ok."""
    if not is_run(place) or not place.result_json.is_file():
        return False
    result, saved = place.load_result(), place.read_config()
    its_own = result.hash == config_hash(saved)  # not of the config before it was made longer
    return result.status == "ok" and its_own and not differing_keys(saved, cfg)  # where its files lie may differ


def refuse_other_data(place: RunFolder, data: TokenData) -> None:
    """Raise Refused when corpus or tokenizer are not those the run was trained on: ids would mean other tokens."""
    facts = read_json(place.run_json) if place.run_json.is_file() else {}
    trained = (facts.get("data") or {}).get("fingerprint")
    if trained not in (None, data.fingerprint):
        raise Refused(
            f"data: the corpus has changed since {place.path} was trained on it (fingerprint {trained} then, "
            f"{data.fingerprint} now); bring the old one back, or train anew with run=new"
        )


def refuse_other_codec(first: RunFolder, data: TokenData) -> None:
    """Raise ValueError when the weights to begin with were trained on ids of another tokenizer."""
    theirs, ours = (read_json(first.run_json).get("data") or {}).get("codec"), data.describe().get("codec")
    if theirs not in (None, ours):
        raise ValueError(
            f"init_from={first.path} was trained with another tokenizer than data.tokenizer gives here: "
            "the ids would mean other tokens"
        )


def keep_codec(data: LightningDataModule, place: RunFolder, anew: bool) -> None:
    """Keep the tokenizer in the run's folder, whole or not at all: texts are sampled with it when the corpus is
    gone.
    """
    from research_stack.data.module import TokenData

    if not isinstance(data, TokenData) or (place.tokenizer.is_dir() and not anew):
        return
    for part in (
        *place.path.glob(".tmp-*-tokenizer"),
        place.tokenizer,
    ):  # what a killed process left, or a run that came to nothing
        shutil.rmtree(part, ignore_errors=True)
    part = place.path / f".tmp-{os.getpid()}-tokenizer"
    part.mkdir()
    data.codec.save(part)
    os.rename(part, place.tokenizer)


def refuse_another(cfg: DictConfig, place: RunFolder) -> None:
    """Raise Refused when the folder holds a run of another config, unless `run=FOLDER` makes that one longer."""
    saved = place.read_config()
    said = differences(saved, cfg)
    if not said:
        return
    longer = extension(saved, cfg)
    if longer is None and [key for key, _, _ in differing_keys(saved, cfg)] == [MAX_STEPS]:
        raise Refused(f"run={place.path}: a run can be made longer, not shorter ({said})")
    if longer is None:
        raise Refused(f"run={place.path} was started with another config ({said})")
    if cfg.get("run") is None:
        raise Refused(
            f"run={place.path} was started with {MAX_STEPS}={longer[0]}; to make it longer: "
            f"run={place.path} {MAX_STEPS}={longer[1]}"
        )
    result = place.load_result()
    if result.status == "ok" and result.steps < longer[0]:
        raise Refused(
            f"run={place.path} was stopped early, at step {result.steps} of {longer[0]}: "
            f"{MAX_STEPS}={longer[1]} would not make it longer"
        )


def leads() -> bool:
    """Whether this process is the first of the run's ranks, the one that writes the folder."""
    from research_stack.running import worker

    return not worker.is_helper_rank() and int(os.environ.get("RANK", "0")) == 0


def finished(place: RunFolder) -> Result:
    """The folder's result, and its summary on standard output."""
    from research_stack.reporting import summary

    terminal.write(summary(place.path) + "\n")
    return place.load_result()


def steps_done(place: RunFolder) -> int:
    """Optimizer steps logged so far."""
    rows = read_jsonl(place.metrics_jsonl)
    return max((row["step"] for row in rows), default=0)


class _LogFile(logging.FileHandler):
    """A log file that a full disk leaves incomplete, and no more: the terminal has the same lines."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Also write the log's lines to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise OSError(f"{path} is a link: a run folder's log is a file in it; move it away")
    handler = _LogFile(path)
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):  # what could not be written could not be written a line ago either
            handler.close()


def measuring(place: RunFolder) -> float:
    """Seconds to wait for the folder before it is measured: for ever when another process measures it too."""
    if place.is_live() and place.load_result().status == "ok":
        log.info("waiting for %s, which another process measures", place.path)
        return float("inf")
    return 0.5

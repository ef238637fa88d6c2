"""What a run leaves behind: its status, its log, and what it refuses to go on with.

At the end come the weights, the numbers, the report, and only then the status ok. A run that was killed before that is
found again as interrupted, and does what is missing.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from research_stack.records import provenance, terminal
from research_stack.records.config_hash import MAX_STEPS, config_hash, differences, differing_keys, extension
from research_stack.records.files import atomic_write, read_json, read_jsonl
from research_stack.records.run_folder import Refused, Result, RunFolder, Stopped, is_run

if TYPE_CHECKING:
    from lightning import LightningDataModule

    from research_stack.data.module import TokenData

log = logging.getLogger(__name__)


@contextmanager
def recorded(cfg: DictConfig, run_folder: RunFolder) -> Iterator[dict[str, float]]:
    """Keep the folder's status, provenance, history and report true, however the block ends; it fills in the metrics.

    A resumed run that is refused has its records as they were.
    """
    from research_stack.reporting import write_report

    resumed = (run_folder.checkpoints / "last.ckpt").is_file()
    before = _records(run_folder) if resumed else {}
    _begin(cfg, run_folder, resumed and is_run(run_folder))
    metrics: dict[str, float] = {}
    reporting = False
    try:
        yield metrics
        run_folder.measured(metrics)
        reporting = True
        write_report(run_folder.path, status="ok")
    except Refused:
        _put_back(before)
        raise
    except BaseException as error:
        _end_badly(cfg, run_folder, error, report=not reporting)
        raise
    run_folder.finish(metrics, steps_done(run_folder))
    provenance.history(run_folder.path, cfg)


def _begin(cfg: DictConfig, run_folder: RunFolder, resumed: bool) -> None:
    """Config, provenance and status of a run that begins or goes on; Refused before anything of the old is touched."""
    if resumed:
        provenance.refuse_edited(run_folder)
        refuse_another(cfg, run_folder)
    run_folder.write_config(cfg)
    provenance.begin(run_folder.path, cfg, resumed=resumed)
    run_folder.start(config_hash(cfg), resumed=resumed)


def _end_badly(cfg: DictConfig, run_folder: RunFolder, error: BaseException, report: bool) -> None:
    """Record that the run was stopped or has failed; what goes wrong meanwhile must not hide the error.

    - report: whether to write one; not when it is what failed.
    """
    from research_stack.reporting import write_report

    stopped = isinstance(error, KeyboardInterrupt | SystemExit | Stopped)
    try:
        run_folder.interrupted(steps_done(run_folder)) if stopped else run_folder.fail(error, steps_done(run_folder))
        provenance.history(run_folder.path, cfg)
        if report:
            write_report(run_folder.path)
    except Exception as second:
        bug = not isinstance(second, OSError)
        log.error("the end of %s could not be recorded: %s", run_folder.path, second, exc_info=bug)


def _records(run_folder: RunFolder) -> dict[Path, bytes]:
    paths = (run_folder.config_yaml, run_folder.run_json, run_folder.result_json)
    return {path: path.read_bytes() for path in paths if path.is_file()}


def _put_back(records: Mapping[Path, bytes]) -> None:
    for path, content in records.items():
        atomic_write(path, content)


def is_finished(cfg: DictConfig, run_folder: RunFolder) -> bool:
    """Whether the folder holds this very run with status ok."""
    if not is_run(run_folder) or not run_folder.result_json.is_file():
        return False
    result, saved = run_folder.load_result(), run_folder.read_config()
    its_own = result.hash == config_hash(saved)  # not of the config before it was made longer
    return result.status == "ok" and its_own and not differing_keys(saved, cfg)  # where its files lie may differ


def refuse_other_data(run_folder: RunFolder, data: TokenData) -> None:
    """Raise Refused when corpus or tokenizer are not those the run was trained on: ids would mean other tokens."""
    facts = read_json(run_folder.run_json) if run_folder.run_json.is_file() else {}
    trained = (facts.get("data") or {}).get("fingerprint")
    if trained not in (None, data.fingerprint):
        raise Refused(
            f"data: the corpus has changed since {run_folder.path} was trained on it (fingerprint {trained} then, "
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


def keep_codec(data: LightningDataModule, run_folder: RunFolder, anew: bool) -> None:
    """Keep the tokenizer in the run's folder, whole or not at all: texts are sampled with it when the corpus is
    gone.
    """
    from research_stack.data.module import TokenData

    if not isinstance(data, TokenData) or (run_folder.tokenizer.is_dir() and not anew):
        return
    for part in (
        *run_folder.path.glob(".tmp-*-tokenizer"),
        run_folder.tokenizer,
    ):  # what a killed process left, or a run that came to nothing
        shutil.rmtree(part, ignore_errors=True)
    part = run_folder.path / f".tmp-{os.getpid()}-tokenizer"
    part.mkdir()
    data.codec.save(part)
    os.rename(part, run_folder.tokenizer)


def refuse_another(cfg: DictConfig, run_folder: RunFolder) -> None:
    """Raise Refused when the folder holds a run of another config, unless `run=FOLDER` makes that one longer."""
    saved = run_folder.read_config()
    said = differences(saved, cfg)
    if not said:
        return
    longer = extension(saved, cfg)
    if longer is None and [key for key, _, _ in differing_keys(saved, cfg)] == [MAX_STEPS]:
        raise Refused(f"run={run_folder.path}: a run can be made longer, not shorter ({said})")
    if longer is None:
        raise Refused(f"run={run_folder.path} was started with another config ({said})")
    if cfg.get("run") is None:
        raise Refused(
            f"run={run_folder.path} was started with {MAX_STEPS}={longer[0]}; to make it longer: "
            f"run={run_folder.path} {MAX_STEPS}={longer[1]}"
        )
    result = run_folder.load_result()
    if result.status == "ok" and result.steps < longer[0]:
        raise Refused(
            f"run={run_folder.path} was stopped early, at step {result.steps} of {longer[0]}: "
            f"{MAX_STEPS}={longer[1]} would not make it longer"
        )


def finished(run_folder: RunFolder) -> Result:
    """The folder's result, and its summary on standard output."""
    from research_stack.reporting import summary

    terminal.write(summary(run_folder.path) + "\n")
    return run_folder.load_result()


def steps_done(run_folder: RunFolder) -> int:
    """Optimizer steps logged so far."""
    rows = read_jsonl(run_folder.metrics_jsonl)
    return max((row["step"] for row in rows), default=0)


def measuring(run_folder: RunFolder) -> float:
    """Seconds to wait for the folder before it is measured: for ever when another process measures it too."""
    if run_folder.is_live() and run_folder.load_result().status == "ok":
        log.info("waiting for %s, which another process measures", run_folder.path)
        return float("inf")
    return 0.5

"""Training on several devices: who starts the processes, and what must not.

Lightning's own way is to run the whole command line again for each device, sweep included: the second point of a
sweep then trains on half its data without a word. Here the resolved config is saved first, and
`torch.distributed.run` starts `python -m research_stack.running.worker FOLDER` once per device. In a SLURM job srun has
started the processes already; torch.distributed.run never runs below it, since the process that would watch the
ranks dies of the signals that announce preemption.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from research_stack.config.packages import module_folders
from research_stack.records.run_folder import Refused, Stopped
from research_stack.training.machine import under_srun, under_torchrun

if TYPE_CHECKING:
    from research_stack.running.hardware import Hardware

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
# what saving a checkpoint may take once asked to stop; also how long a hung rank is waited for when another fails
SAVE_SECONDS = 120
HANDED_ON = {"Mistake": ValueError, "Stopped": Stopped, "Refused": Refused}  # by the names that a rank records


class WorkerFailed(RuntimeError):
    """A process of a run on several devices failed by more than a mistake in its config."""


def guard(hardware: Hardware) -> None:
    """Refuse what would train something else than asked, or hang. Call it before any run.

    Raises ValueError when the tasks of the SLURM job differ from the devices, when several machines are asked for
    without SLURM, when the launcher was not used, or when torch.distributed.run runs below srun.
    """
    if under_srun():
        _guard_job(hardware)
    elif hardware.num_nodes > 1:
        raise ValueError(
            f"hardware.num_nodes={hardware.num_nodes} needs -m launcher=slurm: SLURM starts the processes on other"
            " machines"
        )
    elif hardware.submit and "SLURM_JOB_ID" not in os.environ:
        raise ValueError(
            "launcher=slurm submits sweeps only: add -m (a sweep of one is fine); to run here, leave it out or set"
            " hardware.submit=false"
        )


def _guard_job(hardware: Hardware) -> None:
    """The job's tasks must be the run's processes, one each."""
    if under_torchrun():
        raise ValueError("torch.distributed.run must not run below srun: start one task per device instead")
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ["SLURM_NNODES"])
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ["SLURM_NTASKS"])
    if nodes != hardware.num_nodes:
        raise ValueError(
            f"hardware.num_nodes={hardware.num_nodes} but the SLURM job has {nodes} nodes: set"
            f" hardware.num_nodes={nodes}"
        )
    if tasks != hardware.processes:
        raise ValueError(
            f"hardware.devices={hardware.devices} but the SLURM job has {tasks // nodes} tasks per node, and one task"
            f" drives one device: set hardware.resources.tasks_per_node={hardware.devices}"
        )


def needs_launch(hardware: Hardware) -> bool:
    """Whether this process must start one process per device, rather than be one."""
    return hardware.processes > 1 and not under_srun() and not under_torchrun()


# Starting the processes -------------------------------------------------------------------------------------------


def launch(folder: Path, hardware: Hardware, secrets: Mapping[str, str]) -> None:
    """Train the saved config of the folder in `hardware.devices` processes on this machine; returns when they are done.

    - secrets: environment of the processes, for what the saved config has masked (`redaction.hand_over`).

    Ctrl-C and SIGTERM are passed on; the processes save a checkpoint and SystemExit(130 or 143) follows. Raises
    ValueError with the line of the rank that failed first when that was a mistake or a stop, else WorkerFailed.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    command = [
        "--standalone",
        f"--nproc-per-node={hardware.devices}",
        "--module",
        "research_stack.running.worker",
        str(folder),
    ]
    with _quiet_launcher(), _handlers_kept(), _environment(hardware, secrets):
        try:
            torchrun.run(torchrun.parse_args(command))
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from stop
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            said = failure.message  # a rank that recorded its error says more than one that died
            _raise_for(rank, failure.exitcode, said if isinstance(said, str) else said["message"])


def _raise_for(rank: int, exitcode: int, message: str) -> None:
    """The rank's own error in this process."""
    kind, _, text = message.partition(": ")
    if exitcode in (128 + s for s in INTERRUPTS):  # the rank itself was asked to stop
        raise SystemExit(exitcode)
    if kind in HANDED_ON:
        raise HANDED_ON[kind](text)
    how = f"died of {signal.Signals(-exitcode).name}" if exitcode < 0 else f"failed ({message.splitlines()[0]})"
    raise WorkerFailed(f"rank {rank} {how}; the run goes on from its last checkpoint when it is started again")


@contextlib.contextmanager
def _environment(hardware: Hardware, secrets: Mapping[str, str]) -> Iterator[None]:
    """What the processes inherit. Threads are set here since libraries read them when they are loaded."""
    values = {
        "OMP_NUM_THREADS": str(hardware.resolved_threads(ranks=hardware.devices)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVE_SECONDS),
        "RESEARCH_STACK_PARENT": str(os.getpid()),
        **secrets,
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), *module_folders()]),
    }
    before = {key: os.environ.get(key) for key in (*values, "TORCHELASTIC_SIGNALS_TO_HANDLE")}
    os.environ |= values
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put the signal handlers back that torch replaces."""
    before = {number: signal.getsignal(number) for number in (*INTERRUPTS, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet_launcher() -> Iterator[None]:
    """torch reports each failure over many lines; ours is one. Each of its modules has a logger with a level."""
    loggers = [
        logging.getLogger(name)
        for name in logging.root.manager.loggerDict
        if name.startswith("torch.distributed.elastic")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

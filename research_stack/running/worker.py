"""One process of a run on several devices: `python -m research_stack.running.worker FOLDER`, started by `launcher`."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from research_stack.records.escaping import as_config
from research_stack.records.redaction import handed
from research_stack.records.run_folder import Refused, RunFolder, Stopped
from research_stack.running import outlet
from research_stack.running.fit import fit
from research_stack.running.logs import log_file, set_up_logging

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that launched it dies (Linux).

    Else a killed run would train on in the background, and write into the folder of the run that takes its place.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = os.environ.get("RESEARCH_STACK_PARENT")
        if parent is not None and os.getppid() != int(parent):  # it died before the call
            os._exit(1)


def main(folder: str) -> int:
    """Train the saved config of the folder on this rank; the exit code. Errors are handed to the launching process."""
    try:
        with _logging(Path(folder), rank=int(os.environ["RANK"])):
            fit(as_config(handed(RunFolder(folder).read_config())), Path(folder))
    except SystemExit as stop:  # asked to stop, by research_stack.running.preemption
        return int(stop.code or 0)
    except (Stopped, Refused) as error:
        get_error_handler().record_exception(error)
        return 1
    except (ValueError, OSError) as error:
        get_error_handler().record_exception(Mistake(str(error)))
        return 1
    except Exception as error:
        log.exception("rank %s failed", os.environ["RANK"])
        get_error_handler().record_exception(error)
        return 1
    return 0


@contextlib.contextmanager
def _logging(folder: Path, rank: int) -> Iterator[None]:
    """The first rank logs as a single process would, the others only what went wrong."""
    set_up_logging()
    if rank > 0:
        logging.getLogger().setLevel(logging.WARNING)
    with log_file(folder / "run.log") if rank == 0 else contextlib.nullcontext():
        yield


class Mistake(Exception):
    """Marks a ValueError or OSError on its way to the launching process."""


def leave(code: int) -> NoReturn:
    """End this process without taking the interpreter down.

    Threads of torch that want the interpreter's lock while it goes down abort the process (`terminate called without
    an active exception`), after training has ended well: seen in a quarter of all ends of two gloo processes.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    outlet.open_streams()
    die_with_parent()
    leave(main(sys.argv[1]))

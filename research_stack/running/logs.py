"""The log of a process: lines on standard error, a file in the run folder, and nothing of what libraries advise."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from research_stack.records.redaction import Formatter


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


def silence_lightning() -> None:
    """Keep Lightning's advice (more loader workers, other loggers, srun) out of the log; errors still come."""
    import lightning  # noqa: F401  sets up the handlers that are taken down here

    warnings.filterwarnings("ignore", module="lightning|torch.utils.data|transformers")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        logger.handlers.clear()  # it would print beside our own log

"""Loggers of outside services: what goes wrong in one is a warning, since every number is in the folder already."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment as DummyExperiment
from lightning.pytorch.loggers.logger import Logger

log = logging.getLogger(__name__)


class GuardedLogger(Logger):
    """Hands everything on to a logger until it fails: then it is left out for the rest of the run, with one warning.

    - where: its config node, for the warning. make: builds it.
    - refuses: whether a ValueError from `make` is raised, since it says that the node is wrong.
    """

    def __init__(self, where: str, make: Callable[[], Logger], refuses: bool = True) -> None:
        super().__init__()
        self.where = where
        self._inner: Logger | None = None
        try:
            self._inner = make()
        except ValueError as error:
            if refuses:
                raise
            self._leave_out(error)
        except Exception as error:
            self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        inner, self._inner = self._inner, None
        said = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning(
            "%s has failed and is left out from here on (%s); metrics.jsonl and result.json have every number",
            self.where,
            said,
        )
        if inner is not None:
            try:
                inner.finalize("failed")
            except Exception as second:
                log.debug("%s could not be closed either: %s", self.where, second)

    def _ask(self, call: Callable[[Logger], Any], otherwise: Any = None) -> Any:
        """What the call on the logger returns; `otherwise` where it has failed, now or before."""
        if self._inner is None:
            return otherwise
        try:
            return call(self._inner)
        except Exception as error:
            self._leave_out(error)
            return otherwise

    def __getattr__(self, name: str) -> Any:
        """What the logger has beside the methods of all loggers, `log_image` and the like, watched too."""
        if name.startswith("_"):
            raise AttributeError(name)
        if self._inner is not None and not callable(value := getattr(self._inner, name)):
            return value
        return lambda *arguments, **named: self._ask(lambda inner: getattr(inner, name)(*arguments, **named))

    @property
    def name(self) -> str | None:
        """The logger's name for the experiment."""
        return self._ask(lambda inner: inner.name)

    @property
    def version(self) -> int | str | None:
        """The logger's name for the run."""
        return self._ask(lambda inner: inner.version)

    @property
    def save_dir(self) -> str | None:
        """Where the logger keeps its files."""
        return self._ask(lambda inner: inner.save_dir)

    @property
    def experiment(self) -> Any:
        """The service's own object; one that does nothing where there is none."""
        nothing = DummyExperiment()
        return self._ask(lambda inner: getattr(inner, "experiment", nothing), nothing)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Hand on."""
        self._ask(lambda inner: inner.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *arguments: Any, **named: Any) -> None:
        """Hand on."""
        self._ask(lambda inner: inner.log_hyperparams(params, *arguments, **named))

    def log_graph(self, *arguments: Any, **named: Any) -> None:
        """Hand on."""
        self._ask(lambda inner: inner.log_graph(*arguments, **named))

    def save(self) -> None:
        """Hand on."""
        self._ask(lambda inner: inner.save())

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Hand on."""
        self._ask(lambda inner: inner.after_save_checkpoint(checkpoint_callback))

    def finalize(self, status: str) -> None:
        """Hand on."""
        self._ask(lambda inner: inner.finalize(status))

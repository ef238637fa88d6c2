"""Experiments in language-model training: one composed config is one run, from a laptop to a cluster.

    from research_stack import compose, load, run
    result = run(compose("experiment=llada", "trainer=short"))
    context = load(result.folder)

Importing the package imports neither torch nor hydra: the names are loaded when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from research_stack.config.compose import compose
    from research_stack.running.open_run import load
    from research_stack.running.run import run

__version__ = "0.1.0"
__all__ = ["compose", "load", "run"]
_MODULES = {"compose": "config.compose", "load": "running.open_run", "run": "running.run"}


def __getattr__(name: str) -> Any:
    """Import the module behind a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'research_stack' has no attribute {name!r}")
    from importlib import import_module

    return vars(import_module(f"research_stack.{_MODULES[name]}"))[name]

"""The packages whose code takes part: ours, and those that the user has opted into.

A package of one's own is opted into by the environment, RESEARCH_STACK_PACKAGES=myproj,other, or by an installed
distribution with an entry point in the group `research_stack.packages` (`myproj = "myproj"`). A config may name its
classes, its `tasks.py` adds tasks, and a folder `conf` in it is searched behind ours. No torch, no hydra; nothing of
them is imported here.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from research_stack.config import signatures
from research_stack.config.hints import UserError

OWN = "research_stack"
VARIABLE = "RESEARCH_STACK_PACKAGES"
GROUP = "research_stack.packages"


@cache
def installed() -> tuple[str, ...]:
    """Packages that installed distributions offer by an entry point; read from their metadata."""
    from importlib.metadata import entry_points  # slow to import

    return tuple(sorted({point.module.partition(".")[0] for point in entry_points(group=GROUP)}))


def packages() -> tuple[str, ...]:
    """Packages whose classes a config may name. Raises UserError where the environment's list is none."""
    named = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in named:
        if not name.isidentifier():
            raise UserError(
                f"{VARIABLE}={os.environ[VARIABLE]}: '{name}' must be the name of a top-level package; "
                "several are separated by commas"
            )
    return tuple(dict.fromkeys((OWN, *named, *installed())))


def search_working_directory() -> None:
    """With an opt-in by the environment, look for modules in the working directory too, behind everything else.

    `python -m` does so anyway; the console script, and a cluster job, then find the same.
    """
    if os.environ.get(VARIABLE) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def module_folders() -> list[str]:
    """Where the packages opted into lie, for processes of other working directories and paths."""
    specs = (find_spec(name) for name in packages() if name != OWN)
    locations = ((spec.submodule_search_locations or [spec.origin])[0] for spec in specs if spec)
    return list(dict.fromkeys(str(Path(location).parent) for location in locations if location))


def conf_folders() -> list[Path]:
    """The config folders of the packages opted into."""
    found = (signatures.package_folder(name) for name in packages() if name != OWN)
    return [folder / "conf" for folder in found if folder is not None and (folder / "conf").is_dir()]

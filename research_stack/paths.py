"""Where things stand: the config folder, and the names of run and sweep folders. No torch, no hydra.

Runs are written below the working directory: `outputs/<name>/<time>` for one run,
`multirun/<name>/<what is swept>/<overrides of the point>` for a sweep, so that the same or an extended sweep finds
the points it already has.
"""
from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from research_stack.redaction import redact_override

PACKAGE = Path(__file__).resolve().parent
#: Inside the package when installed from a wheel, beside it in a checkout.
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())
OUTPUTS = Path("outputs")
MULTIRUN = Path("multirun")
LONGEST = 120  # characters of a folder name: file systems allow 255 bytes, terminals less
#: Keys that say how a sweep is run and not what: they do not name a point's folder.
UNNAMED = ("sweep", "launcher", "logger", "name", "task", "run", "hydra", "dry_run")


def slug(text: str, longest: int = LONGEST) -> str:
    """The text with only letters, digits and `=,+-_.`; a hash of the whole ends what lost more than its looks.

    Brackets, quotes and spaces are left out and slashes become dots; where anything else had to be replaced or cut,
    the hash keeps two texts from sharing a folder.
    """
    bare = re.sub(r"[\[\]{}'\" ]", "", text).replace("/", ".").strip(".")
    safe = re.sub(r"[^\w=,+.\-]", "_", bare, flags=re.ASCII)
    if safe and safe == bare and len(safe) <= longest:
        return safe
    return f"{safe[: longest - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def key_of(override: str) -> str:
    """The dotted key of `key=value`, without the `+`, `++` or `~` in front and the `@package` behind."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def is_unnamed(override: str) -> bool:
    """Whether the override leaves a point's folder name alone."""
    return re.split(r"[./]", key_of(override))[0] in UNNAMED


def point_name(overrides: Iterable[str]) -> str:
    """The folder name of a sweep's point: its overrides sorted by key, as in `corruption.mask_ratio=.3,seed=1`."""
    named = sorted((o for o in overrides if not is_unnamed(o)), key=key_of)
    said = ",".join(o.lstrip("+") for o in named)
    shown = ",".join(redact_override(o.lstrip("+")) for o in named)
    # Points that differ in a secret alone have folders of their own.
    apart = "" if shown == said else f"-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    return slug(shown + apart) if named else "defaults"


def sweep_folder(names: Iterable[str], group: str | None, swept: Sequence[str]) -> Path:
    """`multirun/<names>/<sweep group and swept keys, joined by +>`; the seed is no axis of its own."""
    axes = [*([group] if group else []), *sorted(set(swept) - {"seed"})] or ["seed"]
    return MULTIRUN / slug("+".join(sorted(set(names)))) / slug("+".join(axes))


def new_run_folder(name: str, moment: datetime | None = None) -> Path:
    """`outputs/<name>/<YYYY-mm-dd_HH-MM-SS>`, with `_2`, `_3`, ... behind it if that exists."""
    first = OUTPUTS / slug(name) / (moment or datetime.now()).strftime("%Y-%m-%d_%H-%M-%S")
    folder, number = first, 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}_{number}")
    return folder


def shown(path: str | os.PathLike[str]) -> str:
    """The path as a user types it: relative to the working directory where it lies below it."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def known_runs() -> list[Path]:
    """Every run folder below outputs/ and multirun/, the newest first."""
    found = [p.parent for root, depth in ((OUTPUTS, "*/*"), (MULTIRUN, "*/*/*")) for p in root.glob(f"{depth}/run.json")]
    return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)


def groups(folders: Iterable[Path]) -> dict[str, list[str]]:
    """{group: its options} of config folders, nested groups as `a/b`, sorted."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/**/*.yaml"):
            found.setdefault(file.parent.relative_to(folder).as_posix(), set()).add(file.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}

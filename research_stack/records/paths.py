"""Where things stand: the config folder, and the names of run and sweep folders. No torch, no hydra.

Runs are written below the working directory: `outputs/<name>/<time>` for one run,
`multirun/<name>/<what is swept>/<overrides of the point>` for a sweep, so that the same or an extended sweep finds
the points it already has.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from research_stack.records.redaction import redact_override

PACKAGE = Path(__file__).resolve().parent.parent
#: Inside the package when installed from a wheel, beside it in a checkout.
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())
OUTPUTS = Path("outputs")
MULTIRUN = Path("multirun")
SAFE = r"[A-Za-z0-9_=,+\-][A-Za-z0-9_=,+.\-]*(?<!\.)"  # a text that is a folder name as it is
HASHED = r"-[0-9a-f]{8}$"  # how the name of any other text ends
PLAIN = r"[\w.\-]+=([\w+.\-]*|\[[\w+.\-]+(,[\w+.\-]+)+\])"  # an override whose text can be told from its name
LONGEST = 120  # characters of a folder name: file systems allow 255 bytes, terminals less
#: Keys that say how a sweep is run and not what: they do not name a point's folder.
UNNAMED = ("sweep", "launcher", "logger", "name", "task", "run", "hydra", "dry_run")


def slug(text: str, longest: int = LONGEST) -> str:
    """A folder name of letters, digits and `=,+-_.` for the text; no two texts share one.

    A text of these alone is its own name. In any other brackets, quotes and spaces are left out, slashes become dots
    and the rest `_`, and a hash of the whole text ends the name.
    """
    if len(text) <= longest and re.fullmatch(SAFE, text) and not re.search(HASHED, text):
        return text
    bare = re.sub(r"[\[\]{}'\" ]", "", text).replace("/", ".").strip(".")
    safe = re.sub(r"[^\w=,+.\-]", "_", bare, flags=re.ASCII)
    return f"{safe[: longest - 9]}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]}"


def key_of(override: str) -> str:
    """The dotted key of `key=value`, without the `+`, `++` or `~` in front and the `@package` behind."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def is_unnamed(override: str) -> bool:
    """Whether the override leaves a point's folder name alone."""
    return re.split(r"[./]", key_of(override))[0] in UNNAMED


def point_name(overrides: Iterable[str]) -> str:
    """The folder name of a sweep's point: its overrides sorted by key, as in `corruption.mask_ratio=0.3,seed=1`.

    Two points never share one. A value is plain where it holds no comma, or is a list of several such: its brackets
    need not be written, since a comma that no key follows goes on with a list. What is not plain puts a hash at the
    end.
    """
    named = sorted((o for o in overrides if not is_unnamed(o)), key=key_of)
    if not named:
        return "defaults"
    said = ",".join(o.lstrip("+") for o in named)
    whole = ",".join(redact_override(o.lstrip("+")) for o in named)
    if whole != said:  # points that differ in a secret alone
        return slug(f"{whole}-{hashlib.sha256(said.encode()).hexdigest()[:8]}")
    bare = whole.replace("[", "").replace("]", "")
    plain = all(re.fullmatch(PLAIN, o.lstrip("+"), flags=re.ASCII) for o in named) and slug(bare) == bare
    return bare if plain else slug(whole)


def sweep_folder(names: Iterable[str], group: str | None, swept: Sequence[str]) -> Path:
    """`multirun/<names>/<sweep group and swept keys, joined by +>`; the seed is no axis of its own.

    A nested group and a key of the same letters may share the folder: their points do not.
    """
    axes = [*([group] if group else []), *sorted(set(swept) - {"seed"})] or ["seed"]
    return MULTIRUN / slug("+".join(sorted(set(names)))) / slug("+".join(axes).replace("/", "."))


def claim(wanted: Path) -> Path:
    """Make the folder, with `_2`, `_3`, ... behind its name where that exists.

    It belongs to the caller alone, however many ask at once.
    """
    folder, number = wanted, 1
    wanted.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}_{number}")
        else:
            return folder


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove the folder afterwards if nothing came of it."""
    try:
        yield
    finally:
        with suppress(OSError):  # not there, or not empty
            folder.rmdir()


def next_run_folder(name: str, moment: datetime | None = None) -> Path:
    """`outputs/<name>/<YYYY-mm-dd_HH-MM-SS>`, where a run that starts now would be; makes nothing."""
    return OUTPUTS / slug(name) / (moment or datetime.now()).strftime("%Y-%m-%d_%H-%M-%S")


def new_run_folder(name: str, moment: datetime | None = None) -> Path:
    """Make `outputs/<name>/<YYYY-mm-dd_HH-MM-SS>`, with `_2`, ... behind it where others started in the same second."""
    return claim(next_run_folder(name, moment))


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` as the home folder; `~` stays where there is none (no HOME, a user without a name)."""
    return Path(os.path.expanduser(path))


def names_folder(init_from: str) -> bool:
    """Whether `init_from` names a folder and not an experiment."""
    return expanded(init_from).is_dir() or "/" in init_from.split(" ")[0]


def shown(path: str | os.PathLike[str]) -> str:
    """The path as a user types it: relative to the working directory where it lies below it."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def known_runs() -> list[Path]:
    """Every run folder below outputs/ and multirun/, the newest first."""
    found = [
        p.parent for root, depth in ((OUTPUTS, "*/*"), (MULTIRUN, "*/*/*")) for p in root.glob(f"{depth}/run.json")
    ]
    return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)


def groups(folders: Iterable[Path]) -> dict[str, list[str]]:
    """{group: its options} of config folders, nested groups as `a/b`, sorted."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/**/*.yaml"):
            found.setdefault(file.parent.relative_to(folder).as_posix(), set()).add(file.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}

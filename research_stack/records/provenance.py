"""Where a run came from: run.json in its folder, and a line in the history of all runs. No torch, no hydra.

run.json says what it takes to understand and repeat a run: the command, the code (git commit and difference), the
config hash, the versions, the machine. Environment variables are left out but for the names of the SLURM job, and
tokens in arguments are masked, so that a run folder can be given away.

outputs/history.jsonl gets one line per run that ended, however it ended; several processes may write it at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import research_stack
from research_stack.records.config_hash import canonical, config_hash, differences, extension, hashed_keys, plain_config
from research_stack.records.files import append_jsonl, atomic_write, read_json, read_jsonl, to_json, write_json
from research_stack.records.redaction import redact, redact_override
from research_stack.records.run_folder import Refused, RunFolder, now

log = logging.getLogger(__name__)

PACKAGE = Path(research_stack.__file__).resolve().parent
DISTRIBUTIONS = (
    "research-stack",
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "transformers",
    "tokenizers",
    "datasets",
    "peft",
    "numpy",
    "pyarrow",
    "matplotlib",
    "wandb",
    "tensorboard",
    "submitit",
    "hydra-submitit-launcher",
    "scipy",
)
KEPT = ("data", "model", "method", "init_from")  # facts of run.json that all parts of a run share
DIFF_LIMIT = 1_000_000  # bytes; a larger difference is named but not kept
GROUPS = ("method", "model", "corruption", "data", "sampler", "trainer", "eval", "hardware", "logger", "launcher")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "bf16", "sve")  # what decides the matmul speed
SLURM_NAMES = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST",
    "SLURM_NTASKS",
)


# ------------------------------------------------------------------------------------------------ parts
def command_line(argv: Sequence[str]) -> str:
    """The command as one would type it in a shell, secrets masked; `python -m` and the console script read the same."""
    return " ".join(["research-stack" if _is_ours(argv[0]) else shlex.quote(argv[0]), *map(_typed, argv[1:])])


def _typed(argument: str) -> str:
    quoted = shlex.quote(argument) != argument  # a mask itself needs no quotes
    return shlex.quote(redact_override(argument)) if quoted else redact_override(argument)


def _is_ours(program: str) -> bool:
    path = Path(program)
    return path.name in ("research-stack", "-m") or (path.name == "__main__.py" and path.parent.name == PACKAGE.name)


def overrides_of(argv: Sequence[str]) -> list[str]:
    """The `key=value` arguments of this run: those of the sweep's point inside a Hydra job, else the command's."""
    hydra = sys.modules.get("hydra.core.hydra_config")
    if hydra is not None and hydra.HydraConfig.initialized():
        from omegaconf import OmegaConf

        task = OmegaConf.to_container(hydra.HydraConfig.get().overrides.task)  # a `${` in a prompt is no reference
        return [str(override) for override in task or ()]
    return [argument for argument in argv[1:] if "=" in argument and not argument.startswith("-")]


def _git(*arguments: str) -> str | None:
    """What git says of the package's own checkout; None where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def code() -> tuple[dict[str, Any] | None, str]:
    """({"sha", "branch", "dirty", "changes", "untracked"}, difference to the commit) of the checkout we run from.

    changes: a digest of the difference, None without one.

    (None, "") when the package is installed, also where the folder it is installed in lies in somebody's
    checkout: the package's own files must be tracked there.
    """
    if not (_git("ls-files", "--", "__init__.py") or "").strip():
        return None, ""
    sha, branch = _git("rev-parse", "HEAD"), _git("rev-parse", "--abbrev-ref", "HEAD")
    if sha is None:
        return None, ""
    status, difference = _git("status", "--porcelain") or "", _git("diff", "HEAD", "--no-color", "--no-ext-diff") or ""
    untracked = [line[3:] for line in status.splitlines() if line.startswith("??")]
    facts = {
        "sha": sha.strip(),
        "branch": (branch or "").strip(),
        "dirty": bool(difference),
        "changes": _digest(difference),
        "untracked": untracked[:50],
    }
    return facts, redact(difference)


def _digest(difference: str) -> str | None:
    return hashlib.sha256(difference.encode()).hexdigest()[:12] if difference else None


def versions() -> dict[str, str]:
    """{distribution: version} of what is installed of the packages that matter; imports none of them."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _gpus() -> list[str]:
    """Model names of the NVIDIA devices the driver lists, from /proc."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = (line for file in files for line in _lines(str(file)))
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def machine() -> dict[str, Any]:
    """Host, processor, cores this process may use, memory in GiB, instruction sets, GPUs."""
    cpu = dict(_pairs(_lines("/proc/cpuinfo")))
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")), 0)
    flags = set(f"{cpu.get('flags', '')} {cpu.get('Features', '')}".split())
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu.get("model name") or platform.machine(),
        "cores": _cores(),
        "memory_gib": round(memory / 2**20, 1),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "gpus": _gpus(),
    }


def _cores() -> int:
    """Cores this process may run on; macOS cannot tell and gives all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pairs(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines))


# ----------------------------------------------------------------------------------------------- run.json
def begin(
    folder: str | os.PathLike[str], config: Any, argv: Sequence[str] | None = None, resumed: bool = False
) -> dict[str, Any]:
    """Write run.json (and diff.patch where the code differs from its commit); returns what it holds.

    A resumed run keeps the records of its earlier parts under "earlier": command, commit, host and start of each, and
    the result of a part that had ended well before it was made longer. What it knows of its data, its model and the
    weights it began with stays, to be compared with what it goes on with; code that has changed is logged.
    """
    run_folder, argv = RunFolder(folder), list(sys.argv if argv is None else argv)
    plain = plain_config(config)
    git, difference = code()
    facts = {
        "command": command_line(argv),
        "argv": [redact_override(argument) for argument in argv],
        "overrides": [redact_override(override) for override in overrides_of(argv)],
        "cwd": os.getcwd(),
        "pid": os.getpid(),
        "name": plain.get("name"),
        "seed": plain.get("seed"),
        "hash": config_hash(plain),
        "git": git,
        "python": platform.python_version(),
        "versions": versions(),
        "machine": machine(),
        "slurm": {name: os.environ[name] for name in SLURM_NAMES if name in os.environ} or None,
        "started": now(),
        "data": None,
    }
    if run_folder.run_json.is_file():
        old = read_json(run_folder.run_json)
        facts["earlier"] = _earlier(run_folder, old)
        if resumed:
            facts |= {key: old[key] for key in KEPT if old.get(key) is not None}
            _tell_changes(old, facts)
    facts["config"] = _leaves(run_folder)
    if difference:
        facts["git"]["diff"] = _keep(run_folder.path / "diff.patch", difference)
    write_json(run_folder.run_json, facts)
    return facts


def _keep(path: Path, difference: str) -> str | None:
    """Save the difference unless it is huge; its file name, or None."""
    if len(difference) > DIFF_LIMIT:
        log.warning("the code differs from its commit by %d characters: the difference is not kept", len(difference))
        return None
    atomic_write(path, difference)
    return path.name


def _earlier(run_folder: RunFolder, old: Mapping[str, Any]) -> list[dict[str, Any]]:
    part = {key: old.get(key) for key in ("command", "started", "slurm")}
    part |= {"sha": (old.get("git") or {}).get("sha"), "host": (old.get("machine") or {}).get("host")}
    if run_folder.result_json.is_file() and (result := read_json(run_folder.result_json)).get("status") == "ok":
        part["result"] = result
    return [*old.get("earlier", []), part]


def _leaves(run_folder: RunFolder) -> dict[str, Any]:
    """What config.yaml says of the numbers, as JSON keeps it; {} without one."""
    leaves = hashed_keys(run_folder.read_config()) if run_folder.config_yaml.is_file() else {}
    return {key: canonical(value) for key, value in leaves.items()}


def refuse_edited(run_folder: RunFolder) -> None:
    """Raise Refused when config.yaml is not the one the run was started with: it does not say how it was trained.

    One that makes the run longer is no other: it is written first, and a kill may leave it so.
    """
    known = read_json(run_folder.run_json).get("config") if run_folder.run_json.is_file() else None
    found = run_folder.read_config() if known else {}
    if known and (said := differences(known, found)) and extension(known, found) is None:
        raise Refused(
            f"{run_folder.config_yaml} has been edited since its run was started ({said}): bring the old "
            "one back, or train the new one in a folder of its own"
        )


def tell_changes(run_folder: RunFolder) -> None:
    """Say in the log when code or libraries are not those that the run was last trained with."""
    if run_folder.run_json.is_file():
        _tell_changes(read_json(run_folder.run_json), {"git": code()[0], "versions": versions()})


def _tell_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    then, now = (facts.get("git") or {} for facts in (old, new))
    if then.get("sha") and now.get("sha") and (then["sha"], then.get("changes")) != (now["sha"], now.get("changes")):
        log.warning(
            "the code has changed since this run was last trained: %s then, %s now", _commit(then), _commit(now)
        )
    before, after = (facts.get("versions") or {} for facts in (old, new))
    pairs = [(name, before[name], after[name]) for name in before if name in after]
    changed = [f"{name} {old} then, {new} now" for name, old, new in pairs if old != new]
    if changed:
        log.warning("libraries have changed since this run was last trained: %s", "; ".join(changed))


def _commit(git: Mapping[str, Any]) -> str:
    return f"commit {git['sha'][:12]}{' with changes of its own' if git.get('dirty') else ''}"


def add(folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
    """Add facts that are known later (the data's fingerprint, the model's size, the device) to run.json."""
    run_folder = RunFolder(folder)
    write_json(run_folder.run_json, {**read_json(run_folder.run_json), **facts})


# ------------------------------------------------------------------------------------------------ history
def history_file() -> Path:
    """outputs/history.jsonl below the working directory."""
    return Path("outputs") / "history.jsonl"


def choices(config: Any) -> dict[str, str]:
    """{group: last part of its `_target_`} for the groups that have one; evaluations and loggers by their names."""
    found = {}
    for group in GROUPS:
        node = plain_config(config).get(group)
        if not isinstance(node, Mapping):
            continue
        if "_target_" in node:
            found[group] = str(node["_target_"]).rpartition(".")[2]
        elif names := [key for key, value in node.items() if isinstance(value, Mapping) and "_target_" in value]:
            found[group] = ",".join(names)
    return found


def history(
    folder: str | os.PathLike[str], config: Any, task: str = "train", path: Path | None = None
) -> dict[str, Any]:
    """Append the run's line to the history of all runs; returns the line.

    - path: the history file; default outputs/history.jsonl below the working directory.

    A history that cannot be written is reported in the log and does not take the run down with it.
    """
    run_folder, plain = RunFolder(folder), plain_config(config)
    started = read_json(run_folder.run_json) if run_folder.run_json.is_file() else {}
    result = read_json(run_folder.result_json) if run_folder.result_json.is_file() else {}
    line = {
        "folder": str(run_folder.path),
        "task": task,
        "name": plain.get("name"),
        "status": result.get("status"),
        "hash": config_hash(plain),
        "sha": (started.get("git") or {}).get("sha"),
        "seed": plain.get("seed"),
        "command": command_line(sys.argv),
        "argv": [redact_override(argument) for argument in sys.argv],
        "overrides": [redact_override(override) for override in overrides_of(sys.argv)],
        "choices": choices(plain),
        "host": socket.gethostname(),
        "started": result.get("started"),
        "finished": now(),
        "seconds": result.get("seconds"),
        "steps": result.get("steps"),
        "metrics": result.get("metrics", {}),
        "error": result.get("error"),
    }
    try:
        append_jsonl(path or history_file(), line)
    except OSError as error:
        log.error("%s", error)
    return line


def search_history(*words: str, path: Path | None = None) -> list[dict[str, Any]]:
    """The lines of the history that hold every word (any case) in any of their values, oldest first."""
    rows = read_jsonl(path or history_file())
    return [row for row in rows if all(word.lower() in to_json(row).lower() for word in words)]

"""How a run was made: command, code, machine, data, config, and the commands that repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from research_stack.reporting.elements import count, duration, facts, folded, moment
from research_stack.reporting.html import Element, Node, el
from research_stack.reporting.run_files import RunFiles


def provenance(run: RunFiles, measured_by: str = "", samples: bool = True) -> Node:
    """The section.

    - measured_by: the option of `eval` that measures such a run, where nothing has measured it; samples: whether it can
      be sampled from.
    """
    run_json, git, machine = run.run, run.run.get("git") or {}, run.run.get("machine") or {}
    data, versions = run_json.get("data") or {}, run_json.get("versions") or {}
    rows: dict[str, Any] = {
        "command": el("code", run_json["command"]) if run_json.get("command") else None,
        "code": _code(git),
        "seed": run_json.get("seed"),
        "config hash": run_json.get("hash"),
        "started": moment(run.result.get("started")),
        "finished": moment(run.result.get("finished")),
        "time": duration(run.seconds) if run.seconds else None,
        "machine": _machine(machine),
        "python": run_json.get("python"),
        "folder": el("code", str(run.folder)),
    }
    data_rows = {key.replace("_", " "): count(value) for key, value in data.items() if value is not None}
    return [
        el("h2", "How it was made"),
        facts(rows),
        _again(run, measured_by, samples),
        folded("Data", facts(data_rows)) if data else None,
        folded("Versions", facts(versions)) if versions else None,
        folded("All metrics", facts({key: f"{v:.6g}" for key, v in run.metrics.items()})) if run.metrics else None,
        folded("Config", el("pre", run.config_text)) if run.config_text else None,
    ]


def _code(git: Mapping[str, Any]) -> str | None:
    if not git.get("sha"):
        return None
    patch = ", with changes that were not kept" if git.get("dirty") else ""
    patch = f", with the changes in {git['diff']}" if git.get("diff") else patch
    return f"{git['sha'][:12]}{' on ' + git['branch'] if git.get('branch') else ''}{patch}"


def _machine(machine: Mapping[str, Any]) -> str | None:
    if not machine:
        return None
    gpus = ", ".join(machine.get("gpus") or [])
    return (
        f"{machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, {machine.get('memory_gib', '?')}"
        f" GiB{', ' + gpus if gpus else ''} ({machine.get('host', '?')})"
    )


def _again(run: RunFiles, measured_by: str, samples: bool) -> list[Element]:
    """The commands that repeat, resume, measure and sample."""
    folder, command = shlex.quote(str(run.folder)), run.run.get("command") or "research-stack"
    sha = (run.run.get("git") or {}).get("sha")
    again = f"git checkout {sha[:12]} && {command}" if sha else command
    lines = [("go on where it stopped", f"research-stack run={folder}")] if run.status != "ok" else []
    lines += [
        ("run it again from the start", again),
        ("measure it anew", f"research-stack task=eval run={folder}{f' eval={measured_by}' if measured_by else ''}"),
    ]
    lines += [("sample from it", f"research-stack task=sample run={folder}")] if samples else []
    return [el("h3", "Again"), el("pre", "\n".join(f"# {what}\n{text}" for what, text in lines))]

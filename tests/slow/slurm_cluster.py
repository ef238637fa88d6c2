"""A private SLURM cluster of one node for tests: munged, slurmctld and slurmd under one temporary folder.

Needs root and Debian's slurm-wlm and munge; no systemd, nothing outside the folder is written. The node claims more
CPUs than there are. Partitions: `debug` (the default, may be preempted) and `urgent` (preempts it).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

COMMANDS = ("slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel", "munged", "munge")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job may start again after cred_expire: 120 s by default, 5 at least.
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=600
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=128
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Without this a preempted job is told by SIGTERM only.
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} Boards=1 \
SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory} State=UNKNOWN
PartitionName=debug Nodes=n1 Default=YES MaxTime=INFINITE State=UP PriorityTier=10 GraceTime=60
PartitionName=urgent Nodes=n1 MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
"""

#: submitit asks sacct, which needs a database; this answers the one question it asks from the controller's memory.
SACCT = """\
#!{python}
import re, subprocess, sys
asked = [value for flag, value in zip(sys.argv, sys.argv[1:]) if flag == "-j"]
print("JobID|State|NodeList")
for job in asked:
    shown = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True).stdout
    for line in shown.splitlines():
        facts = dict(re.findall(r"(?:^|\\s)(\\w+)=(\\S*)", line))
        name = facts["JobId"]
        if "ArrayJobId" in facts:
            task = facts["ArrayTaskId"]
            name = facts["ArrayJobId"] + "_" + (task if task.isdigit() else "[" + task + "]")
        print(name, facts["JobState"], facts.get("NodeList", ""), sep="|")
"""


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    absent = [command for command in COMMANDS if shutil.which(command) is None]
    if absent:
        return f"no {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "starting slurmctld needs root"


@contextmanager
def cluster(cpus: int = 8, memory: int = 8192) -> Iterator[dict[str, str]]:
    """Run a cluster for the block; gives the environment in which SLURM's commands find it. `memory` in MiB."""
    # munged wants a path that everybody may enter, which pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="slurm-test-") as root, _running(Path(root), cpus, memory) as environment:
        yield environment


@contextmanager
def _running(root: Path, cpus: int, memory: int) -> Iterator[dict[str, str]]:
    """Start the daemons one after the other, and end what was started, however the block ends."""
    environment = _configure(root, cpus, memory)
    processes: list[tuple[str, int]] = []
    try:
        for command, ready in _daemons(root, environment):
            processes.append((command[0], _start(command, root, environment)))
            _wait(20, command[0], ready, root)
        try:
            yield environment
        finally:
            _cancel_jobs(environment)
    finally:
        for name, pid in reversed(processes):
            _stop(name, pid)


def _configure(root: Path, cpus: int, memory: int) -> dict[str, str]:
    """Write the configuration, the key and the stand-in for sacct; the environment that points at them."""
    for folder in ("state", "spool", "bin"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    (root / "slurm.conf").write_text(
        CONF.format(root=root, host=host, port=_free_port(), node_port=_free_port(), cpus=cpus, memory=memory)
    )
    (root / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (root / "munge.key").write_bytes(os.urandom(128))
    (root / "munge.key").chmod(0o400)
    (root / "bin" / "sacct").write_text(SACCT.format(python=sys.executable))
    (root / "bin" / "sacct").chmod(0o755)
    return os.environ | {
        "SLURM_CONF": str(root / "slurm.conf"), "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "MASTER_ADDR": "127.0.0.1",  # n1 is no host name
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _daemons(root: Path, environment: dict[str, str]) -> list[tuple[list[str], Callable[[], bool]]]:
    """Each daemon's command line (in the foreground), and how to see that it is ready."""

    def answers(*command: str) -> bool:
        return subprocess.run(command, env=environment, capture_output=True).returncode == 0

    def node_ready() -> bool:
        state = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
        ).stdout.split()
        return bool(state) and all(s in ("idle", "mixed", "allocated") for s in state)

    munged = [
        "munged",
        "--foreground",
        f"--key-file={root}/munge.key",
        f"--socket={root}/munge.socket",
        f"--pid-file={root}/munged.pid",
        f"--seed-file={root}/munge.seed",
        f"--log-file={root}/munged.log",
    ]
    return [
        (munged, lambda: answers("munge", "-n", "-S", f"{root}/munge.socket")),
        (["slurmctld", "-D"], lambda: answers("scontrol", "ping")),
        (["slurmd", "-D", "-N", "n1"], node_ready),
    ]


def _start(command: list[str], root: Path, environment: dict[str, str]) -> int:
    with open(root / f"{command[0]}.out", "wb") as out:
        return subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
        ).pid


def _wait(seconds: float, what: str, ready: Callable[[], bool], root: Path) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = "".join(
                f"--- {p.name}\n{p.read_text(errors='replace')[-2000:]}"
                for p in sorted(root.glob(f"{what}.*"))
                if p.suffix in (".log", ".out")
            )
            raise RuntimeError(f"{what} is not ready after {seconds} s\n{logs}")
        time.sleep(0.1)


def _cancel_jobs(environment: dict[str, str]) -> None:
    """End all jobs first: their step daemons outlive slurmd."""
    subprocess.run(
        ["scancel", "--full", "--signal=KILL", "--user=root"], env=environment, capture_output=True, timeout=10
    )
    subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=10)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        left = subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True, timeout=10)
        if left.returncode != 0 or not left.stdout.strip():
            return
        time.sleep(0.2)


def _stop(name: str, pid: int) -> None:
    """End a daemon that this module started and reap it. The controller's slow saving of its state is not waited
    for.
    """
    os.kill(pid, signal.SIGKILL if name == "slurmctld" else signal.SIGTERM)
    deadline = time.monotonic() + 5
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)

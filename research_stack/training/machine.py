"""The machine that this process runs on: features of its CPU, the cores it may use, what started it. No torch."""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
#: CPU features that multiply bf16 matrices in hardware: several times the speed of float32.
BF16_FLAGS = ("amx_bf16", "avx512_bf16")


def under_srun() -> bool:
    """Whether srun started this process: then one process per task exists already."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ


def keep_freed_memory() -> None:
    """Let the C library keep memory that is freed, up to 1 GiB, for the next tensor.

    By default glibc maps each tensor above 128 KiB anew and hands it back, page by page: a tenth to a quarter of a
    small model's step on a CPU. Does nothing with other C libraries.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        log.debug("no glibc here: freed memory goes back to the system")
        return
    for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(parameter, 2**30)


def under_torchrun() -> bool:
    """Whether torch.distributed.run started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The CPU's features as Linux names them; empty elsewhere."""
    if not cpuinfo.is_file():
        return set()
    lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    return set(next(lines, "").partition(":")[2].split())


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has matrix products of bfloat16; without them they are emulated, many times slower than
    float32.
    """
    return bool(cpu_flags() & set(BF16_FLAGS))


def usable_cores() -> int:
    """Physical cores this process may use: its affinity mask, a cluster's share and a container's quota respected."""
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = {_siblings(cpu) for cpu in allowed}
    limits = [len(siblings), _quota(Path("/sys/fs/cgroup/cpu.max"))]
    if under_srun() and "SLURM_CPUS_PER_TASK" in os.environ:
        limits.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    return max(1, min(limits))


def _siblings(cpu: int) -> str:
    """The hardware threads of this one's core, as one name."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return path.read_text().strip() if path.is_file() else str(cpu)


def _quota(path: Path) -> int:
    """CPUs that a container's quota (cgroup v2) allows, rounded up; a large number without one."""
    words = path.read_text().split() if path.is_file() else ["max"]
    return 2**20 if words[0] == "max" else -(-int(words[0]) // int(words[1]))

"""What a run computes on: device, processes, precision, threads. Torch is imported only when a method needs it.

The same node describes a laptop, a box with several GPUs and a cluster job. Nothing here changes what is
computed, only where, and how numbers are rounded (`precision`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from research_stack.require import require
from research_stack.training.machine import (
    cpu_multiplies_bf16,
    keep_freed_memory,
    under_srun,
    under_torchrun,
    usable_cores,
)

if TYPE_CHECKING:
    import torch

#: Keys of `resources`: what a cluster job asks for. Null leaves it to the cluster.
RESOURCES = (
    "partition",
    "timeout_min",
    "mem_gb",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "nodes",
    "account",
    "qos",
    "constraint",
    "max_num_timeout",
)


class Method(Protocol):
    """What this needs of a method."""

    def compile_blocks(self) -> None:
        """Compile what of the model can gain from it."""
        ...

    def shard_later(self) -> None:
        """Have Lightning cut the weights into shards once the processes have found each other.

        Raises ValueError where they cannot be.
        """
        ...


Trainable = TypeVar("Trainable", bound=Method)


@dataclass
class Hardware:
    """Where and how a run computes.

    - accelerator: cpu or gpu.
    - devices: processes on each node, one per GPU; on a CPU, processes that share the cores.
    - num_nodes: machines; more than one needs launcher=slurm.
    - precision: 32, or bf16-mixed (weights and optimizer in float32, matrix products in bfloat16). `auto` is
      bf16-mixed where the machine multiplies bfloat16 in hardware, else 32.
    - strategy: `auto` is one process, or ddp for several; fsdp shards weights, gradients and optimizer.
    - threads: CPU threads of each process; null shares the physical cores that the run may use.
    - compile: torch.compile the blocks of the backbone: slower to start, faster steps; pays off from minutes on. Texts
      are written without.
    - resources: what one cluster job asks for (keys in RESOURCES); used by launcher=slurm only.
    - submit: set by launcher=slurm: the run belongs in a cluster job and refuses to start elsewhere.
    """

    accelerator: Literal["cpu", "gpu"] = "cpu"
    devices: int = 1
    num_nodes: int = 1
    precision: Literal["auto", "32", "bf16-mixed", 32] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    threads: int | None = None
    compile: bool = False
    resources: dict[str, Any] = field(default_factory=dict)
    submit: bool = False

    def __post_init__(self) -> None:
        require(self.devices >= 1, f"devices={self.devices} must be at least 1")
        require(self.devices <= 1_024, f"devices={self.devices} must be at most 1,024")
        require(self.num_nodes >= 1, f"num_nodes={self.num_nodes} must be at least 1")
        require(self.num_nodes <= 100_000, f"num_nodes={self.num_nodes} must be at most 100,000")
        require(
            self.threads is None or self.threads >= 1,
            f"threads={self.threads} must be at least 1, or null for all cores",
        )
        require(self.threads is None or self.threads <= 4_096, f"threads={self.threads} must be at most 4,096")
        for key in self.resources:
            require(
                key in RESOURCES,
                f"resources.{key}={self.resources[key]} is no resource; there are {', '.join(RESOURCES)}",
            )
        timeout = self.resources.get("timeout_min")
        require(
            timeout is None or timeout > 10,
            f"resources.timeout_min={timeout} must be above 10: below, submitit takes every preemption for a time-out",
        )
        self._tasks_equal_devices()

    def _tasks_equal_devices(self) -> None:
        """A job with another number of tasks would train unrelated models, or hang."""
        for key, other, count in (("tasks_per_node", "devices", self.devices), ("nodes", "num_nodes", self.num_nodes)):
            asked = self.resources.get(key)
            require(
                asked is None or asked == count,
                f"resources.{key}={asked} must equal {other}={count}: one task drives one device",
            )

    @property
    def processes(self) -> int:
        """Processes over all nodes."""
        return self.devices * self.num_nodes

    def resolved_precision(self) -> Literal["32-true", "bf16-mixed"]:
        """The precision under Lightning's name, `auto` settled for this machine."""
        if str(self.precision) != "auto":
            return "bf16-mixed" if self.precision == "bf16-mixed" else "32-true"
        return "bf16-mixed" if self._has_bf16() else "32-true"

    def _has_bf16(self) -> bool:
        if self.accelerator == "cpu":
            return cpu_multiplies_bf16()
        import torch

        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)

    def resolved_threads(self, ranks: int | None = None) -> int:
        """CPU threads of this process, or of each of `ranks` processes that share this machine's cores."""
        if (
            ranks is None
        ):  # srun gives each task cores of its own; the process that launches others waits while they work
            ranks = self.devices if under_torchrun() else 1
        return self.threads or max(1, usable_cores() // ranks)

    def apply(self) -> None:
        """Set this process's threads and float32 matrix precision. ValueError if the accelerator is missing."""
        import torch

        if self.accelerator == "gpu":
            found = torch.cuda.device_count() if torch.cuda.is_available() else 0
            require(found > 0, "hardware.accelerator=gpu but torch sees no GPU here; nearest choice: hardware=cpu")
            require(found >= self.devices, f"hardware.devices={self.devices} but torch sees {found} GPUs here")
        torch.set_num_threads(self.resolved_threads())
        keep_freed_memory()
        # TF32 on GPUs for what stays in float32; CPUs have no such mode that is worth its rounding.
        torch.set_float32_matmul_precision("high" if self.accelerator == "gpu" else "highest")

    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of lightning.Trainer, for this process among the others."""
        return {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "num_nodes": self.num_nodes,
            "precision": self.resolved_precision(),
            "strategy": self._strategy(),
        }

    def _strategy(self) -> Any:
        if self.strategy == "fsdp":
            from research_stack.training.sharding import Sharded

            return Sharded(self.processes)
        if self.strategy == "ddp" or self.processes > 1:
            from lightning.pytorch.strategies import DDPStrategy

            return DDPStrategy(process_group_backend="nccl" if self.accelerator == "gpu" else "gloo")
        return "auto"

    def plugins(self) -> list[Any]:
        """Who started this process, said explicitly: Lightning must neither guess nor start processes itself."""
        from lightning.fabric.plugins.environments.lightning import LightningEnvironment
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
        from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

        if under_torchrun():
            return [TorchElasticEnvironment()]
        # Requeueing is the business of research_stack.running.preemption.
        return [SLURMEnvironment(auto_requeue=False) if under_srun() else LightningEnvironment()]

    def device(self) -> torch.device:
        """The first device: where a finished run is evaluated."""
        import torch

        return torch.device("cuda:0" if self.accelerator == "gpu" else "cpu")

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of training, for evaluation."""
        import torch

        bf16 = self.resolved_precision() == "bf16-mixed"
        return torch.autocast(self.device().type, dtype=torch.bfloat16, enabled=bf16)

    def compiled(self, module: Trainable) -> Trainable:
        """The module, its blocks compiled and set up for sharding where asked. Parameter names stay the same.

        ValueError in one line for what cannot be cut into shards.
        """
        if self.compile:
            module.compile_blocks()
        if self.strategy == "fsdp":
            module.shard_later()
        return module

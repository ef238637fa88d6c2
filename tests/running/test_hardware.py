"""Hardware nodes, and the guard against runs that would train something else than asked."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml

from research_stack.records.paths import CONF
from research_stack.running import hardware, launcher, ranks
from research_stack.running.hardware import Hardware
from research_stack.training import machine

NODES = sorted((CONF / "hardware").glob("*.yaml"))
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
        "SLURM_NNODES": "1", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}  # fmt: skip


@pytest.fixture(autouse=True)
def outside_any_job(monkeypatch):
    """The machine the tests run on may itself be a cluster job."""
    for key in list(os.environ):
        if key.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(key)


def srun(monkeypatch, tasks: int = 1, nodes: int = 1, rank: int = 0, **more: str) -> None:
    facts = SRUN | {"SLURM_NTASKS": str(tasks), "SLURM_NNODES": str(nodes), "SLURM_PROCID": str(rank), **more}
    for key, value in facts.items():
        monkeypatch.setenv(key, value)


@pytest.mark.parametrize("path", NODES, ids=lambda p: p.stem)
def test_every_node_builds_and_says_when_to_use_it(path):
    from omegaconf import OmegaConf

    assert path.read_text().startswith("# ")
    node = OmegaConf.to_container(OmegaConf.create({"hardware": yaml.safe_load(path.read_text())}), resolve=True)[
        "hardware"
    ]
    assert node.pop("_target_") == "research_stack.running.hardware.Hardware"
    built = Hardware(**node)
    assert built.processes == node["devices"] * node["num_nodes"]
    if path.stem.startswith("slurm"):
        assert set(node["resources"]) <= set(hardware.RESOURCES)
        assert built.resources["tasks_per_node"] == built.devices and built.resources["timeout_min"] > 10
    assert built.submit is False, "only launcher=slurm sets it"


@pytest.mark.parametrize(("arguments", "line"), [
    ({"devices": 0}, r"devices=0 must"),
    ({"resources": {"partitoin": "x"}}, r"resources.partitoin=x .*partition"),
    ({"resources": {"timeout_min": 10}}, r"resources.timeout_min=10 must be above 10"),
    ({"devices": 2, "resources": {"tasks_per_node": 1}}, r"resources.tasks_per_node=1 must equal devices=2"),
    ({"num_nodes": 2, "resources": {"nodes": 1}}, r"resources.nodes=1 must equal num_nodes=2"),
])  # fmt: skip
def test_mistakes_are_named(arguments, line):
    with pytest.raises(ValueError, match=f"^{line}"):
        Hardware(**arguments)


def test_auto_precision_follows_the_cpu(monkeypatch):
    for flags, expected in (("amx_bf16", "bf16-mixed"), ("avx512_bf16", "bf16-mixed"), ("avx2", "32-true")):
        monkeypatch.setattr(machine, "cpu_flags", lambda flags=flags: {flags, "sse2"})
        assert Hardware().resolved_precision() == expected
        assert Hardware(precision="32").resolved_precision() == Hardware(precision=32).resolved_precision() == "32-true"
        assert Hardware(precision="bf16-mixed").resolved_precision() == "bf16-mixed"


def test_cpu_flags_are_read_from_cpuinfo(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx512_bf16 sse2\nflags\t\t: other\n")
    assert machine.cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx512_bf16", "sse2"}
    assert machine.cpu_flags(tmp_path / "absent") == set()


@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_autocast_has_the_precision_of_training(precision, dtype):
    a = torch.ones(4, 4)
    with Hardware(precision=precision).autocast():
        assert (a @ a).dtype == dtype


def test_threads_share_the_usable_cores(monkeypatch):
    monkeypatch.setattr(hardware, "usable_cores", lambda: 12)
    assert Hardware().resolved_threads() == Hardware(devices=4).resolved_threads() == 12, (
        "alone, or waiting for the others"
    )
    assert [Hardware().resolved_threads(ranks=n) for n in (1, 4, 64)] == [12, 3, 1]
    assert Hardware(devices=4, threads=2).resolved_threads(ranks=4) == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert Hardware(devices=4).resolved_threads() == 3


def test_a_task_of_a_job_has_its_cores_for_itself(monkeypatch):
    monkeypatch.setattr(hardware, "usable_cores", lambda: 12)
    srun(monkeypatch, tasks=4)
    assert Hardware(devices=4).resolved_threads() == 12


def test_hardware_threads_of_a_core_count_once(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "_siblings", lambda cpu: f"{cpu % 2},{cpu % 2 + 2}")
    monkeypatch.setattr(machine, "_quota", lambda path: 2**20)
    assert machine.usable_cores() == 2
    srun(monkeypatch, SLURM_CPUS_PER_TASK="1")
    assert machine.usable_cores() == 1


@pytest.mark.parametrize(("text", "cpus"), [("max 100000", 2**20), ("150000 100000", 2), ("400000 100000", 4)])
def test_container_quota(tmp_path, text, cpus):
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert machine._quota(tmp_path / "cpu.max") == cpus


def test_apply_sets_threads_and_refuses_an_absent_gpu(monkeypatch):
    before = torch.get_num_threads()
    try:
        Hardware(threads=1).apply()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"^hardware.accelerator=gpu but torch sees no GPU here; nearest choice: hardware=cpu"
    ):
        Hardware(accelerator="gpu").apply()


def test_environment_is_never_guessed(monkeypatch):
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    assert [type(p) for p in Hardware().plugins()] == [LightningEnvironment]
    srun(monkeypatch)
    (environment,) = Hardware().plugins()
    assert type(environment) is SLURMEnvironment and environment.auto_requeue is False
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert [type(p) for p in Hardware().plugins()] == [TorchElasticEnvironment]


def test_several_processes_mean_ddp():
    from lightning.pytorch.strategies import DDPStrategy

    from research_stack.training.sharding import Sharded

    assert Hardware().trainer_arguments()["strategy"] == "auto"
    assert type(Hardware(devices=2).trainer_arguments()["strategy"]) is DDPStrategy
    assert type(Hardware(devices=2, strategy="fsdp").trainer_arguments()["strategy"]) is Sharded


def test_what_cannot_be_cut_is_refused_in_one_line():
    from research_stack.training.sharding import require_shardable

    packed = torch.nn.Module()
    packed.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    for module, ema, line in (
        (torch.nn.Linear(1, 1), 0.9, r"^hardware.strategy=fsdp keeps no average .* set optimization.ema=0$"),
        (packed, 0.0, r"^hardware.strategy=fsdp cannot cut quantised weights \(weight\)"),
    ):
        with pytest.raises(ValueError, match=line):
            require_shardable(module, ema)
    require_shardable(torch.nn.Linear(1, 1), 0.0)


# The guard ---------------------------------------------------------------------------------------------------------


def test_local_runs_pass_and_are_launched_here():
    launcher.guard(Hardware())
    launcher.guard(Hardware(devices=2))
    assert not launcher.needs_launch(Hardware()) and launcher.needs_launch(Hardware(devices=2))
    assert not ranks.is_helper_rank()


@pytest.mark.parametrize(("tasks", "devices"), [(1, 2), (2, 1), (2, 4)])
def test_tasks_must_equal_devices(monkeypatch, tasks, devices):
    srun(monkeypatch, tasks=tasks)
    with pytest.raises(ValueError, match=rf"^hardware.devices={devices} but the SLURM job has {tasks} tasks per node"):
        launcher.guard(Hardware(devices=devices))


def test_a_job_of_the_right_shape_passes(monkeypatch):
    srun(monkeypatch, tasks=4, nodes=2, rank=3)
    launcher.guard(Hardware(devices=2, num_nodes=2))
    assert ranks.is_helper_rank() and not launcher.needs_launch(Hardware(devices=2, num_nodes=2))
    with pytest.raises(ValueError, match=r"^hardware.num_nodes=1 but the SLURM job has 2 nodes"):
        launcher.guard(Hardware(devices=4))


def test_the_step_counts_not_the_allocation(monkeypatch):
    """`srun -n1` inside an allocation of four tasks starts one."""
    srun(monkeypatch, tasks=4, SLURM_STEP_NUM_TASKS="1", SLURM_STEP_NUM_NODES="1")
    launcher.guard(Hardware())
    with pytest.raises(ValueError, match="1 tasks per node"):
        launcher.guard(Hardware(devices=4))


def test_torchrun_below_srun_is_refused(monkeypatch):
    srun(monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ValueError, match="must not run below srun"):
        launcher.guard(Hardware())


def test_launcher_without_multirun_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"^launcher=slurm submits sweeps only: add -m"):
        launcher.guard(Hardware(submit=True))
    srun(monkeypatch)
    launcher.guard(Hardware(submit=True))


def test_several_machines_need_slurm():
    with pytest.raises(ValueError, match=r"^hardware.num_nodes=2 needs -m launcher=slurm"):
        launcher.guard(Hardware(num_nodes=2))


@pytest.mark.parametrize(
    ("exitcode", "message", "error", "text"),
    [
        (
            1,
            "Mistake: data.path=nowhere.txt: there is no such file",
            ValueError,
            r"^data.path=nowhere.txt: there is no such file$",
        ),
        (1, "KeyError: 'x'", launcher.WorkerFailed, r"^rank 1 failed \(KeyError: 'x'\)"),
        (
            -int(signal.SIGKILL),
            "Signal 9 (SIGKILL) received by PID 3",
            launcher.WorkerFailed,
            r"^rank 1 died of SIGKILL",
        ),
        (143, "", SystemExit, "143"),
    ],
)
def test_the_failing_rank_is_said_in_one_line(exitcode, message, error, text):
    with pytest.raises(error) as caught:
        launcher._raise_for(1, exitcode, message)
    assert re.search(text, str(caught.value))


def test_headers_name_the_command_of_cluster_nodes():
    for name in ("slurm_cpu", "slurm_gpu", "slurm_h100x8"):
        assert f"-m launcher=slurm hardware={name}" in Path(CONF / "hardware" / f"{name}.yaml").read_text()

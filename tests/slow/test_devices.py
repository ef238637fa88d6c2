"""Nine experiments on two devices give the numbers of one, with copies and with shards; compiled, those of eager."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil

import pytest
import torch
from small_runs import ROOT

pytestmark = pytest.mark.slow

spec = importlib.util.spec_from_file_location("devices", ROOT / "benchmarks" / "devices.py")
devices = importlib.util.module_from_spec(spec)
spec.loader.exec_module(devices)

STEPS = 4
CLOSE, NEAR = (
    1e-4,
    2e-3,
)  # of losses and gradient norms; of the other numbers that are logged, differences of small ones among them
RESUMED = ("minigpt", "latentwire")  # Muon's state; statistics of a quantiser, and weights that are not cut
# A bias in front of a batch normalisation: its gradient is rounding alone, of which Adam makes whole steps.
WITHOUT_GRADIENT = ("pooling.out.bias",)
STOP = "+trainer.max_time={milliseconds: 1}"  # after the first step


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{way: {experiment: folder}}: all trained, those of two processes within one pair of them."""
    folder = tmp_path_factory.mktemp("devices")
    found = devices.prepare(folder, devices.EXPERIMENTS, devices.ONE | devices.TWO, STEPS)
    stopped = devices.prepare(
        folder, RESUMED, {"stopped": [*devices.TWO["fsdp"], STOP]}, STEPS, ["trainer.val_check_interval=1"]
    )
    threads = torch.get_num_threads()
    devices.train([folder for way in devices.ONE for folder in found[way].values()])
    torch.set_num_threads(threads)
    devices.train_on_two([folder for way in (*devices.TWO, "stopped") for folder in (found | stopped)[way].values()])
    return found | stopped


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def differences(folder, reference):
    """What is wrong with a run: its error, steps or numbers that are missing, numbers that are others."""
    if (error := devices.error_of(folder)) is not None:
        return [error]
    ours, theirs = rows(folder), rows(reference)
    if [row.keys() for row in ours] != [row.keys() for row in theirs] or len(theirs) != STEPS:
        return [f"steps or numbers are missing: {ours} of {theirs}"]
    found = []
    for row, expected in zip(ours, theirs, strict=True):
        for name in row.keys() - {"time"}:
            near = CLOSE if name in ("train/loss", "train/grad_norm", "val/loss") else NEAR
            if not math.isclose(row[name], expected[name], rel_tol=near, abs_tol=near * 1e-2):
                found.append(f"step {row['step']} {name}: {row[name]}, not {expected[name]}")
    return found


def state(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_two_devices_give_the_numbers_of_one(trained):
    wrong = []
    for name, one in trained["one"].items():
        reference = state(one)
        assert rows(one)[-1]["train/grad_norm"] > 0 and all(row["train/loss"] != 0 for row in rows(one)), (
            f"{name} has nothing to learn from"
        )
        for way in [*devices.ONE, *devices.TWO][1:]:
            wrong += [f"{name} {way}: {line}" for line in differences(trained[way][name], one)]
            if not devices.error_of(trained[way][name]):
                wrong += [f"{name} {way}: {line}" for line in other_state(state(trained[way][name]), reference)]
    assert not wrong, "\n".join(wrong)


def other_state(found, expected):
    """How a checkpoint differs from that of one process, whose tensors must all be there, whole, the same."""
    if found["state_dict"].keys() != expected["state_dict"].keys():
        return [f"tensors differ: {found['state_dict'].keys() ^ expected['state_dict'].keys()}"]
    pairs = [(name, found["state_dict"][name], tensor) for name, tensor in expected["state_dict"].items()]
    moments = [(key, name) for key, kept in expected["optimizer_states"][0]["state"].items() for name in kept]
    pairs += [
        (f"optimizer {key} {name}", *(each["optimizer_states"][0]["state"][key][name] for each in (found, expected)))
        for key, name in moments
    ]
    compared = [pair for pair in pairs if pair[0] not in WITHOUT_GRADIENT]
    return [f"{name} is another tensor" for name, ours, theirs in compared if not alike(ours, theirs)]


def alike(ours, theirs):
    """One Adam step turns a rounding of a gradient near 0 into a whole step, so that single numbers say nothing."""
    same = type(ours) is type(theirs) and ours.shape == theirs.shape
    return same and bool((ours - theirs).float().norm() <= 0.01 * theirs.float().norm() + 1e-5)


def test_a_run_in_shards_goes_on_in_shards_and_on_one_device(trained, tmp_path):
    """Else a checkpoint of shards would be one of a part, or its optimizer's state another's."""
    again = {"fsdp": [], "one": []}
    for way, folders in again.items():
        for name in RESUMED:
            stopped = trained["stopped"][name]
            assert "was stopped at step 1" in devices.error_of(stopped) and len(rows(stopped)) == 1
            shutil.copytree(stopped, tmp_path / way / name, ignore=shutil.ignore_patterns("error.*"))
            text = (trained[way][name] / "config.yaml").read_text()
            assert (every := f"val_check_interval: {STEPS}") in text
            (tmp_path / way / name / "config.yaml").write_text(text.replace(every, "val_check_interval: 1"))
            folders.append(tmp_path / way / name)
    threads = torch.get_num_threads()
    devices.train(again["one"])
    torch.set_num_threads(threads)
    devices.train_on_two(again["fsdp"])
    wrong = []
    for folder in (*again["one"], *again["fsdp"]):
        error = devices.error_of(folder)
        if error or devices.off(devices.numbers(folder), devices.numbers(trained["one"][folder.name])) > CLOSE:
            wrong.append(f"{folder}: {error or devices.numbers(folder)}")
    assert not wrong, "\n".join(wrong)


def test_compiled_blocks_give_the_numbers_of_uncompiled_ones(tmp_path, monkeypatch):
    """Every experiment, two steps; each must really have compiled something."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    from torch._dynamo.utils import counters

    found = devices.prepare(
        tmp_path,
        devices.EXPERIMENTS,
        {"eager": [], "compiled": ["hardware.compile=true"]},
        2,
        ["trainer.limit_val_batches=0"],
    )
    threads, wrong = torch.get_num_threads(), []
    for name in devices.EXPERIMENTS:
        devices.train([found["eager"][name]])
        counters.clear()
        devices.train([found["compiled"][name]])
        error = devices.error_of(found["compiled"][name])
        apart = (
            math.inf if error else devices.off(*(devices.numbers(found[way][name]) for way in ("compiled", "eager")))
        )
        if (
            error
            or apart > 1e-3
            or not counters["stats"]["unique_graphs"]
            or len(devices.numbers(found["eager"][name])) != 2
        ):
            wrong.append(f"{name}: {error or apart}, {counters['stats']}")
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    assert not wrong, "\n".join(wrong)

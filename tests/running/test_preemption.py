"""Signals during training: saved after the batch, then requeued, trained on or left, by who sent them."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment

from research_stack.running.preemption import Preemption
from research_stack.training.checkpoint import AtomicCheckpointIO, load_checkpoint

STEPS = 8
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{advice}") for advice in ("srun", "not resumable", "isinstance.treespec")
]


class Tiny(LightningModule):
    """Fits a line; every step's loss is a pure function of the step and the weights."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.losses = {}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(self.global_step))
        loss = (self.layer(x) - x.sum(1, keepdim=True)).square().mean()
        self.manual_backward(loss)
        optimizer = self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        self.losses[self.global_step] = loss.item()


class Send(Callback):
    """Sends this process signals while the batch of a step runs."""

    def __init__(self, step, *numbers):
        self.step, self.numbers, self.sent = step, numbers, False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step - 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)
            self.sent = True


@pytest.fixture(autouse=True)
def quiet_neighbourhood(monkeypatch):
    """No cluster job around, and the signal handlers as pytest had them afterwards."""
    for key in list(os.environ):
        if key.startswith("SLURM_"):
            monkeypatch.delenv(key)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before, "training must give the signals back"


def train(folder, *callbacks, root=None) -> Tiny:
    module, last = Tiny(), folder / "checkpoints" / "last.ckpt"
    trainer = Trainer(
        max_steps=STEPS, default_root_dir=str(root or folder), logger=False, accelerator="cpu", devices=1,
        enable_progress_bar=False, enable_model_summary=False, plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        callbacks=[*callbacks, Preemption(folder)])  # fmt: skip
    batches = torch.utils.data.DataLoader(torch.zeros(STEPS, 1))
    try:
        trainer.fit(module, batches, ckpt_path=str(last) if last.is_file() else None)
    except SystemExit as leaving:
        module.left_with = leaving.code
    else:
        module.left_with = None
    return module


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_saves_the_step_leaves_and_goes_on_with_the_same_losses(tmp_path, number):
    whole = train(tmp_path / "whole")
    first = train(tmp_path / "cut", Send(3, number))
    assert first.left_with == 128 + number
    assert load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.ckpt")["global_step"] == 3
    rest = train(tmp_path / "cut")
    assert rest.left_with is None and sorted(rest.losses) == [4, 5, 6, 7, 8]
    assert first.losses | rest.losses == whole.losses


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    module = train(tmp_path, Send(3, signal.SIGINT, signal.SIGINT))
    assert module.left_with == 1 and not (tmp_path / "checkpoints").exists()  # Lightning's exit for KeyboardInterrupt
    assert sorted(module.losses) == [1, 2]


def test_sigterm_in_a_job_saves_and_trains_on(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    module = train(tmp_path, Send(3, signal.SIGTERM))
    assert module.left_with is None and len(module.losses) == STEPS
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_preemption_saves_before_submitit_requeues(tmp_path, monkeypatch):
    """With SIGTERM in the same batch, as SLURM sends it."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    seen = []

    def requeue(number, frame):
        seen.append((number, load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"]))
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        module = train(tmp_path, Send(5, signal.SIGUSR2, signal.SIGTERM))
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert module.left_with == -1 and seen == [(signal.SIGUSR2, 5)]


def test_the_root_folder_must_be_the_runs(tmp_path):
    with pytest.raises(ValueError, match=r"^trainer.default_root_dir=.*elsewhere must be the run's folder"):
        train(tmp_path, root=tmp_path / "elsewhere")

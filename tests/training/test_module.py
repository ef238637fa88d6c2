"""The shared step: exact under accumulation, stops on NaN, and goes on after a checkpoint as if nothing had
happened.
"""

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from research_stack.training.checkpoint import AtomicCheckpointIO, Checkpoints, load_checkpoint
from research_stack.training.ema import Ema
from research_stack.training.module import NotFinite, TrainingModule, split_batch
from research_stack.training.optimization import Optimization


class Batches(IterableDataset):
    """Rows that are a function of the step."""

    def __init__(self, start):
        self.start = start

    def __iter__(self):
        step = self.start
        while True:
            generator = torch.Generator().manual_seed(step)
            yield {"tokens": torch.randn(6, 3, generator=generator), "count": torch.tensor([1, 1, 1, 3, 3, 3])}
            step += 1


class Tiny(TrainingModule):
    """Noisy least squares whose rows carry unequal counts, as rows with unequal lengths do."""

    def __init__(self, poison=None, **optimization):
        super().__init__(Optimization(**optimization), seed=7)
        torch.manual_seed(0)
        self.linear, self.dropout, self.poison, self.seen = nn.Linear(3, 1), nn.Dropout(0.2), poison, []

    def prepare(self, batch, draws):
        x = batch["tokens"] + 0.1 * draws.uniform(3)
        if self.global_step == self.poison:
            x = x * float("nan")
        return {"x": x, "count": batch["count"]}, batch["count"].sum()

    def loss_sum(self, rows):
        return ((self.linear(rows["x"]).squeeze(1) - 1) ** 2 * rows["count"]).sum()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.seen.append(loss.item())
        return loss


def fit(module, folder, steps, resume=False, stop_at=None):
    checkpoints = Checkpoints(every=2)
    trainer = lightning.Trainer(
        max_steps=stop_at or steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[checkpoints, Ema(0.9)],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    last = folder / "checkpoints" / "last.ckpt"
    start = load_checkpoint(last)["global_step"] if resume else 0
    trainer.fit(module, DataLoader(Batches(start), batch_size=None), ckpt_path=str(last) if resume else None)
    return module


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(Tiny(schedule="constant"), tmp_path_factory.mktemp("whole"), 8)


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_accumulation_changes_no_number(whole, tmp_path, pieces):
    """Counts differ between the pieces: a mean of means would fail here."""
    cut_up = fit(Tiny(schedule="constant", accumulate=pieces), tmp_path, 8)
    assert cut_up.seen == pytest.approx(whole.seen, rel=1e-5)


def test_resume_is_bit_identical(whole, tmp_path):
    first = fit(Tiny(schedule="constant"), tmp_path, 8, stop_at=4)
    second = fit(Tiny(schedule="constant"), tmp_path, 8, resume=True)
    assert first.seen + second.seen == whole.seen
    for a, b in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nan_stops_before_the_update_and_names_the_step(tmp_path):
    module = Tiny(poison=3, schedule="constant")
    with pytest.raises(NotFinite, match=r"at step 3.*optimization\.lr"):
        fit(module, tmp_path, 8)
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_cut_keeps_every_row_in_order():
    rows = {"x": torch.arange(7)}
    assert torch.equal(torch.cat([piece["x"] for piece in split_batch(rows, 3)]), rows["x"])
    assert [len(piece["x"]) for piece in split_batch(rows, 9)] == [1] * 7

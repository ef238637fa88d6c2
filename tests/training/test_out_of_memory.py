"""A step that does not fit into memory begins again in more pieces, with the same numbers as if it had always been cut
so.
"""

import logging

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from research_stack.training.checkpoint import AtomicCheckpointIO, Checkpoints, load_checkpoint
from research_stack.training.memory import BufferSnapshot, StepTooLarge, is_out_of_memory
from research_stack.training.module import TrainingModule, count_rows
from research_stack.training.optimization import Optimization

ERRORS = {
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore of it."),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
        " allocate 281474976710656 bytes."
    ),
    "windows": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 400000"
        " bytes."
    ),
}


class Tight(TrainingModule):
    """Least squares on 7 rows of unequal counts that at most `room` of fit at once, with statistics in a buffer and in
    Python.
    """

    def __init__(self, room, error=ERRORS["device"], accumulate=1, late=False):
        super().__init__(Optimization(schedule="constant", accumulate=accumulate), seed=3)
        torch.manual_seed(0)
        self.linear, self.room, self.error, self.late = nn.Linear(3, 1), room, error, late
        self.register_buffer("rows_seen", torch.zeros(()))
        self.seen, self.noted, self.told, self.prepared = [], [], [], 0

    def prepare(self, batch, draws):
        self.prepared += 1
        return {"x": batch["tokens"] + 0.1 * draws.uniform(3), "count": batch["count"]}, batch["count"].sum()

    def loss_sum(self, rows):
        count = count_rows(rows)
        self.rows_seen += count
        self.noted.append(count)
        too_large = count > self.room if not self.late else len(self.noted) > 1 and count > self.room
        if too_large:
            raise self.error
        return ((self.linear(rows["x"]).squeeze(1) - 1) ** 2 * rows["count"]).sum()

    def reset_step(self):
        self.noted = []

    def after_update(self):
        self.told.append((sum(self.noted), float(self.rows_seen)))
        self.noted = []
        return {}

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.seen.append(loss.item())
        return loss


def batches(start, steps):
    return [
        {
            "tokens": torch.randn(7, 3, generator=torch.Generator().manual_seed(step)),
            "count": torch.tensor([1, 1, 1, 3, 3, 3, 2]),
        }
        for step in range(start, steps)
    ]


def fit(module, folder, steps=4, last=None):
    start = load_checkpoint(last)["global_step"] if last else 0
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Checkpoints(every=2)],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(module, DataLoader(batches(start, steps), batch_size=None), ckpt_path=last, weights_only=True)
    return module


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(Tight(room=7), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("room, pieces", [(6, 2), (3, 4), (1, 7)])
def test_the_numbers_are_those_of_the_whole_batch(whole, tmp_path, error, room, pieces, caplog):
    caplog.set_level(logging.WARNING)
    tight = fit(Tight(room, ERRORS[error]), tmp_path)
    assert tight.seen == pytest.approx(whole.seen, rel=1e-5) and len(set(tight.seen)) == 4
    torch.testing.assert_close(tight.linear.weight, whole.linear.weight, rtol=1e-5, atol=1e-7)
    assert tight.micro_batches == pieces and tight.optimization.accumulate == 1
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == {2: 1, 4: 2, 7: 3}[pieces]  # only the first step was too large
    assert lines[0].startswith(
        "step 0 does not fit into memory with 7 rows at once: from now on the 7 rows of a step are cut into 2 pieces,"
        " not 1 ("
    )
    assert "More of it" not in lines[0]


def test_what_was_counted_before_is_forgotten(whole, tmp_path):
    """Each row counts once, in Python and in buffers; a batch is prepared, and its numbers are drawn, once."""
    tight = fit(Tight(room=3), tmp_path)
    assert tight.told == whole.told == [(7, 7.0), (7, 14.0), (7, 21.0), (7, 28.0)] and tight.prepared == 4


def test_gradients_of_pieces_that_fitted_are_dropped(whole, tmp_path):
    """The first piece has left its gradient when the second fails."""
    tight = fit(Tight(room=2, accumulate=2, late=True), tmp_path)
    assert tight.seen == pytest.approx(whole.seen, rel=1e-5) and tight.micro_batches == 4
    torch.testing.assert_close(tight.linear.weight, whole.linear.weight, rtol=1e-5, atol=1e-7)


def test_a_resume_finds_the_pieces_anew(whole, tmp_path):
    fit(Tight(room=3), tmp_path, steps=2)
    resumed = fit(Tight(room=3), tmp_path, last=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert resumed.seen == pytest.approx(whole.seen[2:], rel=1e-5) and resumed.micro_batches == 4


def test_one_row_that_does_not_fit_is_one_line(tmp_path):
    with pytest.raises(StepTooLarge) as caught:
        fit(Tight(room=0), tmp_path)
    assert (
        str(caught.value)
        == "optimization.accumulate=7: step 0 does not fit into memory with 1 row at once, and cannot be cut finer; "
        "take shorter rows or a smaller model (CUDA out of memory. Tried to allocate 20.00 MiB.)"
    )


def test_several_devices_are_told_to_cut_finer(tmp_path, monkeypatch):
    tight = Tight(room=3)
    tight._trainer = type("Trainer", (), {"world_size": 2})()
    monkeypatch.setattr(Tight, "global_step", 5)
    with pytest.raises(
        StepTooLarge,
        match=(
            r"^optimization\.accumulate=1: step 5 does not fit into memory with 7 rows at once on one of 2 devices;"
            r" raise it \(CUDA out of memory"
        ),
    ):
        tight._use_more_micro_batches({"x": torch.zeros(7, 3)}, ERRORS["device"])
    assert tight.micro_batches == 1


def test_other_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match="^mat1 and mat2$"):
        fit(Tight(room=3, error=RuntimeError("mat1 and mat2")), tmp_path)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


def test_the_allocator_of_this_machine_says_what_is_looked_for():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)


def test_constants_are_not_copied():
    layer = nn.BatchNorm1d(2)
    layer.register_buffer("table", torch.zeros(5), persistent=False)
    kept = BufferSnapshot(layer)
    assert len(kept.pairs) == 3  # mean, variance and count
    layer.train()(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    assert layer.running_mean.any()
    kept.restore()
    assert not layer.running_mean.any() and layer.num_batches_tracked == 0 and (layer.running_var == 1).all()


def test_rows_of_whole_groups_are_cut_between_groups():
    from research_stack.posttraining.polychromic import PolychromicSFT

    for now, more in ((1, 2), (2, 6), (3, 6), (6, None)):
        method = type("Method", (), {"estimator": "soft", "num_generations": 4, "micro_batches": now})()
        assert PolychromicSFT.more_micro_batches(method, {"x": torch.zeros(24)}) == more

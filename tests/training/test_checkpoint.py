"""A checkpoint is whole or absent, and loading one runs no code."""

import pickle
import resource
import zipfile

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from research_stack.training.checkpoint import AtomicCheckpointIO, Checkpoints, ConfigInside, load_checkpoint


class Hostile:
    def __reduce__(self):
        return (print, ("this ran",))


def test_round_trip(tmp_path):
    AtomicCheckpointIO().save_checkpoint(
        {"state_dict": {"w": torch.arange(3)}, "global_step": 5}, tmp_path / "a" / "x.ckpt"
    )
    loaded = load_checkpoint(tmp_path / "a" / "x.ckpt")
    assert loaded["global_step"] == 5 and torch.equal(loaded["state_dict"]["w"], torch.arange(3))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.ckpt"]


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(2)}, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"x\.ckpt"):
            AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"x\.ckpt: the checkpoint is damaged"):
        load_checkpoint(path)


def test_code_in_a_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "x.ckpt"
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        load_checkpoint(path)
    torch.save({"x": Hostile()}, path)
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        load_checkpoint(path)
    assert "this ran" not in capsys.readouterr().out


def test_each_flipped_byte_is_refused_in_one_line(tmp_path):
    state = {"w": torch.arange(500.0), "b": torch.ones(3, dtype=torch.bfloat16)}
    checkpoint = {"state_dict": state, "global_step": 5, "config": {"name": "x"}}
    path, old = tmp_path / "x.ckpt", tmp_path / "old.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    torch.save(checkpoint, old)  # as earlier releases did: without a checksum
    whole, before = path.read_bytes(), old.read_bytes()
    archive, mapped = zipfile.ZipFile(path), torch.load(path, weights_only=True, mmap=True)  # still torch's own format
    assert archive.testzip() is None and archive.comment.startswith(b"research_stack sha256 ")
    assert torch.equal(mapped["state_dict"]["w"], state["w"])
    assert torch.equal(load_checkpoint(old)["state_dict"]["w"], torch.arange(500.0))
    spread = sorted({*range(0, len(whole), len(whole) // 40), *range(len(whole) - 120, len(whole))})
    for position in spread:
        for bit in (0x01, 0x20):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
            with pytest.raises(ValueError, match=r"x\.ckpt: the checkpoint is damaged") as error:
                load_checkpoint(path)
            assert "\n" not in str(error.value)
    start = before.index(torch.arange(500.0).numpy().tobytes())
    for position in range(start, start + 2000, 200):  # the numbers of an earlier release's are under its CRC-32
        old.write_bytes(before[:position] + bytes([before[position] ^ 1]) + before[position + 1 :])
        with pytest.raises(ValueError, match="has another CRC-32"):
            load_checkpoint(old)
    for rest in (b"", b"x", whole[:21], whole[: len(whole) // 2], whole[:-1], whole + b"x", whole[:-86], whole[:-88]):
        path.write_bytes(rest)
        with pytest.raises(ValueError, match=r"x\.ckpt: the checkpoint is damaged"):
            load_checkpoint(path)


class Line(LightningModule):
    """One weight, with a validation."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", -float(self.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(Callback):
    """What last.ckpt holds when a validation begins; asks for a stop at a step."""

    def __init__(self, folder, stop):
        self.path, self.stop, self.seen = folder / "checkpoints" / "last.ckpt", stop, []

    def on_validation_start(self, trainer, pl_module):
        self.seen.append((trainer.global_step, load_checkpoint(self.path)["global_step"] if self.path.is_file() else 0))

    def on_train_batch_end(self, trainer, pl_module, *arguments):
        trainer.should_stop = trainer.global_step == self.stop


@pytest.mark.parametrize(("stop", "last"), [(None, 8), (3, 3), (6, 6)])
def test_last_is_written_behind_a_due_validation_and_when_training_stops(tmp_path, stop, last):
    watch, rows = Watch(tmp_path, stop), torch.utils.data.DataLoader(torch.ones(100, 1))
    trainer = Trainer(
        max_steps=8,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        accelerator="cpu",
        default_root_dir=str(tmp_path),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch, Checkpoints(every=2), ConfigInside({"seed": 3})],
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(Line(), rows, rows)
    assert stop == 3 or watch.seen[0] == (4, 2)  # a kill in the validation must not skip it on resume
    saved = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == last and saved["config"] == {"seed": 3}
    if stop is None:
        assert load_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == 8

"""A checkpoint is whole or absent, and loading one runs no code."""
import pickle
import resource

import pytest
import torch

from research_stack.training.checkpoint import AtomicCheckpointIO, load_checkpoint


class Hostile:
    def __reduce__(self):
        return (print, ("this ran",))


def test_round_trip(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.arange(3)}, "global_step": 5}, tmp_path / "a" / "x.ckpt")
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

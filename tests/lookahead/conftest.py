"""Data and runs for the tests of lookahead."""

from __future__ import annotations

import hashlib

import lightning
import pytest
from torch.utils.data import DataLoader

from research_stack.data.module import TokenData
from research_stack.data.sources.base import Document
from research_stack.data.tokenizers import Bytes
from research_stack.training.checkpoint import AtomicCheckpointIO, Checkpoints, load_checkpoint


class Stories:
    """Forty short texts."""

    def check(self):
        pass

    def documents(self):
        return (
            Document(f"story {i}: " + " ".join(f"w{i * j % 17}" for j in range(20 + i)), None, str(i))
            for i in range(40)
        )

    def fingerprint(self):
        return hashlib.sha256(repr(list(self.documents())).encode()).hexdigest()


@pytest.fixture
def stories(tmp_path):
    """Makes a prepared TokenData with the given options."""

    def make(**options):
        options = {"sequence_length": 16, "batch_size": 6, "cache_dir": str(tmp_path / "cache"), **options}
        made = TokenData(Stories(), Bytes(), **options)
        made.prepare()
        return made

    return make


@pytest.fixture
def fit(tmp_path):
    """Trains a module on data up to a step; `goes_on` from the checkpoint of the run of that name."""

    def run(module, data, steps, name="run", goes_on=False, validate_every=None):
        folder = tmp_path / name
        last = folder / "checkpoints" / "last.ckpt"
        data.start_step = load_checkpoint(last)["global_step"] if goes_on else 0
        validation = (
            {"val_check_interval": validate_every, "check_val_every_n_epoch": None}
            if validate_every
            else {"limit_val_batches": 0}
        )
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
            **validation,
        )
        loaders: list[DataLoader] = [data.train_dataloader(), *([data.val_dataloader()] if validate_every else [])]
        trainer.fit(module, *loaders, ckpt_path=str(last) if goes_on else None)
        return module

    return run

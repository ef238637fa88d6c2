"""A class from outside the package, and a secret, reach each process of a run on several devices."""

from __future__ import annotations

import os

import pytest
from small_runs import SMALL, finish, log_of, start

pytestmark = pytest.mark.slow

CODE = '''
from pathlib import Path
from lightning.pytorch import Callback

class Notes(Callback):
    """Writes down which process was given what."""
    def __init__(self, api_key: str) -> None:
        self.api_key = api_key
    def on_train_start(self, trainer, pl_module):
        Path(f"rank{trainer.global_rank}").write_text(self.api_key[::-1])
'''


def test_every_process_has_the_package_and_the_secret(tmp_path):
    (tmp_path / "myproj").mkdir()
    (tmp_path / "myproj" / "notes.py").write_text(CODE)
    environment = {**os.environ, "RESEARCH_STACK_PACKAGES": "myproj"}
    command = [
        *SMALL,
        "hardware=cpu_ddp",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "+callbacks.notes={_target_: myproj.notes.Notes, api_key: s3cret-of-mine}",
        "hydra.run.dir=run",
    ]
    assert finish(start(*command, cwd=tmp_path, environment=environment), tmp_path) == 0, log_of(tmp_path)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["s3cret-of-mine"[::-1]] * 2
    held = [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret-of-mine" in path.read_bytes()]
    assert held == [] and "***masked***" in (tmp_path / "run" / "config.yaml").read_text()
    refused = start("run=run", cwd=tmp_path)
    assert finish(refused, tmp_path) == 2 and "RESEARCH_STACK_PACKAGES=myproj" in log_of(tmp_path).splitlines()[-1]

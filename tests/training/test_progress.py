"""The line of progress: what it counts, and how fast that goes."""

import logging
from types import SimpleNamespace

import pytest

from research_stack.training import progress


@pytest.mark.parametrize("devices", [1, 4])
def test_tokens_per_second_are_of_all_devices(devices, caplog, monkeypatch):
    clock = iter([100.0, 100.0, *(100.0 + seconds for seconds in (1, 2, 3, 4))])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    trainer = SimpleNamespace(
        global_step=10, max_steps=14, is_global_zero=True, world_size=devices, callback_metrics={"train/loss": 2.0}
    )
    method = SimpleNamespace(tokens_of=lambda batch: batch, counted="tokens")
    shown = progress.Progress(every_seconds=2)
    caplog.set_level(logging.INFO)
    shown.on_train_start(trainer, method)
    for tokens in (100, 300, 500, 700):  # of one device, a second each
        trainer.global_step += 1
        shown.on_train_batch_end(trainer, method, None, tokens, 0)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"step 12/14  loss 2.000  {200 * devices} tokens/s  2 s left",
        f"step 14/14  loss 2.000  {400 * devices} tokens/s  0 s left",
    ]

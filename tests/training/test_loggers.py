"""The loggers, on a real Trainer: rows, resume, wandb offline, tensorboard."""

import csv
import os
import sys

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger

from research_stack.records.config_hash import config_hash
from research_stack.records.files import append_jsonl, read_jsonl
from research_stack.records.run_folder import RunFolder
from research_stack.training.loggers import JsonlLogger, RowBeforeCheckpoint, Tensorboard, Wandb, logged_in
from research_stack.training.outside import GuardedLogger


class Line(LightningModule):
    """One parameter whose loss at step s depends on s alone; fails at a chosen step."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight, self.fail_at = torch.nn.Parameter(torch.ones(())), fail_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("broken")
        loss = self.weight**2
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.weight.detach())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(1000, 1))

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(2, 1))


def fit(folder, loggers, steps=6, module=None, callbacks=(), **arguments):
    trainer = Trainer(
        max_steps=steps,
        logger=loggers,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        val_check_interval=3,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        default_root_dir=str(folder),
    )
    trainer.fit(module or Line(), **arguments)
    return trainer


@pytest.fixture
def folder(tmp_path):
    run_folder = RunFolder(tmp_path / "run")
    run_folder.write_config({"name": "line", "seed": 1, "method": {"_target_": "research_stack.x", "lr": 0.1}})
    return run_folder


def numbers(rows):
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def test_rows_of_one_step_are_one_row_and_steps_count_updates_done(folder):
    fit(folder.path, [JsonlLogger(folder)])
    rows = read_jsonl(folder.metrics_jsonl)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert ["val/loss" in row for row in rows] == [False, False, True, False, False, True]
    assert rows[0]["train/loss"] == 1.0  # before the first update
    assert rows[2]["val/loss"] == pytest.approx(0.8**3)  # after three
    times = [row["time"] for row in rows]
    assert times == sorted(times)
    table = list(csv.DictReader(folder.metrics_csv.open()))
    assert [row["val/loss"] == "" for row in table] == [True, True, False, True, True, False]
    assert float(table[5]["train/loss"]) == rows[5]["train/loss"]


def test_a_resumed_run_leaves_the_rows_of_an_uninterrupted_one(folder, tmp_path):
    fit(tmp_path, [JsonlLogger(tmp_path / "whole")], steps=8)
    fit(folder.path, [JsonlLogger(folder)], steps=4).save_checkpoint(tmp_path / "4.ckpt")
    append_jsonl(folder.metrics_jsonl, {"step": 5, "time": 9.0, "train/loss": 99.0})  # lost with the kill
    before = read_jsonl(folder.metrics_jsonl)[3]["time"]
    fit(folder.path, [JsonlLogger(folder, start_step=4)], steps=8, ckpt_path=tmp_path / "4.ckpt")
    resumed = read_jsonl(folder.metrics_jsonl)
    assert numbers(resumed) == numbers(read_jsonl(tmp_path / "whole" / "metrics.jsonl"))
    assert before < resumed[4]["time"] < 9.0 + before


def test_a_fresh_start_drops_old_rows(folder):
    append_jsonl(folder.metrics_jsonl, [{"step": 1, "train/loss": 7.0}, {"step": 2, "train/loss": 7.0}])
    fit(folder.path, [JsonlLogger(folder)], steps=1)
    assert [row["train/loss"] for row in read_jsonl(folder.metrics_jsonl)] == [1.0]


class Rows(RowBeforeCheckpoint):
    """Notes how many rows were on disk when the next callback would have saved."""

    def on_train_batch_end(self, trainer, *rest):
        super().on_train_batch_end(trainer, *rest)
        self.seen = [*getattr(self, "seen", []), numbers(read_jsonl(self.logger.folder.metrics_jsonl))]


def test_the_row_of_a_step_is_on_disk_before_a_checkpoint_of_it(folder, tmp_path):
    logger = JsonlLogger(folder)
    rows = Rows(logger)
    fit(folder.path, [logger], steps=3, callbacks=[rows])
    assert [len(seen) for seen in rows.seen] == [1, 2, 3]
    fit(tmp_path, [JsonlLogger(tmp_path / "plain")], steps=3)
    assert numbers(read_jsonl(folder.metrics_jsonl)) == numbers(read_jsonl(tmp_path / "plain" / "metrics.jsonl"))


def test_a_failed_run_keeps_its_rows(folder):
    with pytest.raises(RuntimeError, match="broken"):
        fit(folder.path, [JsonlLogger(folder)], module=Line(fail_at=2))
    assert [row["step"] for row in read_jsonl(folder.metrics_jsonl)] == [1, 2]
    assert folder.metrics_csv.is_file()


@pytest.mark.parametrize(
    "key, netrc, expected",
    [
        ("", "", False),
        ("k" * 40, "", True),
        ("", "machine api.wandb.ai login user password k\n", True),
        ("", "machine elsewhere.org login user password k\n", False),
        ("", "not a netrc", False),
    ],
)
def test_logged_in(monkeypatch, tmp_path, key, netrc, expected):
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert logged_in() is expected


def test_two_wandb_runs_of_one_process_stay_apart(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    typed = ["logger.wandb.api_key=hidden-9", "data.path=https://me:hidden-9@host/x"]
    monkeypatch.setattr(sys, "argv", ["research-stack", *typed])
    import wandb

    ids, seen, begin = [], [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: [seen.append(sys.argv[1:]), begin(**options)][1])
    for seed, fail_at in ((1, 2), (2, None)):  # the first one fails
        run_folder = RunFolder(tmp_path / f"seed={seed}")
        run_folder.write_config({"name": "a sweep/point", "seed": seed})
        logger = Wandb(run_folder)
        ids.append(logger.version)
        try:
            fit(run_folder.path, [logger], steps=3, module=Line(fail_at))
        except RuntimeError:
            assert fail_at is not None
        assert wandb.run is None  # finished
        runs = list((run_folder.path / "wandb").glob("offline-run-*"))
        assert len(runs) == 1 and runs[0].name.endswith(logger.version)
        content = b"".join(file.read_bytes() for file in runs[0].rglob("*") if file.is_file())
        assert b"hidden-9" not in content and sys.argv[1].endswith("hidden-9")
    assert ids[0] != ids[1] and all(
        config_hash({"name": "x", "seed": s}) in i for s, i in zip((1, 2), ids, strict=True)
    )
    assert "WANDB_MODE" not in os.environ
    assert seen == [["logger.wandb.api_key=***", "data.path=https://me:***@host/x"]] * 2  # wandb keeps the command


def test_tensorboard_events_can_be_read(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(folder.path, [Tensorboard(folder)], steps=3)
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    read = [event.value for event in events.Scalars("train/loss")]
    assert read == pytest.approx([1.0, 0.8**2, 0.64**2])


class Service(Logger):
    """A logger of an outside service that breaks where it is told to, and notes what reached it."""

    name, version, save_dir = "service", "1", None

    def __init__(self, breaks=()):
        super().__init__()
        self.breaks, self.reached = breaks, []
        self.reach("constructor")

    def reach(self, what):
        self.reached.append(what)
        if what in self.breaks or len(self.reached) in self.breaks:
            raise ConnectionError(f"{what}:\nno network")

    @property
    def experiment(self):
        self.reach("experiment")
        return self

    def log_hyperparams(self, *arguments, **named):
        self.reach("log_hyperparams")

    def log_metrics(self, metrics, step=None):
        self.reach("log_metrics")

    def log_image(self):
        self.reach("log_image")

    def save(self):
        self.reach("save")

    def finalize(self, status):
        self.reach(status)


def test_a_service_that_fails_anywhere_is_one_warning_and_loses_no_number(tmp_path, caplog):
    fit(tmp_path, [JsonlLogger(tmp_path / "whole")], steps=3)
    for number, where in enumerate(("constructor", "experiment", "log_metrics", 4, "save", "success", "failed")):
        caplog.clear()
        services, folder = [], tmp_path / str(number)

        def make(where=where, services=services):
            services.append(Service((where,)))
            return services[-1]

        fit(folder, [JsonlLogger(folder), GuardedLogger("logger.service", make)], steps=3)
        rows, whole = (read_jsonl(run_folder / "metrics.jsonl") for run_folder in (folder, tmp_path / "whole"))
        assert numbers(rows) == numbers(whole)
        warnings = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
        assert len(warnings) == (where != "failed"), "the trainer ends well: nothing was asked to fail"
        assert all("logger.service has failed" in w and "no network" in w and "\n" not in w for w in warnings)
        if services and where != "failed":
            assert services[0].reached[-1] in ("failed", where), "it is closed, and asked no more"
    healthy = GuardedLogger("logger.service", Service)
    fit(tmp_path / "healthy", [JsonlLogger(tmp_path / "healthy"), healthy], steps=3)
    reached = healthy._inner.reached
    assert reached.count("log_metrics") == 4 and reached[-1] == "success"  # three steps and a validation
    healthy.log_image()
    assert reached[-1] == "log_image" and healthy.breaks == () and healthy.name == "service"


def test_what_makes_a_logger_impossible_is_said_before_training(folder, monkeypatch, caplog):
    def impossible():
        raise ValueError("project=x is none")

    with pytest.raises(ValueError, match="project=x is none"):
        GuardedLogger("logger.service", impossible)
    assert GuardedLogger("logger.service", impossible, refuses=False).experiment.log() is None
    assert "project=x is none" in caplog.text
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(folder.path / "none"))
    for mode, arguments, says in (
        (None, {"project": "a/b:c"}, "project=a/b:c"), (None, {"project": "x" * 129}, "128 characters"),
        (None, {"offline": False}, "offline=False needs a key"), ("online", {}, "offline=None needs a key"),
    ):  # fmt: skip
        monkeypatch.setenv("WANDB_MODE", mode) if mode else monkeypatch.delenv("WANDB_MODE", raising=False)
        with pytest.raises(ValueError, match=says) as caught:
            Wandb(folder, **arguments)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "token")
    assert logged_in()

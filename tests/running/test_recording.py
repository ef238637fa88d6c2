"""What a run leaves behind, however it ends: killed, stopped, refused, on a full disk; and that nothing is trained
twice.
"""

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from research_stack import compose, load, reporting, run
from research_stack.cli import launch
from research_stack.evaluation.likelihood import Likelihood
from research_stack.evaluation.samples import Samples
from research_stack.records import files, provenance
from research_stack.records.config_hash import config_hash, differing_keys
from research_stack.records.files import read_json, read_jsonl, write_json
from research_stack.records.run_folder import Refused, Result, RunFolder, Stopped
from research_stack.reporting.charts import Chart
from research_stack.running import recording, train
from research_stack.training.checkpoint import Checkpoints, load_checkpoint
from research_stack.training.loggers import Tensorboard
from research_stack.training.module import TrainingModule

SMALL = [
    "model=smoke",
    "data=smoke",
    "trainer=smoke",
    "hardware.threads=1",
    "trainer.val_check_interval=2",
    "callbacks.checkpoints.every=1",
    "name=kept",
]
TEXTS = ["+eval.texts._target_=research_stack.evaluation.samples.Samples", "+eval.texts.samplers={}"]
MEASURED = [*SMALL, "trainer.max_steps=3", "eval=likelihood", *TEXTS,
            "eval.likelihood.max_sequences=8"]  # fmt: skip


class Killed(BaseException):
    """What kill -9 looks like from inside: nothing is written behind it."""


@pytest.fixture
def killed(monkeypatch):
    """Runs a config that dies where the attribute is called for the n-th time, before it or behind it."""

    def dies(cfg, folder, owner, name, after=False, call=1):
        with pytest.MonkeyPatch.context() as patched:
            dead, calls, alive = [], [], getattr(owner, name)

            def die(*arguments, **named):
                calls.append(1)
                if len(calls) < call:
                    return alive(*arguments, **named)
                if after:
                    alive(*arguments, **named)
                dead.append(1)
                raise Killed

            def unless_dead(write):
                def written(*arguments, **named):
                    if dead:
                        raise Killed
                    return write(*arguments, **named)

                return written

            patched.setattr(owner, name, die)
            patched.setattr(os, "replace", unless_dead(os.replace))
            for writer in ("_write_or_cut", "_overwrite"):
                patched.setattr(files, writer, unless_dead(getattr(files, writer)))
            with pytest.raises(Killed):
                run(cfg, folder)

    return dies


@pytest.fixture
def steps(monkeypatch):
    """Counts the training steps that are made."""
    made, step = [], TrainingModule.training_step
    monkeypatch.setattr(TrainingModule, "training_step", lambda self, *rest: made.append(1) or step(self, *rest))
    return made


def rows(folder):
    """metrics.jsonl without the times."""
    return [
        {key: value for key, value in row.items() if key != "time"}
        for row in read_jsonl(Path(folder) / "metrics.jsonl")
    ]


def unfinished(run, folder):
    """A copy of a run that is not yet ok."""
    shutil.copytree(run, folder)
    write_json(folder / "result.json", read_json(folder / "result.json") | {"status": "running"})


def numbers(result):
    return {name: value for name, value in result.metrics.items() if "second" not in name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run left alone, and the config of it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    cfg = compose(MEASURED)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder.parent)
        assert run(cfg, folder).status == "ok"
    return cfg, folder


# -------------------------------------------------------------------------------------------------- killed
def test_killed_at_every_boundary_it_ends_in_the_same_folder_with_the_same_numbers(
    whole, tmp_path, monkeypatch, killed, steps
):
    cfg, alone = whole
    monkeypatch.chdir(tmp_path)
    first = Path("outputs/kept/first")
    killed(cfg, first, Checkpoints, "save_last", after=True, call=3)  # behind the last step
    assert len(steps) == 3
    stages = [(RunFolder, "trained", False), (RunFolder, "trained", True), (Likelihood, "__call__", False),
              (Samples, "__call__", False), (RunFolder, "measured", False), (reporting, "write_report", False),
              (Chart, "write", False),
              (reporting, "write_report", True), (RunFolder, "finish", False)]  # fmt: skip
    shutil.move(first, "trained")
    for owner, name, after in stages:
        folder = first.with_name(f"{owner.__name__}-{name}-{after}")
        shutil.copytree("trained", folder)
        killed(cfg, folder, owner, name, after)
        where = f"killed {'behind' if after else 'before'} {name}"
        assert Result.load(folder).status == "interrupted" and launch.unfinished_run(cfg) == folder, where
        again = run(cfg, folder)
        assert again.status == "ok" and again.steps == 3 and numbers(again) == numbers(Result.load(alone)), where
        assert (
            (folder / "report.html").is_file()
            and (folder / "metrics.csv").is_file()
            and launch.unfinished_run(cfg) is None
        ), where
        assert rows(folder) == rows(alone), where
    assert len(steps) == 3, "nothing is trained twice"


def test_a_run_is_ok_only_when_its_page_says_so(whole):
    _, folder = whole
    page, result = (folder / "report.html").read_text(), read_json(folder / "result.json")
    assert '<span class="pill ok">ok</span>' in page and result["status"] == "ok" and result["trained"]
    assert (folder / "result.json").stat().st_mtime_ns >= max(
        path.stat().st_mtime_ns for path in (folder / "figures").iterdir()
    )


def test_rows_of_a_run_killed_again_and_again_are_those_of_one_left_alone(tmp_path, monkeypatch, killed):
    """Every column of every row, validation too, though rows, validations and checkpoints come at their own steps."""
    monkeypatch.chdir(tmp_path)
    for experiment in ("flowlm", "lookahead"):
        cfg = compose([f"experiment={experiment}", *SMALL, "eval=none", "trainer.max_steps=9",
                       "trainer.val_check_interval=4", "trainer.log_every_n_steps=3",
                       "callbacks.checkpoints.every=2"])  # fmt: skip
        run(cfg, Path(experiment))
        folder = Path(f"{experiment}-killed")
        for call, name in (
            (4, "training_step"),
            (1, "on_validation_epoch_end"),
            (3, "training_step"),
        ):  # in steps 4, 4 (its validation) and 5
            killed(cfg, folder, TrainingModule, name, call=call)
        assert run(cfg, folder).status == "ok"
        assert rows(folder) == rows(experiment) and {"val/loss", "train/loss"} <= set().union(*rows(folder))
        ends = [load_checkpoint(Path(f) / "checkpoints" / "last.ckpt")["state_dict"] for f in (folder, experiment)]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_one_that_ends_while_another_looks_is_ok_and_is_not_made_again(whole, tmp_path, monkeypatch, steps):
    cfg, alone = whole
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    ended = read_json(folder / "result.json")
    write_json(folder / "result.json", ended | {"status": "running"})

    def lets_go(run_folder):
        write_json(run_folder.result_json, ended)
        return False

    monkeypatch.setattr(RunFolder, "is_live", lets_go)
    assert Result.load(folder).status == "ok"
    monkeypatch.undo()
    write_json(folder / "result.json", ended | {"status": "running"})
    looks = iter([False, True])  # finished between the first look and the lock
    monkeypatch.setattr(recording.provenance, "begin", lambda *a, **k: pytest.fail("it began again"))
    monkeypatch.setattr(train, "is_finished", lambda cfg, run_folder: next(looks))
    run(cfg, folder)


# ------------------------------------------------------------------------------------------------- failing
def full_disk(monkeypatch, *names):
    """No room for files of these names."""
    atomic = files.atomic_path

    def path(path):
        if Path(path).name in names:
            raise files.unwritable(Path(path), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return atomic(path)

    monkeypatch.setattr(files, "atomic_path", path)


def test_a_full_disk_at_the_report_keeps_weights_and_numbers(whole, tmp_path, monkeypatch, caplog, steps):
    cfg, alone = whole
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs/kept/full")
    unfinished(alone, folder)
    (folder / "report.html").unlink()
    with pytest.MonkeyPatch.context() as patched:
        full_disk(patched, "report.html")
        with pytest.raises(OSError, match=r"report\.html cannot be written: No space left on device"):
            run(cfg, folder)
    result = Result.load(folder)
    assert (result.status, result.steps) == ("failed", 3) and result.error.endswith(
        "report.html cannot be written: No space left on device"
    )
    assert numbers(result) == numbers(Result.load(alone)) and "could not be recorded" not in caplog.text
    assert launch.unfinished_run(cfg) == folder, "the same command goes on with it"
    with pytest.MonkeyPatch.context() as patched:
        full_disk(patched, "report.html", "result.json")  # not even the status can be written
        with pytest.raises(OSError, match=r"result\.json"):
            run(cfg, folder)
    assert run(cfg, folder).status == "ok" and (folder / "report.html").is_file() and not steps


def test_an_evaluation_that_fails_keeps_the_numbers_of_the_others(whole, tmp_path, monkeypatch, steps, capfd):
    cfg, alone = whole
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs/kept/failing")
    unfinished(alone, folder)

    def fails(self, context):
        raise ValueError("samples=4 are too many")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Likelihood, "__call__", fails)  # the first of two
        patched.setattr(Samples, "__call__", lambda self, context: {"kept": 1.0})
        with pytest.raises(ValueError, match="samples=4 are too many"):
            run(cfg, folder)
        failed = Result.load(folder)
        assert (
            failed.status == "failed" and failed.metrics == {"texts/kept": 1.0} and launch.unfinished_run(cfg) == folder
        )
    assert run(cfg, folder).status == "ok" and not steps
    again = compose(
        [f"run={folder}", "task=eval", "eval=likelihood", "+eval.texts=${eval.likelihood}", "eval.likelihood.samples=2"]
    )
    with pytest.MonkeyPatch.context() as patched:
        calls = []
        patched.setattr(
            Likelihood,
            "__call__",
            lambda self, context: {"bound": 7.0} if calls.append(1) or len(calls) == 1 else fails(self, context),
        )
        with pytest.raises(ValueError, match="too many"):
            run(again, folder)
    kept = read_json(folder / "result.json")
    assert (
        kept["status"] == "ok"
        and kept["metrics"]["likelihood/bound"] == 7.0
        and list(kept["measured"]) == ["likelihood"]
    )
    assert "7.0" in (folder / "report.html").read_text(), "the page shows what was measured"


def test_evaluations_of_one_run_take_turns_and_texts_are_kept_before_they_are_shown(whole, tmp_path, monkeypatch):
    cfg, alone = whole
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    run_folder, began = RunFolder(folder), time.monotonic()
    assert recording.measuring(run_folder) < 1
    lock = RunFolder(folder).lock()
    lock.__enter__()
    assert recording.measuring(run_folder) == float("inf")
    threading.Timer(1.0, lambda: lock.__exit__(None, None, None)).start()
    with run_folder.lock(recording.measuring(run_folder)):
        assert time.monotonic() - began >= 1
    sampled = compose([f"run={folder}", "task=sample", "prompt=ab"])
    monkeypatch.setattr(Samples, "decode", lambda *a, **k: [{"sampler": "x", "prompt": "ab", "text": "é"}])
    monkeypatch.setattr("sys.stdout", open(tmp_path / "ascii", "w", encoding="ascii"))
    run(sampled, folder)
    monkeypatch.undo()
    assert read_jsonl(folder / "samples.jsonl")[-1]["text"] == "é"


# ------------------------------------------------------------------------------------------------- loggers
def test_a_logger_that_fails_behind_the_evaluation_is_a_warning(whole, tmp_path, monkeypatch, caplog, steps):
    folder = tmp_path / "run"
    unfinished(whole[1], folder)
    logged = compose([*MEASURED, "logger=tensorboard"])
    seen = []

    def lost(self, metrics, step=None):
        kept = read_json(folder / "result.json")
        seen.append((kept["status"], set(metrics) <= set(kept["metrics"]), step, (folder / "report.html").is_file()))
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(Tensorboard, "log_metrics", lost)
    assert run(logged, folder).status == "ok" and not steps
    assert seen == [("ok", True, 3, True)]
    assert (
        caplog.text.count("logger.tensorboard has failed and is left out") == 1
        and "ConnectionError: the network is gone" in caplog.text
    )


# ------------------------------------------------------------------------------------------- going on
def test_a_run_does_not_go_on_with_another_corpus_or_another_config_file(tmp_path, monkeypatch, killed, caplog, steps):
    monkeypatch.chdir(tmp_path)
    text, folder = tmp_path / "text.txt", tmp_path / "outputs" / "kept" / "cut"
    text.write_text("\n\n".join(f"story {i}: " + " ".join(f"word{i * j % 17}" for j in range(40)) for i in range(40)))
    cfg = compose(
        [
            *SMALL,
            "data=text",
            f"data.path={text}",
            "data.sequence_length=32",
            "data.tokenizer.vocab_size=300",
            "eval=none",
            "trainer.max_steps=3",
        ]
    )
    killed(cfg, folder, TrainingModule, "training_step", call=3)
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "run.json", "result.json")}
    old = text.read_text()
    text.write_text(old.replace("word1", "term1"))
    for _ in range(2):  # the first refusal must not make the second one forget
        with pytest.raises(Refused, match="data: the corpus has changed since"):
            run(cfg, folder)
        assert {name: (folder / name).read_bytes() for name in before} == before and Result.load(
            folder
        ).status == "interrupted"
    assert launch.unfinished_run(cfg) == Path("outputs/kept/cut"), "it can still go on, once the corpus is back"
    text.write_text(old)

    edited = before["config.yaml"].replace(b"batch_size: 16", b"batch_size: 8")
    assert edited != before["config.yaml"]
    (folder / "config.yaml").write_bytes(edited)
    for command in (
        [f"run={folder}"],
        [f"run={folder}", "task=eval", "eval=likelihood"],
        [f"run={folder}", "task=sample"],
    ):
        with pytest.raises(
            ValueError,
            match=r"config\.yaml has been edited since its run was started \(data\.batch_size: 16 there, 8 now\)",
        ) as caught:
            compose(command)
        assert "\n" not in str(caught.value)
    with pytest.raises(Refused, match="has been edited"):
        run(cfg, folder)
    (folder / "config.yaml").write_bytes(
        before["config.yaml"].replace(b"threads: 1", b"threads: 2")
    )  # which changes no number
    caplog.clear()
    git = provenance.code()
    monkeypatch.setattr(
        provenance,
        "code",
        lambda: ({"sha": "f" * 40, "branch": "x", "dirty": True, "changes": "abc", "untracked": []}, ""),
    )
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "1.0"})
    assert run(compose([f"run={folder}"]), folder).status == "ok" and len(steps) == 2 + 1
    then = git[0]["sha"][:12] if git[0] else None
    assert not then or f"the code has changed since this run was last trained: commit {then}" in caplog.text
    assert not then or "commit ffffffffffff with changes of its own now" in caplog.text
    assert f"torch {torch.__version__.partition('+')[0]}" in caplog.text and "1.0 now" in caplog.text


def test_a_moved_run_is_measured_and_goes_on(whole, tmp_path, monkeypatch, killed):
    cfg, alone = whole
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    killed(cfg, Path("outputs/kept/run"), TrainingModule, "training_step", call=3)
    (tmp_path / "there").mkdir()
    shutil.move("outputs/kept/run", tmp_path / "there" / "moved")
    monkeypatch.chdir(tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    assert run(compose(["run=moved"]), "moved").status == "ok"
    assert rows("moved") == rows(alone) and numbers(Result.load("moved")) == numbers(Result.load(alone))
    shutil.copytree("moved", "copied")
    shutil.rmtree("moved")
    assert load("copied").folder == Path("copied")
    again = run(compose(["run=copied", "task=eval", "eval=likelihood", "eval.likelihood.max_sequences=8"]), "copied")
    assert numbers(again) == numbers(Result.load(alone))


# ------------------------------------------------------------------------------------------------- longer
def test_a_finished_run_is_made_longer(whole, tmp_path, monkeypatch, killed, steps, caplog):
    cfg, alone = whole
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    shutil.copytree(alone, "run")
    whole_rows, before = rows("run"), read_json(Path("run/result.json"))
    long = compose(["run=run", "trainer.max_steps=6"])
    assert OmegaConf.select(long, "trainer.max_steps") == 6 and differing_keys(cfg, long) == [
        ("trainer.max_steps", 3, 6)
    ]
    assert (
        compose([*(o for o in MEASURED if "max_steps" not in o), "run=run", "trainer.max_steps=6"]).trainer.max_steps
        == 6
    )
    killed(long, Path("run"), RunFolder, "write_config", after=True)  # config.yaml is new, run.json is not
    killed(
        compose(["run=run"]), Path("run"), TrainingModule, "training_step", call=2
    )  # behind the checkpoint of step 4
    assert launch.unfinished_run(long) is None, "another folder than outputs/kept"
    assert run(compose(["run=run"]), "run").status == "ok"
    assert "made longer, 6 steps instead of 3: from step 3 on" in caplog.text and len(steps) == 1 + 2
    result, provenance_ = Result.load("run"), read_json(Path("run/run.json"))
    assert result.steps == 6 and result.hash == config_hash(long) == provenance_["hash"] != before["hash"]
    assert RunFolder("run").read_config()["trainer"]["max_steps"] == 6
    assert [part["result"] for part in provenance_["earlier"] if "result" in part] == [before], (
        "the numbers of the old length are kept"
    )
    assert (
        set(result.metrics) == set(before["metrics"])
        and result.metrics["likelihood/bound"] != before["metrics"]["likelihood/bound"]
    )
    assert rows("run")[:3] == whole_rows and [row["step"] for row in rows("run")] == [1, 2, 3, 4, 5, 6]
    factor = load("run").method.optimization.factor(6)
    assert [row["train/lr"] for row in rows("run")[3:]] == pytest.approx(
        [cfg.optimization.lr * factor(step) for step in (3, 4, 5)]
    )

    for command, says in (
        (["trainer.max_steps=4"], "run=run: a run can be made longer, not shorter (trainer.max_steps: 6 there, 4 now)"),
        (
            ["trainer.max_steps=9", "optimization.lr=.5"],
            "another config (optimization.lr: 0.01 there, 0.5 now; trainer.max_steps: 6 there, 9 now; ",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            run(compose(["run=run", *command]), "run")
        assert says in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(Refused, match=r"to make it longer: run=run trainer\.max_steps=8"):
        run(compose([*(o for o in MEASURED if "max_steps" not in o), "trainer.max_steps=8"]), "run")
    write_json(
        Path("run/result.json"), read_json(Path("run/result.json")) | {"steps": 5}
    )  # as early stopping leaves it
    with pytest.raises(Refused, match="stopped early, at step 5 of 6"):
        run(compose(["run=run", "trainer.max_steps=8"]), "run")
    assert Result.load("run").status == "ok", "a refusal changes nothing"


# --------------------------------------------------------------------------------------------------- stops
def test_a_stop_below_max_steps_is_an_interruption_and_the_same_command_goes_on(tmp_path, monkeypatch, steps):
    monkeypatch.chdir(tmp_path)
    plain = compose([*SMALL, "eval=none", "trainer.max_steps=4"])
    run(plain, "plain")
    cfg, folder = (
        compose([*SMALL, "eval=none", "trainer.max_steps=4", "+trainer.max_time={milliseconds: 1}"]),
        Path("outputs/kept/timed"),
    )
    assert config_hash(cfg) == config_hash(plain), "when a run stops changes no number of it"
    for step in (1, 2, 3):
        with pytest.raises(
            Stopped, match=rf"training was stopped at step {step} of 4: its time \(trainer\.max_time\) is used up"
        ):
            run(cfg, folder)
        result = Result.load(folder)
        assert (result.status, result.steps, result.error) == ("interrupted", step, None) and launch.unfinished_run(
            cfg
        ) == folder
    assert run(cfg, folder).status == "ok" and len(steps) == 4 + 4
    assert rows(folder) == rows("plain")


def test_early_stopping_is_an_end(tmp_path, monkeypatch, killed, steps):
    monkeypatch.chdir(tmp_path)
    early = [
        "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping",
        "+callbacks.stop.monitor=val/loss",
        "+callbacks.stop.stopping_threshold=1000.",
    ]
    cfg, folder = compose([*SMALL, "eval=none", "trainer.max_steps=8", *early]), Path("run")
    killed(cfg, folder, RunFolder, "trained")
    assert run(cfg, folder).status == "ok" and Result.load(folder).steps == 2 and len(steps) == 2, (
        "it is not trained on behind the kill"
    )


def test_what_would_keep_or_learn_nothing_is_refused_in_one_line(tmp_path, monkeypatch, caplog, steps):
    monkeypatch.chdir(tmp_path)
    cfg = compose([*SMALL, "eval=none", "trainer.max_steps=4"])

    def refused(folder="none", **changed):
        wrong = cfg.copy()
        for key, value in changed.items():
            OmegaConf.update(wrong, key.replace("__", "."), value, force_add=True)
        with pytest.raises(ValueError) as caught:
            run(wrong, folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refused(trainer__fast_dev_run=True).startswith("trainer.fast_dev_run=True keeps no checkpoint")
    assert "trainer.limit_train_batches=0 would train nothing" in refused(trainer__limit_train_batches=0)
    assert "trainer.limit_train_batches=3 would see the same 3 batches over and over" in refused(
        trainer__limit_train_batches=3
    )
    assert "limit_train_batches=1 would see the same 1 batches" in refused(trainer__limit_train_batches=1)  # 1.0 is all
    without = cfg.copy()
    del without.callbacks.checkpoints
    with pytest.raises(ValueError, match="callbacks: none of them keeps a checkpoint"):
        run(without, "none")
    assert not Path("none").exists(), "nothing is left of a run that could not begin"
    assert "warmup_steps=inf must be finite" in refused(optimization__warmup_steps=float("inf"))
    assert "no step was trained (step 0 of trainer.max_steps=4)" in refused("zero", trainer__max_epochs=0) and not steps
    said = refused("monitor", callbacks__checkpoints__monitor="val/los")
    assert (
        said.startswith("callbacks.checkpoints.monitor=val/los is a number that never comes; there are ")
        and "val/loss" in said
        and len(steps) == 2
    )
    stop = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "loss"}
    assert refused("early", callbacks__stop=stop).startswith("callbacks.stop.monitor=loss is a number that never comes")
    assert [Result.load(folder).status for folder in ("zero", "monitor", "early")] == ["failed"] * 3

    caplog.clear()
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    frozen = cfg.copy()
    frozen.trainer.max_steps = 2
    run(frozen, "frozen")
    assert "nothing was learnt: no weight has changed in 2 steps (gradient norm" in caplog.text
    monkeypatch.undo()
    caplog.clear()
    monkeypatch.chdir(tmp_path)
    run(frozen, "learns")
    assert "nothing was learnt" not in caplog.text

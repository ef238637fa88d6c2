"""What the command does when all is well: folders, resuming, sweeps, why, help, completion, eval of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from research_stack.records import files, paths
from research_stack.records.run_folder import InUse, Refused, Result, RunFolder, Stopped, is_run

OFFLINE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'lightning', 'transformers', 'datasets', 'tokenizers', 'matplotlib'):
            raise ImportError('imported ' + name)
sys.meta_path.insert(0, Refuse())
sys.argv = ['research-stack', *sys.argv[1:]]
from research_stack.cli.main import main
sys.exit(main())
"""


def without_torch(*arguments, env=None):
    """The command in a process of its own in which importing torch and the like fails."""
    return subprocess.run(
        [sys.executable, "-c", OFFLINE, *arguments], capture_output=True, text=True, env=dict(os.environ) | (env or {})
    )


# A run -------------------------------------------------------------------------------------------------------------


def test_a_run_gets_a_new_folder(conf, fake_run, command):
    assert command("model=small")[0] == 0
    ((cfg, folder),) = fake_run.calls
    assert cfg.model.dim == 16 and folder.parent == Path("outputs/flowlm") and is_run(folder)
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == [
        "config.yaml",
        "result.json",
        "run.json",
    ]
    command("model=small")
    assert len({f for _, f in fake_run.calls}) == 2  # a finished run is not gone on with


def test_runs_that_start_in_the_same_second_get_a_folder_each(conf, fake_run, command, monkeypatch):
    from datetime import datetime

    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(paths, "datetime", Stopped)
    gate = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: gate.wait() and None or paths.new_run_folder("together"), range(8)))
    assert {f.name for f in claimed} == {
        "2026-01-02_03-04-05",
        *(f"2026-01-02_03-04-05_{n}" for n in range(2, 9)),
    } and all(f.is_dir() for f in claimed)
    for seed in (1, 2, 3):  # a folder counts from the moment it is chosen, not only once the run writes into it
        command(f"seed={seed}")
    assert len({f for _, f in fake_run.calls}) == 3
    aside = paths.new_run_folder("flowlm").parent / "x"
    assert [paths.claim(aside), paths.claim(aside)] == [aside, aside.with_name("x_2")]


def test_an_unfinished_run_that_two_commands_take_up_at_once_is_gone_on_with_by_one(
    conf, fake_run, command, monkeypatch
):
    fake_run.raises[1] = KeyboardInterrupt()
    command("seed=2")
    first = fake_run.calls[0][1]
    monkeypatch.setattr(RunFolder, "is_live", lambda self: False)  # as it was when this command looked
    fake_run.raises[2] = InUse(f"run={first} is in use by pid 1")
    code, _, err = command("seed=2")
    assert code == 0 and fake_run.calls[1][1] == first and fake_run.calls[2][1] not in (first, None), err
    fake_run.raises[4] = InUse(f"run={first} is in use by pid 1")
    code, _, err = command(f"run={first}")
    assert code == 2 and "in use by pid 1" in err and len(fake_run.calls) == 4


def test_a_folder_that_was_put_aside_is_not_locked_under_its_old_name(tmp_path):
    old, holding = RunFolder(tmp_path / "run"), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with old.lock():
            waiting = pool.submit(lambda: [holding.set(), old._open_lock(patience=5)][1])
            holding.wait()
            time.sleep(0.1)
            os.rename(old.path, tmp_path / "aside")
        descriptor = waiting.result()
    assert os.path.samestat(os.fstat(descriptor), os.stat(old.path / ".lock")), (
        "it holds the lock of the folder that was put aside"
    )
    os.close(descriptor)


def test_an_interrupted_run_goes_on_with_the_same_command(conf, fake_run, command):
    fake_run.raises[1] = KeyboardInterrupt()
    code, _, err = command("seed=2")
    first = fake_run.calls[0][1]
    assert code == 130 and f"to go on: research-stack run={first}" in err and "Traceback" not in err
    code, _, err = command("seed=2")
    assert (
        code == 0 and fake_run.calls[1][1] == first and "going on with the unfinished run" in err and "run=new" in err
    )
    fake_run.raises[3] = KeyboardInterrupt()
    command("seed=5")
    command("seed=6")
    command("seed=5", "run=new")
    assert len({f for _, f in fake_run.calls[2:]}) == 3 and fake_run.calls[-1][0].run is None


def test_a_run_that_answers_a_signal_gives_its_exit_code(conf, fake_run, command):
    fake_run.raises[1] = SystemExit(143)
    code, _, err = command()
    assert code == 143 and f"to go on: research-stack run={fake_run.calls[0][1]}" in err
    fake_run.raises[3] = SystemExit(138)
    assert command("-m", "seed=1,2,3")[0] == 138 and len(fake_run.calls) == 3


def test_a_live_run_is_left_alone(conf, fake_run, command):
    fake_run.raises[1] = KeyboardInterrupt()
    command()
    with RunFolder(fake_run.calls[0][1]).lock():
        command()
    assert fake_run.calls[1][1] != fake_run.calls[0][1]


def test_a_cut_checkpoint_of_an_unfinished_run(conf, fake_run, command):
    fake_run.raises[1] = KeyboardInterrupt()
    command()
    path = fake_run.calls[0][1] / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    path.write_bytes(b"PK")
    code, _, err = command()
    assert (
        code == 2 and f"{path} is no whole checkpoint (2 bytes" in err and "run=new" in err and len(fake_run.calls) == 1
    )
    assert command("run=new")[0] == 0


def test_run_folder_resumes_its_own_config(conf, fake_run, command):
    fake_run.raises[1] = KeyboardInterrupt()
    command("model=small", "seed=4")
    folder = fake_run.calls[0][1]
    assert command(f"run={folder}")[0] == 0
    cfg, where = fake_run.calls[1]
    assert (cfg.model.dim, cfg.seed, where) == (16, 4, folder)
    code, _, err = command(f"run={folder}", "model=small", "seed=9")
    assert code == 2 and "another config" in err and "seed: 4 there, 9 now" in err and len(fake_run.calls) == 2
    code, _, err = command(f"run={folder}", "trainer.max_steps=9")  # the other keys stay the run's own
    cfg, where = fake_run.calls[2]
    assert code == 0 and (cfg.model.dim, cfg.seed, cfg.trainer.max_steps, where) == (16, 4, 9, folder)
    assert command(f"run={folder}", "+trainer.max_time=00:00:00:01")[0] == 0 and fake_run.calls[3][0].model.dim == 16
    code, _, err = command(f"run={folder}", "trainer.max_steps=99", "seed=9")
    typed_first = "another config (seed: 4 there, 9 now; trainer.max_steps: 9 there, 99 now; model.dim: 16 there"
    assert code == 2 and typed_first in err


def test_a_run_that_was_stopped_or_refused_keeps_its_status(conf, fake_run, command):
    fake_run.raises[2] = Stopped("training was stopped at step 3 of 9: its time is used up")
    code, _, err = command("-m", "seed=1,2,3")
    assert code == 1 and len(fake_run.calls) == 3 and "Traceback" not in err and "stopped at step 3 of 9" in err
    last = err.splitlines()[-1]
    assert last.startswith("research-stack: 1 of 3 points failed (seed=2: interrupted); the same command")
    fake_run.raises[4] = Refused("data: the corpus has changed")
    code, _, err = command("-m", "seed=1,2,3")
    assert code == 1 and len(fake_run.calls) == 4 and Result.load(fake_run.calls[3][1]).error is None
    assert command("-m", "seed=1,2,3")[0] == 0 and [c.seed for c, _ in fake_run.calls[3:]] == [2, 2]
    fake_run.raises[6] = Stopped("training was stopped at step 3 of 9: its time is used up")
    code, _, err = command("seed=7")
    (fake_run.calls[5][1] / "checkpoints").mkdir()
    assert code == 2 and err.splitlines()[-1].endswith(
        "error: training was stopped at step 3 of 9: its time is used up"
    )
    assert command("seed=7")[0] == 0 and fake_run.calls[6][1] == fake_run.calls[5][1], "the same command goes on"


def test_user_errors_of_a_run_are_one_line(conf, fake_run, command):
    fake_run.raises[1] = OSError(28, "No space left on device", "outputs/x/last.ckpt")
    code, _, err = command()
    assert code == 2 and err.splitlines()[-1] == "research-stack: error: outputs/x/last.ckpt: No space left on device"
    assert "Traceback" not in err and "Error executing job" not in err


def test_dry_run_writes_nothing(conf, fake_run, command):
    assert command("dry_run=true")[0] == 0
    assert len(fake_run.calls) == 1 and not Path("outputs").exists()
    assert command("-m", "dry_run=true", "seed=1,2")[0] == 0
    assert len(fake_run.calls) == 3 and not Path("multirun").exists()


def test_the_typed_command_is_what_a_run_records(conf, fake_run, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["research-stack", "seed=3"])
    assert command("seed=3")[0] == 0
    assert fake_run.argv == ["research-stack", "seed=3"] and sys.argv == ["research-stack", "seed=3"]


# A finished run ----------------------------------------------------------------------------------------------------


def test_eval_takes_the_saved_config(trained, conf, fake_run, command):
    (conf / "eval").mkdir()
    (conf / "eval/likelihood.yaml").write_text("bound:\n  _target_: toylib.Model\n  vocab_size: 4\n")
    config = (conf / "config.yaml").read_text()
    (conf / "config.yaml").write_text(
        config.replace("  - experiment", "  - optional eval: null\n  - experiment").replace("eval: {}\n", "")
    )
    assert command("task=eval", f"run={trained}", "eval=likelihood")[0] == 0
    ((cfg, folder),) = fake_run.calls
    assert folder == trained and cfg.model.dim == 16 and cfg.seed == 4 and cfg.eval.bound._target_ == "toylib.Model"
    assert cfg.task == "eval" and RunFolder(trained).read_config()["task"] == "train"


def test_eval_changes_single_keys_of_saved_nodes(trained, fake_run, command):
    saved = RunFolder(trained)
    saved.write_config(saved.read_config() | {"sampler": {"steps": 4, "width": 2}})
    assert command("task=sample", f"run={trained}", "++sampler.steps=9", "prompt=def f(x, y): [1]")[0] == 0
    cfg = fake_run.calls[0][0]
    assert dict(cfg.sampler) == {"steps": 9, "width": 2} and cfg.prompt == "def f(x, y): [1]"


def test_a_saved_run_from_python(trained, command):
    from research_stack.config.compose import for_run

    cfg = for_run(trained, ["prompt=hello"], task="sample")
    assert (cfg.model.dim, cfg.seed, cfg.prompt, cfg.task, cfg.run) == (16, 4, "hello", "sample", str(trained))


def test_eval_refuses_keys_of_the_run(trained, fake_run, command):
    code, _, err = command("task=eval", f"run={trained}", "model.dim=32")
    assert (
        code == 2 and "model.dim=32 cannot be set with task=eval" in err and "sampler" in err and fake_run.calls == []
    )


def test_a_cut_checkpoint_is_seen_without_torch(trained, fake_run, command):
    path = trained / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-40])
    code, _, err = command("task=sample", f"run={trained}", "prompt=hello")
    assert code == 2 and f"{path} is no whole checkpoint" in err and err.count("\n") == 1 and fake_run.calls == []
    assert f"{path} is no whole checkpoint" in command(f"run={trained}")[2] and fake_run.calls == []


def test_what_a_kill_leaves_of_a_checkpoint_is_none(trained, fake_run, command):
    """A process that is killed while it writes best.ckpt leaves a hidden part of it beside what is whole."""
    with pytest.raises(RuntimeError, match="killed"), pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "unlink", lambda path: None)  # what comes after kill -9: nothing
        with files.atomic_path(trained / "checkpoints" / "best.ckpt") as part:
            part.write_bytes(b"PK")
            raise RuntimeError("killed")
    assert part.read_bytes() == b"PK" and part.match("*.ckpt") and part.parent == trained / "checkpoints"
    assert (
        command("task=sample", f"run={trained}", "prompt=hello")[0] == 0
        and command(f"run={trained}")[0] == 0
        and len(fake_run.calls) == 2
    )
    (trained / "checkpoints" / "last.ckpt").rename(trained / "last.ckpt")
    assert "has no checkpoint" in command("task=sample", f"run={trained}", "prompt=hello")[2]
    (trained / "last.ckpt").rename(trained / "checkpoints" / "last.ckpt")
    part.rename(part.with_name("best.ckpt"))
    code, _, err = command(f"run={trained}")
    assert (
        code == 2
        and f"{part.with_name('best.ckpt')} is no whole checkpoint (2 bytes" in err
        and len(fake_run.calls) == 2
    )


def test_a_folder_that_is_no_run_lists_near_ones(trained, fake_run, command):
    code, _, err = command("task=eval", f"run={trained.parent}")
    assert code == 2 and "is no run folder (has no config.yaml" in err and str(trained) in err
    assert str(trained) in command("task=eval")[2]


# Sweeps ------------------------------------------------------------------------------------------------------------


def test_a_sweep_is_named_by_what_is_swept(conf, fake_run, command):
    code, out, _ = command(
        "-m", "corruption.mask_ratio=.3,.5", "corruption.corruption_rate=0,.2", "seed=1,2", "trainer=short"
    )
    root = Path("multirun/flowlm/corruption.corruption_rate+corruption.mask_ratio")
    assert code == 0 and len(fake_run.calls) == 8 and {f.parent for _, f in fake_run.calls} == {root}
    assert (root / "corruption.corruption_rate=0,corruption.mask_ratio=0.3,seed=1,trainer=short").is_dir()
    assert f"{root}/report.html" in out and (root / "results.csv").is_file()
    assert [p.name for p in root.iterdir() if p.is_dir() and not (p / "result.json").is_file()] == []


def test_a_range_is_a_value(conf, fake_run, command):
    assert command("-m", "corruption.mask_ratio=[.3,.7]", "seed=1,2")[0] == 0
    assert [c.corruption.mask_ratio for c, _ in fake_run.calls] == [[0.3, 0.7]] * 2
    assert fake_run.calls[0][1].as_posix() == "multirun/flowlm/seed/corruption.mask_ratio=0.3,0.7,seed=1"


def test_the_sweep_group_names_the_folder(conf, fake_run, command):
    assert command("-m", "sweep=matrix", "seed=1,2")[0] == 0
    assert [(c.corruption.mask_ratio, c.seed) for c, _ in fake_run.calls] == [(0.3, 1), (0.3, 2), (0.8, 1), (0.8, 2)]
    assert fake_run.calls[-1][1].as_posix() == "multirun/flowlm/matrix/corruption=mask,seed=2"


def test_a_sweep_runs_only_what_is_missing(conf, fake_run, command):
    fake_run.raises[2] = ValueError("seed=2 is bad")
    code, out, err = command("-m", "seed=1,2,3")
    assert code == 1 and len(fake_run.calls) == 3
    assert err.splitlines()[-1].startswith("research-stack: 1 of 3 points failed (seed=2: ")
    code, out, err = command("-m", "seed=1,2,3,4")
    assert code == 0 and [c.seed for c, _ in fake_run.calls[3:]] == [2, 4] and err.count("reusing") == 2
    assert (Path("multirun/flowlm/seed/report.html")).read_text() == "4 points"
    code, out, err = command("-m", "seed=1,2,3,4")
    assert code == 0 and len(fake_run.calls) == 5 and "0 of them to run" in err and "report.html" in out


def test_another_config_in_a_points_folder_is_kept(conf, fake_run, command):
    command("-m", "seed=1,2")
    (conf / "model/tiny.yaml").write_text("_target_: toylib.Model\ndim: 32\n")
    assert command("-m", "seed=1,2")[0] == 0
    assert len(fake_run.calls) == 4 and len([p for p in Path("multirun/flowlm/seed").iterdir() if p.is_dir()]) == 4


def test_run_new_repeats_a_sweep(conf, fake_run, command):
    command("-m", "seed=1,2")
    assert command("-m", "seed=1,2", "run=new")[0] == 0
    assert len(fake_run.calls) == 4 and len([p for p in Path("multirun/flowlm/seed").iterdir() if p.is_dir()]) == 4


def test_eval_of_several_runs(trained, fake_run, command):
    assert command("-m", "task=eval", f"run={trained},{trained}", "seed=1,2")[0] == 0
    assert [(c.seed, f) for c, f in fake_run.calls] == [(1, trained), (2, trained)] * 2


def test_ctrl_c_in_a_sweep_keeps_what_is_done(conf, fake_run, command):
    fake_run.raises[2] = KeyboardInterrupt()
    code, out, err = command("-m", "seed=1,2,3")
    assert code == 130 and len(fake_run.calls) == 2 and Path("multirun/flowlm/seed/results.csv").is_file()
    assert command("-m", "seed=1,2,3")[0] == 0 and [c.seed for c, _ in fake_run.calls[2:]] == [2, 3]


def test_compare_takes_runs_and_sweeps(conf, fake_run, command):
    command("-m", "seed=1,2")
    command("seed=7")
    code, out, _ = command("task=compare", f"runs=[multirun/flowlm/seed,{fake_run.calls[-1][1]}]")
    assert code == 0 and "report.html" in out
    assert next(Path("outputs/compare").glob("*/report.html")).read_text() == "3 points"


def test_long_point_names_are_cut_and_stay_apart():
    names = [paths.point_name([f"a{i}.b.c={'x' * 20}" for i in range(9)] + [f"z={z}"]) for z in (1, 2)]
    assert names[0] != names[1] and all(len(n) <= paths.LONGEST for n in names)
    assert paths.point_name(["b=1", "+a=2", "sweep=x", "launcher=slurm"]) == "a=2,b=1"
    assert "/" not in paths.point_name(["data.path=/x/y.txt"]) and paths.point_name([]) == "defaults"


def test_two_points_never_share_a_folder(conf, fake_run, command):
    alike = [
        [f"p={text}"] for text in ("d/a.txt", "d.a.txt", "d a.txt", "da.txt", "d.a.txt-3bde3621", "'a'", "a", "[a]")
    ]
    alike += [
        [f"p={text}"] for text in ("[a,b]", "'a,b'", "[[a],b]", "{a:b}", "'a,q=b'", "é", "è", "", "''", ".", "..")
    ]
    alike += [["p/q=a"], ["p.q=a"], ["p=a", "q=b"]]
    names = [paths.point_name(overrides) for overrides in alike]
    assert len(set(names)) == len(alike) and not [n for n in names if n in ("", ".", "..") or "/" in n], names
    assert [paths.point_name(["p=[a,b]", "q=-.5"]), paths.point_name(["p=a"])] == [
        "p=a,b,q=-.5",
        "p=a",
    ]  # names that sweeps have had before
    assert paths.slug("a b") != paths.slug("ab") == "ab" and paths.slug("a/b") != paths.slug("a.b") == "a.b"
    for name in ("d/a/x.txt", "d/a.x.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("words and more words\n\n" * 50)
    for _ in range(2):  # a repeat trains nothing
        assert command("-m", "data=text", "data.path=d/a/x.txt,d/a.x.txt")[0] == 0
    assert [c.data.path for c, _ in fake_run.calls] == ["d/a/x.txt", "d/a.x.txt"] and len(
        {f for _, f in fake_run.calls}
    ) == 2
    assert len([p for p in fake_run.calls[0][1].parent.iterdir() if p.is_dir()]) == 2
    code, _, err = command("-m", "name=one,two")
    assert code == 2 and "points 1 and 2" in err and "name" in err and len(fake_run.calls) == 2, err


# Looking -----------------------------------------------------------------------------------------------------------


def test_why_lists_every_place_in_order(conf, command):
    code, out, _ = command("why", "trainer.max_steps", "experiment=second", "trainer=short", "trainer.max_steps=9")
    lines = out.splitlines()
    assert code == 0 and [line.split()[0].rpartition("/")[2] for line in lines[:2]] == ["short.yaml:4", "second.yaml:6"]
    assert (
        lines[2].startswith("command line") and lines[2].endswith("trainer.max_steps=9   <- wins") and len(lines) == 3
    )
    assert command("why", "trainer.max_steps")[1].rstrip().endswith("demo.yaml:4  700   <- wins")
    assert "2   # blocks" not in command("why", "model.layers")[1]


def test_why_of_a_group(conf, command):
    lines = command("why", "model", "experiment=second")[1].splitlines()
    assert "config.yaml:3" in lines[0] and "tiny" in lines[0]
    assert "second.yaml:3" in lines[1] and lines[1].endswith("small   <- wins")
    assert command("why", "model", "experiment=second", "model=tiny")[1].rstrip().endswith("model=tiny   <- wins")


def test_help_lists_groups_and_examples_within_the_terminal(conf, command, monkeypatch):
    for number in range(30):
        (conf / f"corruption/a_long_name_{number}.yaml").write_text("_target_: toylib.Corruption\n")
    for columns in (40, 60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        code, out, _ = command("--help")
        assert code == 0 and "odd, small, tiny" in out and "task=eval run=" in out and command("-h")[1] == out
        assert max(map(len, out.splitlines())) <= max(columns, 80) and {f"a_long_name_{n}" for n in range(30)} <= set(
            out.replace(",", " ").split()
        )
        assert columns < 80 or not [line for line in out.splitlines() if len(line) > columns]


def test_list_says_what_each_option_is(conf, fake_run, command, monkeypatch):
    (conf / "model/small.yaml").write_text(
        "# @package _global_.model\n\n#  Twice the width.\n# More of it.\n_target_: toylib.Model\n# no\n"
    )
    (conf / "model/sub").mkdir()
    (conf / "model/sub/one.yaml").write_text("# Nested.\na: 1\n")
    code, out, _ = command("list", "model")
    assert code == 0 and [line.split(maxsplit=1) for line in out.splitlines()] == [
        ["model=odd"],
        ["model=small", "Twice the width"],
        ["model=tiny"],
    ]
    assert command("--help", "model")[1] == command("model", "-h")[1] == out and command("list", "model/sub")[
        1
    ].split() == ["model/sub=one", "Nested"]
    assert "odd, small, tiny" in command("list")[1] and "model/sub" in command("list")[1]
    monkeypatch.setenv("COLUMNS", "40")
    (conf / "model/small.yaml").write_text(f"# {'words ' * 30}\n_target_: toylib.Model\n")
    assert (
        max(map(len, command("list", "model")[1].splitlines())) <= 40
        and command("list", "model")[1].count("words") == 30
    )
    for words, said in (
        (["list", "modle"], "did you mean 'model'?"),
        (["--help", "xyzzy"], "the groups are"),
        (["model", "list"], "'list' comes first"),
    ):
        code, out, err = command(*words)
        assert code == 2 and out == "" and said in err and err.count("\n") == 1 and fake_run.calls == []


def test_nothing_heavy_is_imported_for_looking_and_for_mistakes():
    for arguments in (["--cfg", "job"], ["--help"], ["list", "data"], ["why", "seed"], ["modle=tiny"], ["seed=abc"]):
        done = without_torch(*arguments)
        assert "imported" not in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert done.returncode == (2 if "=" in arguments[0] else 0)


def test_completion_offers_options():
    line = "research-stack model="
    done = without_torch("-sc", "query=bash", env={"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_CWORD": "1"})
    assert "model=tiny" in done.stdout.split(), done.stderr
    assert "complete -o nospace" in without_torch("-sc", "install=bash").stdout


def test_the_functions_are_public_whatever_was_imported_first():
    code = (
        "import sys, research_stack; assert 'hydra' not in sys.modules and 'torch' not in sys.modules;"
        "import research_stack.config.compose; from research_stack import compose;"
        "assert callable(compose) and 'torch' not in sys.modules; compose('seed=3', check=False)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""What is typed as text arrives as it was typed: prompts, and every folder that the program prints."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from research_stack.cli.command import Command
from research_stack.config.compose import for_run
from research_stack.config.composer import Composer
from research_stack.records.config_hash import differing_keys
from research_stack.records.paths import names_folder
from research_stack.records.run_folder import RunFolder

PROMPTS = [
    "a", "${oc.env:SECRET}", "\\${x}", "\\\\${x}", "${", "${}", "${a", "$", "$$", "$(x)", "a\\b", "\\n", "\\",
    "\\\\", "ends\\", "it's", "'", '"', "''", "'x'", '"x"', '"lead', "'lead", "\\'", "\\\\'", "\\\\'${a}\\'",
    "${x}'\\\\${y}\\", "a\nb", "\n", "\r\n", "\t", "  spaces  ", "a=b=c", "=", "a,b", "[1,2]", "[", "{a:1}", "null",
    "true", "1e3", "007", "~x", "+x", "-x", "--help", "#c", "a # b", "%s", "choice(a,b)", "é ü 漢 🎉", "\x1b[0m",
    "\u2028", "run=x", "",
]  # fmt: skip
ODD = [
    "seed=1,trainer.max_steps=5",
    "a b",
    "it's",
    'say "x"',
    "[1]",
    "a\\b",
    "${x}",
    "{a}",
    "null",
    "3",
    "true",
    "x=y",
    "(z)",
    "#1",
]


def test_every_prompt_arrives_as_it_was_typed(conf, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cr3t")
    composer, changed = Composer(conf), []
    for prompt in PROMPTS:
        single, sweep = Command.parse([f"prompt={prompt}"]), Command.parse(["-m", "seed=1,2", f"prompt={prompt}"])
        composed = composer.compose(single.overrides)
        points = composer.points(sweep.overrides)[1]
        found = [composed.cfg.prompt, *(composer.compose_point(point).cfg.prompt for point in points)]
        changed += [(prompt, found)] if found != [prompt] * 3 else []
    assert not changed


def test_prompts_reach_a_saved_run_and_its_records_as_they_are(trained, fake_run, command, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cr3t")
    for prompt in ("${oc.env:SECRET}\\n 'x", '"Hello," she said'):
        for more in ([], ["-m", "seed=1,2"]):
            fake_run.calls.clear()
            assert command("task=sample", f"run={trained}", f"prompt={prompt}", *more)[0] == 0
            assert {cfg.prompt for cfg, _ in fake_run.calls} == {prompt} and len(fake_run.calls) == len(more or [1])
            assert not [o for o in fake_run.overrides if "s3cr3t" in o] and any(
                "prompt=" in o for o in fake_run.overrides
            )
    for typed, said in (("???", "prompt=???"), ("x\udcff", "is not UTF-8 text: byte 0xff at character 1")):
        code, _, err = command("task=sample", f"run={trained}", f"prompt={typed}")
        assert code == 2 and said in err and err.count("\n") == 1


def test_a_saved_config_keeps_texts_that_look_like_references(trained):
    place, text = RunFolder(trained), "echo ${HOME} \\${x}"
    place.write_config(place.read_config() | {"eval": {"prompts": [text]}})
    assert for_run(trained).eval.prompts[0] == text
    assert differing_keys({"a": {"path": "x"}}, {"a": {"path": "y"}}) == [
        ("a.path", "x", "y")
    ]  # not judged by a fingerprint


def test_every_folder_that_is_printed_can_be_pasted_back(trained, fake_run, command):
    places = [trained.rename(trained.parent / ODD[0])]
    for name in ODD[1:]:
        copy = Path(name) if name in ("null", "3", "true") else Path("outputs/flowlm") / name
        copy.mkdir(parents=True)
        for path in places[0].rglob("*"):
            if path.is_file():
                (copy / path.relative_to(places[0])).parent.mkdir(exist_ok=True)
                (copy / path.relative_to(places[0])).write_bytes(path.read_bytes())
        places.append(copy)
    for index, place in enumerate(places):
        asked = f"./{place}" if str(place) == "null" else place  # null alone means none
        fake_run.calls.clear()
        code, _, err = command("task=eval", f"run={asked}")
        assert code == 0 and fake_run.calls[0][1] == place, err
        composed = Composer(paths_conf()).compose(Command.parse([f"init_from={asked}"]).overrides)
        assert composed.cfg.init_from == str(asked)
        if index % 4 == 0:
            code, _, err = command("task=eval", f"run={asked}", "model.dim=3")
            assert code == 2 and "cannot be set" in err, err
            assert command("-m", "task=eval", f"run={asked}", "seed=1,2")[0] == 0
            assert [folder for _, folder in fake_run.calls[1:]] == [place] * 2
    several = [places[0], places[1], trained.parent / "no, such"]
    assert [str(f) for f in folders_of("-m", "task=eval", f"run={','.join(map(str, several[:2]))}")] == [
        str(p) for p in several[:2]
    ]
    code, out, err = command("task=compare", f"runs=[{','.join(map(str, places))}]")
    assert code == 0 and next(Path("outputs/compare").glob("*/report.html")).read_text() == f"{len(places)} points", err
    assert "several values: add -m" in command("task=eval", f"run={places[1]},{places[3]}")[2]


def paths_conf():
    from research_stack.records import paths

    return paths.CONF


def folders_of(*arguments):
    composer, line = Composer(paths_conf()), Command.parse(arguments)
    return [composer.compose_point(point).cfg.run for point in composer.points(line.overrides)[1]]


def test_what_is_advised_is_a_command_that_works(conf, fake_run, command):
    fake_run.raises[1] = KeyboardInterrupt()
    _, _, err = command("name='it''s a b'".replace("''", "\\'"))
    advised = shlex.split(err.rpartition("to go on: ")[2])
    assert (
        advised[0] == "research-stack"
        and command(*advised[1:])[0] == 0
        and fake_run.calls[0][1] == fake_run.calls[1][1]
    )
    command("hydra.run.dir='outputs/flowlm/a b'")
    _, _, err = command("task=eval")
    advised = shlex.split(err.rpartition("the newest is ")[2])
    assert advised == ["run=outputs/flowlm/a b"] and "has no checkpoint" in command("task=eval", *advised)[2]


def test_words_of_a_first_phase_may_be_quoted_for_hydra_or_not(conf):
    composer = Composer(conf)
    for typed in ("init_from=sft trainer=short", "init_from='sft trainer=short'", 'init_from="sft trainer=short"'):
        assert Composer(conf).compose(Command.parse([typed]).overrides).cfg.init_from == "sft trainer=short"
    points = composer.points(Command.parse(["-m", "init_from=sft,sft trainer=short"]).overrides)[1]
    assert points == [["init_from=sft"], ["init_from='sft trainer=short'"]] and not names_folder("sft")
    assert Composer(conf).compose(Command.parse(["init_from=null", "run=new"]).overrides).cfg.init_from is None


def test_a_path_that_is_there_is_taken_as_it_is(conf, fake_run, command):
    names = ["a=b,c.txt", "d (1).txt", "plain.txt"]
    for name in names:
        Path(name).write_text("words and more words\n\n" * 50)
        assert command("data=text", f"data.path={name}")[0] == 0 and fake_run.calls[-1][0].data.source.path == name
    assert command("-m", "data=text", f"data.path={','.join(names)}")[0] == 0
    assert [c.data.path for c, _ in fake_run.calls[3:]] == names and len({f for _, f in fake_run.calls[3:]}) == 3
    assert command("data=text", "data.path=[plain.txt,'d (1).txt']")[0] == 0 and list(
        fake_run.calls[-1][0].data.path
    ) == [names[2], names[1]]


@pytest.fixture(autouse=True)
def first_phases(conf):
    """The config has the key."""
    (conf / "config.yaml").write_text((conf / "config.yaml").read_text() + "init_from: null\n")

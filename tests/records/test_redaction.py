"""No secret reaches a file: a run with one in every field is searched to the last byte, the inside of its checkpoints
included."""

from __future__ import annotations

import html
import json
import logging
import sys
import zipfile

import pytest
from omegaconf import open_dict

from research_stack import compose, run
from research_stack.config.build import build
from research_stack.config.compose import for_run
from research_stack.records import files, paths, redaction
from research_stack.records.config_hash import config_hash, differing_keys
from research_stack.records.redaction import MASKED, masked, redact
from research_stack.records.run_folder import RunFolder

VALUE = 'Env1ronment-s3cret"<&é'  # has another form in JSON, in HTML and in a URL
SECRETS = {
    "environment": VALUE,
    "typed": "typed-s3cret bl4nk",
    "password": "pa55word-of-url",
    "form": "hf_abcdefghijklmnopqrstuv",
    "listed": "listed-s3cret",
}
LEAKS = '''
import logging
from lightning.pytorch import Callback

class Leaks(Callback):
    """Logs and raises what it was given."""
    def __init__(self, texts: list[str], api_key: str, url: str, environment: str, form: str, all: list[dict]) -> None:
        self.texts = [*texts, f"api_key={api_key}", url, environment]
    def on_train_start(self, trainer, pl_module):
        logging.getLogger(__name__).warning("given: %s", self.texts)
    def on_train_end(self, trainer, pl_module):
        logging.getLogger(__name__).error("failed", exc_info=OSError(" ".join(self.texts)))
        raise ValueError(" ".join(["cannot reach", *self.texts]))
'''


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Secrets of one test are not those of the next."""
    monkeypatch.setattr(redaction, "_met", set())


@pytest.mark.parametrize(
    "name, secret",
    [
        *dict.fromkeys(
            (
                ("HF_TOKEN", True),
                ("WANDB_API_KEY", True),
                ("logger.wandb.api_key", True),
                ("PGPASSWORD", True),
                ("wandbApiKey", True),
                ("AWS_SECRET_ACCESS_KEY", True),
                ("auth", True),
                ("data.tokenizer", False),
                ("data.tokens", False),
                ("max_tokens", False),
                ("eos_token", False),
                ("key", False),
                ("TOKEN_PATH", False),
                ("monkey", False),
                ("SSH_AUTH_SOCK", False),
                ("seed", False),
            )
        )
    ],
)
def test_names_of_secrets(name, secret):
    assert redaction.is_secret_name(name) is secret


def test_texts_of_ours_and_texts_of_others(monkeypatch):
    monkeypatch.setenv("SOME_KEY", VALUE)
    (
        monkeypatch.setenv("SORT_KEY", "position9"),
        monkeypatch.setenv("PLAIN_KEY", "validation"),
        monkeypatch.setenv("KEY_FILE", "/home/me/id_rsa"),
    )
    for text in (
        "position9 validation /home/me/id_rsa",
        "token: 'abc' is no end token",
        "first_token=0.5",
        "x = tokens[3]",
        "eos_token='<|end|>'",
        "api_key=null",
    ):
        assert redact(text) == text
    for text, kept in {
        "error: {'api_key': 'abc', 'x': 1}": "error: {'api_key': ***, 'x': 1}",
        "password=a;x": "password=***;x",
        f"a {VALUE} b": "a *** b",
        "override: api_key=abc": "override: api_key=***",
        json.dumps(VALUE): '"***"',
        html.escape(VALUE): "***",
    }.items():
        assert redact(text) == kept
    assert redaction.redact_override("+a.password=two words") == "+a.password=***" and "two words" not in redact(
        "what were two words?"
    )
    code = "token = find(x)  # password: none"  # of a corpus, or of a model
    assert redaction.redact_values(code) == code
    assert paths.point_name(["data.path=https://me:hush-hush@host/x", "seed=1"]).startswith(
        "data.path=https:..me_".replace(":", "_")[:16]
    )
    assert "hush" not in paths.point_name(["data.path=https://me:hush-hush@host/x", "seed=1"])
    assert paths.point_name(["a.api_key=one"]) != paths.point_name(["a.api_key=two"])


def test_a_masked_config_is_the_same_run_and_asks_for_what_it_lacks(tmp_path, monkeypatch):
    config = {
        "name": "x",
        "data": {"_target_": "research_stack.data.sources.text.Text", "path": "https://me:pa55word-of-url@host/x"},
        "logger": {"api_key": "short"},
        "nested": [{"token": "t", "n": 3}],
        "list": ["a", {"password": ["x", "y"]}],
    }
    run_folder = RunFolder(tmp_path)
    run_folder.write_config(config)
    read = run_folder.read_config()
    assert (
        read["data"]["path"] == f"https://me:{MASKED}@host/x"
        and read["logger"]["api_key"] == MASKED
        and read["list"][1]["password"] == [MASKED] * 2
    )
    assert read["nested"] == [{"token": MASKED, "n": 3}] and read["data"]["_target_"] == config["data"]["_target_"]
    assert config_hash(read) == config_hash(config) and differing_keys(read, config) == [] and masked(read) == read
    with pytest.raises(
        ValueError,
        match=r"data\.path=https://me:\*\*\*masked\*\*\*@host/x: a secret .* masked .* give it again: \+\+data\.path=",
    ):
        build(read["data"], "data")
    assert build(read["data"], "data", path="given").path == "given"
    for name, text in redaction.hand_over(config).items():
        monkeypatch.setenv(name, text)
    assert redaction.handed(read) == config and redaction.hand_over({"a": "b"}) == {}


@pytest.fixture(scope="module")
def leaky_run(tmp_path_factory):
    """A run with secrets in its config, its command, its log and its error, and what it said on standard error."""
    root = tmp_path_factory.mktemp("leaky")
    (root / "leaky").mkdir()
    (root / "leaky" / "__init__.py").write_text(LEAKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(root)
        patch.setenv("RESEARCH_STACK_PACKAGES", "leaky")
        patch.setenv("RESEARCH_STACK_CACHE", str(root / "cache"))
        patch.setenv("SOME_KEY", VALUE)
        patch.setattr(redaction, "_met", set())
        typed, url = SECRETS["typed"], f"https://me:{SECRETS['password']}@host/x"
        patch.setattr(
            sys,
            "argv",
            ["research-stack", f"++callbacks.leaks.api_key={typed}", f"++callbacks.leaks.url={url}", SECRETS["form"]],
        )
        cfg = compose(
            "model=smoke",
            "data=smoke",
            "trainer=smoke",
            "eval=none",
            "trainer.max_steps=2",
            "trainer.val_check_interval=2",
            "callbacks.checkpoints.every=1",
        )
        with open_dict(cfg):
            cfg.callbacks.leaks = {
                "_target_": "leaky.Leaks",
                "texts": list(SECRETS.values()),
                "api_key": typed,
                "url": url,
                "environment": "${oc.env:SOME_KEY}",
                "form": SECRETS["form"],
                "all": [{"tokens": 3, "token": SECRETS["listed"]}],
            }
        with pytest.raises(ValueError, match="cannot reach"):
            run(cfg, root / "run")
        yield cfg, RunFolder(root / "run")
    sys.modules.pop("leaky", None)


def every_file(root):
    """(name, bytes) of each file, and of each member of those that are zip archives."""
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        yield path.relative_to(root), path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from ((f"{path.name}/{name}", archive.read(name)) for name in archive.namelist())


def test_no_file_of_a_run_holds_a_secret(leaky_run):
    _, run_folder = leaky_run
    found = dict(every_file(run_folder.path)) | dict(every_file(run_folder.path.parent / "outputs"))
    names = {str(name) for name in found}
    assert {
        "config.yaml",
        "run.json",
        "result.json",
        "report.html",
        "run.log",
        "metrics.jsonl",
        "history.jsonl",
        "checkpoints/last.ckpt",
    } <= names and "last.ckpt/archive/data.pkl" in names
    for kind, secret in SECRETS.items():
        forms = {
            secret,
            json.dumps(secret)[1:-1],
            html.escape(secret),
            secret.split()[-1] if kind == "typed" else secret,
        }
        assert [
            (kind, str(name)) for name, content in found.items() if any(form.encode() in content for form in forms)
        ] == []
    assert (
        b"given: " in found[next(n for n in found if str(n) == "run.log")]
        and "cannot reach" in run_folder.load_result().error
    )


def test_a_masked_run_is_measured_when_what_it_lacks_is_not_needed_or_given(leaky_run):
    cfg, run_folder = leaky_run
    assert run_folder.load_result().hash == config_hash(cfg) == config_hash(run_folder.read_config())
    again = for_run(run_folder.path, ["++callbacks.leaks.api_key='given again'"])  # callbacks are not needed to measure
    assert again.callbacks.leaks.api_key == "given again" and again.callbacks.leaks.url == f"https://me:{MASKED}@host/x"
    with pytest.raises(ValueError, match=r"callbacks\.leaks\.texts\.0=.* give it again"):
        run(compose(f"run={run_folder.path}", "trainer.max_steps=4"), run_folder.path)


def test_what_goes_to_standard_error_is_masked(monkeypatch, capsys):
    from research_stack.cli.main import main

    assert main(["++logger.wandb.api_key=typed-s3cret"]) == 2 and "typed-s3cret" not in capsys.readouterr().err
    record = logging.LogRecord("x", logging.ERROR, "", 1, "typed-s3cret", (), None)
    assert redaction.Formatter("%(message)s").format(record) == "***"


def test_histories_and_files_mask_values_only(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", VALUE)
    rows = [{"text": f"api_key = {VALUE}"}, {"text": "api_key = x"}]
    files.append_jsonl(tmp_path / "a.jsonl", rows)
    files.replace_last_jsonl(tmp_path / "a.jsonl", {"text": f"api_key = x {VALUE}"})
    assert files.read_jsonl(tmp_path / "a.jsonl") == [{"text": "api_key = ***"}, {"text": "api_key = x ***"}]
    files.write_json(tmp_path / "a.json", rows)
    assert files.read_json(tmp_path / "a.json") == [{"text": "api_key = ***"}, {"text": "api_key = x"}]

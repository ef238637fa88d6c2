"""The report of a run: escaping, standing alone, unfinished runs, sizes, and what it says."""

import html
import json
import math
import re
from html.parser import HTMLParser

import pytest
import yaml

from research_stack.evaluation.likelihood_report import comparison
from research_stack.flowlm.report import loss_words, unit
from research_stack.reporting import summary, write_report
from research_stack.reporting.contract import reports_of
from research_stack.reporting.elements import duration
from research_stack.reporting.html import Html, data_island, el, escape
from research_stack.reporting.page import numbers
from research_stack.reporting.run_files import read

HOSTILE = "</script><script>alert(1)</script><img src=http://evil/x onerror=alert(2)> \"'&\x00\ud800 $x^2$"
BESIDE = re.compile(r"#[\w-]+|(figures|tables)/[\w-]+\.(png|pdf|csv)")  # what a page may point to
LOADS = {"src", "href", "srcset", "data", "poster", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """What a browser would make of the page: tags, and attributes that load or run something."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loading, self.handlers, self.text, self.scripts = [], [], [], [], []
        self._script = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loading += [(tag, key, value) for key, value in attrs if key in LOADS and not BESIDE.fullmatch(value)]
        self.handlers += [(tag, key) for key, _ in attrs if key.startswith("on")]
        if tag == "script":
            self._script = dict(attrs)
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[-1] += data
        else:
            self.text.append(data)


def page_of(folder):
    text = write_report(folder).read_text(encoding="utf-8")
    return text, Page(text)


def test_the_bits_per_byte_on_top_are_those_of_the_bound(tmp_path, run_folder):
    run = read(run_folder(tmp_path / "run"))
    assert numbers(run, reports_of(run))["bits per byte"] == "≤ 2.077"


def test_intervals_over_few_documents_say_so(tmp_path, run_folder):
    folder = run_folder(tmp_path / "run")
    assert "too narrow" not in summary(folder) + page_of(folder)[0]  # written before documents were counted
    table = folder / "tables" / "likelihood.csv"
    first, *rest = table.read_text().splitlines()
    for documents, told in ((3, True), (5, False)):
        table.write_text("\n".join([f"{first},documents", *(f"{line},{documents}" for line in rest)]) + "\n")
        words = "Numbers over 3 documents: their intervals may be too narrow; 95 % is meant from 5 documents on."
        assert (words in summary(folder)) is (words in " ".join(page_of(folder)[1].text)) is told


@pytest.mark.figures
def test_a_finished_run_shows_everything(tmp_path, run_folder):
    text, page = page_of(run_folder(tmp_path / "run"))
    shown = " ".join(page.text)
    for words in (
        "At most 4.91 nats per held-out token",
        "0.38 below a trigram model",
        "Likelihood of held-out text",
        "Gradient norm",
        "cross entropy at all eligible positions, unweighted",
        "Refinement, step by step",
        "AMD EPYC 9B45",
        "0123456789ab on main",
        "git checkout 0123456789ab",
        "mask_ratio",
        "604,123",
    ):
        assert words in shown, words
    assert page.tags.count("svg") == 3
    assert page.tags.count("svg") == text.count("</svg>")
    assert len(text) < 1_000_000
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    names = ("training_loss", "gradient_norm", "likelihood", "film_llada", "film_flowlm")
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    assert {path.stem for path in (tmp_path / "run" / "tables").iterdir()} == {
        "likelihood", "figure_training_loss", "figure_gradient_norm",
    }  # fmt: skip


def test_it_loads_nothing_and_runs_only_its_own_script(tmp_path, run_folder):
    text, page = page_of(run_folder(tmp_path / "run"))
    assert page.loading == [] and page.handlers == []
    assert not re.search(r"url\((?!#)|@import|https?://", re.sub(r"http-equiv", "", text))
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-" in html.unescape(text)
    assert len(page.scripts) == 3  # two films and the player
    assert set(page.tags).isdisjoint({"iframe", "img", "link", "object", "embed", "form", "base"})


def test_hostile_text_is_shown_and_does_nothing(tmp_path, run_folder):
    folder = run_folder(tmp_path / "run", samples=[(HOSTILE[:40], HOSTILE, HOSTILE)], error=None)
    film = json.loads((folder / "films" / "flowlm.json").read_text())
    film["pieces"] = [HOSTILE if i else "▒" for i in range(len(film["pieces"]))]
    (folder / "films" / "flowlm.json").write_text(json.dumps(film))
    run = json.loads((folder / "run.json").read_text())
    run |= {"command": HOSTILE, "name": HOSTILE, "data": {HOSTILE: HOSTILE}}
    (folder / "run.json").write_text(json.dumps(run))
    name = HOSTILE.replace("\x00", "").replace("\ud800", "")
    (folder / "config.yaml").write_text(
        json.dumps(yaml.safe_load((folder / "config.yaml").read_text()) | {"name": name})
    )
    text, page = page_of(folder)
    assert page.loading == [] and page.handlers == []
    assert len(page.scripts) == 3
    assert all("alert(1)" not in script.replace("\\u003cscript\\u003ealert(1)", "") for script in page.scripts)
    assert "alert(1)" in "".join(page.text)
    text.encode("utf-8")


@pytest.mark.parametrize("value", [HOSTILE, "<b>", "a & b"])
def test_every_string_is_escaped_unless_it_is_markup(value):
    for markup in (
        el("p", value),
        el("p", [value, None]),
        el("p", title=value),
        el("p", {"a": 1}.keys(), value),
        escape(value),
    ):
        markup = str(markup)
        assert "<script" not in markup and "<b>" not in markup and "a & b" not in markup
    assert str(el("p", Html("<b>x</b>"))) == "<p><b>x</b></p>"
    assert "<" not in data_island("x", [value])[len('<script type="application/json" id="x">') : -len("</script>")]


@pytest.mark.parametrize(
    "status, words", [("failed", "The run failed at step 310"), ("interrupted", "was interrupted at step 310")]
)
def test_a_run_that_did_not_finish(tmp_path, run_folder, status, words):
    folder = run_folder(tmp_path / "run", status=status, steps=310, error="loss=nan at step 310", evaluated=False)
    (folder / "metrics.jsonl").open("a").write('{"step": 311, "train/lo')  # torn by a power cut
    text, page = page_of(folder)
    shown = " ".join(page.text)
    assert words in shown and "loss=nan at step 310" in shown and "Gradient norm" in shown
    assert f"research-stack run={folder}" in shown
    assert "Likelihood of held-out text" not in shown
    assert status in summary(folder) and "loss=nan at step 310" in summary(folder)


def test_a_folder_with_next_to_nothing(tmp_path):
    (tmp_path / "config.yaml").write_text("name: x\n")
    text, page = page_of(tmp_path)
    assert "The folder has no result" in " ".join(page.text)
    assert summary(tmp_path).startswith("x: unknown")


def test_damaged_files_are_named(tmp_path, run_folder):
    folder = run_folder(tmp_path / "run")
    (folder / "run.json").write_text('{"command": ')
    (folder / "films" / "flowlm.json").write_text("[")
    (folder / "result.json").write_text('{"status": "ok"}')
    _, page = page_of(folder)
    shown = " ".join(page.text)
    for name in ("run.json", "flowlm.json", "result.json"):
        assert name in shown
    assert "llada" in shown


def test_numbers_that_are_not_finite(tmp_path, run_folder):
    folder = run_folder(tmp_path / "run", metrics={"likelihood/bound": None, "samples/flowlm/calls": None})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 701, "train/loss": null, "train/grad_norm": 0.0}\n')
    text, _ = page_of(folder)
    assert not re.search(r'(?i)(d|x|y|style|cx|cy)="[^"]*(nan|inf)', text)


def test_huge_runs_stay_small(tmp_path, run_folder):
    folder = run_folder(tmp_path / "run", steps=20_000, samples=[("flowlm", "", "x" * 100_000)] * 50)
    assert len(write_report(folder).read_text()) < 1_000_000


def test_the_training_loss_is_never_a_perplexity(tmp_path, run_folder):
    folder = run_folder(tmp_path / "run", evaluated=False)
    assert "perplexity" not in write_report(folder).read_text().lower()
    assert "perplexity" not in summary(folder)


@pytest.mark.parametrize(
    "gain, words",
    [
        ((0.4, 0.3, 0.5), "0.40 below a trigram"),
        ((-0.4, -0.5, -0.3), "still 0.40 above a trigram"),
        ((0.1, -0.1, 0.3), "level with a trigram"),
        ((math.nan,) * 3, ""),
    ],
)
def test_comparison_follows_the_interval(gain, words):
    assert words in comparison(*gain) and (words or comparison(*gain) == "")


def test_the_loss_is_named_after_its_config(tmp_path, run_folder):
    run = read(
        run_folder(
            tmp_path / "run",
            config={
                "name": "llada",
                "seed": 1,
                "method": {"loss": {"positions": "masked", "weight": "inv_t", "normalize": "tokens"}},
            },
        )
    )
    assert loss_words(run) == "cross entropy at masked positions, weighted by 1/p"
    assert unit(run) == "nats per token"


@pytest.mark.parametrize("seconds, text", [(42.6, "43 s"), (178.2, "2 min 58 s"), (3600, "1 h 00 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_summary_is_a_table_that_ends_with_the_path(tmp_path, run_folder, monkeypatch):
    folder = run_folder(tmp_path / "run")
    write_report(folder)
    monkeypatch.chdir(tmp_path)
    lines = summary(folder).splitlines()
    assert lines[0] == "flowlm: ok, 700 steps, 2 min 58 s"
    assert lines[-1] == "run/report.html"
    table = [line.split() for line in lines if line.startswith(("upper bound", "trigram", "unigram"))]
    assert [row[-1] for row in table] == ["2.077", "2.129", "2.236", "2.716"]
    assert "<= 4.912" in summary(folder) and max(map(len, lines)) < 120

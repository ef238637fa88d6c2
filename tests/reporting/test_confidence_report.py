"""The report of a next-token model: verdict, sections shown or absent, torn and hostile tables."""

import math
import re

import pytest

from research_stack.lookahead.report.calibration import verdict
from research_stack.lookahead.report.future_loss import predictor_rows
from research_stack.lookahead.report.selective import CONFORMAL, TESTED, promise, risk_curves
from research_stack.reporting import summary, write_report
from research_stack.reporting.page import render
from research_stack.reporting.reliability import bins_of
from research_stack.reporting.run_files import read

HOSTILE = "</script><script>alert(1)</script><img src=http://evil/x onerror=alert(2)> \"'&$x^2$"
HEADINGS = (
    "Likelihood of held-out text",
    "Who predicts the future loss",
    "Risk and coverage",
    "Abstention with a promise",
    "Decoding from its own prefix",
)


def text_of(folder, write=False):
    text = write_report(folder).read_text(encoding="utf-8") if write else render(read(folder))
    assert text.count("<svg") == text.count("</svg>")
    assert not re.search(r'(?i)\s(d|x|y|style|cx|cy|width)="[^"]*\b(nan|inf)', text)
    return text


@pytest.mark.figures
def test_a_run_with_a_head_shows_everything(tmp_path, lookahead_folder):
    folder = lookahead_folder(tmp_path / "run")
    text = text_of(folder, write=True)
    assert (
        "2.62 nats per held-out token (2.55 to 2.67), 1.10 below a trigram; the confidence head explains 43 % of the"
        " variance of the future loss (41 to 45 %), an entropy fit 38 %." in text
    )
    for words in (
        *HEADINGS,
        "noise ceiling",
        "own token wrong",
        "AURC",
        "Loss of the confidence head",
        "at the last hidden states",
        "bits per byte",
        "top-p",
    ):
        assert words in text, words
    assert "≤" not in text and "At most" not in text  # exact, no bound
    assert (
        "At a target of 10% the confidence head keeps 21.0% of the tokens; 8.9% are kept and wrong on fresh documents."
        " All promises are kept." in text
    )
    assert not re.search("&lt;(h[1-6]|p|div|table|td|svg)", text), "markup of our own is not escaped"
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "next_token",
        "future_loss_r2",
        "reliability",
        "reliability_by_own_token",
        "risk_coverage_future_loss",
        "risk_coverage_next_token_loss",
        "loss_lm",
        "loss_confidence",
        "gradient_norms_of_losses",
        "gradient_norm",
        "future_loss",
    }
    for figure in (folder / "figures").iterdir():
        assert f"figures/{figure.name}" in text and figure.stat().st_size > 1000
    for table in re.findall(r'href="(tables/[^"]*)"', text):
        assert (folder / table).is_file(), table
    assert "eval=likelihood" not in text


def test_a_run_without_a_head_says_what_it_has(tmp_path, lookahead_folder):
    text = text_of(lookahead_folder(tmp_path / "run", head=False))
    assert "2.62 nats per held-out token (2.55 to 2.67), 1.10 below a trigram.</p>" in text
    assert "The head, by what the model drew" not in text and "confidence head" not in text
    assert "Loss of the language model" in text and "averaged over noise levels" not in text


def test_sections_need_their_files(tmp_path, lookahead_folder, run_folder):
    bare = text_of(lookahead_folder(tmp_path / "bare", tables=False))
    assert not any(f"<h2>{words}" in bare for words in HEADINGS)
    assert "The last training loss was" in bare
    folder = lookahead_folder(tmp_path / "one")
    for table in (folder / "tables").iterdir():
        if table.name != "risk_coverage.csv":
            table.unlink()
    text = text_of(folder)
    assert [words in text for words in (f"<h2>{heading}" for heading in HEADINGS)] == [False, False, True, False, False]
    flow = text_of(run_folder(tmp_path / "flow"))
    assert not any(f"<h2>{words}" in flow for words in HEADINGS[1:])


@pytest.mark.parametrize(
    "metrics, words",
    [
        ({"nats": 2.5}, "2.50 nats per held-out token."),
        (
            {
                "nats": 2.5,
                "nats_low": 2.4,
                "nats_high": 2.6,
                "gain_over_trigram": -0.3,
                "gain_low": -0.4,
                "gain_high": -0.2,
            },
            "2.50 nats per held-out token (2.40 to 2.60), still 0.30 above a trigram.",
        ),
        (
            {"nats": 2.5, "gain_over_trigram": 0.01, "gain_low": -0.02, "gain_high": 0.04},
            "2.50 nats per held-out token, level with a trigram (difference +0.01, within its interval).",
        ),
        (
            {"r2": 0.431, "r2_low": 0.41, "r2_high": 0.45},
            "The confidence head explains 43 % of the variance of the future loss (41 to 45 %).",
        ),
        (
            {"nats": 2.5, "r2": -0.031, "r2_low": -0.05, "r2_high": -0.01, "r2_entropy": 0.2},
            (
                "2.50 nats per held-out token; the confidence head explains none of the variance of the future loss: R²"
                " -0.03 (-0.05 to -0.01), an entropy fit 20 %."
            ),
        ),
        ({"nats": math.nan, "r2": math.nan}, ""),
        ({}, ""),
    ],
)
def test_verdict_follows_the_numbers(tmp_path, metrics, words):
    run = read(tmp_path)
    run.metrics = {f"lookahead/{key}": value for key, value in metrics.items()}
    assert verdict(run) == words


def test_torn_and_empty_tables(tmp_path, lookahead_folder):
    folder = lookahead_folder(tmp_path / "run")
    for table in (folder / "tables").iterdir():
        lines = table.read_text().splitlines()
        table.write_text("\n".join([*lines[:3], lines[3][: len(lines[3]) // 2]]))  # cut in the middle of a row
    text_of(folder)
    for table in (folder / "tables").iterdir():
        header = table.read_text().splitlines()[0]
        table.write_text(
            f"{header}\n"
            + ",".join(["nan"] * header.count(","))
            + "\n"
            + ",".join(["x", "inf", "", "-inf"] * 4)
            + "\n\x00\n"
        )
    assert not any(f"<h2>{words}" in text_of(folder) for words in HEADINGS)
    for table in (folder / "tables").iterdir():
        table.write_text("")
    assert not any(f"<h2>{words}" in text_of(folder) for words in HEADINGS)
    assert "2.62 nats" in summary(folder)


def test_a_table_that_cannot_be_read_is_named(tmp_path, lookahead_folder):
    folder = lookahead_folder(tmp_path / "run")
    (folder / "tables" / "abstention.csv").write_text('score,target\n"' + "x" * 200_000)
    text = text_of(folder)
    assert "abstention.csv cannot be read" in text and "<h2>Abstention" not in text and "<h2>Risk and coverage" in text


def test_hostile_tables_do_nothing(tmp_path, lookahead_folder):
    folder, quoted = lookahead_folder(tmp_path / "run"), '"' + HOSTILE.replace('"', '""') + '"'
    for table in (folder / "tables").iterdir():
        lines = table.read_text().splitlines()
        table.write_text(
            "\n".join([lines[0], *(f"{quoted},{line.partition(',')[2]}" for line in lines[1:]), *lines[1:]])
        )
    text = text_of(folder)
    assert "<script>alert" not in text and "<img" not in text and "alert(1)" in text


def test_bins_and_curves_come_in_order(tmp_path, lookahead_folder):
    run = read(lookahead_folder(tmp_path / "run"))
    found = bins_of(run.table("reliability")[::-1], "confidence head")
    assert len(found) == 15 and [b.predicted for b in found] == sorted(b.predicted for b in found)
    assert found[3].error == pytest.approx((0.11, 0.13))
    assert [row["kind"] for row in predictor_rows(run)] == ["head", *["control"] * 4, "ceiling"]
    curves = risk_curves(run.table("risk_coverage"))
    assert (
        list(curves) == ["future loss", "next-token loss"]
        and [len(c.points) for c in curves["future loss"]] == [50] * 5
    )
    assert curves["future loss"][0].excess == pytest.approx(curves["future loss"][0].aurc - 2.9 / 3.6)


def test_promises_in_words():
    row = {
        "score": "entropy",
        "target": "0.1",
        "delta": "0.05",
        "coverage": "0.3",
        "risk": "0.09",
        "violations": "0.04",
        "splits": "100",
    }
    assert (
        promise([row], TESTED)
        == "At a target of 10% entropy keeps 30.0% of the tokens; 9.0% of them are wrong on fresh documents. All"
        " promises are kept."
    )
    assert promise([row, row | {"violations": "0.06"}], TESTED).endswith("1 of 2 promises are broken.")
    assert promise([row, row | {"violations": "0.6"}], CONFORMAL).endswith(
        "9.0% are kept and wrong on fresh documents. All promises are kept."
    )
    assert promise([row | {"risk": "0.11"}], CONFORMAL).endswith("1 of 1 promises are broken.")
    assert promise([row | {"coverage": "0", "risk": "nan"}], TESTED).startswith("No threshold passes at these targets")


def test_the_terminal_has_the_tables(tmp_path, lookahead_folder):
    lines = summary(lookahead_folder(tmp_path / "run")).splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(("this run", "confidence head", "top-p"))] == [
        ["this", "run"],
        ["confidence", "head"],
        ["top-p", "p"],
    ]
    assert any("2.551 to 2.673" in line for line in lines) and "<=" not in "".join(lines)
    assert max(len(line) for line in lines if not line[:1].isdigit()) < 120

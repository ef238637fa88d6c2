"""What a run shows: an honest verdict, curves, tables, messages, times, examples, losses, torn and hostile files."""

import json
import re

import pytest
import saved_wires as runs

from research_stack.latentwire.path_names import HEAD, LATENT, NONE, SHUFFLED, TEXT
from research_stack.latentwire.report import evaluation, examples, messages, score_charts, scores, training, verdict
from research_stack.latentwire.report.loading import load
from research_stack.latentwire.report.tables import Measurements, SpeedSummary, by_bits, distinct
from research_stack.reporting import summary, write_report
from research_stack.reporting.html import join
from research_stack.reporting.page import render
from research_stack.reporting.run_files import read

HOSTILE = "</script><img src=x onerror=alert(1)>&$x^{"


def made(folder, **options):
    return read(runs.make_wire(folder, **options))


def sentence(folder, **options):
    return verdict.verdict(made(folder, **options))


def replaced(run, paths, columns):
    """The run with these columns of latentwire.csv changed in the rows of these (reader, path)."""
    table = run.folder / "tables" / "latentwire.csv"
    header, *rows = (line.split(",") for line in table.read_text().splitlines())
    for row in rows:
        if tuple(row[1:3]) in paths:
            for name, value in columns.items():
                row[header.index(name)] = str(value)
    table.write_text("\n".join(map(",".join, [header, *rows])))
    return read(run.folder)


# The verdict ---------------------------------------------------------------------------------------------------------


def test_the_verdict_says_what_the_readers_keep_beside_equal_bytes(tmp_path):
    run = made(tmp_path, curve=False)
    text = verdict.verdict(run)
    assert text.startswith("36 bytes of latents keep 94 % (llama) and 84 % (qwen) of what the readers answer from")
    assert text.endswith("of 136 bytes (F1); the same bytes of text keep at most 33 % and 37 %.")
    facts = evaluation.numbers(run)
    assert facts["on the wire"] == "36 bytes" and facts["smaller than the text"] == "3.8 times"
    assert facts["F1, llama"] == "0.87 of 0.93"


def test_latents_no_better_than_those_of_another_example_give_nothing(tmp_path):
    both = sentence(tmp_path / "a", readers={"llama": 0.13, "qwen": 0.14})
    assert both.startswith("The readers get nothing from the latents: F1 0.13 (llama) and 0.14 (qwen) with 36 bytes")
    assert both.endswith("0.12 and 0.13 with those of another example, 0.93 and 0.99 with the whole text.")
    run = made(tmp_path / "b", shuffled=runs.BOTH)  # a high score that another example's latents reach too
    assert verdict.verdict(run).startswith("The readers get nothing from the latents: F1 0.87 (llama)")
    (warning,) = [text for text in verdict.warnings(load(run)) if text.startswith("llama")]
    assert "another example score 0.87, above 0.11 without any context" in warning
    one = sentence(tmp_path / "c", readers={"llama": 0.87, "qwen": 0.14})
    assert one.startswith("36 bytes of latents keep 94 % of what llama answers") and "keep at most 33 %." in one
    assert one.endswith("qwen gets nothing from them: F1 0.14, with those of another example 0.13.")
    alone = sentence(tmp_path / "d", readers={"llama": 0.12})
    assert alone.startswith("llama gets nothing from the latents: F1 0.12 with")


def test_the_best_of_equal_bytes_of_text_is_the_opponent(tmp_path):
    level, more = ", level with the latents for llama", ", more than the latents for llama"
    for number, (head, words) in enumerate([(0.86, level), (0.92, more), (0.5, "")]):
        text = sentence(tmp_path / f"{number}", head={"llama": head, "qwen": 0.37})
        assert text.endswith(f"{head / 0.93 * 100:.0f} % and 37 %{words}.")
    run, tail = made(tmp_path / "tail", curve=False), {("llama", "text_bytes_tail")}
    for f1, words in [(0.6, ""), (0.88, level)]:
        numbers = {"f1": f1, "f1_low": f1 - 0.02, "f1_high": f1 + 0.02, "share_of_text": f1 / 0.93}
        assert f"keep at most {100 * f1 / 0.93:.0f} % and 37 %{words}." in verdict.verdict(replaced(run, tail, numbers))


def test_readers_that_cannot_read_and_latents_that_are_larger_than_the_text(tmp_path):
    weak = sentence(tmp_path / "a", text={"llama": 0.12, "qwen": 0.99})
    assert "llama cannot answer from the whole text either (F1 0.12, without any context 0.11)" in weak
    large = sentence(tmp_path / "b", context=30.0, curve=False)
    assert large.endswith("The latents are no smaller than the text.")


def test_without_intervals_nothing_is_claimed(tmp_path):
    run = made(tmp_path / "a", half=0)
    (run.folder / "tables" / "latentwire_paired.csv").unlink()
    text = verdict.verdict(run)
    assert text.endswith("another example do as well was not measured.") and "level" not in text
    wide = made(tmp_path / "b", half=0.4)
    (wide.folder / "tables" / "latentwire_paired.csv").unlink()
    text = verdict.verdict(wide)
    assert text.startswith("Too few questions to tell whether llama and qwen get anything from the latents: F1 0.87")


def test_a_data_set_that_fails_is_named(tmp_path):
    squad = runs.scores({"llama": 0.31, "qwen": 0.13}, dataset="squad", context=735.0)
    run = made(tmp_path, rows=runs.scores(dataset="all") + runs.scores(dataset="qa_facts") + squad)
    text = verdict.verdict(run)
    assert "On squad qwen gets nothing from the latents." in text
    assert text.endswith("On squad the latents are no better than the same bytes of text for llama.")
    page = str(join(scores.scores(run)))
    places = [page.index(f"Data set {name}") for name in ("all", "qa_facts", "squad")]
    assert places == sorted(places) and page.count("Data set ") == 3
    assert evaluation.terminal(run)[1][3] == ["squad", "0.310", "0.930", "0.130", "0.990"]


def test_a_run_that_was_not_evaluated(tmp_path):
    run = made(tmp_path, evaluated=False, status="interrupted")
    assert re.fullmatch(
        r"At step 500 the first token is correct \d+ % \(llama\) and \d+ % \(qwen\) .*", training.progress(run)
    )
    assert verdict.verdict(run) == "" and evaluation.terminal(run) == [] and evaluation.numbers(run) == {}
    assert scores.scores(run) is messages.messages(run) is messages.speed(run) is None
    page = render(run)
    assert "The run was interrupted at step 500. At step 500" in page and "eval=latentwire" in page
    run.history = [{"step": 1, "train/loss": 2.0}]
    assert training.progress(run) == "The last training loss was 2.000 in all, the weighted sum of its terms."


# Scores --------------------------------------------------------------------------------------------------------------


def test_rows_of_the_trained_setting(tmp_path):
    data = load(made(tmp_path))
    for path, size in ((LATENT, 36), (HEAD, 35.9), ("text_tokens", 24.8), (TEXT, 136), (NONE, 0), (SHUFFLED, 36)):
        assert data.main("qa_facts", "llama", path).bytes == pytest.approx(size), path
    assert [row.bytes for row in data.of("qa_facts", "llama", LATENT)] == [20, 20, 36, 36, 68]
    found = {bits: [row.num_latents for row in rows] for bits, rows in by_bits(data, "qa_facts", "qwen").items()}
    assert found == {4: [4, 8, 16], 2: [8, 16]}
    assert len(distinct(data.of("qa_facts", "llama", HEAD))) == 3
    rows = [[*row[:-1], row[-1] if row[2] == "latent" else ""] for row in runs.scores()]  # others without a mark
    run = made(tmp_path / "b")
    runs.write(run.folder, "latentwire", runs.HEADER, rows)
    data = load(read(run.folder))
    assert data.main("qa_facts", "llama", HEAD).num_latents == 8 and data.main("qa_facts", "llama", SHUFFLED).bits == 4
    assert data.main("qa_facts", "llama", "text_tokens").num_latents == 8


def test_paired_intervals_decide_and_single_ones_where_there_are_none(tmp_path):
    run = made(tmp_path)
    pairs = [(LATENT, HEAD), (SHUFFLED, NONE), (LATENT, TEXT)]
    data = load(run)
    assert [data.compare("qa_facts", "llama", *pair) for pair in pairs] == [1, 0, -1]
    data = Measurements(data.rows)
    assert data.compare("qa_facts", "llama", LATENT, HEAD) == 1
    assert data.compare("qa_facts", "llama", LATENT, "nothing") is None


def test_charts_of_each_reader_over_bytes_and_over_latents(tmp_path):
    run = made(tmp_path / "a")
    drawn = score_charts.charts(load(run), "qa_facts")
    assert [chart.name for chart in drawn] == [
        f"latentwire_{kind}_{reader}" for kind in ("bytes", "latents") for reader in ("llama", "qwen")
    ]
    assert [text for _, text, _ in drawn[0].legend][:3] == ["latents, 4 bits", "latents, 2 bits", "whole text"]
    page = str(join(scores.scores(run)))
    assert "All 70 settings and paths" in page and "latents − same bytes of text, its head" in page
    assert "1,000 questions. " in page
    assert len(score_charts.charts(load(made(tmp_path / "b", curve=False)), "qa_facts")) == 2
    several = load(made(tmp_path / "c", readers={"a/b": 0.8, "a b": 0.7}))  # names that make the same file name
    assert len({chart.name for chart in score_charts.charts(several, "qa_facts")}) == 4


def test_tables_have_the_shares_and_no_empty_columns(tmp_path):
    run = made(tmp_path)
    brief, folded = str(join(scores.tables(load(run)))).split("<details")
    cells = ["36", "3.78", "0.870", "0.850 to 0.890", "94 %"]
    row = "<td>latents</td><td>llama</td>" + "".join(f'<td class="num">{cell}</td>' for cell in cells)
    assert row in brief and "FirstTok@1" in brief and ">latents</th>" not in brief and ">latents</th>" in folded
    first = runs.HEADER.index("first1")
    rows = [[*row[:first], "", "", "", *row[first + 3 :]] for row in runs.scores()]
    runs.write(run.folder, "latentwire", runs.HEADER, runs.with_shares(rows))
    assert "FirstTok" not in str(join(scores.tables(load(read(run.folder)))))


def test_the_terminal_has_every_path(tmp_path):
    run = made(tmp_path / "a")
    (lines,) = evaluation.terminal(run)
    assert lines[0] == ["F1 of answers", "bytes", "llama", "95 % interval", "qwen", "95 % interval"]
    assert lines[1] == ["latents", "36", "0.870", "0.850 to 0.890", "0.830", "0.810 to 0.850"] and len(lines) == 10
    text = summary(run.folder)
    assert "latents                          36  0.870  0.850 to 0.890  0.830  0.810 to 0.850" in text.splitlines()
    rows = runs.scores(curve=False)
    for row in rows:
        row[5] += row[1:3] == ["qwen", "text_tokens"]
    (lines,) = evaluation.terminal(made(tmp_path / "b", rows=rows))
    assert next(line[1] for line in lines if line[0] == "as many tokens of text") == "24.8 / 25.8"


# Messages, times, examples --------------------------------------------------------------------------------------------


def test_the_parts_of_a_message_are_summed(tmp_path):
    run = made(tmp_path)
    page = str(join(messages.messages(run)))
    assert '<td>together</td><td class="num">36</td><td class="num">52</td>' in page
    assert not any("parts of a message" in text for text in verdict.warnings(load(run)))
    header = ["part", "reader_bytes", "broadcast_bytes"]
    runs.write(run.folder, "latentwire_bytes", header, [["header", 3, ""], ["values", 30, ""]])
    run = read(run.folder)
    assert "The parts of a message sum to 33 bytes, the messages have 36." in verdict.warnings(load(run))
    assert "broadcast" not in str(join(messages.messages(run))).partition("<p")[0]


def test_times_are_told_as_they_are(tmp_path):
    page = str(join(messages.speed(made(tmp_path))))
    assert "llama with 8 latents: faster than the text from 136 bytes on; where the context has 4\u00a0×\u00a08" in page
    assert "99 bytes, 3.72 ms against 4.4 ms of the text." in page and page.count("<svg") == 2
    nan = float("nan")
    for row, words in [
        (
            SpeedSummary(8, 32, 1, 32, 512, nan, nan, nan),
            "faster than the text at every length measured, 32 to 512 bytes.",
        ),
        (
            SpeedSummary(8, nan, 1, 32, 512, nan, nan, nan),
            "not faster than the text at the longest context, 512 bytes.",
        ),
        (SpeedSummary(8, nan, 0, 32, 512, nan, nan, nan), "never faster than the text up to 512 bytes."),
    ]:
        assert messages.speed_text("llama", row) == f"llama with 8 latents: {words}"


def test_examples_show_answers_and_messages(tmp_path):
    run = made(tmp_path)
    page = str(join(examples.examples(run)))
    assert page.count("✓ Rice.") == 2 and "✓ tea" not in page and "✓ Oslo" not in page and "gold: “rice”" in page
    assert "36 bytes to llama: " in page and "00 03 06 09" in page and f"{len(runs.FACTS)} bytes" in page
    rows = [row for n in range(20) for row in runs.examples(["llama"], question=f"Q{n}?")]
    runs.write(run.folder, "latentwire_examples", runs.EXAMPLES, rows)
    page = str(join(examples.examples(read(run.folder))))
    assert "The first 12 of 20 are shown." in page and "Q11?" in page and "Q12?" not in page


# Training ------------------------------------------------------------------------------------------------------------


def test_every_term_of_the_loss_is_drawn(tmp_path):
    run = made(tmp_path, evaluated=False)
    assert training.loss_terms(run) == ["first", "answer", "kd"]
    page = str(join(training.training(run)))
    for words in (
        "weighted sum of its terms",
        "Loss of the first token",
        "cross entropy, nats, weight 0.5",
        "Distillation",
        "First token correct",
        "Collapse alarm",
        "llama, dots: validation",
        "Gradient norm",
    ):
        assert words in page, words
    assert page.count("<svg") == 7
    for row in run.history:
        row["train/collapse"] = 0.0
        row["train/loss_gist_words"], row["train/loss_rms"] = 0.1 * row["step"], 1.0
        row.pop("train/loss_kd")
    assert training.loss_terms(run) == ["first", "answer", "rms", "gist_words"]
    assert "Gist words" in str(join(training.training(run))) and "It ended at 0.000." in training.explanation(run)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.figures
def test_the_page_and_its_files(tmp_path):
    folder = runs.make_wire(tmp_path / "run")
    page = write_report(folder).read_text()
    charts = [f"latentwire_{kind}_{reader}" for kind in ("bytes", "latents", "latency") for reader in ("llama", "qwen")]
    charts += [
        f"training_{name}" for name in ("loss", "loss_first", "loss_answer", "loss_kd", "first_token", "collapse")
    ]
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in (*charts, "gradient_norm") for kind in ("png", "pdf")}
    assert len(page) < 1_500_000 and not re.search(r'(?i)(d|x|y|cx|cy|x1|x2|y1|y2|width)="[^"]*(nan|inf)', page)
    titles = ["Answers from latents", "The message, byte by byte", "Time to the first token", "Examples", "Training"]
    places = [page.index(f">{title}<") for title in titles]
    assert places == sorted(places)
    assert "task=eval run=" in page and "task=sample" not in page  # it has nothing to sample


def test_torn_and_hostile_files_do_no_harm(tmp_path):
    hostile = runs.make_wire(tmp_path / "a", readers={HOSTILE.replace(",", ""): 0.87}, steps=50)
    runs.write(hostile, "latentwire_examples", runs.EXAMPLES, [[HOSTILE] * len(runs.EXAMPLES)])
    page = write_report(hostile).read_text()
    assert "<img" not in page and "&lt;img src=x" in page
    assert all(path.parent == hostile / "figures" for path in (hostile / "figures").rglob("*"))
    folder = runs.make_wire(tmp_path / "b", steps=50)
    table = folder / "tables" / "latentwire.csv"
    torn = ["qa_facts,llama,latent,8", "qa_facts,llama,unknown path,8,4,36,,,,.5,.4,.6"]
    table.write_text("\n".join([*table.read_text().splitlines()[:3], *torn]))
    for name in ("paired", "latency", "speed", "bytes", "examples"):
        path = folder / "tables" / f"latentwire_{name}.csv"
        path.write_text(path.read_text()[:-40] + "\nx,y\n,,,")
    assert "Answers from latents" in write_report(folder).read_text()
    table.write_text("dataset,reader\n")
    result = {"status": "ok", "hash": "x", "metrics": {}, "seconds": 1.0, "steps": 500}
    (folder / "result.json").write_text(json.dumps(result))
    assert "Answers from latents" not in write_report(folder).read_text()

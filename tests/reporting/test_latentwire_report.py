"""The report of a wire of latents: an honest verdict, curves, tables, messages, times, examples, losses, torn and
hostile files.
"""

import json
import math
import re

import latentwire_runs as runs
import pytest

from research_stack.reporting import (
    latentwire,
    latentwire_figures,
    latentwire_losses,
    latentwire_page,
    latentwire_tables,
    latentwire_words,
    write_report,
)
from research_stack.reporting.latentwire_tables import HEAD, LATENT, NONE, SHUFFLED, TEXT, Timed
from research_stack.reporting.page import render
from research_stack.reporting.reading import read
from research_stack.reporting.sections import glance, last_loss, verdict

HOSTILE = "</script><img src=x onerror=alert(1)>&$x^{"


def made(tmp_path, **law):
    return read(runs.make_wire(tmp_path / "run", **law))


# The verdict ---------------------------------------------------------------------------------------------------------


def test_the_verdict_says_what_the_readers_keep_beside_equal_bytes(tmp_path):
    run = made(tmp_path, curve=False)
    assert (
        verdict(run)
        == "36 bytes of latents keep 94 % (llama) and 84 % (qwen) of what the readers answer from the whole text of 136"
        " bytes (F1); the same bytes of text keep at most 33 % and 37 %."
    )
    facts = glance(run)
    assert (
        facts["on the wire"] == "36 bytes"
        and facts["smaller than the text"] == "3.8 times"
        and facts["F1, llama"] == "0.87 of 0.93"
    )


def test_latents_no_better_than_those_of_another_example_give_nothing(tmp_path):
    run = made(tmp_path, readers={"llama": 0.13, "qwen": 0.14})
    assert (
        verdict(run)
        == "The readers get nothing from the latents: F1 0.13 (llama) and 0.14 (qwen) with 36 bytes of them, 0.12 and"
        " 0.13 with those of another example, 0.93 and 0.99 with the whole text."
    )


def test_a_high_score_that_another_examples_latents_reach_too_is_nothing(tmp_path):
    run = made(tmp_path, shuffled=runs.BOTH)
    assert verdict(run).startswith("The readers get nothing from the latents: F1 0.87 (llama)")
    assert "llama: the latents of another example score 0.87, above 0.11 without any context" in render(run)


def test_one_reader_may_get_nothing(tmp_path):
    words = verdict(made(tmp_path, readers={"llama": 0.87, "qwen": 0.14}))
    assert words.startswith(
        "36 bytes of latents keep 94 % of what llama answers from the whole text of 136 bytes (F1); the same bytes of"
        " text keep at most 33 %."
    )
    assert words.endswith("qwen gets nothing from them: F1 0.14, with those of another example 0.13.")


@pytest.mark.parametrize(
    "head, said", [(0.86, ", level with the latents for llama"), (0.92, ", more than the latents for llama"), (0.5, "")]
)
def test_latents_no_better_than_equal_bytes_of_text(tmp_path, head, said):
    words = verdict(made(tmp_path, head={"llama": head, "qwen": 0.37}))
    assert words.endswith(f"{head / 0.93 * 100:.0f} % and 37 %{said}.")


def test_the_better_of_head_and_tail_is_the_opponent(tmp_path):
    run = made(tmp_path, curve=False)
    table = tmp_path / "run" / "tables" / "latentwire.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    for line in lines:
        if line[:3] == ["qa_facts", "llama", "text_bytes_tail"]:
            line[9:12] = ["0.60", "0.58", "0.62"]
    table.write_text("\n".join(map(",".join, lines)))
    assert "keep at most 65 % and 37 %." in verdict(run)
    for line in lines:
        if line[:3] == ["qa_facts", "llama", "text_bytes_tail"]:
            line[9:12] = ["0.88", "0.86", "0.90"]
    table.write_text("\n".join(map(",".join, lines)))
    assert "keep at most 95 % and 37 %, level with the latents for llama." in verdict(run)


def test_readers_that_cannot_read_and_latents_that_are_larger_than_the_text(tmp_path):
    weak = verdict(made(tmp_path, text={"llama": 0.12, "qwen": 0.99}))
    assert weak.endswith(
        "llama cannot answer from the whole text either (F1 0.12, without any context 0.11): nothing can be told of the"
        " latents there."
    )
    assert verdict(read(runs.make_wire(tmp_path / "large", context=30.0, curve=False))).endswith(
        "The latents are no smaller than the text."
    )


def test_one_reader_alone(tmp_path):
    assert verdict(made(tmp_path, readers={"llama": 0.87})).startswith(
        "36 bytes of latents keep 94 % of what llama answers from the whole text"
    )
    assert verdict(read(runs.make_wire(tmp_path / "b", readers={"llama": 0.12}))).startswith(
        "llama gets nothing from the latents: F1 0.12 with"
    )


def test_without_intervals_nothing_is_claimed_beside_other_examples(tmp_path):
    run = made(tmp_path, half=0)
    (run.folder / "tables" / "latentwire_paired.csv").unlink()
    assert verdict(run).endswith(
        "Whether latents of another example do as well was not measured."
    ) and "level" not in verdict(run)


def test_few_questions_are_not_taken_for_nothing(tmp_path):
    run = made(tmp_path, half=0.4)
    (run.folder / "tables" / "latentwire_paired.csv").unlink()
    assert (
        verdict(run)
        == "Too few questions to tell whether llama and qwen get anything from the latents: F1 0.87 (llama) and 0.83"
        " (qwen), with those of another example 0.12 (llama) and 0.13 (qwen)."
    )


def test_a_data_set_that_fails_is_named(tmp_path):
    rows = (
        runs.scores(dataset="all")
        + runs.scores(dataset="qa_facts")
        + runs.scores({"llama": 0.31, "qwen": 0.13}, dataset="squad", context=735.0)
    )
    run = made(tmp_path, rows=rows)
    assert verdict(run).endswith(
        "On squad qwen gets nothing from the latents. On squad the latents are no better than the same bytes of text"
        " for llama."
    )
    text = render(run)
    assert text.count("Data set ") == 3 and text.index("Data set all") < text.index("Data set qa_facts") < text.index(
        "Data set squad"
    )
    assert latentwire_words.terminal(run)[1][3] == ["squad", "0.310", "0.930", "0.130", "0.990"]


def test_a_run_that_was_not_evaluated(tmp_path):
    run = made(tmp_path, evaluated=False, status="interrupted")
    assert re.fullmatch(
        r"The run was interrupted at step 500. At step 500 the first token is right \d+ % \(llama\) and \d+ % \(qwen\)"
        r" of the time on its own batch.",
        verdict(run),
    )
    assert (
        latentwire.answers(run) is None
        and latentwire_figures.figures(run) == {}
        and latentwire_words.terminal(run) == []
    )
    assert (
        "in all, the weighted sum of its parts" in last_loss(run)
        and "task=eval" in render(run)
        and "eval=latentwire" in render(run)
    )


# Scores --------------------------------------------------------------------------------------------------------------


def test_rows_of_the_trained_setting(tmp_path):
    wire = latentwire_tables.load(made(tmp_path))
    for path, size in ((LATENT, 36), (HEAD, 35.9), ("text_tokens", 24.8), (TEXT, 136), (NONE, 0), (SHUFFLED, 36)):
        assert wire.main("qa_facts", "llama", path).bytes == pytest.approx(size), path
    assert [row.bytes for row in wire.of("qa_facts", "llama", LATENT)] == [20, 20, 36, 36, 68]
    assert {
        bits: [row.num_latents for row in rows]
        for bits, rows in latentwire_tables.by_bits(wire, "qa_facts", "qwen").items()
    } == {4: [4, 8, 16], 2: [8, 16]}
    assert len(latentwire_tables.distinct(wire.of("qa_facts", "llama", HEAD))) == 3


def test_baselines_without_a_mark_are_found_by_their_setting(tmp_path):
    rows = [[*row[:-1], row[-1] if row[2] == "latent" else ""] for row in runs.scores()]
    run = made(tmp_path)
    runs.write(run.folder, "latentwire", runs.HEADER, rows)
    wire = latentwire_tables.load(run)
    assert wire.main("qa_facts", "llama", HEAD).num_latents == 8 and wire.main("qa_facts", "llama", SHUFFLED).bits == 4
    assert wire.main("qa_facts", "llama", "text_tokens").num_latents == 8


def test_paired_intervals_decide_and_single_ones_where_there_are_none(tmp_path):
    run = made(tmp_path)
    wire = latentwire_tables.load(run)
    assert (
        wire.stands("qa_facts", "llama", LATENT, HEAD) == 1
        and wire.stands("qa_facts", "llama", SHUFFLED, NONE) == 0
        and wire.stands("qa_facts", "llama", LATENT, TEXT) == -1
    )
    (run.folder / "tables" / "latentwire_paired.csv").unlink()
    wire = latentwire_tables.load(run)
    assert (
        wire.stands("qa_facts", "llama", LATENT, HEAD) == 1
        and wire.stands("qa_facts", "llama", LATENT, "nothing") is None
    )


def test_the_page_draws_each_reader_over_bytes_and_over_slots(tmp_path):
    text = render(made(tmp_path))
    assert text.count("F1 against bytes on the wire") == 2 and text.count("F1 against the number of latents") == 2
    assert (
        "All 70 settings and paths" in text
        and "latents − same bytes of text, its head" in text
        and "1,000 questions. " in text
    )
    assert "F1 against the number of latents" not in render(read(runs.make_wire(tmp_path / "one", curve=False)))


def test_tables_have_the_shares_and_no_empty_columns(tmp_path):
    run = made(tmp_path)
    wire = latentwire_tables.load(run)
    page = "".join(latentwire.tables(wire))
    brief = page[: page.index("<details")]
    assert (
        '<td>latents</td><td>llama</td><td class="num">36</td><td class="num">3.78</td><td class="num">0.870</td>'
        '<td class="num">0.850 to 0.890</td><td class="num">94 %</td>' in brief
    )
    assert "FirstTok@1" in brief and "num_latents" not in brief and "num_latents" in page
    rows = [[*row[:15], "", "", "", *row[18:]] for row in runs.scores()]
    runs.write(run.folder, "latentwire", runs.HEADER, rows)
    assert "FirstTok" not in "".join(latentwire.tables(latentwire_tables.load(run)))


def test_the_terminal_has_every_path(tmp_path):
    (lines,) = latentwire_words.terminal(made(tmp_path))
    assert lines[0] == ["F1 of answers", "bytes", "llama", "95 % interval", "qwen", "95 % interval"]
    assert lines[1] == ["latents", "36", "0.870", "0.850 to 0.890", "0.830", "0.810 to 0.850"] and len(lines) == 10
    rows = runs.scores(curve=False)
    for row in rows:
        row[5] += row[1:3] == ["qwen", "text_tokens"]
    found = latentwire_words.terminal(read(runs.make_wire(tmp_path / "b", rows=rows)))[0]
    assert next(line[1] for line in found if line[0] == "as many tokens of text") == "24.8 / 25.8"


# Messages, times, examples --------------------------------------------------------------------------------------------


def test_the_parts_of_a_message_are_summed(tmp_path):
    run = made(tmp_path)
    page = "".join(latentwire_page.messages(latentwire_tables.load(run)))
    assert '<td>together</td><td class="num">36</td><td class="num">52</td>' in page and "Caution" not in render(run)
    runs.write(
        run.folder,
        "latentwire_bytes",
        ["part", "reader_bytes", "broadcast_bytes"],
        [["header", 3, 3], ["values", 30, 46], ["total", 36, 52]],
    )
    assert "The parts of a message sum to 33 bytes, the messages have 36." in render(run)
    runs.write(run.folder, "latentwire_bytes", ["part", "bytes"], [["header", 3], ["values", 33]])
    assert "broadcast" not in "".join(latentwire_page.messages(latentwire_tables.load(run))).partition("<p")[0]


def timed(size, total, num_latents=math.nan, positions=math.nan):
    return Timed(size, num_latents, 0, 0, 0, total, math.nan, positions, math.nan)


def test_where_the_context_is_four_times_as_long_as_the_latents():
    paths = {
        LATENT: [timed(n, 3, 8, 8 + 5) for n in (40, 200)],
        TEXT: [timed(n, n / 20, positions=n / 4 + 5) for n in (40, 80, 160, 200)],
    }
    assert latentwire_tables.four_times(paths, 8) == pytest.approx(
        128
    )  # 32 tokens of 4 bytes, the question's 5 positions apart
    assert latentwire_tables.at(paths[TEXT], 128) == pytest.approx(6.4) and math.isnan(
        latentwire_tables.at(paths[TEXT], 300)
    )
    assert math.isnan(latentwire_tables.four_times({**paths, TEXT: paths[TEXT][:2]}, 8))
    assert math.isnan(latentwire_tables.four_times({LATENT: paths[LATENT], TEXT: [timed(40, 2), timed(200, 9)]}, 8))


@pytest.mark.parametrize(
    "text, start",
    [((1, 2, 4, 5), 30), ((4, 4, 4, 4), 10), ((4, 2, 4, 4), 30), ((1, 1, 1, 1), math.nan), ((4, 4, 4, 3), math.nan)],
)
def test_from_where_on_the_latents_are_faster(text, start):
    paths = {
        LATENT: [timed(n, 3, 8) for n in (10, 20, 30, 40)],
        TEXT: [timed(n, t) for n, t in zip((10, 20, 30, 40), text, strict=True)],
    }
    assert latentwire_tables.faster_from(paths, 8) == pytest.approx(start, nan_ok=True)


def test_latents_that_are_faster_only_in_between_are_not_called_faster():
    paths = {
        LATENT: [timed(n, 3, 8) for n in (10, 20, 30)],
        TEXT: [timed(n, t) for n, t in zip((10, 20, 30), (2, 4, 2), strict=True)],
    }
    wire = latentwire_tables.Wire([], latency={"llama": paths})
    assert latentwire_page.speed_story(wire) == [
        "llama with 8 latents: not faster than the text at the longest context, 30 bytes."
    ]


def test_times_are_told_as_they_are(tmp_path):
    run = made(tmp_path)
    told = latentwire_page.speed_story(latentwire_tables.load(run))
    assert re.fullmatch(
        r"llama with 8 latents: faster than the text from 136 bytes on; where the context has 4\s×\s8 tokens, 99 bytes,"
        r" 3.72 ms against 4.4 ms of the text.",
        told[0],
    )
    rows = [[*row[:7], 500 if row[3] == "latent" else 5, *row[8:]] for row in runs.latency(["llama"])]
    runs.write(
        run.folder,
        "latentwire_latency",
        "reader,context_bytes,num_latents,path,encode_ms,adapt_ms,prefill_ms,total_ms,total_p90_ms,prefill_tokens,memory_mib".split(
            ","
        ),
        rows,
    )
    (told,) = latentwire_page.speed_story(latentwire_tables.load(run))
    assert (
        told.startswith("llama with 8 latents: never faster than the text up to 2,176 bytes")
        and "500 ms against 5 ms" in told
    )


@pytest.mark.parametrize(
    "answer, gold, dataset, right",
    [
        ("The Cat!", "cat", "", True),
        ("a an the", "", "", True),
        ("", "Paris", "", False),
        ("Paris", "the Paris, France", "", False),
        ("red red fox", "red fox", "", False),
        ("no", "No.", "", True),
        ("10,000", "10000", "", True),
        ("well-known", "well known", "", False),
        ("U.S.A.", "usa", "", True),
        ("“fox”", "fox", "", False),
        ("theatre", "atre", "", False),
        ("Saint Bernadette Soubirous", "Bernadette Soubirous", "", False),
        ("Z\u00fcrich", "Zu\u0308rich", "squad", False),
        ("Z\u00fcrich", "Zu\u0308rich", "nq", True),
    ],
)
def test_right_answers_are_marked_as_squad_does(answer, gold, dataset, right):
    assert latentwire_page.is_right(answer, ["something else", gold], dataset) is right


def test_examples_show_answers_and_messages(tmp_path):
    run = made(tmp_path)
    page = "".join(latentwire_page.examples(latentwire_tables.load(run)))
    assert page.count("✓ Rice.") == 2 and "✓ tea" not in page and "✓ Oslo" not in page and "gold: “rice”" in page
    assert "36 bytes to llama: " in page and "00 03 06 09" in page and f"{len(runs.FACTS)} bytes" in page
    runs.write(
        run.folder,
        "latentwire_examples",
        runs.EXAMPLES,
        [row for n in range(20) for row in runs.examples(["llama"], question=f"Q{n}?")],
    )
    page = "".join(latentwire_page.examples(latentwire_tables.load(run)))
    assert "The first 12 of 20 are shown." in page and "Q11?" in page and "Q12?" not in page


def test_hostile_text_does_nothing(tmp_path):
    run = made(tmp_path, readers={HOSTILE.replace(",", ""): 0.87})
    runs.write(run.folder, "latentwire_examples", runs.EXAMPLES, [[HOSTILE] * len(runs.EXAMPLES)])
    text = write_report(run.folder).read_text()
    assert "<img" not in text and "&lt;img src=x" in text
    assert len(list((run.folder / "figures").iterdir())) == 4


# Training ------------------------------------------------------------------------------------------------------------


def test_every_part_of_the_loss_is_drawn(tmp_path):
    run = made(tmp_path, evaluated=False)
    assert latentwire_losses.parts(run) == ["first", "answer", "kd"]
    page = "".join(latentwire_losses.training(run))
    for words in (
        "weighted sum of its parts",
        "Loss of the first token",
        "cross entropy, nats, weight 0.5",
        "Loss of the answer",
        "Distillation",
        "First token right",
        "Collapse alarm",
        "llama, dots: validation",
        "Gradient norm",
    ):
        assert words in page, words
    assert page.count("<svg") == 7


def test_parts_of_any_name_are_drawn(tmp_path):
    run = made(tmp_path, evaluated=False)
    run.history = [
        {key: value for key, value in row.items() if "kd" not in key}
        | {"train/loss_gist_words": 0.1 * row["step"], "train/loss_rms": 1.0}
        for row in run.history
    ]
    assert latentwire_losses.parts(run) == ["first", "answer", "rms", "gist_words"] and "Gist words" in "".join(
        latentwire_losses.training(run)
    )


def test_a_collapse_ends_near_zero_and_says_so(tmp_path):
    run = made(tmp_path, evaluated=False)
    for row in run.history:
        row["train/collapse"] = 0.0
    assert "It ended at 0.000." in latentwire_losses.note(run)


def test_other_runs_have_none_of_this(tmp_path, run_folder, policy_folder, lookahead_folder):
    for run in map(read, (run_folder(tmp_path / "a"), policy_folder(tmp_path / "b"), lookahead_folder(tmp_path / "c"))):
        assert (
            latentwire.answers(run) is None
            and latentwire_losses.training(run) is None
            and latentwire_losses.figure(run) is None
        )
        assert (
            latentwire_words.verdict(run) == latentwire_words.last_step(run) == ""
            and latentwire_words.glance(run) == {}
        )


# Files ---------------------------------------------------------------------------------------------------------------


def test_figures(tmp_path):
    folder = runs.make_wire(tmp_path / "run")
    text = write_report(folder).read_text()
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "latentwire.png",
        "latentwire_slots.png",
        "latentwire_latency.png",
        "training.png",
    }
    assert len(text) < 1_000_000 and not re.search(r'(?i)(d|x|y|cx|cy|x1|x2|y1|y2|width)="[^"]*(nan|inf)', text)
    assert (
        text.index("Answers from latents")
        < text.index("The message, byte by byte")
        < text.index("Time to the first token")
        < text.index("Examples")
        < text.index(">Training<")
    )
    figure = latentwire_figures.rate_figure(latentwire_tables.load(read(folder)))
    assert len(figure.axes) == 2 and [text.get_text() for text in figure.legends[0].get_texts()][:3] == [
        "latents, 4 bits",
        "latents, 2 bits",
        "whole text",
    ]


def test_torn_tables_are_survived(tmp_path):
    folder = runs.make_wire(tmp_path / "run")
    tables = folder / "tables"
    lines = (tables / "latentwire.csv").read_text().splitlines()
    (tables / "latentwire.csv").write_text(
        "\n".join([*lines[:3], "qa_facts,llama,latent,8", "qa_facts,llama,unknown path,8,4,36,,,,.5,.4,.6"])
    )
    for name in ("paired", "latency", "bytes", "examples"):
        path = tables / f"latentwire_{name}.csv"
        path.write_text(path.read_text()[:-40] + "\nx,y\n,,,")
    assert "Answers from latents" in write_report(folder).read_text()
    (tables / "latentwire.csv").write_text("dataset,reader\n")
    (folder / "result.json").write_text(
        json.dumps({"status": "ok", "hash": "x", "metrics": {}, "seconds": 1.0, "steps": 500})
    )
    assert "Answers from latents" not in write_report(folder).read_text()

"""Paths against reading one question at a time, tables against the scores they are made of, times, and the bound on
information.
"""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_wires import context, facts, folders, wire

from research_stack.config.check_node import check_node
from research_stack.data.questions.question import Question
from research_stack.latentwire import latency, paths
from research_stack.latentwire.evaluation import LatentWireEvaluation, bytes_table, chosen, groups_of, settings
from research_stack.latentwire.features.lora import ReaderLoRA
from research_stack.latentwire.information import message_information
from research_stack.latentwire.latency import Latency
from research_stack.latentwire.paths import AnswerGenerator, mismatched_contexts
from research_stack.latentwire.receiver import greedy, prefill_text
from research_stack.latentwire.report.loading import load
from research_stack.latentwire.wire import MAX_LATENTS
from research_stack.metrics import qa
from research_stack.reporting.run_files import RunFiles

PATHS = ["none", "text", "latent", "shuffled", "zeros", "text_bytes", "text_bytes_tail", "text_zlib", "text_tokens"]
NAMES = ["llama", "qwen"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("readers"))


@pytest.fixture(scope="module")
def data():
    return facts()


@pytest.fixture(scope="module")
def method(places, data):
    return wire(places, data)


@pytest.fixture(scope="module")
def asked(data):
    """Of different contexts, so that latents of another example exist."""
    return [data.questions[i] for i in data.validation][:10]


@pytest.fixture(scope="module")
def answered(method, asked):
    """{(reader, path): what was answered}, in batches that do not divide the questions."""
    found = {}
    with torch.inference_mode():
        for name in NAMES:
            generator = AnswerGenerator(method, name, asked, batch_size=4)
            found |= {
                (name, one.path): one
                for one in [*generator.whole(), *generator.sent(5, mismatched_contexts(asked, 1), controls=True)]
            }
    return found


def alone(reader, prefill_latents, question):
    """The answer to one question, and the logits of its first token."""
    ids, first_1V = greedy(reader, prefill_latents, [reader.prompt_ids(question.question)], reader.max_answer_tokens)
    return reader.decode(ids[0]), first_1V[0]


# ------------------------------------------------------------------------------------------------ paths
@pytest.mark.parametrize("name", NAMES)
def test_each_path_answers_as_one_question_at_a_time_does(method, asked, answered, name):
    reader, others = method.readers[name], mismatched_contexts(asked, 1)
    for i, question in enumerate(asked):
        own, other = (method.encode([q.context], name)[0] for q in (question, asked[others[i]]))
        text, budget = question.context, len(own)
        ids = {
            "none": [],
            "text": reader.token_ids(text),
            "text_bytes": reader.token_ids(text[:budget]),
            "text_bytes_tail": reader.token_ids(text[-budget:]),
            "text_tokens": reader.token_ids(text)[:5],
        }
        prefill_latents = {path: prefill_text(reader, [tokens]) for path, tokens in ids.items()}
        prefill_latents |= {
            path: method.prefill(name, method.decode([message], name))
            for path, message in (("latent", own), ("shuffled", other))
        }
        for path, given in prefill_latents.items():
            found, positions = answered[name, path], given.cache.length + len(reader.prompt_ids(question.question))
            answer, first_V = alone(reader, given, question)
            assert found.answers[i] == answer, path
            assert found.positions_n[i] == positions, path
            firsts = {reader.answer_ids(question.question, gold)[0] for gold in question.answers}
            np.testing.assert_array_equal(found.first_nK[i], qa.first_token_at(first_V[None].numpy(), [firsts])[0])
    assert {path for _, path in answered} == set(PATHS)


def test_bytes_are_those_that_were_sent(method, asked, answered):
    for name in NAMES:
        size = len(method.encode([asked[0].context], name)[0])
        assert size == 3 + -(-5 * 4 * 4 // 8) + 1
        for path in ("latent", "shuffled", "zeros"):
            assert set(answered[name, path].bytes_n) == {size}
        for path in ("text_bytes", "text_bytes_tail"):
            assert set(answered[name, path].bytes_n) == {size}, "ASCII is cut to the byte"
        assert (answered[name, "text_zlib"].bytes_n <= size).all() and (answered[name, "none"].bytes_n == 0).all()
        np.testing.assert_array_equal(answered[name, "text"].bytes_n, [len(q.context.encode()) for q in asked])


def test_latents_go_through_bytes(method, asked, monkeypatch):
    """What was not written cannot be read."""
    generator = AnswerGenerator(method, "llama", asked, 4)
    honest = generator.messages(5)
    broken = [message[:-2] + bytes([message[-2] ^ 1]) + message[-1:] for message in honest]
    with pytest.raises(ValueError, match="damaged"):
        generator.from_messages("latent", 5, broken)
    with pytest.raises(ValueError, match="another reader"):
        AnswerGenerator(method, "qwen", asked, 4).from_messages("latent", 5, honest)


def test_zeros_are_read_in_the_latents_place(method, asked, answered, monkeypatch):
    decode = method.decode

    def zeroed(messages, reader):
        sent = decode(messages, reader)
        return method.adapt(reader, torch.zeros_like(sent.latents_BMd), sent.index_M)

    monkeypatch.setattr(method, "decode", zeroed)
    generator = AnswerGenerator(method, "llama", asked, 4)
    found = generator.from_messages("zeros", 5, generator.messages(5))
    assert found.answers == answered["llama", "zeros"].answers
    assert found.answers != answered["llama", "latent"].answers


def test_gold_answers_do_not_reach_the_reader(method, asked, answered):
    """Neither their text nor their length: other golds change scores, never answers."""
    other = [replace(q, answers=("a far longer answer than any of these", "x"), start=-1) for q in asked]
    generator = AnswerGenerator(method, "llama", other, 4)
    with torch.inference_mode():
        for one in [*generator.whole(), *generator.sent(5, mismatched_contexts(asked, 1), controls=True)]:
            assert one.answers == answered["llama", one.path].answers, one.path


def test_what_the_reader_says_anyway_is_right(method, asked, answered):
    """With its own answers as gold the scores are 1; questions whose answers run into the prompt count nowhere in
    FirstTok.
    """
    said = answered["llama", "text"]
    gold = [
        replace(q, answers=("nothing of the kind", answer or "empty"), scoring="squad")
        for q, answer in zip(asked, said.answers, strict=True)
    ]
    found = AnswerGenerator(method, "llama", gold, 4).whole()[1]
    spelled = [qa.normalize(answer) != "" for answer in said.answers]
    assert any(spelled) and (found.exact_n[spelled] == 1).all() and (found.f1_n[spelled] == 1).all()
    reader = method.readers["llama"]
    two = replace(gold[0], answers=("is", "zebra"))
    assert (
        paths.first_ids(reader, two) == {reader.answer_ids(two.question, answer)[0] for answer in two.answers}
        and len(paths.first_ids(reader, two)) == 2
    )
    generator = AnswerGenerator(method, "llama", asked, 4)
    likeliest = [int(alone(reader, prefill_text(reader, [reader.token_ids(q.context)]), q)[1].argmax()) for q in asked]
    generator.gold_ids = [{token, 7} for token in likeliest]
    generator.gold_ids[3] = set()
    firsts_nK = generator.whole()[1].first_nK
    assert np.isnan(firsts_nK[3]).all() and (np.delete(firsts_nK, 3, axis=0) == 1).all()


def test_texts_are_read_without_adapters_and_latents_with_them(places, data, asked, answered):
    adapted = wire(places, data, {"lora": ReaderLoRA(rank=2)})
    for parameter in adapted.features["lora"].own_parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    found = {}
    with torch.inference_mode():
        generator = AnswerGenerator(adapted, "llama", asked, 4)
        found = {
            one.path: one
            for one in [*generator.whole(), *generator.sent(5, mismatched_contexts(asked, 1), controls=True)]
        }
    for path in PATHS:
        same = found[path].answers == answered["llama", path].answers
        assert same is (path in ("none", "text", "text_bytes", "text_bytes_tail", "text_zlib", "text_tokens")), path


def test_fewer_slots_are_the_first_ones(method, asked):
    generator = AnswerGenerator(method, "qwen", asked, 4)
    with torch.inference_mode():
        few = {one.path: one for one in generator.sent(3)}
    assert set(few) == {"latent", "text_bytes", "text_bytes_tail", "text_zlib", "text_tokens"}
    assert set(few["latent"].bytes_n) == {3 + 6 + 1} == set(few["text_bytes"].bytes_n)
    one, all_of_them = (
        method.decode(method.encode([asked[0].context], "qwen", num_latents), "qwen") for num_latents in (3, 5)
    )
    assert one.index_M.tolist() == [0, 5, 6] and all_of_them.index_M.tolist() == [0, 1, 2, 5, 6]
    assert torch.equal(one.latents_BMd, all_of_them.latents_BMd[:, [0, 3, 4]])
    assert settings(method, [5, 4, 2, 9, 3, 3]) == [5, 3, 4] and settings(method, []) == [5]
    assert settings(method, None) == [5, 3]  # half, 2, are the private ones


# ------------------------------------------------------------------------------------------------ another example
def question(number, group, context=None, dataset="d"):
    return Question(f"{dataset}:{number}", dataset, context or f"context {number}", "?", ("a",), "squad", group)


@pytest.mark.parametrize("groups", ["abcd", "aabb", "aabbcc", "aaabcd", "abacadbe", "aabbbccccddddd"])
def test_strangers_are_of_other_groups_and_serve_once(groups):
    asked = [question(i, group) for i, group in enumerate(groups)] + [
        question(i, group, dataset="other") for i, group in enumerate("xyz")
    ]
    found = mismatched_contexts(asked, 3)
    assert sorted(found) == list(range(len(asked)))
    assert all(asked[i].group != asked[j].group and asked[i].dataset == asked[j].dataset for i, j in enumerate(found))
    assert found == mismatched_contexts(asked, 3)


def test_strangers_do_not_share_a_context_across_groups():
    asked = [
        question(0, "a", "same"),
        question(1, "b", "same"),
        question(2, "b", "other"),
        question(3, "c"),
        question(4, "d"),
        question(5, "e"),
    ]
    for seed in range(20):
        assert all({i, j} - {0, 1, 2} for i, j in enumerate(mismatched_contexts(asked, seed)))  # a and b hang together


def test_one_article_has_strangers_of_other_contexts():
    asked = [question(i, "article", f"paragraph {i // 2}") for i in range(6)] + [
        question(i, group, dataset="other") for i, group in enumerate("xyz")
    ]
    found = mismatched_contexts(asked, 3)
    assert sorted(found) == list(range(9)) and all(
        asked[i].context != asked[j].context and asked[i].dataset == asked[j].dataset for i, j in enumerate(found)
    )


def test_questions_of_one_group_alone_are_drawn_by_context(caplog):
    asked = [question(i, "article", f"paragraph {i // 2}") for i in range(4)] + [
        question(9, "x", dataset="o"),
        question(8, "y", dataset="o"),
    ]
    first, same, third, _, x, y = groups_of(asked)
    assert first == same != third and (x, y) == ("o:x", "o:y")
    assert "4 questions of d are all of one group" in caplog.text


@pytest.mark.parametrize("contexts", ["a", "aa", "aab", "aaabb"])
def test_without_strangers_there_are_none(contexts):
    assert mismatched_contexts([question(i, "article", context) for i, context in enumerate(contexts)], 1) is None


# ------------------------------------------------------------------------------------------------ tables
def table(folder, name):
    with (folder / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Other:
    """Data with these questions for validation."""

    def __new__(cls, data, questions):
        made = type("Other", (type(data),), {"__init__": lambda self: None, "questions": questions})()
        made.validation, made.sources = np.arange(len(questions)), data.sources
        return made


@pytest.fixture(scope="module")
def golden(method, data):
    """Questions whose gold answers are some of what the random readers say, so that every path scores."""
    asked = chosen([data.questions[i] for i in data.validation], 12)
    golds = [set() for _ in asked]
    with torch.inference_mode():
        for name in NAMES:
            generator = AnswerGenerator(method, name, asked, 4)
            for one in [*generator.whole(), *generator.sent(5, mismatched_contexts(asked, 1), controls=True)]:
                for i in {"none": [11], "shuffled": [7, 8, 9], "latent": range(6), "text": range(4)}.get(
                    one.path, [6, 10]
                ):
                    golds[i] |= {one.answers[i]}
    return [replace(q, answers=(*sorted(own), "a word"), start=-1) for q, own in zip(asked, golds, strict=True)]


@pytest.fixture(scope="module")
def measured(method, data, golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    here = context(method, Other(data, golden), folder)
    with here.inference():
        metrics = LatentWireEvaluation(
            max_questions=12,
            batch_size=5,
            num_latents=[3],
            byte_factors=[0.5, 2],
            examples=2,
            latency=Latency([40, 200], repeats=2),
        )(here)
    return folder, metrics


def test_the_tables_hold_what_the_report_reads(measured, method):
    folder, metrics = measured
    found = load(RunFiles(folder))
    assert found.readers == NAMES and found.datasets == ["qa_facts"]
    llama = [found.main("qa_facts", "llama", path).f1.value for path in ("none", "shuffled", "latent")]
    assert len({0, *llama}) == 4, "or what follows says nothing"
    for name in NAMES:
        main = {path: found.main("qa_facts", name, path) for path in PATHS}
        assert all(row.main and row.questions == 12 for row in main.values())
        assert [row.num_latents for row in found.of("qa_facts", name, "latent")] == [3, 5]
        assert main["latent"].bytes == 14 and main["latent"].bits == 4
        parts = [(row.bytes, row.main) for row in found.of("qa_facts", name, "text_bytes_tail")]
        assert parts == [(7, False), (10, False), (14, True), (28, False)], "half, three latents, the message, double"
        assert main["latent"].ratio == pytest.approx(main["text"].bytes / 14, rel=1e-4)
        assert math.isnan(main["none"].ratio) and main["text"].ratio == 1
        assert main["none"].prefill < main["text_tokens"].prefill == main["latent"].prefill < main["text"].prefill
        assert metrics[f"{name}/f1_latent"] == pytest.approx(main["latent"].f1.value, abs=1e-6)
        assert main["latent"].f1.low <= main["latent"].f1.value <= main["latent"].f1.high
        difference = found.paired["qa_facts", name, "latent-shuffled"].difference
        assert difference.value == pytest.approx(main["latent"].f1.value - main["shuffled"].f1.value, abs=1e-5)
        assert metrics[f"{name}/share_of_text"] == pytest.approx(
            main["latent"].f1.value / main["text"].f1.value, rel=1e-4
        )
        assert metrics[f"{name}/over_text_bytes"] == pytest.approx(
            found.paired["qa_facts", name, "latent-text_bytes"].ratio.value, rel=1e-4
        )
        assert metrics[f"{name}/collapse"] == pytest.approx(difference.value, abs=1e-6)
        bits = message_information(facts().sources.values(), "qa_facts", metrics[f"{name}/exact_latent"])
        assert bits > 0 and metrics[f"{name}/information_bits"] == pytest.approx(bits)
        assert metrics[f"{name}/information_share"] == pytest.approx(bits / (8 * 14)), "of the bits of a message"
        assert {comparison for _, reader, comparison in found.paired if reader == name} == {
            "latent-text_bytes",
            "latent-text_bytes_tail",
            "latent-text_zlib",
            "latent-text_tokens",
            "latent-shuffled",
            "latent-text",
            "latent-zeros",
            "shuffled-none",
        }
        assert (
            [row.context_bytes for row in found.latency[name]["latent"]]
            == [40, 200]
            == [row.context_bytes for row in found.latency[name]["text"]]
        )
    assert all(math.isfinite(value) for value in metrics.values())


def test_single_scores_add_up_to_the_means(measured):
    folder, _ = measured
    single, rows = table(folder, "latentwire_scores"), table(folder, "latentwire")
    assert len(single) == 2 * 9 * 12 and list(single[0]) == [
        "dataset",
        "reader",
        "path",
        "question",
        "group",
        "f1",
        "em",
    ]
    for row in rows:
        own = [line for line in single if (line["reader"], line["path"]) == (row["reader"], row["path"])]
        if row["main"] == "1":
            assert len({line["question"] for line in own}) == 12
            assert np.mean([float(line["f1"]) for line in own]) == pytest.approx(float(row["f1"]), abs=1e-5)
            assert np.mean([float(line["em"]) for line in own]) == pytest.approx(float(row["em"]), abs=1e-5)


def test_examples_hold_answers_and_messages(measured, method, golden):
    folder, _ = measured
    rows = table(folder, "latentwire_examples")
    assert len(rows) == 4 and rows[0]["context"] == rows[2]["context"] != rows[1]["context"]
    for row in rows:
        reader, name = method.readers[row["reader"]], row["reader"]
        assert bytes.fromhex(row["message_hex"]) == method.encode([row["context"]], name)[0]
        asked = next(q for q in golden if (q.context, q.question) == (row["context"], row["question"]))
        assert row["answers"] == " | ".join(asked.answers)
        assert row["text"] == alone(reader, prefill_text(reader, [reader.token_ids(row["context"])]), asked)[0]
        assert (
            row["latent"]
            == alone(reader, method.prefill(name, method.decode([bytes.fromhex(row["message_hex"])], name)), asked)[0]
        )


def test_parts_of_a_message_sum_to_its_length(method, data):
    rows = bytes_table(method)
    assert sum(row["reader_bytes"] for row in rows) == len(method.encode([data.questions[0].context], "llama")[0])
    assert sum(row["broadcast_bytes"] for row in rows) == 3 + -(-7 * 4 * 4 // 8) + 1  # the private latents of both


def test_several_data_sets_are_pooled_and_kept_apart(method, golden, data, tmp_path):
    two = [replace(q, dataset="squad" if i % 4 == 0 else q.dataset) for i, q in enumerate(golden[:8])]
    here = context(method, Other(data, two), tmp_path)
    with here.inference():
        metrics = LatentWireEvaluation(max_questions=5)(here)
    rows = {(row["dataset"], row["reader"], row["path"]): row for row in table(tmp_path, "latentwire")}
    pooled, first, second = (rows[name, "llama", "text"] for name in ("all", "qa_facts", "squad"))
    assert [int(row["questions"]) for row in (pooled, first, second)] == [7, 5, 2]
    assert (
        float(pooled["em"]) == pytest.approx((5 * float(first["em"]) + 2 * float(second["em"])) / 7, abs=1e-5)
        and float(pooled["em"]) > 0
    )
    assert "llama/information_bits" not in metrics and not (tmp_path / "tables" / "latentwire_latency.csv").exists()


def test_questions_are_spread_evenly():
    asked = [question(i, "a") for i in range(10)] + [question(i, "a", dataset="e") for i in range(2)]
    assert [q.key for q in chosen(asked, 4)] == ["d:0", "d:2", "d:5", "d:7", "e:0", "e:1"]
    assert chosen(asked, None) == asked


def test_the_slots_that_are_taken_are_those_a_message_can_hold():
    LatentWireEvaluation(num_latents=[1, MAX_LATENTS])
    for num_latents in ([0], [MAX_LATENTS + 1]):
        node = {"_target_": "research_stack.latentwire.evaluation.LatentWireEvaluation", "num_latents": num_latents}
        assert [p.message for p in check_node("eval", node)] == [
            f"eval.num_latents={num_latents} must be numbers from 1 to {MAX_LATENTS}"
        ]


def test_only_latentwire_is_measured(method):
    assert LatentWireEvaluation().unsuited(type(method)) is None
    assert "choose the eval" in LatentWireEvaluation().unsuited(torch.nn.Linear)
    for mistake in (
        {"max_questions": 1},
        {"batch_size": 0},
        {"num_latents": [0]},
        {"examples": 0},
        {"byte_factors": [0]},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(mistake))}="):
            LatentWireEvaluation(**mistake)


# ------------------------------------------------------------------------------------------------ times
def test_times_are_of_the_passes_after_the_warm_ups(method, data, monkeypatch):
    calls = []
    clock = latency.from_text

    def counted(reader, text, prompt):
        calls.append(text)
        taken = clock(reader, text, prompt)
        slow = len(calls) <= 3  # a warm-up takes an hour
        return taken._replace(total=3600.0 if slow else 0.001 * len(calls), prefill=3600.0 if slow else 0.001)

    monkeypatch.setattr(latency, "from_text", counted)
    with torch.inference_mode():
        rows = Latency([50], warmup=3, repeats=5)(method, [data.questions[0].context], "Where?")
    assert len(calls) == 2 * (3 + 5)
    (row,) = [row for row in rows if (row["reader"], row["path"]) == ("llama", "text")]
    assert (
        row["total_ms"] == pytest.approx(6)
        and row["total_p90_ms"] == pytest.approx(7.6)
        and row["prefill_ms"] == pytest.approx(1)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_reads_what_the_paths_read(method, data, name):
    asked = data.questions[0]
    reader, prompt = method.readers[name], method.readers[name].prompt_ids(asked.question)
    with torch.inference_mode():
        latents, text = (
            latency.from_latents(method, name, asked.context, prompt),
            latency.from_text(reader, asked.context, prompt),
        )
        prefill_latents = prefill_text(reader, [reader.token_ids(asked.context)])
        first_1V = greedy(reader, prefill_text(reader, [reader.token_ids(asked.context)]), [prompt], 1)[1]
        assert latency.first_token(reader, prefill_latents, prompt) == int(first_1V.argmax())
    assert text.positions == len(reader.bos_ids) + len(reader.token_ids(asked.context)) + len(prompt)
    assert latents.positions == len(reader.bos_ids) + 5 + len(prompt)
    for taken in (latents, text):
        assert (
            taken.total == pytest.approx(taken.encode + taken.adapt + taken.prefill)
            and min(taken.encode, taken.prefill) > 0
        )
        assert (
            taken.memory == 2 * reader.num_layers * reader.num_kv_heads * reader.head_dim * taken.positions * 4
        )  # float32
    assert latents.adapt > 0 and latents.pack > 0


def test_contexts_are_joined_to_each_length():
    texts = latency.contexts_of_length(["abc", "dé"], [4, 9, 600], 512)
    assert texts == ["abc ", "abc dé a"[:9]] and [len(text.encode()) for text in texts] == [4, 9]
    assert latency.contexts_of_length(["é"], [1, 3], 8) == ["", "é "]
    assert (
        latency.doubling_lengths(512) == [32, 64, 128, 256, 512]
        and latency.doubling_lengths(100) == [32, 64, 100]
        and latency.doubling_lengths(20) == [20]
    )
    with pytest.raises(ValueError, match="lengths=.*max_length=512"):
        latency.contexts_of_length(["a"], [600], 512)


def test_information_is_that_of_all_facts():
    source = facts(contexts=4).sources["qa_facts"]
    assert message_information([source], "qa_facts", 1.0) == pytest.approx(3 * math.log2(16))
    assert message_information([source], "qa_facts", 1 / 16) == 0
    assert message_information([source], "squad", 1.0) is None


def test_where_latents_are_faster_is_summed_up():
    """32 tokens of 4 bytes are 128 bytes; the question's 5 positions are beside both."""

    def row(path, size, total, positions):
        return {
            "reader": "llama",
            "path": path,
            "context_bytes": size,
            "num_latents": 8 if path == "latent" else None,
            "total_ms": total,
            "prefill_tokens": positions,
        }

    latent = [row("latent", size, 3.0, 13) for size in (40, 80, 160, 200)]
    text = [row("text", size, size / 20, size / 4 + 5) for size in (40, 80, 160)]
    (found,) = latency.summary([*text, *latent])
    assert found == {
        "reader": "llama",
        "num_latents": 8,
        "faster_from_bytes": 80,
        "faster_somewhere": 1,
        "shortest_bytes": 40,
        "longest_bytes": 160,
        "long_context_bytes": pytest.approx(128),
        "latent_ms": pytest.approx(3),
        "text_ms": pytest.approx(6.4),
    }
    (short,) = latency.summary([*latent, *text[:2]])
    assert math.isnan(short["long_context_bytes"]) and math.isnan(short["latent_ms"])
    slow = [row("latent", size, 9.0, 13) for size in (40, 80, 160)]
    (never,) = latency.summary([*slow, *text])
    assert math.isnan(never["faster_from_bytes"]) and never["faster_somewhere"] == 0
    assert latency.summary(latent) == []

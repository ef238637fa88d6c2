"""QuestionData: sides, order, weights, resuming, ranks, long contexts, mixtures and what it says of itself."""

import json
import logging
import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from research_stack.config.build import build
from research_stack.data import step_data
from research_stack.data.questions.facts import Facts
from research_stack.data.questions.mixture import MixedBatches, QuestionRows
from research_stack.data.questions.module import QuestionData
from research_stack.data.questions.question import Question
from research_stack.data.questions.squad import Squad
from research_stack.data.questions.windows import window
from research_stack.records import paths

CONF = paths.CONF / "data"
REAL = paths.CONF.parents[1] / "shared" / "data" / "squad_v1.1_three_articles.json"


class Held:
    """A source that holds its questions."""

    def __init__(self, *items):
        self.items = items

    def check(self):
        pass

    def questions(self):
        return iter(self.items)

    def fingerprint(self):
        return repr(self.items)


def question(key="k", context="Rollo led the Norse.", answer="Rollo", group=None, **more):
    start = context.find(answer) if answer else -1
    return Question(
        key,
        more.pop("dataset", "squad"),
        context,
        more.pop("question", "Who?"),
        (answer,),
        "squad",
        group or context,
        start,
    )


def many(name, count, length=20):
    """Questions on different contexts."""
    return Held(
        *(question(f"{name}:{i}", f"{name} {i} {'x' * length} end.", str(i), dataset=name) for i in range(count))
    )


def made(sources=None, **options):
    data = QuestionData(sources or {"a": many("a", 60), "b": many("b", 25)}, **{"batch_size": 8, **options})
    data.prepare()
    return data


def steps(data, count):
    return torch.stack([batch["question"] for batch in islice(data.train_dataloader(), count)])


# Sides and order --------------------------------------------------------------------------------------------------


def test_batches_are_numbers_of_questions():
    data = made()
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))):
        assert set(batch) == {"question"} and batch["question"].dtype == torch.int64 and batch["question"].ndim == 1
    questions = data.for_method()["questions"]
    assert data.for_model() == {} and len(questions) == 85 and data.train.dtype == data.validation.dtype == np.int64
    assert sorted([*data.train.tolist(), *data.validation.tolist()]) == list(range(85))
    assert len(next(iter(data.train_dataloader()))["question"]) == 8


def test_groups_stand_on_one_side_and_copies_once():
    items = [
        question(f"{group}{i}", f"context {group} {i}", "context", group=f"group {group}")
        for group in "abcdefghijklmno"
        for i in range(4)
    ]
    data = made(
        {"a": Held(*items, question("copy", items[0].context, "context", group=items[0].group))},
        validation_fraction=0.3,
    )
    sides = [{data.questions[i].group for i in side} for side in (data.train, data.validation)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 15 and min(map(len, sides)) >= 2
    assert len(data.questions) == 60 and data.describe()["a_duplicates"] == 1


def test_no_fact_set_stands_on_both_sides():
    sources = {
        "a": Facts(facts=2, people=4, attributes=3, values=3, contexts=1500),
        "b": Facts(facts=2, people=4, attributes=3, values=3, contexts=500, distractors=1, seed=5, name="b"),
    }
    data = made(sources, validation_fraction=0.2)
    groups = [{data.questions[i].group for i in side} for side in (data.train, data.validation)]
    assert (
        not groups[0] & groups[1] and len(groups[0] | groups[1]) == 4 * 3 * 9 and len(groups[1]) > 8
    )  # every one of them is drawn, and by both
    contexts = [{data.questions[i].context for i in side} for side in (data.train, data.validation)]
    assert not contexts[0] & contexts[1]


def test_an_epoch_of_a_source_shows_each_question_once_and_epochs_differ():
    data = made({"a": many("a", 60)}, batch_size=7)
    rows = len(data.train)
    first = (
        steps(data, rows // 7).flatten().tolist()
    )  # the rows of a step are shuffled, so two epochs may mix within the step they share
    assert len(set(first)) == len(first) and rows % 7 and first != sorted(first)
    second = steps(data, 2 * rows)[rows : rows + rows // 7].flatten().tolist()
    assert len(set(second)) == len(second) and second != first
    counts = Counter(steps(data, 7 * rows).flatten().tolist())
    assert set(counts.values()) == {49} and set(counts) == set(data.train.tolist())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start, repeat", [(1, 1), (7, 1), (23, 1), (5, 2)])
def test_resume_goes_on_exactly(start, repeat, workers):
    data, resumed = made(weights={"a": 0.3, "b": 1.1}), made(weights={"a": 0.3, "b": 1.1}, num_workers=workers)
    data.repeat = resumed.repeat = repeat
    resumed.start_step = start
    whole = steps(data, 30)
    assert torch.equal(steps(resumed, 30 - start), whole[start:])
    assert all(torch.equal(whole[s], whole[s - s % repeat]) for s in range(30))
    assert not torch.equal(steps(made(seed=1, weights={"a": 0.3, "b": 1.1}), 30), whole)


def test_ranks_share_the_batch_and_each_sees_every_source():
    data = made(weights={"a": 1.0, "b": 1.0})
    parts, names = [QuestionRows(part["train"]) for part in data.parts.values()], list(data.parts)
    whole = MixedBatches(parts, [1, 1], names, 8, 0, 0, 0, 1)
    ranks = [MixedBatches(parts, [1, 1], names, 8, 0, 0, rank, 4) for rank in range(4)]
    of_a = set(data.parts["a"]["train"].tolist())
    shares = np.zeros(4)
    for step in range(200):
        rows = [rank.batch(step)["question"] for rank in ranks]
        assert all(len(row) == 2 for row in rows) and torch.equal(torch.cat(rows), whole.batch(step)["question"])
        shares += [sum(n in of_a for n in row.tolist()) for row in rows]
    assert shares / 400 == pytest.approx([0.5] * 4, abs=0.08)


def test_a_batch_that_the_devices_cannot_share(monkeypatch):
    monkeypatch.setattr(step_data, "rank_and_world_size", lambda: (0, 3))
    with pytest.raises(ValueError, match="^batch_size=8 must be a multiple of the 3 devices"):
        made().train_dataloader()


# Weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.exact
@pytest.mark.parametrize(
    "weights", [(1.0,), (0.5, 0.5), (3, 1), (0.9, 0.07, 0.03), (1 / 3, 1 / 3, 1 / 3), (1, 2, 3, 4.5)]
)
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_rows_of_each_source_follow_the_weights(weights, batch):
    parts = [QuestionRows(np.arange(10)) for _ in weights]
    counts_SK = MixedBatches(parts, weights, [str(i) for i in range(len(weights))], batch, 3, 0, 0, 1).counts(
        np.arange(20_000)
    )
    share_K = np.array(weights) / sum(weights)
    assert (counts_SK.sum(1) == batch).all() and (counts_SK >= 0).all()
    assert (
        np.abs(counts_SK - batch * share_K).max() < 2
        if len(weights) > 2
        else np.abs(counts_SK - batch * share_K).max() < 1 + 1e-9
    )
    assert (
        np.abs(counts_SK.cumsum(0) - batch * share_K * np.arange(1, 20_001)[:, None]).max() < 12
    )  # no drift: on the long run exact


def test_rows_before_a_step_are_the_same_however_one_gets_there():
    parts = [QuestionRows(np.arange(5)), QuestionRows(np.arange(5, 12))]
    walked, jumped = (MixedBatches(parts, [1, 2.5], ["a", "b"], 6, 0, 0, 0, 1) for _ in range(2))
    for step in (0, 1, 2, 5, 100):
        before = walked.before(step)
    assert (before == jumped.before(100)).all() and before.sum() == 600
    assert (jumped.before(3) == walked.before(3)).all() and jumped.before(0).sum() == 0
    assert (before == jumped.counts(np.arange(100)).sum(0)).all()


def test_the_order_of_one_source_does_not_depend_on_the_others():
    sources = {"a": many("a", 60), "b": many("b", 25)}
    alone, mixed = made({"a": sources["a"]}, batch_size=1), made(sources, batch_size=1)
    of_a = [n for n in steps(mixed, 100).flatten().tolist() if n in set(mixed.parts["a"]["train"].tolist())]
    assert of_a == steps(alone, len(of_a)).flatten().tolist()


SOURCES = {"squad": many("squad", 10), "nq": many("nq", 10)}


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"squad": 0, "nq": 1}, "weights.squad=0 must be above 0; leave the source out instead"),
        ({"squad": 1, "nq": -0.5}, "weights.nq=-0.5 must be above 0; leave the source out instead"),
        ({"squad": float("nan"), "nq": 1}, "weights.squad=nan must be above 0; leave the source out instead"),
        ({"squad": math.inf, "nq": 1}, "weights.squad=inf must be above 0"),
        ({"squad": 1, "nq": 1, "qa": 1}, "weights.qa=1 must be of a source; the sources are squad, nq"),
        ({"squad": 1}, "weights.nq must be given: every source needs a weight"),
        ({}, "weights.squad must be given"),
    ],
)
def test_weights_that_make_no_sense(weights, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        QuestionData(SOURCES, weights)


def test_weights_are_ratios_and_equal_without():
    assert (
        QuestionData(SOURCES).weights
        == QuestionData(SOURCES, {"nq": 7, "squad": 7}).weights
        == {"squad": 0.5, "nq": 0.5}
    )
    assert QuestionData({"squad": SOURCES["squad"], "nq": Squad(None)}, {"squad": 2, "nq": 5}).weights == {"squad": 1.0}


# Validation -------------------------------------------------------------------------------------------------------


def test_validation_is_finite_fixed_spread_and_takes_turns():
    data = made({"a": many("a", 300), "b": many("b", 100)}, validation_fraction=0.3, validation_rows=6, batch_size=5)
    first, second = ([b["question"] for b in data.val_dataloader()] for _ in range(2))
    assert (
        torch.equal(torch.cat(first), torch.cat(second))
        and [len(b) for b in first] == [5, 5, 2]
        and torch.cat(first).tolist() == data.validation.tolist()
    )
    names = "".join(data.questions[i].dataset for i in data.validation)
    assert names.count("a") == names.count("b") == 6 and "aaa" not in names and "bbb" not in names
    every = made({"a": many("a", 300), "b": many("b", 100)}, validation_fraction=0.3)
    whole = [i for i in sorted(every.validation) if data.questions[i].dataset == "a"]
    taken = [whole.index(i) for i in data.validation if data.questions[i].dataset == "a"]
    assert taken == [i * len(whole) // 6 for i in range(6)]


# Long contexts ----------------------------------------------------------------------------------------------------

TEXT = (
    "One sentence here. Another that is longer! Is Rollo the third? The fourth (with a bracket.) ends. Fünf ist schön."
    " And the last one."
)


def test_contexts_that_are_too_long_are_refused_with_their_number():
    source = Held(
        question("short"),
        question("first", "Rollo is " + "ü" * 20),
        question("second", "Rollo is " + "x" * 40),
        question("end", "Rollo."),
    )
    with pytest.raises(
        ValueError,
        match=(
            r"^max_context_bytes=40: the context of 'first' has 49 bytes, and 2 of 4 questions have a longer one than"
            r" 40; raise max_context_bytes, or set long=window or long=drop$"
        ),
    ):
        made({"a": source}, max_context_bytes=40)
    assert made({"a": source}, max_context_bytes=49).sequence_length == 49


def test_contexts_that_are_too_long_are_dropped_and_counted():
    source = Held(question("short"), question("first", "Rollo is " + "ü" * 20), question("end", "Rollo."))
    data = made({"a": source}, max_context_bytes=40, long="drop")
    assert [q.key for q in data.questions] == ["short", "end"] and data.describe()["a_too_long"] == 1
    with pytest.raises(
        ValueError, match="^sources.a: no question is left; of its contexts 3 are longer than max_context_bytes=3$"
    ):
        made({"a": source}, max_context_bytes=3, long="drop")


@pytest.mark.parametrize("most", [5, 12, 25, 40, 60, 100])
@pytest.mark.parametrize("answer", ["Rollo", "One", "one", "bracket", "schön", "last one", ""])
def test_windows_hold_the_answer_within_the_bytes(answer, most):
    for key in map(str, range(40)):
        whole = question(key, TEXT, answer)
        cut = window(whole, most)
        if len(answer.encode()) > most:
            assert cut is None
            continue
        assert 0 < len(cut.context.encode()) <= most and cut.context in TEXT and cut.context == cut.context.strip()
        assert (cut.key, cut.question, cut.answers, cut.group) == (
            whole.key,
            whole.question,
            whole.answers,
            whole.group,
        )
        assert (
            cut.start == -1
            if not answer
            else cut.context[cut.start :].startswith(answer) and TEXT.index(cut.context) + cut.start == whole.start
        )
        assert cut == window(whole, most)


def test_windows_begin_and_end_where_sentences_do():
    found = {window(question(str(key), TEXT, "Rollo"), 70).context for key in range(200)}
    assert found == {
        "One sentence here. Another that is longer! Is Rollo the third?",
        "Another that is longer! Is Rollo the third?",
        "Is Rollo the third? The fourth (with a bracket.) ends.",
    }
    words = {
        window(question(str(key), "the quick brown fox jumps over the lazy dog", "fox"), 15).context
        for key in range(200)
    }
    assert words == {"quick brown fox", "brown fox jumps", "fox jumps over"}
    assert window(question("k", "a" * 30 + "Rollo" + "b" * 30), 20).context == "Rollo" + "b" * 15  # no word to begin at
    assert window(question("k", TEXT, "Rollo"), len(TEXT.encode())).context is TEXT


def test_the_answer_stands_anywhere_in_its_window():
    """Not in the middle: all places that the window allows are equally likely."""
    context = " ".join(f"word{i:03d}" for i in range(300))
    places = np.array([window(question(str(i), context, "word150"), 8 * 40).start / (8 * 39) for i in range(2000)])
    assert np.histogram(places, 4, (0, 1 + 1e-9))[0] / 2000 == pytest.approx([0.25] * 4, abs=0.05) and {
        0.0,
        1.0,
    } <= set(places)


def test_windows_are_said_in_the_description():
    data = made(
        {"a": Held(question("short"), question("long", TEXT), question("never", "x" * 50, "x" * 45))},
        max_context_bytes=44,
        long="window",
    )
    said = data.describe()
    assert (said["long"], said["a_windows"], said["a_too_long"], said["max_context_bytes"]) == ("window", 1, 2, 44)
    assert [len(q.context.encode()) <= 44 for q in data.questions] == [True, True] and data.sequence_length <= 44


def test_a_model_with_a_limit():
    class Model:
        max_length = 25

    data = made({"a": Held(question("x"), question("y", "Rollo is " + "u" * 20))})
    with pytest.raises(
        ValueError,
        match=(
            r"^max_context_bytes=null is more than model.max_length=25: the context of 'y' has 29 bytes, and 1 of 2"
            r" questions"
        ),
    ):
        data.check_fit(Model(), object)
    Model.max_length = 29
    data.check_fit(Model(), object)
    data.check_fit(object(), object)


# What it says, what it refuses ------------------------------------------------------------------------------------


def test_describe():
    data = made(
        {"facts": Facts(contexts=300, questions=2), "a": Held(question("x"), question("y", "No.", ""))},
        weights={"facts": 3, "a": 1},
    )
    said = data.describe()
    assert (
        said["fingerprint"] == data.fingerprint
        and said["datasets"] == "qa_facts, squad"
        and said["sources"] == "facts, a"
        and said["questions"] == 602
    )
    assert (
        said["facts_train"] + said["facts_validation"] == 600
        and said["facts_contexts"] == 300
        and said["facts_entropy_bits"] == 46.5362
        and said["facts_weight"] == 0.75
    )
    assert said["a_unanswerable"] == 1 and said["a_context_bytes"] == 11.5 and said["a_answer_bytes"] == 2.5
    assert said["facts_context_bytes"] == pytest.approx(
        np.mean([len(q.context) for q in data.questions[:600]]), abs=0.01
    )
    json.dumps(said)


def test_fingerprint_follows_the_questions_and_not_their_order():
    sources = {"a": many("a", 60), "b": many("b", 25)}
    base = made(sources).fingerprint
    assert base == made(sources, seed=9, batch_size=2, validation_rows=3, weights={"a": 1, "b": 9}).fingerprint
    others = [
        made({"a": many("a", 60)}),
        made({"a": many("a", 60), "b": many("b", 26)}),
        made(sources, validation_fraction=0.2),
        made(sources, max_context_bytes=900),
    ]
    assert len({base, *(data.fingerprint for data in others)}) == 5


def test_sources_without_a_path_are_left_out_and_named(caplog):
    with caplog.at_level(logging.INFO):
        data = made({"a": many("a", 20), "squad": Squad(None), "nq": None})
    assert (
        list(data.sources) == ["a"]
        and data.describe()["left_out"] == "squad, nq"
        and "left out, since no path is given: squad, nq" in caplog.text
    )
    with pytest.raises(ValueError, match="^sources=squad: none of them has a path; set data.path=FILE"):
        QuestionData({"squad": Squad(None)})


def test_mistakes_in_a_source_say_which(tmp_path):
    with pytest.raises(OSError, match=rf"^sources.squad.path={tmp_path}/x.json does not exist"):
        made({"squad": Squad(str(tmp_path / "x.json"))})
    bad = {"id": "1", "title": "t", "context": "abc", "question": "?", "answers": {"text": ["x"], "answer_start": [0]}}
    (tmp_path / "x.json").write_text(json.dumps([bad]))
    with pytest.raises(
        ValueError, match=rf"^sources.squad.path={tmp_path}/x.json:record 1 question 1: the answer 'x' does not stand"
    ):
        made({"squad": Squad(str(tmp_path / "x.json"))})
    with pytest.raises(
        ValueError, match=r"^sources.a.validation_fraction=0.1 cannot be kept: the source has 1 different"
    ):
        made({"a": Held(question())})


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"validation_fraction": 0.0},
        {"validation_rows": 0},
        {"max_context_bytes": 0},
        {"num_workers": -1},
        {"long": "cut"},
        {"long": "window"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}="):
        QuestionData(SOURCES, **options)


def test_use_before_prepare_says_so():
    with pytest.raises(RuntimeError, match="prepare"):
        QuestionData(SOURCES).describe()


# The configs ------------------------------------------------------------------------------------------------------


def config_of(name, **changes):
    node = OmegaConf.load(CONF / f"{name}.yaml")
    for key, value in changes.items():
        OmegaConf.update(node, key, value)
    return build(OmegaConf.to_container(OmegaConf.create({"data": node}), resolve=True)["data"], "data", seed=1)


def test_the_mixture_runs_without_a_file():
    data = config_of("qa_mixture", **{"sources.one_hop.contexts": 200, "sources.two_hops.contexts": 200})
    data.prepare()
    said = data.describe()
    assert (
        said["datasets"] == "qa_facts, qa_facts_2hop"
        and said["left_out"] == "squad, hotpotqa, nq"
        and data.weights == {"one_hop": 0.5, "two_hops": 0.5}
    )


def test_the_default_needs_no_file_and_is_soon_there():
    data = config_of("qa_facts")
    data.prepare()
    assert (
        len(data.questions) == 8_000 * 5
        and len(data.validation) == 512
        and 130 < data.describe()["qa_facts_context_bytes"] < 142
    )


@pytest.mark.parametrize("name", ["squad", "hotpotqa", "nq"])
def test_configs_of_files_name_the_one_that_is_missing(name, tmp_path):
    with pytest.raises(OSError, match=rf"^sources.{name}.path={tmp_path}/x.json does not exist"):
        config_of(name, path=str(tmp_path / "x.json")).check()


def test_squad_and_the_mixture_with_it():
    if not REAL.is_file():
        pytest.skip("the real file is not there")
    data = config_of("squad", path=str(REAL), max_context_bytes=400, long="window", validation_rows=20)
    data.prepare()
    assert len(data.questions) == 400 and len(data.validation) == 20 and data.sequence_length <= 400
    assert all(q.context[q.start :].startswith(q.answers[0]) for q in data.questions)
    mixed = config_of(
        "qa_mixture",
        squad=str(REAL),
        **{"sources.one_hop.contexts": 200, "sources.two_hops.contexts": 200, "weights.squad": 2.0},
    )
    mixed.prepare()
    rows = Counter(
        mixed.questions[i].dataset for batch in islice(mixed.train_dataloader(), 50) for i in batch["question"].tolist()
    )
    assert rows == {"squad": 800, "qa_facts": 400, "qa_facts_2hop": 400}

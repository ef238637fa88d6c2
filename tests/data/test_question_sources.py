"""SQuAD, HotpotQA and NaturalQuestions in every layout that is read, and what is refused, each in one line."""

import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from research_stack.data.questions import files as question_files
from research_stack.data.questions.hotpotqa import HotpotQA
from research_stack.data.questions.nq import NaturalQuestions
from research_stack.data.questions.squad import Squad

REAL = Path(question_files.__file__).parents[3] / "shared" / "data" / "squad_v1.1_three_articles.json"
CONTEXT = "Rollo led the Norse. He came from Denmark in 911."


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def asked(key="q1", answers=(("Rollo", 0), ("Rollo", 0)), **more):
    return {
        "id": key,
        "question": " Who led the Norse? ",
        "answers": [{"text": text, "answer_start": start} for text, start in answers],
        **more,
    }


def official(*qas, version="1.1", context=CONTEXT, title="Normans"):
    return {"version": version, "data": [{"title": title, "paragraphs": [{"context": context, "qas": list(qas)}]}]}


def flat(key="q1", texts=("Rollo",), starts=(0,), context=CONTEXT, title="Normans"):
    return {
        "id": key,
        "title": title,
        "context": context,
        "question": "Who led the Norse?",
        "answers": {"text": list(texts), "answer_start": list(starts)},
    }


def write(path, content):
    """A file in the format of its suffix."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        text = "".join(json.dumps(record) + "\n" for record in content)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def read(source):
    source.check()
    return list(source.questions())


# SQuAD ------------------------------------------------------------------------------------------------------------


def test_squad_official_layout(tmp_path):
    found = read(Squad(write(tmp_path / "a.json", official(asked(), asked("q2", [("911", 45), ("in 911", 42)])))))
    assert [(q.key, q.dataset, q.scoring, q.context, q.question, q.answers, q.group, q.start) for q in found] == [
        ("squad:q1", "squad", "squad", CONTEXT, "Who led the Norse?", ("Rollo",), "squad:Normans", 0),
        ("squad:q2", "squad", "squad", CONTEXT, "Who led the Norse?", ("911", "in 911"), "squad:Normans", 45),
    ]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".jsonl.gz", ".parquet"])
def test_squad_layout_of_the_hub_in_every_format(tmp_path, suffix):
    write(tmp_path / f"a{suffix}", [flat(), flat("q2", ["911", "in 911"], [45, 42])])
    same = read(Squad(write(tmp_path / "official.json", official(asked(), asked("q2", [("911", 45), ("in 911", 42)])))))
    assert read(Squad(str(tmp_path / f"a{suffix}"))) == [*same]


def test_squad_saved_to_disk_and_lines_under_the_suffix_json(tmp_path):
    records = [flat(), flat("q2")]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(records)}).save_to_disk(tmp_path / "saved")
    (tmp_path / "lines.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert (
        read(Squad(str(tmp_path / "saved"))) == read(Squad(str(tmp_path / "lines.json")))
        and len(read(Squad(str(tmp_path / "saved")))) == 2
    )
    assert Squad(str(tmp_path / "saved")).fingerprint() != Squad(str(tmp_path / "saved"), limit=2).fingerprint()
    with pytest.raises(ValueError, match=r"^source.split=dev is not among the splits train"):
        read(Squad(str(tmp_path / "saved"), split="dev"))


def test_squad_2_has_questions_without_an_answer(tmp_path):
    impossible = asked("q2", (), is_impossible=True, plausible_answers=[{"text": "Rollo", "answer_start": 0}])
    for name, content in (
        ("a.json", official(asked(is_impossible=False), impossible, version="v2.0")),
        ("b.jsonl", [flat(), flat("q2", (), ())]),
    ):
        first, second = read(Squad(write(tmp_path / name, content)))
        assert {q.dataset for q in (first, second)} == {q.scoring for q in (first, second)} == {"squad_v2"}
        assert (first.answers, second.answers, second.start) == (("Rollo",), ("",), -1)


def test_squad_real_file():
    if not REAL.is_file():
        pytest.skip("the real file is not there")
    source = Squad(str(REAL))
    found = read(source)
    assert (
        len(found) == 400
        and len({q.context for q in found}) == 103
        and source.describe() == {"dropped": 0}
        and source.version == "squad"
    )
    assert {q.group for q in found} == {"squad:Normans", "squad:Southern_California", "squad:Victoria_(Australia)"}
    assert (found[0].question, found[0].answers, found[0].start) == (
        "In what country is Normandy located?",
        ("France",),
        159,
    )
    assert all(q.context[q.start : q.start + len(q.answers[0])] == q.answers[0] for q in found)


WRONG = [
    (
        official(asked(answers=[("Rollo", 3)])),
        (
            r"question q1: the answer 'Rollo' does not stand in its context at answer_start=3, where 'lo le' stands"
            r" \(it stands at 0\); set strict=false"
        ),
    ),
    (
        official(asked(answers=[("Otto", 0)])),
        (
            r"question q1: the answer 'Otto' does not stand in its context at answer_start=0, where 'Roll' stands \(it"
            r" stands nowhere in it\)"
        ),
    ),
    (
        official(asked(answers=[("Otto", None)])),
        r"question q1: the answer 'Otto' does not stand in its context \(it stands nowhere in it\)",
    ),
    (
        official(asked(answers=[("Rollo", -5)])),
        (
            r"question q1: the answer 'Rollo' does not stand in its context at answer_start=-5, which lies outside of"
            r" it \(it stands at 0\)"
        ),
    ),
    (
        official(asked(answers=[(" ", 5)])),
        r"question q1: the answer '' does not stand in its context at answer_start=5, .* \(it is blank\)",
    ),
    (official(asked(), context="  \n"), r"question q1: the context is empty; set strict=false"),
    (official(asked(answers=())), r"question q1 has no answer; set strict=false"),
]


@pytest.mark.parametrize("content, message", WRONG)
def test_squad_questions_that_cannot_be_asked(tmp_path, content, message):
    other = official(asked("fine"))["data"]
    path = write(tmp_path / "a.json", {**content, "data": content["data"] + other})
    with pytest.raises(ValueError, match=rf"^path={path} {message}[^\n]*$"):
        read(Squad(path))
    source = Squad(path, strict=False)
    assert [q.key for q in read(source)] == ["squad:fine"] and source.describe()["dropped"] == 1


@pytest.mark.parametrize(
    "content, message",
    [
        (official(asked(), asked()), r"the id of question 'squad:q1' stands twice$"),
        (
            [{"id": "q1", "context": CONTEXT, "answers": {"text": ["x"], "answer_start": [0]}}],
            r"record 1 has no field 'question'; the fields there: id, context, answers$",
        ),
        ([{**flat(), "context": 3}], r"record 1 field 'context' holds a int, not a text$"),
        (
            [{**flat(), "answers": "Rollo"}],
            r"record 1 field 'answers' must hold a list of records, or equally long lists by name$",
        ),
        (
            [{**flat(), "answers": {"text": ["Rollo", "x"], "answer_start": [0]}}],
            r"field 'answers' must hold a list of records",
        ),
        (
            [{**flat(), "answers": {"text": ["Rollo"], "answer_start": ["0"]}}],
            r"field 'answer_start' must hold a whole number, not '0'$",
        ),
        ({"data": 3}, r"must hold a list of records, or an object with such a list under 'data'$"),
        ([], r"holds no question that can be asked$"),
        ({"data": [{"title": "T", "paragraphs": 5}]}, r"field 'paragraphs' must hold a list of records"),
        ({"data": [{"title": "T", "paragraphs": ["x"]}]}, r"field 'paragraphs' must hold a list of records"),
    ],
)
def test_squad_of_another_layout(tmp_path, content, message):
    path, fine = write(tmp_path / "a.json", content), write(tmp_path / "b.json", official(asked("fine")))
    with pytest.raises(ValueError, match=rf"^path=[^\n]*{message.removesuffix('$')}[^\n]*$"):
        read(Squad(path))
    if (
        "twice" not in message and "must hold a list of records, or an object" not in message
    ):  # what is wrong with a whole file stays an error
        assert [q.key for q in read(Squad([path, fine], strict=False))] == ["squad:fine"]


def test_squad_without_a_column_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"row 1 has no field 'context'; the fields there: id, question, other$"):
        read(Squad(write(tmp_path / "a.parquet", [{"id": "1", "question": "?", "other": 3}])))


def test_files_that_cannot_be_read(tmp_path):
    fine = write(tmp_path / "train.json", official(asked()))
    for name, content in (
        ("empty.json", b""),
        ("bad.json", b"{]"),
        ("bad.jsonl", b"{]\n"),
        ("bad.jsonl.gz", b"no gzip"),
        ("bad.parquet", b"no parquet"),
        ("bin.json", b"\xff\xfe{"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^path={tmp_path}/{name}(:1)? [^\n]*$"):
            read(Squad(str(tmp_path / name)))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(flat()).encode())[:-9])
    with pytest.raises(ValueError, match="no whole gzip file"):
        read(Squad(str(tmp_path / "cut.jsonl.gz")))
    with pytest.raises(FileNotFoundError, match=rf"^path={tmp_path}/trian.json does not exist; did you mean {fine}"):
        read(Squad(str(tmp_path / "trian.json")))
    with pytest.raises(ValueError, match=r"has the unknown suffix '.py'; known: .json .jsonl .jsonl.gz .parquet$"):
        read(Squad(__file__))
    with pytest.raises(ValueError, match=r"^path=None must name at least one file"):
        read(Squad(None))


def test_a_folder_a_glob_and_a_list(tmp_path):
    a, b = write(tmp_path / "a.json", official(asked("a"))), write(tmp_path / "b.jsonl", [flat("b")])
    (tmp_path / "notes.txt").write_text("not a question")
    for path in (str(tmp_path), str(tmp_path / "*"), [a, b]):
        assert [q.key for q in read(Squad(path))] == ["squad:a", "squad:b"]
    assert len(read(Squad([a, b, a]))) == 2 and [q.key for q in Squad(str(tmp_path), limit=2).questions()] == [
        "squad:a",
        "squad:b",
    ]


def test_the_hub_without_a_network_is_one_line():
    source = Squad("rajpurkar/squad")
    source.check()  # a name is looked up later
    with pytest.raises(
        (ValueError, OSError), match=r"^path=rajpurkar/squad (cannot be had from the hub|cannot be loaded): [^\n]*$"
    ):
        list(source.questions())


def test_fingerprints_follow_bytes_and_options(tmp_path):
    a, b = write(tmp_path / "a.json", official(asked())), write(tmp_path / "b.json", official(asked("other")))
    assert Squad(a).fingerprint() == Squad(a).fingerprint()
    prints = [
        source.fingerprint()
        for source in (
            Squad(a),
            Squad(b),
            Squad(a, limit=3),
            Squad(a, strict=False),
            HotpotQA(a),
            HotpotQA(a, distractors=1),
            NaturalQuestions(a),
            NaturalQuestions(a, context="document"),
            NaturalQuestions(a, unanswerable=True),
        )
    ]
    assert len(set(prints)) == len(prints)


# HotpotQA ---------------------------------------------------------------------------------------------------------

PARAGRAPHS = [
    ("Oslo", ["Oslo is a city.", " It is in Norway."]),
    ("Bergen", ["Bergen is wet."]),
    ("Mira", ["Mira lives in Oslo.", "  She is 30."]),
    ("Rome", ["Rome is old."]),
]


def hotpot(key="h1", answer="Norway", paragraphs=PARAGRAPHS, supporting=(("Mira", 0), ("Oslo", 1))):
    return {
        "_id": key,
        "question": "In which country does Mira live?",
        "answer": answer,
        "type": "bridge",
        "level": "easy",
        "supporting_facts": [list(fact) for fact in supporting],
        "context": [list(paragraph) for paragraph in paragraphs],
    }


def hotpot_hub(**options):
    record = hotpot(**options)
    titles, sentences = zip(*record["context"], strict=True)
    names, numbers = zip(*record["supporting_facts"], strict=True)
    return {
        "id": record["_id"],
        **{key: record[key] for key in ("question", "answer", "type", "level")},
        "supporting_facts": {"title": list(names), "sent_id": list(numbers)},
        "context": {"title": list(titles), "sentences": list(sentences)},
    }


@pytest.mark.parametrize(
    "distractors, titles",
    [
        ("all", "Oslo Bergen Mira Rome"),
        ("supporting", "Oslo Mira"),
        (0, "Oslo Mira"),
        (1, "Oslo Bergen Mira"),
        (2, "Oslo Bergen Mira Rome"),
    ],
)
def test_hotpotqa_paragraphs(tmp_path, distractors, titles):
    (question,) = read(HotpotQA(write(tmp_path / "h.json", [hotpot()]), distractors))
    lines = {
        "Oslo": "Oslo: Oslo is a city. It is in Norway.",
        "Bergen": "Bergen: Bergen is wet.",
        "Mira": "Mira: Mira lives in Oslo. She is 30.",
        "Rome": "Rome: Rome is old.",
    }
    assert question.context == "\n".join(lines[title] for title in titles.split())
    assert (question.key, question.dataset, question.scoring, question.answers) == (
        "hotpotqa:h1",
        "hotpotqa",
        "hotpotqa",
        ("Norway",),
    )
    assert question.context[question.start :].startswith("Norway.")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_hotpotqa_layout_of_the_hub_is_the_same(tmp_path, suffix):
    wanted = read(HotpotQA(write(tmp_path / "official.json", [hotpot(), hotpot("h2", "yes")])))
    assert read(HotpotQA(write(tmp_path / f"h{suffix}", [hotpot_hub(), hotpot_hub(key="h2", answer="yes")]))) == wanted
    assert wanted[1].answers == ("yes",) and wanted[1].start == -1


@pytest.mark.parametrize(
    "record, options, message",
    [
        (
            hotpot(answer="Peru"),
            {},
            r"question h1: the answer 'Peru' does not stand in its context \(distractors=all\); set strict=false",
        ),
        (
            hotpot(answer="wet"),
            {"distractors": "supporting"},
            r"question h1: the answer 'wet' does not stand in its context \(distractors=supporting\)",
        ),
        (hotpot(answer=" "), {}, r"question h1: the answer '' does not stand"),
        (hotpot(paragraphs=[]), {}, r"question h1: the context is empty"),
    ],
)
def test_hotpotqa_questions_that_cannot_be_asked(tmp_path, record, options, message):
    path = write(tmp_path / "h.json", [record, hotpot("fine")])
    with pytest.raises(ValueError, match=rf"^path={path}:record 1 {message}[^\n]*$"):
        read(HotpotQA(path, **options))
    source = HotpotQA(path, **options, strict=False)
    assert [q.key for q in read(source)] == ["hotpotqa:fine"] and source.describe()["dropped"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"context": "Oslo"}, "field 'context' must hold a list of records"),
        (
            {"context": [["Oslo", "no list"]]},
            "field 'context' must hold pairs of title and sentences; set strict=false",
        ),
        (
            {"supporting_facts": [{"title": "Oslo"}]},
            "field 'supporting_facts' must hold pairs of title and sent_id; set strict=false",
        ),
        ({"answer": None}, "field 'answer' holds a NoneType"),
        (
            {"context": [["Oslo", ["It rains.", 3]]]},
            "field 'context' must hold a title and a list of sentences for each paragraph; set strict=false",
        ),
    ],
)
def test_hotpotqa_of_another_layout(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"^path=[^\n]*:record 1 {message}"):
        read(HotpotQA(write(tmp_path / "h.json", [{**hotpot(), **change}])))


# NaturalQuestions -------------------------------------------------------------------------------------------------

PAGE = (
    '<H1> Rain </H1> <P> Rain falls in <B> wet </B> Bergen and Oslo . </P> <Table_class="x"> <Tr> <Td> Cairo </Td>'
    " </Tr> </Table>"
)
WORDS = PAGE.split(" ")
LONG, TABLE = (3, 15), (15, 22)


def span(*places):
    return [{"start_token": start, "end_token": end} for start, end in places]


def annotation(long=LONG, short=((10, 11),), yes_no="NONE"):
    return {
        "annotation_id": 7,
        "long_answer": {**span(long)[0], "candidate_index": 0},
        "short_answers": span(*short),
        "yes_no_answer": yes_no,
    }


def nq(*annotations, key=5, page=PAGE):
    return {
        "example_id": key,
        "question_text": "where does rain fall",
        "document_text": page,
        "document_url": "https://en.wikipedia.org//w/index.php?title=Rain&amp;oldid=3",
        "long_answer_candidates": [{**row, "top_level": True} for row in span(LONG, TABLE)],
        "annotations": list(annotations or [annotation()]),
    }


def nq_tokens(record):
    tokens = [
        {"token": word, "start_byte": 0, "end_byte": 0, "html_token": word.startswith("<")}
        for word in record["document_text"].split(" ")
    ]
    return {key: value for key, value in record.items() if key != "document_text"} | {"document_tokens": tokens}


def nq_hub(record):
    words = record["document_text"].split(" ")
    codes = {"YES": 1, "NO": 0, "NONE": -1}
    rows = [
        {
            **row,
            "short_answers": {key: [s[key] for s in row["short_answers"]] for key in ("start_token", "end_token")},
            "yes_no_answer": codes[row["yes_no_answer"]],
        }
        for row in record["annotations"]
    ]
    return {
        "id": str(record["example_id"]),
        "question": {"text": record["question_text"], "tokens": []},
        "document": {
            "title": "Rain",
            "url": record["document_url"],
            "html": "",
            "tokens": {"token": words, "is_html": [word.startswith("<") for word in words]},
        },
        "annotations": {key: [row[key] for row in rows] for key in ("long_answer", "short_answers", "yes_no_answer")},
        "long_answer_candidates": {
            key: [row[key] for row in record["long_answer_candidates"]] for key in ("start_token", "end_token")
        },
    }


def test_the_spans_of_these_tests_are_what_they_are_meant_to_be():
    assert [WORDS[i] for i in (LONG[0], LONG[1] - 1, 10, 12, TABLE[0], 18, TABLE[1] - 1)] == [
        "<P>",
        "</P>",
        "Bergen",
        "Oslo",
        '<Table_class="x">',
        "Cairo",
        "</Table>",
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_nq_simplified(tmp_path, suffix):
    (question,) = read(NaturalQuestions(write(tmp_path / f"nq{suffix}", [nq()])))
    assert question.context == "Rain falls in wet Bergen and Oslo ." and question.question == "where does rain fall"
    assert (question.key, question.dataset, question.scoring, question.answers, question.group) == (
        "nq:5",
        "nq",
        "nq",
        ("Bergen",),
        "nq:Rain",
    )
    assert question.context[question.start :].startswith("Bergen and")


@pytest.mark.parametrize("layout", [nq_tokens, nq_hub])
@pytest.mark.parametrize("options", [{}, {"context": "document"}, {"unanswerable": True}])
def test_nq_other_layouts_are_the_same(tmp_path, layout, options):
    records = [
        nq(),
        nq(annotation(), annotation(short=((7, 11), (12, 13))), key=6),
        nq(annotation(short=(), yes_no="NO"), key=7),
        nq(annotation(short=()), key=8),
    ]
    wanted = read(NaturalQuestions(write(tmp_path / "a.jsonl", records), **options))
    assert (
        read(NaturalQuestions(write(tmp_path / "b.jsonl", [layout(record) for record in records]), **options)) == wanted
    )
    assert len(wanted) == (4 if "unanswerable" in options else 3)


def test_nq_hub_parquet(tmp_path):
    records = [nq(), nq(annotation(short=(), yes_no="YES"), key=6)]
    wanted = read(NaturalQuestions(write(tmp_path / "a.jsonl", records)))
    assert (
        read(NaturalQuestions(write(tmp_path / "b.parquet", [nq_hub(record) for record in records]))) == wanted
        and len(wanted) == 2
    )


def test_nq_the_whole_document(tmp_path):
    (question,) = read(NaturalQuestions(write(tmp_path / "nq.jsonl", [nq()]), context="document"))
    assert question.context == "Rain Rain falls in wet Bergen and Oslo . Cairo" and question.context[
        question.start :
    ].startswith("Bergen")


@pytest.mark.parametrize(
    "annotations, answers",
    [
        ([annotation(short=((7, 11),))], ("wet Bergen",)),  # tags within are left out
        ([annotation(short=((10, 11), (12, 13)))], ("Bergen", "Oslo")),  # each stretch is right by itself
        # five annotators: all within the same paragraph count
        ([annotation(), annotation(), annotation(short=((12, 13),))], ("Bergen", "Oslo")),
        # the first who answers chooses it
        (
            [
                annotation(long=(-1, -1), short=()),
                annotation(short=((4, 5),)),
                annotation(long=TABLE, short=((18, 19),)),
            ],
            ("Rain",),
        ),
        ([annotation(short=(), yes_no="YES")], ("yes",)),
        ([annotation(short=(), yes_no="NO")], ("no",)),
    ],
)
def test_nq_answers(tmp_path, annotations, answers):
    (question,) = read(NaturalQuestions(write(tmp_path / "nq.jsonl", [nq(*annotations)])))
    assert question.answers == answers and (question.start == -1) is (answers[0] in ("yes", "no"))
    assert question.start == -1 or question.context[question.start :].startswith(answers[0])


def test_nq_without_an_answer_is_left_out_and_counted_unless_it_is_asked(tmp_path):
    path = write(
        tmp_path / "nq.jsonl",
        [nq(annotation(short=()), key=1), nq(annotation(long=(-1, -1), short=()), key=2), nq(key=3)],
    )
    source = NaturalQuestions(path)
    assert [q.key for q in read(source)] == ["nq:3"] and source.describe() == {
        "dropped": 2,
        "dropped: no short answer": 2,
    }
    both = read(NaturalQuestions(path, unanswerable=True))
    assert (
        [q.answers for q in both] == [("",), ("",), ("Bergen",)]
        and len({q.context for q in both}) == 1
        and both[0].start == -1
    )


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"question": "where does rain fall", "answer": ["Bergen"]},
            r":1 has a question and its answers and no context \(NQ-open\)",
        ),
        (nq(annotation(long=(0, 3), short=((0, 1),))), r":1: the short answer of 'Rain' is empty; set strict=false"),
        (nq(annotation(long=(3, 4), short=((3, 4),))), r":1: the context is empty"),
        (
            nq({**annotation(), "short_answers": [{"start_byte": 3}]}),
            r":1 has an answer without start_token and end_token; set strict",
        ),
        (nq(annotation(yes_no=["YES"])), r":1 field 'yes_no_answer' holds a list, not YES, NO or NONE; set strict"),
        (nq(annotation(short=((10, 999),))), r":1 has an answer that ends at token 999 of a page of \d+; set strict"),
        ({**nq(), "annotations": None}, r":1 field 'annotations' must hold a list of records"),
        ({key: value for key, value in nq().items() if key != "question_text"}, r":1 has no field 'question_text'"),
    ],
)
def test_nq_that_cannot_be_asked(tmp_path, record, message):
    path = write(tmp_path / "nq.jsonl", [record])
    with pytest.raises(ValueError, match=rf"^path={path}{message}[^\n]*"):
        read(NaturalQuestions(path))


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (Squad, {"limit": 1}, "limit=1 must be at least 2"),
        (HotpotQA, {"limit": 0}, "limit=0 must be"),
        (HotpotQA, {"distractors": -1}, "distractors=-1 must be all, supporting or a number"),
        (HotpotQA, {"distractors": "some"}, "distractors=some must be"),
        (NaturalQuestions, {"limit": 1}, "limit=1"),
    ],
)
def test_options_that_make_no_sense(kind, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        kind("x.json", **options)

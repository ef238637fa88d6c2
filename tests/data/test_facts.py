"""Made-up facts: the law by enumeration, what a context is like, what guessing and cut texts are worth."""

import hashlib
import math
import re
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from research_stack.data.questions.fact_world import ATTRIBUTES, PEOPLE, TOGETHER
from research_stack.data.questions.facts import Facts


@pytest.fixture(scope="module")
def standard():
    """The questions of the defaults."""
    return list(Facts().questions())


def f1(prediction, gold):
    """Token F1 as in SQuAD, for texts without punctuation."""
    p, g = ([word for word in text.lower().split() if word not in ("a", "an", "the")] for text in (prediction, gold))
    same = sum((Counter(p) & Counter(g)).values())
    return 2 * same / (len(p) + len(g)) if same else 0.0


def sentences(context):
    return re.findall(r"[^.]+\.", context)


# The law ----------------------------------------------------------------------------------------------------------

TINY = {"people": 3, "attributes": 2, "values": 2, "wordings": 1}


@pytest.mark.exact
@pytest.mark.parametrize(
    "options, count",
    [
        ({"facts": 1}, 3 * 2 * 2),
        ({"facts": 2}, 3 * 2**2 * 2),
        ({"facts": 1, "wordings": 2}, 3 * 2 * 2 * 2),
        ({"facts": 2, "entities": 2}, 3 * 2 * 2**2 * 2),
        ({"facts": 1, "hops": 2}, 6 * 2 * 2 * 2),
        ({"facts": 1, "hops": 3}, 6 * 2 * 2 * 6),
        ({"facts": 2, "wordings": 2}, 3 * 4 * 2 * 4),
        ({"facts": 2, "entities": 2, "hops": 2, "people": 4, "attributes": 1}, (24 // 2) * 4 * 24),
    ],
)
def test_entropy_is_that_of_equally_likely_contexts(options, count):
    """Every context of a tiny law turns up, none else, and none more often than chance allows."""
    each = 80 if count < 500 else 20
    source = Facts(**{**TINY, **options}, contexts=each * count)
    seen = Counter(made.context for made in source.distribution.made())
    assert len(seen) == count and source.entropy_bits == pytest.approx(math.log2(count), abs=1e-12)
    chi2 = sum((n - each) ** 2 / each for n in seen.values())
    assert abs(chi2 - (count - 1)) < 5 * math.sqrt(2 * (count - 1))


@pytest.mark.exact
def test_entropy_with_distractors_counts_who_is_asked_about():
    source = Facts(**TINY, facts=1, distractors=1, contexts=16_000)
    seen = Counter((made.context, made.facts) for made in source.distribution.made())
    assert len(seen) == 3 * 2 * 2 * (2 * 2) * 2 * 2 and source.entropy_bits == pytest.approx(math.log2(len(seen)))
    assert len({context for context, _ in seen}) < len(
        seen
    )  # the text alone does not say which of the two is the distractor
    assert len(seen) * 40 < 16_000 and min(seen.values()) > 40


@pytest.mark.exact
def test_answer_bits_leave_out_wording_order_and_distractors():
    source = Facts(**{**TINY, "wordings": 2}, facts=2, entities=2, distractors=1, contexts=4000)
    found = {made.facts for made in source.distribution.made()}
    assert source.answer_bits == pytest.approx(math.log2(len(found))) and len(found) == 3 * 2 * 4


def test_bits_of_the_defaults():
    """Names 5, attributes log2 C(12, 5), values 5 x 4, order log2 5!, wording 5."""
    source = Facts()
    assert source.answer_bits == pytest.approx(5 + math.log2(792) + 20) and source.entropy_bits == pytest.approx(
        source.answer_bits + math.log2(120) + 5
    )
    assert source.describe() == {"entropy_bits": 46.5362, "answer_bits": 34.6294}
    assert Facts(bytes=500).entropy_bits is None and "entropy_bits" not in Facts(bytes=500).describe()


# What contexts are like -------------------------------------------------------------------------------------------


def test_contexts_of_the_defaults(standard):
    lengths = [len(question.context.encode()) for question in standard]
    assert len(standard) == 20_000 and 130 <= np.mean(lengths) <= 142 and round(np.mean(lengths), 1) == 136.0
    assert len({question.context for question in standard}) == len({question.key for question in standard}) == 20_000
    for question in standard[:500]:
        said = sentences(question.context)
        assert len(said) == 5 and len({sentence.split()[0] for sentence in said}) == 1
        assert (
            len(question.question) < 40
            and question.question.endswith("?")
            and 1 <= len(question.answers[0].split()) <= 2
        )
        assert (question.dataset, question.scoring) == ("qa_facts", "squad") and question.context.isascii()
    assert 0.1 < np.mean([" " in question.answers[0] for question in standard]) < 0.4


def test_words_are_as_the_law_needs_them():
    assert len(set(PEOPLE)) == len(PEOPLE) == 32 and len(ATTRIBUTES) == 12
    for attribute in ATTRIBUTES:
        assert len(set(attribute.values)) == len(attribute.values) == 16, attribute.question
        assert "{n}" in attribute.question and attribute.wordings[1].startswith(attribute.wordings[0][:-1])
        assert all("{n}" in wording and "{v}" in wording for wording in attribute.wordings)
    said = [
        wording.format(n=name, v=value)
        for attribute in ATTRIBUTES
        for wording in attribute.wordings
        for name in PEOPLE
        for value in attribute.values
    ]
    assert len(set(said)) == len(said)  # no two facts are said in the same words


def test_every_answer_stands_in_the_one_sentence_that_answers(standard):
    for question in standard[:2000]:
        answer = question.answers[0]
        assert question.context[question.start :].startswith(answer)
        attribute = next(
            a for a in ATTRIBUTES if re.fullmatch(re.escape(a.question).replace(r"\{n\}", r"\w+"), question.question)
        )
        name = question.context.split()[0]
        forms = {wording.format(n=name, v=value): value for wording in attribute.wordings for value in attribute.values}
        assert [forms[s] for s in (sentence.strip() for sentence in sentences(question.context)) if s in forms] == [
            answer
        ]


def test_guessing_without_the_context_is_worth_little():
    """The best constant answer to each kind of question."""
    best = [
        max(
            np.mean([f1(guess, value) for value in a.values])
            for guess in (*a.values, *(word for value in a.values for word in value.split()))
        )
        for a in ATTRIBUTES
    ]
    assert np.mean(best) < 0.08 and max(best) < 0.1


def test_equal_bytes_of_text_hold_a_quarter_of_the_facts(standard):
    held = [question.start + len(question.answers[0]) <= 36 for question in standard]
    assert 0.2 < np.mean(held) < 1 / 3


def test_facts_stand_in_random_order(standard):
    places = [sum(question.context[: question.start].count(mark) for mark in ".") for question in standard]
    assert np.bincount(places) / len(places) == pytest.approx([0.2] * 5, abs=0.015)


def test_hops_lead_to_the_one_who_answers():
    source = Facts(facts=4, entities=2, hops=3, contexts=300, questions=2)
    for made in source.distribution.made():
        said = [sentence.strip() for sentence in sentences(made.context)]
        friends = dict(
            match.groups() for sentence in said if (match := re.fullmatch(r"(\w+)'s friend is (\w+)\.", sentence))
        )
        assert len(friends) == 4 and len(said) == 8 and len({question for question, _, _ in made.asked}) == 2
        for question, answer, start in made.asked:
            name = re.search(r"(\w+)'s friend's friend", question)[1]
            holder = friends[friends[name]]
            begin = made.context.rfind(". ", 0, start) + 2 if ". " in made.context[:start] else 0
            assert made.context[begin:].startswith(holder + " ") and made.context[start:].startswith(answer)


def test_two_people_have_the_same_attributes_so_that_names_matter():
    for made in islice(Facts(facts=6, entities=2, contexts=100).distribution.made(), 100):
        verbs = Counter(re.sub(r"^\w+", "", sentence.strip())[:7] for sentence in sentences(made.context))
        assert len({sentence.split()[0] for sentence in sentences(made.context)}) == 2 and max(verbs.values()) >= 2


def test_distractors_are_about_others_and_fill_up_to_the_bytes():
    for options, most in (({"distractors": 4}, None), ({"bytes": 500}, 500), ({"bytes": 300, "distractors": 2}, 300)):
        for question in Facts(**options, contexts=200).questions():
            said = [sentence.strip() for sentence in sentences(question.context)]
            own = [
                s
                for s in said
                if s.split()[0] == next(name for name in PEOPLE if name in question.question.rstrip("?").split())
            ]
            assert len(own) == 5 and len(said) >= 5 + options.get("distractors", 0) and len(set(said)) == len(said)
            assert most is None or most - 40 < len(question.context) <= most
    assert (
        max(len(sentences(q.context)) for q in Facts(contexts=50, bytes=1).questions()) == 5
    )  # what is longer stays as it is


# The source -------------------------------------------------------------------------------------------------------


def test_the_same_options_give_the_same_texts_and_the_defaults_these(standard):
    digest = hashlib.sha256("\n".join(f"{q.context}{q.question}{q.answers}" for q in standard).encode()).hexdigest()
    assert digest[:12] == "42db7786907f", (
        "texts of the defaults have changed: raise RECIPE, finished runs hold the old ones"
    )
    few = [[q.context for q in Facts(contexts=5, seed=seed).questions()] for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


def test_fewer_contexts_are_the_beginning_of_more(standard):
    count = TOGETHER + 3
    assert list(Facts(contexts=count).questions()) == standard[:count]


def test_contexts_with_the_same_facts_are_one_group():
    questions = list(Facts(facts=2, people=2, attributes=2, values=2, contexts=300, questions=2).questions())
    groups = {}
    for question in questions:
        key = frozenset(
            re.sub(
                r"( (with an|in a|that|every|from head|after|more|years|to work|and is|at dawn).*)?\.$", "", s.strip()
            )
            for s in sentences(question.context)
        )
        groups.setdefault(key, set()).add(question.group)
    assert (
        len(groups) == 2 * 4
        and all(len(names) == 1 for names in groups.values())
        and len(set.union(*groups.values())) == len(groups)
    )
    first, second = (
        list(Facts(facts=1, people=2, contexts=64, distractors=1).questions())[:2],
        list(Facts(facts=1, people=2, contexts=64).questions())[:2],
    )
    assert first[0].group.count(".") == second[0].group.count(".") == 1  # distractors are no part of it


def test_every_option_is_part_of_the_fingerprint():
    options = {
        "facts": 4,
        "entities": 5,
        "hops": 2,
        "distractors": 1,
        "contexts": 9,
        "questions": 2,
        "bytes": 900,
        "wordings": 1,
        "people": 30,
        "attributes": 11,
        "values": 15,
        "seed": 1,
        "name": "other",
    }
    assert (
        len({Facts(**{name: value}).fingerprint() for name, value in options.items()} | {Facts().fingerprint()})
        == len(options) + 1
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"facts": 0}, "facts=0 must be at least 1"),
        ({"entities": 0}, "entities=0 must be at least 1"),
        ({"entities": 2}, "facts=5 must be a multiple of entities=2: all have the same attributes"),
        ({"hops": 4}, r"hops=4 must lie in \[1, 3\]"),
        ({"distractors": -1}, "distractors=-1 must not be negative"),
        ({"contexts": 1}, "contexts=1 must be at least 2"),
        ({"questions": 6}, r"questions=6 must lie in \[1, facts=5\]: a fact is asked for once"),
        ({"bytes": 0}, "bytes=0 must be at least 1, or null for no filling"),
        ({"wordings": 3}, "wordings=3 must be 1 or 2"),
        ({"people": 33}, r"people=33 must lie in \[1, 32\]"),
        ({"attributes": 13}, r"attributes=13 must lie in \[1, 12\]"),
        ({"values": 0}, r"values=0 must lie in \[1, 16\]"),
        ({"attributes": 4}, "facts=5 must be at most attributes=4 for each of entities=1"),
        ({"entities": 5, "hops": 3, "people": 14}, "entities=5 x hops=3 must be at most people=14"),
        (
            {"people": 2, "distractors": 13},
            "distractors=13 must be at most 12: each is one of attributes=12 of one of 1 people nobody asks about",
        ),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Facts(**options)

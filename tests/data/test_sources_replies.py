"""Replies with engagement: the planted preference against its law, files of the same layout, and what is refused."""

import json
import logging
import math

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from research_stack.data import Bytes, Replies, TokenData
from research_stack.data.packing import DUPLICATE, TRAIN, VALIDATION, split
from research_stack.data.sources import synthetic_replies


@pytest.fixture(scope="module")
def source():
    return Replies()


def columns(replies, *names):
    return (np.array([getattr(reply, name) for reply in replies], dtype=float) for name in names)


# The plant --------------------------------------------------------------------------------------------------------


def test_documents_are_the_planted_replies(source):
    documents = list(source.documents())
    assert len(documents) == len(source.truth) == 4000 == len({(d.prompt, d.text) for d in documents})
    for document, reply in zip(documents, source.truth, strict=True):
        assert (document.text, document.prompt, document.group, document.value) == (
            reply.reply,
            reply.prompt + "\n",
            reply.prompt,
            reply.engagement,
        )
    per_prompt = np.unique([d.prompt for d in documents], return_counts=True)[1]
    assert (
        len(per_prompt) > 600 and per_prompt.max() == 8 and (per_prompt < 4).sum() <= 1
    )  # the last prompt may come short
    assert len({d.text for d in documents}) > 3900


def test_features_are_in_the_text(source):
    for r in source.truth:
        assert r.words == len(r.reply.split()) and r.example == ("For example, " in r.reply)
        topic = next(
            name for name, parts in synthetic_replies.TOPICS.items() if any(subject in r.prompt for subject in parts[0])
        )
        said = {
            name for name, parts in synthetic_replies.TOPICS.items() if any(advice in r.reply for advice in parts[1])
        }
        assert len(said) == 1 and (topic in said) == r.on_topic
        assert r.question == any(q in r.reply for parts in synthetic_replies.TOPICS.values() for q in parts[3])
        tones = {
            tone
            for table in (synthetic_replies.OPENINGS, synthetic_replies.CLOSINGS)
            for tone, texts in table.items()
            if any(t in r.reply for t in texts)
        }
        assert tones <= {r.tone} and (tones or r.tone == 0)


def test_the_law_by_hand():
    assert synthetic_replies.log_mean(on_topic=1, tone=1, example=1, question=1, words=45) == pytest.approx(
        0.8 + 1.2 + 0.6 + 0.5 + 0.4 + 0.3
    )
    assert synthetic_replies.log_mean(on_topic=0, tone=-1, example=0, question=0, words=15) == pytest.approx(
        0.8 - 0.6 - 0.3
    )


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_engagement_follows_the_law(noise):
    likes, shares, logs = columns(synthetic_replies.replies(20_000, noise, 3), "likes", "shares", "log_mean")
    mean = np.exp(logs)
    residual = (likes + shares - mean) / np.sqrt(
        mean + (noise * mean) ** 2
    )  # mean and variance of the negative binomial
    assert abs(residual.mean()) < 0.03
    assert residual.var() == pytest.approx(1, abs=0.1)
    assert shares.sum() / (likes + shares).sum() == pytest.approx(0.2, abs=0.01)


def test_the_preference_can_be_found_and_has_a_ceiling(source):
    features = list(columns(source.truth, "on_topic", "tone", "example", "question", "words"))
    (logs,) = columns(source.truth, "log_mean")
    engagement = np.log1p([reply.engagement for reply in source.truth])
    assert 0.75 < np.corrcoef(logs, engagement)[0, 1] < 0.85
    for feature in features:
        assert 0.15 < np.corrcoef(feature, engagement)[0, 1] < 0.6  # each matters, none alone
    design = np.stack([*features, np.ones(len(logs))], 1)
    fitted = design @ np.linalg.lstsq(design, logs, rcond=None)[0]
    assert np.abs(fitted - logs).max() < 1e-9  # linear in what is recorded


def test_seed_noise_count_and_limit():
    one, again, other, calm = (
        synthetic_replies.replies(300, noise, seed) for noise, seed in ((0.5, 1), (0.5, 1), (0.5, 2), (0.0, 1))
    )
    assert one == again and [r.reply for r in one] != [r.reply for r in other]
    assert [r.reply for r in one] == [r.reply for r in calm] and [r.likes for r in one] != [r.likes for r in calm]
    assert synthetic_replies.replies(120, 0.5, 1)[:112] == one[:112] and len(list(Replies(limit=7).documents())) == 7


def test_the_split_is_by_prompt(source):
    sides = split(source, 0.2)
    prompts = [
        {d.prompt for d, s in zip(source.documents(), sides, strict=True) if s == side} for side in (TRAIN, VALIDATION)
    ]
    assert not (sides == DUPLICATE).any() and not prompts[0] & prompts[1]
    assert len(prompts[1]) / len(prompts[0] | prompts[1]) == pytest.approx(0.2, abs=0.05)


def test_it_says_plainly_that_it_is_synthetic(tmp_path, caplog):
    source = Replies(count=200)
    data = TokenData(source, Bytes(), sequence_length=256, cache_dir=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        data.prepare()
        source.check()
    assert [record.message for record in caplog.records if "SYNTHETIC" in record.message] == [
        "these replies are SYNTHETIC: made up, with engagement drawn from a planted preference; set data.path=FILE for"
        " real ones"
    ]
    said = data.describe()
    assert (
        said["source_synthetic"] is True
        and said["source_engagement"].startswith("SYNTHETIC")
        and "1.2 on_topic" in said["source_engagement"]
    )
    assert source.synthetic and "SYNTHETIC" in source.fingerprint() and "SYNTHETIC" in Replies.__doc__


def test_fingerprint_follows_every_option(tmp_path):
    options = [{}, {"count": 99}, {"noise": 0.4}, {"seed": 1}, {"limit": 50}]
    assert (
        len({Replies(**o).fingerprint() for o in options}) == 5 and Replies().fingerprint() == Replies().fingerprint()
    )
    path = str(synthetic_replies.write(tmp_path / "a.jsonl", count=10))
    files = [{}, {"engagement_fields": ["likes"]}, {"reply_field": "prompt"}, {"limit": 5}]
    assert len({Replies(path, **o).fingerprint() for o in files}) == 4
    assert not any("SYNTHETIC" in Replies(path, **o).fingerprint() for o in files)


# Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = synthetic_replies.write(tmp_path / f"replies{suffix}", count=150, seed=4)
    source, made = Replies(str(path)), Replies(count=150, seed=4)
    source.check()
    for ours, theirs in zip(source.documents(), made.documents(), strict=True):
        assert (ours.text, ours.prompt, ours.group, ours.value) == (
            theirs.text,
            theirs.prompt,
            theirs.group,
            theirs.value,
        )
    assert not source.synthetic and source.describe() == {"synthetic": False, "engagement": "likes + shares"}
    likes = Replies(str(path), engagement_fields=["likes"])
    assert [d.value for d in likes.documents()] == [r.likes for r in made.truth]
    with pytest.raises(ValueError, match="^path=.*must be null: only synthetic replies have planted features"):
        _ = source.truth


def test_other_names_and_blank_records(tmp_path):
    rows = [
        {"post": post, "comment": comment, "score": score}
        for post, comment, score in (("a?", "b", 3), ("a?", " ", 1), ("", "c", 1), ("d\n", "e", 2.5))
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Replies(str(tmp_path / "a.jsonl"), "post", "comment", ["score"])
    assert [(d.prompt, d.text, d.value) for d in source.documents()] == [("a?\n", "b", 3.0), ("d\n", "e", 2.5)]


@pytest.mark.parametrize(
    "record, line",
    [
        ({"prompt": "p", "reply": "r", "likes": -1, "shares": 0}, ":2 field 'likes' must not be negative: -1"),
        (
            {"prompt": "p", "reply": "r", "likes": "many", "shares": 0},
            ":2 field 'likes' must hold a number, not 'many'",
        ),
        ({"prompt": "p", "reply": "r", "likes": 1, "shares": None}, ":2 field 'shares' must hold a number, not None"),
        ({"prompt": "p", "reply": "r", "likes": True, "shares": 0}, ":2 field 'likes' must hold a number, not True"),
        ({"prompt": "p", "reply": "r", "likes": math.nan, "shares": 0}, ":2 field 'likes' must hold a number, not nan"),
        (
            {"prompt": "p", "reply": "r", "likes": 1},
            ":2 has no field 'shares' (engagement_fields); the fields there: prompt, reply, likes",
        ),
        (
            {"prompt": "p", "answer": "r", "likes": 1, "shares": 0},
            ":2 has no field 'reply'; the fields there: prompt, answer, likes, shares",
        ),
        ({"prompt": 1, "reply": "r", "likes": 1, "shares": 0}, ":2 field 'prompt' holds a int, not a text"),
    ],
)
def test_a_wrong_record_is_one_line_with_its_place(tmp_path, record, line):
    good = {"prompt": "p", "reply": "r", "likes": 1, "shares": 0}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, record)))
    with pytest.raises(ValueError) as caught:
        Replies(str(path)).check()
    assert str(caught.value) == f"path={path}{line}; set strict=false to leave such records out"
    lenient = Replies(str(path), strict=False)
    lenient.check()
    assert (
        len(list(lenient.documents())) == 1 and lenient.odd.left_out == 1 and lenient.odd.first == f"path={path}{line}"
    )


def test_wrong_files(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["p"], "reply": ["r"], "likes": [1]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text('{"prompt": "p", "reply": "", "likes": 1, "shares": 0}\n')
    lines = {
        "a.parquet": "has no field 'shares' (engagement_fields); the fields there: prompt, reply, likes",
        "a.txt": "has the unknown suffix '.txt'; known: .jsonl .parquet",
        "empty.jsonl": "is an empty file",
        "blank.jsonl": "holds no text: every record is empty",
        "nowhere.jsonl": "does not exist",
    }
    for name, line in lines.items():
        with pytest.raises((ValueError, OSError), match="^path=") as caught:
            Replies(str(tmp_path / name)).check()
        assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"count": 1}, {"count": 20_001}, {"noise": -0.1}, {"noise": math.nan}, {"limit": 1}, {"engagement_fields": []}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}="):
        Replies(**options)


def test_the_file_must_have_a_known_name(tmp_path):
    with pytest.raises(ValueError, match="must end in .jsonl or .parquet"):
        synthetic_replies.write(tmp_path / "a.csv")

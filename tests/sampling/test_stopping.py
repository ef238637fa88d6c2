"""On pairs a denoiser learns where an answer ends: rows filled with end tokens, which it may write, and answers cut at
the first.
"""

import json
from itertools import islice

import pytest
import torch
from denoisers import VOCAB, Told

from research_stack import compose, run
from research_stack.data import Bytes, TokenData
from research_stack.data.sources.base import Document
from research_stack.evaluation.samples import Samples
from research_stack.flowlm.module import FlowLM
from research_stack.posttraining.sft import SFT
from research_stack.running.open_run import load
from research_stack.sampling.choosers import Temperature
from research_stack.sampling.committers import Schedule
from research_stack.sampling.inits import Masks
from research_stack.sampling.sampler import Sampler
from research_stack.sampling.selectors import Confidence
from research_stack.sampling.stoppers import Steps

END = VOCAB.end


class Items:
    """A source that holds its documents."""

    def __init__(self, items):
        self.items = items

    def check(self):
        pass

    def documents(self):
        return iter(self.items)

    def fingerprint(self):
        return repr(self.items)[:5000]


def prepared(items, tmp_path, method):
    data = TokenData(
        Items(items), Bytes(), sequence_length=16, batch_size=8, validation_fraction=0.3, cache_dir=str(tmp_path)
    )
    data.prepare()
    before = next(iter(data.train_dataloader()))
    data.serve(method)
    return data, before, next(iter(data.train_dataloader()))


PAIRS = [Document("y" * (1 + i % 5) if i % 7 else "z" * 20, f"p{i:02}", str(i)) for i in range(60)]


def test_rows_of_pairs_are_filled_with_ends_that_may_be_corrupted(tmp_path):
    data, before, after = prepared(PAIRS, tmp_path, FlowLM)
    end, pad = data.vocab.end, data.vocab.pad
    assert (
        data.vocab.writes_end
        and data.vocab.n_real == 257
        and data.describe()["writes_end"]
        and not data.codec.vocab.writes_end
    )
    assert (
        after["attention_mask"].all()
        and torch.equal(after["prompt"], before["prompt"])
        and (before["tokens"] == pad).any()
    )
    assert torch.equal(after["tokens"], torch.where(before["tokens"] == pad, end, before["tokens"]))
    assert torch.equal(after["eligible"], ~after["prompt"])
    assert any(
        (row != end).all() for batch in islice(data.train_dataloader(), 8) for row in batch["tokens"]
    )  # a response that was cut has no end
    rows = data.validation  # what is said of the texts does not change
    assert not rows.eligible[rows.tokens == end].any() and rows.attention_mask.sum() < rows.tokens.size
    assert torch.equal(
        torch.from_numpy(rows.take(slice(0, 4)).arrays()["eligible"]), ~torch.from_numpy(rows.take(slice(0, 4)).prompt)
    )


@pytest.mark.parametrize(
    "items, method",
    [
        ([Document(f"text {i} of some length", None, str(i)) for i in range(40)], FlowLM),
        ([Document("", f"prompt {i}", str(i)) for i in range(40)], FlowLM),
        (PAIRS, SFT),
    ],
)
def test_documents_prompts_and_other_methods_get_what_they_got(tmp_path, items, method):
    data, before, after = prepared(items, tmp_path, method)
    assert data.vocab is data.codec.vocab and "writes_end" not in data.describe()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def sampler(**options):
    return Sampler(Masks(), Temperature(0.0), Confidence(), Schedule(), Steps(), **options)


class Ending(Told):
    """Writes 1, 2, ... and the end token at a place of its own in each row, which the first token of its prompt names;
    behind it 3.
    """

    def __init__(self, vocab):
        super().__init__(self.told)
        self.vocab = vocab

    def told(self, z_BL, t_B):
        p_BLV = torch.full((*z_BL.shape, VOCAB.size), 1e-9)
        p_BLV[..., 3] = 0.9
        for row, p_LV in zip(z_BL, p_BLV, strict=True):
            if int(row[0]) < len(row):
                p_LV[int(row[0]), END] = 1.0
        return p_BLV


def test_an_answer_is_cut_at_its_first_end():
    prompts = [[1], [3], [6]]
    trace = sampler().sample(Ending(VOCAB.with_end_written()), prompts=prompts, length=8)
    for row, generated, (layout,) in zip(trace.tokens_BL, trace.generated_BL, prompts, strict=True):
        assert row[generated].tolist() == [3] * (layout - 1) + [END]
        assert row[layout + 1 :].tolist() == [VOCAB.pad] * (8 - layout) and generated.sum() == layout


def test_blocks_behind_the_end_are_not_decoded():
    trace = sampler(block_length=2).sample(Ending(VOCAB.with_end_written()), prompts=[[1], [3], [9]], length=8)
    assert trace.calls_B.tolist() == [2, 4, 8] and not (trace.tokens_BL == VOCAB.mask).any()
    assert trace.generated_BL.sum(1).tolist() == [1, 3, 8]


def test_where_the_end_is_no_token_like_others_nothing_is_cut():
    trace = sampler(block_length=2).sample(Told(torch.full((9, VOCAB.size), 1 / VOCAB.size)), prompts=[[1]], length=8)
    assert trace.generated_BL.sum() == 8 and trace.calls_B.tolist() == [8]


LABELS = {"a": "yes", "b": "certainly not"}


@pytest.mark.slow
def test_a_small_denoiser_answers_with_labels_of_different_lengths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{letter}{i:02}\n", "response": LABELS[letter]} for i in range(50) for letter in LABELS]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        "data=text",
        "data.path=labels.jsonl",
        "data.source.field=response",
        "data.source.prompt_field=prompt",
        "data/tokenizer=bytes",
    ]
    small = [
        "model=smoke",
        "data.sequence_length=24",
        "data.batch_size=16",
        "trainer=smoke",
        "trainer.max_steps=400",
        "trainer.val_check_interval=200",
        "eval=none",
    ]
    run(compose(["experiment=llada", *pairs, *small]), tmp_path / "run")
    context = load(tmp_path / "run")
    prompts = [f"{letter}{i}\n" for letter in LABELS for i in (61, 72, 83)]
    decoders = {
        "llada": context.sampler,
        "blocks": load(tmp_path / "run", ["sampler=llada", "sampler.block_length=5"]).sampler,
        "flowlm": load(tmp_path / "run", ["sampler=flowlm"]).sampler,  # edits, which this model has not learnt
    }
    for name, decoder in decoders.items():
        with context.inference():
            found = [row["text"] for row in Samples({}, prompts=prompts).decode(context, "x", decoder)]
        lengths = [len(text) for text in found]
        if name != "flowlm":
            assert lengths == [3] * 3 + [13] * 3, (name, found)
        assert max(lengths[:3]) < min(lengths[3:]) and max(lengths) < 20, (name, found)

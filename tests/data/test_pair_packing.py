"""Several pairs to a row: nothing lost, nothing mixed, marks right; and steps that see one batch several times."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from research_stack.data import Bytes, PythonDocs, TokenData, step_data
from research_stack.data.packing import OPEN_ROWS

PAIRS = [(f"p{i}:", "abc" * (i % 9 + 1) + str(i)) for i in range(400)]


@pytest.fixture
def data(corpus, tmp_path):
    """Makes a prepared TokenData over pairs with the given options."""

    def make(pairs=PAIRS, **options):
        options = {
            "sequence_length": 64,
            "batch_size": 4,
            "validation_fraction": 0.2,
            "cache_dir": str(tmp_path / "cache"),
            **options,
        }
        made = TokenData(corpus(*pairs), Bytes(), **options)
        made.prepare()
        return made

    return make


def pairs_of(d, rows):
    """{prompt: (response, ended)} read back through sample, prompt and attend alone."""
    found, arrays = {}, rows.arrays()
    for tokens, prompt, sample in zip(arrays["tokens"], arrays["prompt"], arrays["seq_idx"], strict=True):
        for number in range(sample.max() + 1):
            own = sample == number
            text = tokens[own & ~prompt]
            key = d.codec.decode(tokens[own & prompt])
            assert key not in found and (np.flatnonzero(text == d.vocab.end) == len(text) - 1).all()
            found[key] = (d.codec.decode(text), bool(text[-1] == d.vocab.end))
    return found


def test_every_pair_stands_once_and_whole(data):
    d = data(pack=True)
    found = {**pairs_of(d, d.train), **pairs_of(d, d.validation)}
    assert found == {prompt: (text, True) for prompt, text in PAIRS}
    assert d.meta["train"]["rows"] == len(d.train) < d.meta["train"]["documents"] / 2
    assert d.meta["train"]["truncated"] == d.meta["train"]["dropped"] == 0


def test_the_marks_say_where_each_pair_is(data):
    d = data(pack=True)
    for batch in [*islice(d.train_dataloader(), 20), *d.val_dataloader()]:
        assert set(batch) == {"tokens", "eligible", "attention_mask", "prompt", "seq_idx", "position_ids"}
        assert batch["seq_idx"].dtype == batch["position_ids"].dtype == torch.int64
        names = ("tokens", "attention_mask", "prompt", "eligible", "seq_idx", "position_ids")
        for tokens, attend, prompt, eligible, sample, place in zip(*(batch[name] for name in names), strict=True):
            filled = int(attend.sum())
            assert (
                attend[:filled].all()
                and (tokens[filled:] == d.vocab.pad).all()
                and (sample[filled:] == -1).all()
                and (place[filled:] == 0).all()
            )
            ends = (tokens[:filled] == d.vocab.end).long()
            assert torch.equal(sample[:filled], ends.cumsum(0) - ends)  # every response here has its end
            expected = torch.cat([torch.arange(int((sample == n).sum())) for n in range(int(sample.max()) + 1)])
            assert torch.equal(place[:filled], expected)
            colon = torch.tensor(
                [(tokens[i:filled][sample[i:filled] == sample[i]] == ord(":")).any() for i in range(filled)]
            )
            assert torch.equal(prompt[:filled], colon) and not prompt[filled:].any()
            assert (
                torch.equal(eligible[:filled], ~colon & (tokens[:filled] != d.vocab.end))
                and not eligible[filled:].any()
            )


def test_packing_fills_the_rows_and_says_how_far(data):
    packed, alone = data(pack=True), data()
    share = packed.train.attention_mask.mean()
    assert packed.describe()["filled"] == round(float(share), 4) > 0.9
    assert alone.describe()["filled"] == round(float(alone.train.attention_mask.mean()), 4) < 0.4
    assert packed.train.attention_mask.sum() == alone.train.attention_mask.sum()
    assert packed.describe()["pack"] and not alone.describe()["pack"]


def test_pairs_that_fit_exactly_fill_their_rows(data):
    d = data([(f"{i:03}:", "x" * 24 + f"{i:03}") for i in range(100)], pack=True)  # 32 tokens each with the end
    assert [len(d.train), len(d.validation)] == [-(-d.meta[side]["documents"] // 2) for side in ("train", "validation")]


def test_more_rows_than_may_be_open_are_written_once(data):
    pairs = [(f"{i:03}:", "x" * 37 + f"{i:03}") for i in range(3 * OPEN_ROWS)]  # no two fit one row
    d = data(pairs, pack=True)
    assert (
        len(pairs_of(d, d.train)) + len(pairs_of(d, d.validation))
        == len(pairs)
        == d.meta["train"]["rows"] + d.meta["validation"]["rows"]
    )


def test_long_responses_are_cut_and_long_prompts_dropped(data):
    pairs = [
        *PAIRS[:50],
        *((f"q{i}:", "y" * 100 + str(i)) for i in range(20)),
        *(("z" * 40 + f"{i}:", f"{'x' * 30}{i}") for i in range(10)),
        *(("w" * 40 + f"{i}:", f"x{i}") for i in range(10)),
    ]
    d = data(pairs, pack=True)
    found = {**pairs_of(d, d.train), **pairs_of(d, d.validation)}
    assert found["q3:"] == ("y" * 61, False) and len(found) == 80
    assert found["w" * 40 + "3:"] == ("x3", True)  # longer than half a row, and the pair fits
    assert sum(d.meta[side]["dropped"] for side in ("train", "validation")) == 10
    assert sum(d.meta[side]["truncated"] for side in ("train", "validation")) == 20


def test_packing_is_the_same_again_and_has_its_own_cache(data, tmp_path):
    one, two = data(pack=True), data(pack=True, cache_dir=str(tmp_path / "other"))
    assert one.fingerprint == two.fingerprint != data().fingerprint
    assert (one.train.tokens == two.train.tokens).all() and (one.train.marks == two.train.marks).all()


def test_the_split_is_that_of_the_pairs_alone(data):
    packed, alone = data(pack=True), data()
    prompts = {
        alone.codec.decode(row[prompt])
        for row, prompt in zip(alone.validation.tokens, alone.validation.prompt, strict=True)
    }
    assert pairs_of(packed, packed.validation).keys() == prompts


def test_rows_that_are_not_packed_stay_as_they_were(data):
    d = data()
    assert d.train.marks is None and set(next(iter(d.train_dataloader()))) == {
        "tokens",
        "eligible",
        "attention_mask",
        "prompt",
    }
    files = {file.name for file in Path(d.cache_dir, d.fingerprint).iterdir()}
    assert files == {"meta.json", "train.spans", "train.tokens", "validation.spans", "validation.tokens"}


def test_rows_count_as_documents_and_texts_come_back(data):
    d = data(pack=True)
    assert d.validation_document.tolist() == list(range(len(d.validation)))
    few = data(pack=True, validation_rows=3)
    assert few.validation_document.tolist() == [0, len(d.validation) // 3, 2 * len(d.validation) // 3]
    assert (few.validation.marks == d.validation.marks[few.validation_document]).all()
    prompts = pairs_of(d, d.validation)
    assert sorted(d.validation_documents()) == sorted(prompt + text for prompt, (text, _) in prompts.items())


def test_ranks_and_resumption_of_packed_rows(data, monkeypatch):
    d = data(pack=True)
    whole = list(islice(d.train_dataloader(), 8))
    d.start_step = 3
    shares = []
    for rank in range(2):
        monkeypatch.setattr(step_data, "rank_and_world_size", lambda rank=rank: (rank, 2))
        shares.append(list(islice(d.train_dataloader(), 5)))
    for step, batch in enumerate(whole[3:]):
        for name in batch:
            assert torch.equal(torch.cat([share[step][name] for share in shares]), batch[name])


@pytest.mark.parametrize("items", [["plain", "text"], [("p", "r"), "text"], [("p", ""), ("q", "r")]])
def test_only_pairs_can_be_packed(corpus, tmp_path, items):
    d = TokenData(corpus(*items), Bytes(), pack=True, cache_dir=str(tmp_path))
    line = (
        r"^pack=true needs pairs of a prompt and a response, and '[01]' of this corpus is (plain text|a prompt"
        r" without).*; set pack=false$"
    )
    with pytest.raises(ValueError, match=line):
        d.prepare()
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


@pytest.mark.parametrize("options, line", [
    ({"pack": True, "order": "contiguous"}, "pack=True needs order=shuffled"),
])  # fmt: skip
def test_wrong_options_are_refused(options, line):
    with pytest.raises(ValueError, match=f"^{line}"):
        TokenData(PythonDocs(), Bytes(), **options)


# Repeated batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_a_batch_is_seen_so_many_times(data, start, workers):
    once = [b["tokens"] for b in islice(data().train_dataloader(), 6)]
    d = data(num_workers=workers)
    d.start_step, d.repeat = start, 3
    for step, batch in enumerate(islice(d.train_dataloader(), 12), start):
        assert torch.equal(batch["tokens"], once[step // 3])

"""Going on from own words: what is scored, against the loss written out; the texts' numbers; what is left out and
refused.
"""

from __future__ import annotations

import contextlib
import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from written_out import model

from research_stack.config.build import build
from research_stack.config.compose import compose
from research_stack.evaluation.context import Context
from research_stack.evaluation.samples import Samples
from research_stack.lookahead.choosers import Abstain, BranchAndRank
from research_stack.lookahead.generated_prefix import GeneratedPrefix
from research_stack.lookahead.module import Lookahead, MiniGPT
from research_stack.lookahead.report.generated_prefix import REPORT
from research_stack.metrics.decoding import repetition
from research_stack.metrics.interval import per_token
from research_stack.records.files import read_jsonl
from research_stack.reporting.contract import Metrics
from research_stack.sampling.autoregressive import Autoregressive
from research_stack.sampling.choosers import Temperature
from research_stack.sampling.trace import Trace

LEAD, OWN, AFTER, LENGTH = 6, 3, 5, 10
SIZES = {"prompt_tokens": LEAD, "generated_tokens": OWN, "scored_tokens": AFTER, "text_tokens": LENGTH}


@pytest.fixture
def context(stories, tmp_path):
    """A run on the stories, in float64."""

    def make(kind=Lookahead, **options):
        data = stories(sequence_length=24, validation_fraction=0.3)
        method = model(
            kind, data.vocab, shake=0.1, backbone={"max_length": 40, **options.pop("backbone", {})}, **options
        )
        return Context(
            method,
            data,
            sampler=None,
            folder=tmp_path / "run",
            seed=1,
            device=torch.device("cpu"),
            autocast=contextlib.nullcontext,
        )

    return make


def rows_of(context, count):
    """(rows, their documents)."""
    taken = context.data.validation.evenly_spaced_indices(count)
    return context.data.validation.take(taken), context.data.validation_document[taken]


class Knowing:
    """Writes what really comes next in the validation rows, from `shift` tokens on."""

    chooser = Temperature()

    def __init__(self, context, shift=0, only=99):
        self.rows, self.shift, self.only, self.at = (
            [row.astype(np.int64) for row in context.data.validation.evenly_spaced(6).tokens],
            shift,
            only,
            0,
        )

    def lacks_confidence(self, read):
        return False

    def sample(self, method, prompts, *, length, seed, record, device, first_row):
        leads, made = torch.stack(list(prompts)), min(length, self.only)
        tokens = torch.cat((leads, torch.full((len(leads), length), method.vocab.pad)), 1)
        for b in range(len(leads)):
            start = LEAD + self.shift
            tokens[b, LEAD : LEAD + made] = torch.from_numpy(self.rows[first_row + b][start : start + made])
        generated = torch.zeros_like(tokens, dtype=torch.bool)
        generated[:, LEAD : LEAD + made] = True
        return Trace(tokens, generated, torch.full((len(leads),), 7), tokens.unsqueeze(0), None, method.vocab.mask)


@torch.no_grad()
def written_out(context, tokens, own):
    """(nats, tokens) of the scored tokens of one row behind these own ones, one prediction at a time."""
    method, vocab = context.method, context.data.vocab
    text, nats, count = [*tokens[:LEAD], *own, *tokens[LEAD + OWN : LEAD + OWN + AFTER]], 0.0, 0
    for j in range(LEAD + OWN, LEAD + OWN + AFTER):
        if vocab.end in tokens[LEAD : j + 1] or tokens[j] in vocab.special:
            continue
        read = torch.tensor([text[:j]])
        hidden_D = method.read(read, method.previous(read)).hidden_BLD[0, -1]
        logits_V = hidden_D @ method.model.unembedding.T + method.bias_V
        nats, count = nats - float(logits_V.log_softmax(0)[text[j]]), count + 1
    return nats, count


def table_of(context):
    with (context.folder / "tables" / "generated_prefix.csv").open() as file:
        return {row["decoder"]: row for row in csv.DictReader(file)}


@pytest.mark.exact
def test_the_loss_behind_own_tokens_is_the_one_written_out(context):
    for kind in (Lookahead, MiniGPT):
        ready, sampler = context(kind), Autoregressive(Temperature(1.1))
        with ready.inference():
            found = GeneratedPrefix({"hot": sampler}, count=40, **SIZES)(ready)
        rows, document_B = rows_of(ready, 40)
        tokens = [row.tolist() for row in rows.tokens.astype(np.int64)]
        assert (
            any(ready.data.vocab.end in row[LEAD : LEAD + OWN + AFTER] for row in tokens) and len(tokens) > 32
        )  # documents end; two batches
        leads = [torch.tensor(row[:LEAD]) for row in tokens]
        own = (
            sampler.sample(ready.method, leads, length=OWN, seed=1).tokens_BL[:, LEAD:].tolist()
        )  # the first tokens of the longer texts
        for name, words in (("hot", own), ("real_text", [row[LEAD : LEAD + OWN] for row in tokens])):
            nats_B, count_B = map(
                np.array,
                zip(*(written_out(ready, row, word) for row, word in zip(tokens, words, strict=True)), strict=True),
            )
            expected = per_token(nats_B, count_B, document_B)
            assert [found[f"{name}/future_nats{end}"] for end in ("", "_low", "_high")] == pytest.approx(
                list(expected), rel=1e-9
            )


def test_who_writes_the_real_text_loses_nothing(context):
    ready = context()
    with ready.inference():
        found = GeneratedPrefix({"knowing": Knowing(ready), "late": Knowing(ready, shift=4)}, count=6, **SIZES)(ready)
    assert found["knowing/future_nats"] == found["real_text/future_nats"] and found["knowing/excess_nats"] == 0
    declared = Metrics([REPORT])
    assert [name for name in found if not declared.is_declared(f"generated_prefix/{name}")] == []
    assert found["late/future_nats"] != found["real_text/future_nats"] and found["late/calls"] == 7
    assert found["late/excess_nats"] == pytest.approx(found["late/future_nats"] - found["real_text/future_nats"])
    assert found["late/excess_nats_low"] < found["late/excess_nats"] < found["late/excess_nats_high"]


def test_behind_a_text_that_ended_early_nothing_is_scored(context):
    ready = context()
    with ready.inference():
        found = GeneratedPrefix(
            {"short": Knowing(ready, only=2), "silent": Autoregressive(Abstain(-1e9, Temperature()))}, count=6, **SIZES
        )(ready)
    assert np.isnan(
        [found[f"{name}/{key}"] for name in ("short", "silent") for key in ("future_nats", "excess_nats")]
    ).all()
    assert (
        np.isnan(found["silent/distinct_2"])
        and found["silent/calls"] == 1
        and np.isfinite(found["real_text/future_nats"])
    )


def test_the_table_the_texts_and_their_numbers(context):
    ready = context()
    ready.folder.mkdir()
    before = [{"sampler": "other", "text": "kept"}, {"sampler": "rank", "text": "old"}]
    (ready.folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in before))
    samplers = {"gpt": Autoregressive(Temperature(0.0)), "rank": Autoregressive(BranchAndRank(4, 0.5))}
    with ready.inference():
        found = GeneratedPrefix(samplers, count=6, **SIZES)(ready)
    table = table_of(ready)
    assert list(table) == ["real_text", "gpt", "rank"]
    assert list(table["rank"]) == [
        "decoder",
        "setting",
        "future_nats",
        "low",
        "high",
        "repetition",
        "distinct_2",
        "entropy",
        "calls",
        "texts",
    ]
    assert (
        table["rank"]["setting"] == "BranchAndRank(candidates=4, beta=0.5, temperature=1.0)"
        and table["real_text"]["setting"] == ""
    )
    assert [table[name]["calls"] for name in table] == ["0", "10", "20"] and {
        row["texts"] for row in table.values()
    } == {"6"}
    for name in table:
        assert float(table[name]["future_nats"]) == pytest.approx(found[f"{name}/future_nats"], rel=1e-5)
        assert float(table[name]["low"]) == pytest.approx(found[f"{name}/future_nats_low"], rel=1e-5)
    rows = read_jsonl(ready.folder / "samples.jsonl")
    assert [row["sampler"] for row in rows] == ["gpt"] * 4 + ["rank"] * 4 + ["other"]
    real, _ = rows_of(ready, 6)
    assert rows[0]["prompt"] == ready.data.codec.decode(real.tokens[0, :LEAD]) and rows[4]["steps"] == 10
    texts = [
        row[LEAD : LEAD + LENGTH][keep[LEAD : LEAD + LENGTH]]
        for row, keep in zip(real.tokens, real.eligible, strict=True)
    ]
    assert found["real_text/repetition"] == pytest.approx(repetition(texts))


def test_repetition_counts_what_occurred_earlier_in_the_same_text():
    assert repetition([np.array([1, 2, 3, 4, 1, 2, 3, 4, 5])]) == pytest.approx(1 / 6)
    assert repetition([np.zeros(10), np.arange(10)]) == pytest.approx((6 / 7 + 0) / 2)
    assert np.isnan(repetition([np.arange(3)])) and repetition([np.arange(3), np.zeros(5)]) == 0.5


def test_decoders_that_need_a_head_are_left_out_without_one(context, caplog):
    ready = context(MiniGPT)
    with caplog.at_level("INFO"), ready.inference():
        found = GeneratedPrefix(
            {"gpt": Autoregressive(Temperature()), "rank": Autoregressive(BranchAndRank())}, count=4, **SIZES
        )(ready)
    assert "MiniGPT has no confidence head: left out rank" in caplog.text
    assert list(table_of(ready)) == ["real_text", "gpt"] and not any(key.startswith("rank") for key in found)


def test_what_cannot_be_measured_is_said(context):
    ready = context()
    with pytest.raises(
        ValueError,
        match="^prompt_tokens=6, generated_tokens=3 and scored_tokens=50 are 59 tokens, and a row has data.seq",
    ):
        GeneratedPrefix({}, prompt_tokens=6, generated_tokens=3, scored_tokens=50)(ready)
    assert (
        GeneratedPrefix({}, **SIZES).unsuited(SimpleNamespace)
        == "it judges MiniGPT and Lookahead, models of the next token; choose eval=samples"
    )
    assert GeneratedPrefix({}, **SIZES).unsuited(type(ready.method)) is None
    for name in ("count", "prompt_tokens", "generated_tokens", "scored_tokens"):
        with pytest.raises(ValueError, match=f"^{name}=0 must be at least 1"):
            GeneratedPrefix({}, **{name: 0})
    with pytest.raises(ValueError, match="^text_tokens=4 must be at least generated_tokens=8"):
        GeneratedPrefix({}, text_tokens=4)


def test_the_file_builds_and_measures(context):
    sizes = [f"eval.generated_prefix.{key}={value}" for key, value in (SIZES | {"count": 3}).items()]
    evaluation, ready = (
        build(compose(["eval=lookahead_decoding", *sizes]).eval.generated_prefix, "eval.generated_prefix"),
        context(),
    )
    with ready.inference():
        found = evaluation(ready)
    assert list(table_of(ready)) == ["real_text", "gpt_07", "gpt", "min_p", "entropy", "confidence", "rank_05", "rank"]
    assert (
        evaluation.samplers["gpt_07"].chooser == Temperature(0.7) and evaluation.samplers["rank_05"].chooser.beta == 0.5
    )
    assert found["rank/calls"] == 20 and found["gpt/calls"] == 10


def test_samples_and_films_are_made_of_texts_written_from_left_to_right(context):
    ready = context()
    samplers = {"rank": Autoregressive(BranchAndRank(4)), "silent": Autoregressive(Abstain(-1e9, Temperature()))}
    with ready.inference():
        found = Samples(samplers, count=2, length=5, lead=3)(ready)
    assert (
        found["rank/calls"] == 10
        and found["rank/changed"] == 0
        and found["rank/idle"] == 0
        and np.isnan(found["silent/changed"])
    )
    film = json.loads((ready.folder / "films" / "rank.json").read_text())
    states = [[film["states"][code] for code in frame["states"]] for frame in film["frames"]]
    assert (
        states[0] == ["prompt"] * 3 + ["mask"] * 5 and states[2] == ["prompt"] * 3 + ["kept", "filled"] + ["mask"] * 3
    )
    assert len(json.loads((ready.folder / "films" / "silent.json").read_text())["frames"]) == 1

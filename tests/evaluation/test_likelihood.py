"""The likelihood evaluation: values with a closed form, its interval, what it writes."""

import csv
import math

import numpy as np
import pytest
import torch

from research_stack.evaluation.likelihood import Likelihood
from research_stack.metrics.interval import degrees_of_freedom, few_groups_note, per_token, t_quantile, warn_few


def test_interval_by_hand():
    value, low, high = per_token(np.array([2.0, 4.0, 9.0, 0.0]), np.array([1, 2, 3, 0]))
    assert value == pytest.approx(15 / 6)  # the sequence without tokens does not count
    rest, share = np.array([2 - 2.5, 4 - 5, 9 - 7.5]), np.array([1, 2, 3]) / 6
    reach = t_quantile(degrees_of_freedom([1, 2, 3])) * math.sqrt((rest**2 / (1 - share)).sum()) / 6
    assert (low, high) == (pytest.approx(2.5 - reach), pytest.approx(2.5 + reach))
    # What the draws balance out is no part of the spread, and changes no value.
    assert per_token([2.0, 4.0, 9.0], [1, 2, 3], balanced_n=[-0.5, -1.0, 1.5]) == pytest.approx((2.5, 2.5, 2.5))


def test_degrees_of_freedom_against_the_matrix():
    for sizes in ([5.0] * 7, [1.0, 2, 3], np.random.default_rng(0).lognormal(size=12)):
        size_g = np.asarray(sizes)
        share_g, variance_g = size_g / size_g.sum(), size_g * size_g.mean() + size_g**2 / 4
        residual_gg = np.eye(len(size_g)) - np.outer(share_g, np.ones(len(size_g)))
        covariance_gg = residual_gg * variance_g @ residual_gg.T / np.sqrt(np.outer(1 - share_g, 1 - share_g))
        assert degrees_of_freedom(size_g) == pytest.approx(np.trace(covariance_gg) ** 2 / (covariance_gg**2).sum())
    assert (
        degrees_of_freedom([5.0] * 7) == pytest.approx(6) and 1 < degrees_of_freedom([1.0, 2, 3]) < 2
    )  # unequal groups count as fewer


def test_few_documents_are_told(caplog):
    warn_few([3, 3, 8, 9], "documents")
    warn_few(range(5), "documents")
    assert [record.getMessage() for record in caplog.records] == [
        "Numbers over 3 documents: their intervals may be too narrow; 95 % is meant from 5 documents on."
    ]
    assert few_groups_note(1, "prompts").startswith("Numbers over 1 prompt: they have no interval")


def test_sequences_of_one_document_count_once():
    rng = np.random.default_rng(1)
    hits = alone = 0
    for _ in range(400):  # 12 documents of 8 sequences, which share most of what they differ by
        document = np.repeat(np.arange(12), 8)
        tokens = np.full(96, 50.0)
        nats = 50 * (3 + rng.normal(0, 0.5, 12)[document] + rng.normal(0, 0.1, 96))
        _, low, high = per_token(nats, tokens, document)
        hits += low <= 3 <= high
        _, low, high = per_token(nats, tokens)
        alone += low <= 3 <= high
    assert 0.92 <= hits / 400 <= 0.975 and alone / 400 < 0.7


def test_students_quantiles():
    for quantile, freedom_of_t in [
        (12.7062, 1),
        (4.3027, 2),
        (3.1824, 3),
        (2.7764, 4),
        (2.2622, 9),
        (1.9842, 99),
    ]:  # printed tables
        assert t_quantile(freedom_of_t) == pytest.approx(quantile, abs=5e-5)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        tokens = rng.integers(20, 60, 100)
        _, low, high = per_token(rng.normal(3 * tokens, 2 * np.sqrt(tokens)), tokens)
        hits += low <= 3 <= high
    assert 0.91 <= hits / 400 <= 0.985


def test_one_sequence_has_no_interval():
    assert all(map(math.isnan, per_token(np.array([3.0]), np.array([2]))[1:]))
    with pytest.raises(ValueError, match="tokens_n=0"):
        per_token(np.array([0.0]), np.array([0]))


def test_a_uniform_predictor_has_the_bound_ln_n(context):
    found = Likelihood(processes=["absorbing", "matched"], samples=8)(context)
    assert found["bound_low"] - 0.02 <= math.log(256) <= found["bound_high"] + 0.02
    assert found["perplexity"] == pytest.approx(math.exp(found["bound"]))
    assert found["bits_per_byte"] == pytest.approx(found["bound"] / math.log(2))  # a byte a token
    assert found["trigram"] < found["unigram"] < math.log(256)
    assert found["gain_over_trigram"] == pytest.approx(found["trigram"] - found["bound"])
    assert found["gain_low"] < found["gain_over_trigram"] < found["gain_high"] < 0


def test_bits_per_byte_are_of_bytes_and_not_of_tokens(context, monkeypatch):
    monkeypatch.setattr(type(context.data), "bytes_per_token", 4.0)
    found = Likelihood(samples=1, max_sequences=4)(context)
    assert found["bits_per_byte"] == pytest.approx(found["bound"] / math.log(2) / 4)
    rows = list(csv.DictReader((context.folder / "tables" / "likelihood.csv").open()))
    assert float(rows[0]["bits_per_byte"]) == pytest.approx(found["bits_per_byte"], abs=1e-5)


def test_the_right_unigram_is_bounded_by_its_cross_entropy(context):
    rows = context.data.validation
    counts = np.bincount(np.asarray(rows.tokens)[rows.eligible], minlength=context.data.vocab.size)
    p = counts / counts.sum()
    entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
    context.method.logits_V = torch.from_numpy(np.log(np.maximum(p, 1e-12))).float()
    context.method.logits_V[list(context.data.vocab.special)] = -torch.inf
    found = Likelihood(processes=["absorbing"], samples=64)(context)
    assert found["bound_low"] <= entropy + 0.02 and found["bound"] == pytest.approx(entropy, abs=0.1)


def test_the_table_says_what_each_number_is(context):
    found = Likelihood(processes=["matched", "absorbing", "uniform", "hybrid"], samples=1)(context)
    rows = list(csv.DictReader((context.folder / "tables" / "likelihood.csv").open()))
    kinds = {row["name"]: row["kind"] for row in rows}
    assert list(kinds) == [
        "hybrid p_u=0.1 (matched)",
        "absorbing",
        "uniform",
        "unigram",
        "trigram",
    ]  # hybrid is the matched one
    bounds = [row for row in rows if row["kind"].startswith("upper bound")]
    assert (
        len(bounds) == 3 and [row for row in rows if "headline" in row["kind"]] == bounds[:1]
    )  # the first, not the smallest
    assert float(bounds[0]["nats_per_token"]) == pytest.approx(found["bound"], abs=1e-5)
    assert {row["documents"] for row in rows} == {str(len(np.unique(context.data.validation_document)))}
    assert {row["tokens"] for row in rows} == {str(int(context.data.validation.eligible.sum()))}


def test_the_same_seed_gives_the_same_number_and_fewer_rows_when_asked(context):
    one, two = (Likelihood(samples=1, max_sequences=4)(context) for _ in range(2))
    assert one == two
    rows = list(csv.DictReader((context.folder / "tables" / "likelihood.csv").open()))
    assert rows[0]["sequences"] == "4"


@pytest.mark.parametrize("arguments, message", [
    ({"samples": 0}, "samples=0"), ({"max_sequences": 1}, "max_sequences=1"), ({"processes": []}, r"processes=\[\]"),
    ({"processes": ["gauss"]}, "processes=gauss must be among absorbing"), ({"p_u": 1.0}, "p_u=1.0"),
])  # fmt: skip
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        Likelihood(**arguments)

"""Generation of MiniGPT and Lookahead: the cache against recomputation, branches against trying each token, and the
choosers' laws.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare
from written_out import END, TOKENS, consequences, model, predict_next, random_text

from research_stack.config.build import build
from research_stack.config.composer import Composer
from research_stack.lookahead.choosers import Abstain, BranchAndRank, ConfidenceTemperature, gumbel
from research_stack.lookahead.module import Lookahead, MiniGPT
from research_stack.sampling.autoregressive import Autoregressive
from research_stack.sampling.categorical import draw
from research_stack.sampling.choosers import ChooserInput, MinP, Temperature
from research_stack.sampling.state import RowStreams

PROMPTS = [[1, 2, 3], [], [3], [0, 4, END, 2, 2], [2, END]]
KINDS = {
    "shift": {},
    "zeros": {"previous": "zeros"},
    "rollout": {"previous": "rollout"},
    "two_hot": {"head": "two_hot"},
    "additive": {"backbone": {"conditioning": "additive"}},
    "learned": {"backbone": {"positions": "learned"}},
    "grouped": {"backbone": {"kv_heads": 1, "qk_norm": True}},
    "unconditioned": {"backbone": {"condition_dim": 0}},
    "minigpt": {"kind": MiniGPT},
}
close = {"rtol": 0, "atol": 1e-12}


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.exact
@torch.inference_mode()
def test_reading_with_the_cache_is_recomputing():
    """In pieces of every size, through separators, and after texts have left or changed rows."""
    for kind in KINDS:
        method = model(**KINDS[kind])
        texts = torch.tensor([random_text(11, seed) for seed in range(3)])
        texts[1, 4] = texts[2, 0] = END
        read, at, rows = method.reader(), 0, [0, 1, 2]
        for length in (4, 1, 1, 2, 3):
            prediction = read.read(texts[rows, at : at + length])
            at += length
            for row, b in enumerate(rows):
                logits_V, confidence = predict_next(method, texts[b, :at].tolist())
                assert torch.allclose(prediction.logits_BV[row], logits_V, **close)
                if method.__class__ is MiniGPT:
                    assert prediction.confidence_B is None and prediction.zscore_B is None and not read.predicts_loss
                    continue
                assert float(prediction.confidence_B[row]) == pytest.approx(confidence, abs=1e-12)
                zscore = (confidence - 1.8) / math.sqrt(0.5)
                assert float(prediction.zscore_B[row]) == pytest.approx(
                    zscore, abs=1e-6
                )  # the deviation is a float32 buffer's square root
            if at == 5:
                read.keep(torch.tensor([2, 0]))
                rows = [2, 0]


@pytest.mark.exact
@torch.inference_mode()
def test_branches_off_the_cache_are_reading_on_with_each_candidate():
    for kind in [kind for kind in KINDS if kind != "minigpt"]:
        method = model(**KINDS[kind])
        texts = torch.tensor([random_text(6, seed) for seed in range(3)])
        texts[1, -1] = END  # the candidate behind it is told nothing
        read = method.reader()
        read.read(texts)
        before = [(k.clone(), v.clone()) for k, v in read.cache.pairs]
        candidates_nk = torch.tensor([[0, 3, 4], [2, 2, 1], [4, 0, END]])
        found_nk, some_nk = (
            read.confidence_at(candidates_nk),
            read.confidence_at(candidates_nk[[2, 0]], torch.tensor([2, 0])),
        )
        for b, k in itertools.product(range(3), range(3)):
            _, confidence = predict_next(method, [*texts[b].tolist(), int(candidates_nk[b, k])])
            assert float(found_nk[b, k]) == pytest.approx(confidence, abs=1e-12)
        assert torch.allclose(some_nk, found_nk[[2, 0]], **close)
        assert read.cache.length == 6
        for (old_k, old_v), (k, v) in zip(before, read.cache.pairs, strict=True):
            assert torch.equal(old_k, k) and torch.equal(old_v, v)
        on = read.read(torch.tensor([[3], [2], [0]])).confidence_B
        assert torch.allclose(on, torch.stack([found_nk[0, 1], found_nk[1, 0], found_nk[2, 1]]), **close)


def test_a_text_comes_out_the_same_alone_and_in_a_batch():
    for chooser, kind in (
        (Temperature(1.3), "shift"),
        (ConfidenceTemperature(1.0, 0.8), "zeros"),
        (BranchAndRank(3, 1.5), "shift"),
        (BranchAndRank(8, 1.0, 0.0), "zeros"),
        (Abstain(2.4, Temperature(1.3)), "shift"),
        (Abstain(2.4, BranchAndRank(2, 0.5)), "zeros"),
    ):
        method, sampler = model(**KINDS[kind]), Autoregressive(chooser)
        whole = sampler.sample(method, PROMPTS, length=7, seed=4, record=True)
        for b, prompt in enumerate(PROMPTS):
            alone = sampler.sample(method, [prompt], length=7, seed=4, record=True, first_row=b)
            assert (
                torch.equal(whole.tokens_BL[b, : len(prompt) + 7], alone.tokens_BL[0])
                and whole.calls_B[b] == alone.calls_B[0]
            )
            assert torch.equal(whole.generated_BL[b, : len(prompt) + 7], alone.generated_BL[0])
            assert torch.allclose(
                whole.confidence[: len(alone.history), b, : len(prompt) + 7], alone.confidence[:, 0], rtol=0, atol=1e-6
            )


@pytest.mark.exact
def test_the_sampler_is_the_loop_written_out():
    for kind in ("shift", "minigpt"):
        method = model(**KINDS[kind])
        trace = Autoregressive(Temperature(1.2)).sample(method, PROMPTS, length=5, seed=9)
        for b, prompt in enumerate(PROMPTS):
            stream, text, start = RowStreams(9, [b], "cpu"), list(prompt or [END]), len(prompt) or 1
            for _ in range(5):
                logits_V, _ = predict_next(method, text)
                text.append(int(draw(logits_V.unsqueeze(0) / 1.2, stream.uniform([0], 1)[:, 0])))
            assert trace.tokens_BL[b, len(prompt) : len(prompt) + 5].tolist() == text[start:]


def test_the_longest_text_that_fits_is_written_and_branched():
    trace = Autoregressive(BranchAndRank(5)).sample(model(), [[1] * 20, []], length=4)
    assert trace.tokens_BL.shape == (2, 24) and trace.calls_B.tolist() == [8, 8]


# Laws -----------------------------------------------------------------------------------------------------------------


def law_of_two(method, prompt, step_law):
    """{(token, token): probability} of two tokens, from step_law(logits_V, text) -> p_V."""

    def p_V(text):
        return step_law(predict_next(method, text)[0], text)

    first_V = p_V(prompt)
    return {(u, v): float(first_V[u] * second) for u in range(5) for v, second in enumerate(p_V([*prompt, u])[:5])}


def fit(texts_n2, distribution):
    """p-value of the chi-square test; sequences below five expected ones count as one."""
    n, counts = len(texts_n2), dict.fromkeys(distribution, 0)
    for text in map(tuple, texts_n2.tolist()):
        counts[text] += 1
    assert abs(sum(distribution.values()) - 1) < 1e-9
    often = [s for s in distribution if distribution[s] * n >= 5]
    expected, observed = [distribution[s] * n for s in often], [counts[s] for s in often]
    if n - sum(expected) > 1:
        expected, observed = [*expected, n - sum(expected)], [*observed, n - sum(observed)]
    return chisquare(observed, [e * sum(observed) / sum(expected) for e in expected]).pvalue


@pytest.mark.exact
def test_with_all_tokens_as_candidates_the_law_is_the_likelihood_discounted_by_the_consequence():
    """softmax(log p / T - beta c) of every token, each consequence from a run of its own over prefix and token."""
    for temperature, beta in ((1.0, 1.0), (0.7, 0.5), (1.0, -0.8)):
        method, prompt = model(), [2, 0]
        sampler = Autoregressive(BranchAndRank(candidates=99, beta=beta, temperature=temperature))
        texts = sampler.sample(method, [prompt], count=8_000, length=2, seed=3).tokens_BL[:, 2:]

        def ranked(logits_V, text):
            return (logits_V.log_softmax(0) / temperature - beta * consequences(method, text)).softmax(0)

        assert fit(texts, law_of_two(method, prompt, ranked)) > 1e-3
        assert (
            fit(texts, law_of_two(method, prompt, lambda logits_V, text: (logits_V / temperature).softmax(0))) < 1e-6
        )  # the ranking shows


@pytest.mark.exact
def test_without_a_beta_or_a_choice_the_law_is_the_tempered_one():
    for candidates, beta in ((3, 0.0), (8, 0.0), (1, 5.0)):
        method, prompt = model(), [2, 0]
        trace = Autoregressive(BranchAndRank(candidates, beta, 0.8)).sample(
            method, [prompt], count=8_000, length=2, seed=8
        )
        assert (
            fit(trace.tokens_BL[:, 2:], law_of_two(method, prompt, lambda logits_V, _: (logits_V / 0.8).softmax(0)))
            > 1e-3
        )
        assert trace.calls_B.unique().tolist() == [2 if beta == 0 else 4]


@pytest.mark.exact
def test_candidates_are_draws_without_replacement():
    """The first k of Gumbel-top-k follow the law of drawing one after another from what is left."""
    seen, p_V = [], torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)

    def confidence_at(token_nk):
        seen.append(token_nk)
        return torch.zeros(token_nk.shape)

    u = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    BranchAndRank(2, 1.0)(ChooserInput(p_V.log().expand(20_000, -1), None, None, confidence_at), u)
    distribution = {(a, b): float(p_V[a] * p_V[b] / (1 - p_V[a])) for a in range(4) for b in range(4) if a != b}
    assert fit(seen[0], distribution) > 1e-3


def test_the_best_of_the_likeliest_without_noise():
    logits = torch.tensor([[3.0, 2.5, 2.0, -1.0]])
    costs = torch.tensor([[4.0, 1.0, 0.2, -99.0]])
    inputs = ChooserInput(logits, None, None, lambda token_nk: costs.gather(1, token_nk))
    chosen = {
        (k, beta): int(BranchAndRank(k, beta, 0.0)(inputs, torch.empty(1, 0)).token_n)
        for k in (1, 2, 3, 9)
        for beta in (0.0, 0.1, 0.5, 2.0)
    }
    assert [chosen[k, 0.0] for k in (1, 2, 3, 9)] == [0, 0, 0, 0] and chosen[1, 2.0] == 0
    assert chosen[2, 0.1] == 0 and chosen[2, 0.5] == 1 and chosen[3, 2.0] == 2 and chosen[9, 2.0] == 3


def test_tokens_that_cannot_come_are_no_candidates_that_win():
    inputs = ChooserInput(
        torch.tensor([[0.0, -torch.inf, 0.0]]).expand(500, -1),
        None,
        None,
        lambda token_nk: torch.where(token_nk == 1, -1e3, 0.0),
    )
    u = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u[0] = 0.0  # the least number there is
    for temperature in (0.0, 1.0):
        tokens = BranchAndRank(3, 1.0, temperature)(
            inputs, u[:, : BranchAndRank(3, 1.0, temperature).n_uniforms(3)]
        ).token_n
        assert set(tokens.tolist()) <= {0, 2}
    assert torch.isfinite(gumbel(u)).all()


@pytest.mark.exact
def test_the_temperature_follows_the_confidence():
    for slope in (0.6, -0.6, 0.0):
        method, prompt = model(), [2, 0]
        texts = (
            Autoregressive(ConfidenceTemperature(0.9, slope))
            .sample(method, [prompt], count=8_000, length=2, seed=5)
            .tokens_BL[:, 2:]
        )

        def heated(logits_V, text):
            zscore = (predict_next(method, text)[1] - 1.8) / math.sqrt(0.5)
            return (logits_V / (0.9 * math.exp(-slope * math.tanh(zscore)))).softmax(0)

        assert fit(texts, law_of_two(method, prompt, heated)) > 1e-3


def test_the_temperature_is_hot_where_it_costs_little_and_bounded():
    t_n = ConfidenceTemperature(0.8, 0.5).temperature(torch.tensor([-1e9, -1.0, 0.0, 1.0, 1e9]))
    assert (t_n.diff() < 0).all() and float(t_n[2]) == pytest.approx(0.8)
    assert t_n[[0, -1]].tolist() == pytest.approx([0.8 * math.exp(0.5), 0.8 * math.exp(-0.5)])


# Abstention -----------------------------------------------------------------------------------------------------------


def test_a_text_ends_at_the_first_choice_that_is_predicted_to_cost_too_much():
    for inner in (Temperature(1.5), BranchAndRank(3, 0.5)):
        method, ended = model(), 0
        free = Autoregressive(inner).sample(method, PROMPTS, length=8, seed=2)
        costs = {}
        for b, prompt in enumerate(PROMPTS):
            written = free.tokens_BL[b, len(prompt) : len(prompt) + 8].tolist()
            costs[b] = [predict_next(method, [*(prompt or [END]), *written[:i]])[1] for i in range(8)]
        low, high = sorted(max(row) for row in costs.values())[1:3]
        threshold = (low + high) / 2  # two of the texts never reach it
        trace = Autoregressive(Abstain(threshold, inner)).sample(method, PROMPTS, length=8, seed=2, record=True)
        for b, prompt in enumerate(PROMPTS):
            made = next((i for i, c in enumerate(costs[b]) if c > threshold), 8)
            ended += made < 8
            start = len(prompt)
            assert trace.generated_BL[b].nonzero().flatten().tolist() == list(range(start, start + made))
            assert torch.equal(trace.tokens_BL[b, : start + made], free.tokens_BL[b, : start + made])
            assert (trace.tokens_BL[b, start + made :] == TOKENS.pad).all()
            assert trace.calls_B[b] == min(made + 1, 8) * (1 + inner.calls)
        assert ended == 3


def test_abstaining_always_and_never():
    method = model()
    never = Autoregressive(Abstain(1e9, Temperature())).sample(method, PROMPTS, length=6, seed=1, record=True)
    plain = Autoregressive(Temperature()).sample(method, PROMPTS, length=6, seed=1, record=True)
    assert torch.equal(never.history, plain.history) and torch.equal(never.confidence, plain.confidence)
    always = Autoregressive(Abstain(-1e9, Temperature())).sample(method, PROMPTS, length=6, seed=1, record=True)
    assert not always.generated_BL.any() and always.history.shape == (1, 5, 11) and always.calls_B.tolist() == [1] * 5


# Mistakes and files ---------------------------------------------------------------------------------------------------


def test_a_model_without_a_head_is_refused_in_one_line():
    for chooser in (ConfidenceTemperature(), BranchAndRank(), Abstain(2.0, Temperature())):
        name = type(chooser).__name__
        needed = "a predicted future loss, which MiniGPT does not give; sampler=gpt.*predicts one$"
        message = f"^sampler.chooser={name} needs {needed}"
        with pytest.raises(ValueError, match=message):
            Autoregressive(chooser).sample(model(MiniGPT), length=3)
        assert Autoregressive(BranchAndRank(beta=0)).sample(model(MiniGPT), length=3).tokens_BL.shape == (1, 3)


def test_choosers_refuse_what_they_cannot_mean():
    for make, message in (
        (lambda: ConfidenceTemperature(-1), "base=-1 must be at least 0"),
        (lambda: BranchAndRank(0), "candidates=0 must be at least 1"),
        (lambda: BranchAndRank(temperature=-1), "temperature=-1 must be at least 0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            make()


def test_masks_are_not_for_models_of_the_next_token():
    for kind in (Lookahead, MiniGPT):
        llada = build(Composer().compose_point(["sampler=llada"]).cfg.sampler, "sampler")
        with pytest.raises(
            ValueError, match=f"^sampler=Sampler fills masks, and {kind.__name__} is no denoiser; sampler=gpt"
        ):
            llada.sample(model(kind), length=4)


def test_every_file_writes_texts():
    for name in ("gpt", "gpt_min_p", "gpt_entropy", "lookahead_temperature", "lookahead_rank", "lookahead_abstain"):
        sampler = build(Composer().compose_point([f"sampler={name}"]).cfg.sampler, "sampler")
        trace = sampler.sample(model(), PROMPTS, length=6, record=True)
        assert torch.isin(trace.tokens_BL[trace.generated_BL], torch.arange(5)).all() and (trace.calls_B >= 1).all()


def test_special_tokens_are_never_written():
    for chooser in (Temperature(50.0), MinP(0.0, 50.0), BranchAndRank(8, 5.0, 50.0)):
        trace = Autoregressive(chooser).sample(model(), count=50, length=6)
        assert int(trace.tokens_BL.max()) < 5 and trace.generated_BL.all()

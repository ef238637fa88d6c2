"""Completions: their law by enumeration, the same texts in any batch, ends, and how several rollouts are one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare

from research_stack.backbones.transformer import Transformer
from research_stack.data.vocabulary import Vocabulary
from research_stack.posttraining import rollout as module
from research_stack.posttraining.rollout import Completions, Rollouts
from research_stack.streams import generator

VOCAB = Vocabulary(size=7, mask=4, pad=5, end=6, special=(4, 5, 6))
ALLOWED = [0, 1, 2, 3, 6]
BIAS = torch.zeros(7, dtype=torch.float64).index_fill(0, torch.tensor([4, 5]), -torch.inf)
PROMPTS = [torch.tensor(ids) for ids in ([1, 2, 0], [3], [2, 2, 1, 0, 3], [0, 1])]


@pytest.fixture(scope="module")
def model():
    """Float64, so that batches round as rows do; its weights are large enough to see its context."""
    made = (
        Transformer(VOCAB.size, dim=16, layers=2, heads=2, max_length=16, causal=True, tie_embeddings=False, seed=1)
        .double()
        .eval()
    )
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(12)
        made.untied[[4, 5]] = 30.0  # what must not come has large logits
    return made


def uniforms(prompts, count, length, *names):
    return torch.rand(prompts, count, length, generator=generator(0, "rollout", *names), dtype=torch.float64)


def texts(found):
    """[(ids with the end token, whether ended)]."""
    ids = zip(
        found.tokens_BL.tolist(),
        found.prompt_length_B.tolist(),
        found.completion_length_B.tolist(),
        found.terminated_B.tolist(),
        strict=True,
    )
    return [(tuple(row[width : width + made]), ended) for row, width, made, ended in ids]


# The law ----------------------------------------------------------------------------------------------------------


def step_law(model, text, temperature, top_p):
    """{token: probability}, token by token: tempered, then the likeliest whose mass before each of them is below
    top_p.
    """
    logits_V = model.head(model.read(torch.tensor([text])))[0, -1]
    weights = {v: math.exp(float(logits_V[v]) / temperature) for v in ALLOWED}
    total, kept, mass = sum(weights.values()), {}, 0.0
    for v in sorted(weights, key=lambda v: -weights[v]):
        if mass < top_p:
            kept[v] = weights[v]
        mass += weights[v] / total
    return {v: w / sum(kept.values()) for v, w in kept.items()}


def law(model, prompt, length, temperature, top_p, made=()):
    """{(ids, whether ended): probability} of all completions."""
    if made and made[-1] == VOCAB.end:
        return {(made, True): 1.0}
    if len(made) == length:
        return {(made, False): 1.0}
    found = {}
    for token, p in step_law(model, [*prompt, *made], temperature, top_p).items():
        for text, rest in law(model, prompt, length, temperature, top_p, (*made, token)).items():
            found[text] = p * rest
    return found


def p_value(drawn, expected):
    """Of the chi-square test; rare texts count as one. Every text must be possible."""
    counts = dict.fromkeys(expected, 0)
    for text in drawn:
        counts[text] += 1
    often = [text for text, p in expected.items() if p * len(drawn) >= 5]
    seen, hoped = [counts[text] for text in often], [expected[text] * len(drawn) for text in often]
    if len(often) < len(expected):
        seen, hoped = [*seen, len(drawn) - sum(seen)], [*hoped, len(drawn) - sum(hoped)]
    return chisquare(seen, hoped).pvalue


@pytest.mark.exact
@torch.no_grad()
def test_completions_have_the_law_of_the_model(model):
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7), (1.5, 0.6)):
        count, length = 6000, 3
        found = Rollouts(length, temperature, top_p)(
            model, VOCAB, BIAS, PROMPTS[:2], uniforms(2, count, length, str(temperature), str(top_p))
        )
        drawn, other = texts(found), law(model, PROMPTS[0].tolist(), length, 1.0 if temperature != 1 else 0.5, 1.0)
        for row, prompt in enumerate(PROMPTS[:2]):
            expected = law(model, prompt.tolist(), length, temperature, top_p)
            assert sum(expected.values()) == pytest.approx(1) and len({len(text) for text, _ in expected}) > 1
            assert p_value(drawn[row * count : (row + 1) * count], expected) > 1e-3
        assert p_value([text for text in drawn[:count] if text in other], other) < 1e-6, "the test tells laws apart"


def test_special_tokens_are_never_drawn_and_a_completion_ends_once(model):
    found = Rollouts(6)(model, VOCAB, BIAS, PROMPTS, uniforms(4, 200, 6))
    assert {len(text) for text, _ in texts(found)} == set(range(1, 7)), "some end at once, some are cut off"
    for (text, ended), row, width in zip(
        texts(found), found.tokens_BL.tolist(), found.prompt_length_B.tolist(), strict=True
    ):
        assert not {VOCAB.mask, VOCAB.pad} & set(text)
        assert ended == (text[-1] == VOCAB.end) and VOCAB.end not in text[:-1]
        assert ended or len(text) == 6
        assert set(row[width + len(text) :]) <= {VOCAB.pad}
    assert found.tokens_BL.shape[1] == 5 + 6 and found.tokens_BL.dtype == torch.int64


def test_completions_are_without_prompt_end_and_padding(model):
    found = Rollouts(6)(model, VOCAB, BIAS, PROMPTS, uniforms(4, 5, 6))
    assert found.completions(VOCAB) == [list(text[:-1] if ended else text) for text, ended in texts(found)]
    for row, ids in enumerate(found.tokens_BL.tolist()):
        prompt = PROMPTS[row // 5].tolist()
        assert ids[: len(prompt)] == prompt and int(found.prompt_length_B[row]) == len(prompt)


# The same numbers give the same texts -----------------------------------------------------------------------------


def test_texts_do_not_depend_on_the_batch(model):
    for stay in (0.0, 0.75, 1.0):
        with pytest.MonkeyPatch.context() as monkeypatch:
            u_PNT, how = uniforms(4, 20, 8), Rollouts(8)
            together = texts(how(model, VOCAB, BIAS, PROMPTS, u_PNT))
            monkeypatch.setattr(module, "STAY", stay)  # texts that have ended leave at once, in steps, or never
            assert texts(how(model, VOCAB, BIAS, PROMPTS, u_PNT)) == together
            for row, prompt in enumerate(PROMPTS):
                assert (
                    texts(how(model, VOCAB, BIAS, [prompt], u_PNT[row : row + 1]))
                    == together[row * 20 : (row + 1) * 20]
                )
                one = texts(how(model, VOCAB, BIAS, [prompt], u_PNT[row : row + 1, 3:4]))
                assert one == together[row * 20 + 3 : row * 20 + 4]
            assert len(set(together)) > 40, "the texts differ, so that a mistaken order would show"


def test_a_later_number_does_not_change_what_is_before_it(model):
    u_PNT = uniforms(4, 20, 8)
    before, other = texts(Rollouts(8)(model, VOCAB, BIAS, PROMPTS, u_PNT)), u_PNT.clone()
    other[..., 4:] = uniforms(4, 20, 4, "other")
    after = texts(Rollouts(8)(model, VOCAB, BIAS, PROMPTS, other))
    assert [text[:4] for text, _ in after] == [text[:4] for text, _ in before] and after != before


def test_a_prompt_is_read_once_for_its_group_and_ended_texts_leave(model):
    shapes, read = [], model.read
    spy = SimpleNamespace(
        read=lambda tokens, *rest: shapes.append(tuple(tokens.shape)) or read(tokens, *rest),
        new_cache=model.new_cache,
        head=model.head,
        max_length=model.max_length,
    )
    found = Rollouts(8)(spy, VOCAB, BIAS, PROMPTS, uniforms(4, 20, 8))
    assert shapes[0] == (4, 5) and {width for _, width in shapes[1:]} == {1}
    rows = [count for count, _ in shapes[1:]]
    assert rows[0] <= 80 and rows == sorted(rows, reverse=True) and rows[-1] < 60
    longest = int(found.completion_length_B.max())
    assert len(shapes) == longest, "the last token is not read"
    going = [
        int(
            (found.completion_length_B > step + 1).sum()
            + ((found.completion_length_B == step + 1) & ~found.terminated_B).sum()
        )
        for step in range(longest - 1)
    ]
    assert all(left <= n <= max(left, left / 0.75) for n, left in zip(rows, going, strict=True))


# Mistakes ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_one_line(model):
    with pytest.raises(
        ValueError, match=r"^max_completion_length=12 behind a prompt of 5 tokens exceeds model.max_length=16$"
    ):
        Rollouts(12)(model, VOCAB, BIAS, PROMPTS, uniforms(4, 2, 12))
    Rollouts(11)(model, VOCAB, BIAS, PROMPTS, uniforms(4, 2, 11))
    with pytest.raises(ValueError, match="^prompts must not be empty"):
        Rollouts(2)(model, VOCAB, BIAS, [PROMPTS[0], PROMPTS[0][:0]], uniforms(2, 2, 2))


def test_arguments_are_checked():
    for arguments, line in (
        ({"max_completion_length": 10**18}, f"max_completion_length={10**18} must be at most"),
        ({"temperature": math.nan}, "temperature=nan must be above 0"),
        ({"temperature": math.inf}, "temperature=inf must be at least 1e-06 and at most"),
        ({"top_p": math.nan}, "top_p=nan must"),
        ({"temperature": 1e-30}, "temperature=1e-30 must be at least 1e-06"),
        ({"max_completion_length": 0}, "max_completion_length=0 must be"),
        ({"temperature": 0.0}, "temperature=0.0 must be"),
        ({"top_p": 0.0}, "top_p=0.0 must"),
        ({"top_p": 1.1}, "top_p=1.1 must"),
    ):
        with pytest.raises(ValueError, match=f"^{line}"):
            Rollouts(**arguments)


# Rows -------------------------------------------------------------------------------------------------------------


def test_rollouts_are_joined_and_taken(model):
    u_PNT = uniforms(4, 3, 6)
    whole = Rollouts(6)(model, VOCAB, BIAS, PROMPTS, u_PNT)
    first = Rollouts(6)(model, VOCAB, BIAS, PROMPTS[:2], u_PNT[:2])
    second = Rollouts(6)(model, VOCAB, BIAS, PROMPTS[2:], u_PNT[2:])
    assert first.tokens_BL.shape[1] < second.tokens_BL.shape[1]
    joined = Completions.joined([first, second], VOCAB.pad)
    for name, tensor in whole.rows().items():
        assert torch.equal(joined.rows()[name], tensor), name
    order = [7, 0, 0, 11]
    taken = joined.take(torch.tensor(order))
    assert texts(taken) == [texts(whole)[row] for row in order]
    assert taken.prompt_length_B.tolist() == [len(PROMPTS[row // 3]) for row in order]

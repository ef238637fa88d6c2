"""Classifier-free guidance against its formula."""

from __future__ import annotations

import pytest
import torch
from denoisers import VOCAB, M, named, transformer

from research_stack.sampling.guidance import calls_per_step, guided_logits

Z = torch.tensor([[1, 2, 3, M, 6], [M, 4, M, M, 7], [9, M, 10, M, 0]])
PROMPT = torch.tensor([[True, True, False, False, False], [False] * 5, [True] + [False] * 4])
ATTEND = Z != VOCAB.pad
WHERE = (Z == M) & ~PROMPT
T = torch.tensor([0.5, 0.9, 0.4])


def model(z, where=WHERE):
    with torch.no_grad():
        return transformer().logits(z, ATTEND, T, where)


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0])
def test_logits_are_pushed_away_from_those_without_the_prompt(scale):
    found = guided_logits(transformer(), scale, Z, ATTEND, T, WHERE, PROMPT)
    with_prompt, without = model(Z), model(Z.masked_fill(PROMPT, M))
    real = torch.isfinite(with_prompt)
    expected = (without + scale * (with_prompt - without)).where(real, -torch.inf)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.isneginf(found[:, list(VOCAB.special)]).all() and not found.isnan().any()
    unprompted = WHERE.nonzero()[:, 0] == 1
    assert torch.allclose(found[unprompted], with_prompt[unprompted], atol=1e-6)
    assert not torch.allclose(found[~unprompted], with_prompt[~unprompted], atol=1e-3)


def test_scales_one_and_zero_need_one_pass():
    for scale, z in ((1.0, Z), (0.0, Z.masked_fill(PROMPT, M))):
        assert torch.allclose(guided_logits(transformer(), scale, Z, ATTEND, T, WHERE, PROMPT), model(z), atol=1e-6)


def test_calls_of_a_step():
    prompted = torch.tensor([True, False])
    found = [calls_per_step(scale, prompted).tolist() for scale in (0.0, 1.0, 0.5, 3.0)]
    assert found == [[1, 1], [1, 1], [2, 1], [2, 1]]


def test_the_second_pass_is_for_prompted_rows_only_and_in_the_same_call(monkeypatch):
    rows, kind = [], type(transformer())
    logits = kind.logits
    monkeypatch.setattr(kind, "logits", lambda self, z, *rest: rows.append(len(z)) or logits(self, z, *rest))
    guided_logits(transformer(), 2.0, Z, ATTEND, T, WHERE, PROMPT)
    guided_logits(transformer(), 2.0, Z[1:2], None, T[1:2], WHERE[1:2], PROMPT[1:2])
    assert rows == [5, 1]


def test_half_precision_is_guided_in_float32():
    class Half:
        vocab, predicts = VOCAB, "posterior"

        def logits(self, *arguments):
            return transformer().logits(*arguments).bfloat16()

    for scale in (1.0, 3.0):
        assert guided_logits(Half(), scale, Z, ATTEND, T, WHERE, PROMPT).dtype == torch.float32


def test_guidance_changes_prompted_texts_alone():
    samplers = [named("llada", f"sampler.guidance={scale}") for scale in (1, 4)]
    tokens = [sampler.sample(transformer(), prompts=[[1, 2, 3], []], length=16).tokens_BL for sampler in samplers]
    assert not torch.equal(tokens[0][0], tokens[1][0])
    assert torch.equal(tokens[0][1], tokens[1][1])


def test_without_the_prompt_every_prompt_gives_what_a_prompt_of_masks_gives():
    sampler = named("llada", "sampler.guidance=0")
    texts = [sampler.sample(transformer(), prompts=[prompt], length=12).tokens_BL for prompt in ([1, 2, 3], [9, 9, 9])]
    masked = named("llada").sample(transformer(), prompts=[[M, M, M]], length=12).tokens_BL
    assert torch.equal(texts[0][:, 3:], texts[1][:, 3:]) and torch.equal(texts[0][:, 3:], masked[:, 3:])
    assert texts[0][0, :3].tolist() == [1, 2, 3]

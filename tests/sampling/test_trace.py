"""What a sampler hands back."""

from __future__ import annotations

import pytest
import torch
from denoisers import M, Told, named, transformer, wants

from research_stack.sampling.choosers import Temperature
from research_stack.sampling.committers import PerStep
from research_stack.sampling.inits import FromPrompt
from research_stack.sampling.sampler import Sampler
from research_stack.sampling.selectors import Confidence
from research_stack.sampling.stoppers import FixedPoint
from research_stack.sampling.trace import PositionChange, Trace


def test_kinds_by_hand():
    history = torch.tensor([[[4, M, M, 3]], [[4, 1, M, 7]], [[4, M, 2, 7]]])
    trace = Trace(history[-1], torch.ones(1, 4, dtype=torch.bool), torch.tensor([2]), history, None, M)
    assert trace.kinds.tolist() == [
        [[PositionChange.KEPT, PositionChange.FILLED, PositionChange.KEPT, PositionChange.CHANGED]],
        [[PositionChange.KEPT, PositionChange.REMASKED, PositionChange.FILLED, PositionChange.KEPT]],
    ]
    assert trace.kinds.dtype == torch.uint8


def test_history_is_kept_only_on_demand_and_changes_nothing():
    sampler = named("gidd", "sampler.steps=12")
    bare, kept = (sampler.sample(transformer(), prompts=[[1], [2, 3]], length=6, record=r) for r in (False, True))
    assert bare.history is None and bare.confidence is None
    with pytest.raises(ValueError, match="^record=False keeps no history"):
        assert bare.kinds
    assert torch.equal(bare.tokens_BL, kept.tokens_BL) and torch.equal(bare.calls_B, kept.calls_B)
    assert torch.equal(kept.history[-1], kept.tokens_BL) and kept.history.shape == kept.confidence.shape


def test_confidence_is_that_of_the_token_in_place_when_it_was_last_seen():
    """Two wrong tokens of probability .01 and .02 are mended one by one; masks and the unseen have 0, the prompt 1."""
    table = wants((3, 0.5), (7, 0.91), (7, 0.82), (3, 0.6))
    sampler = Sampler(FromPrompt(), Temperature(0.0), Confidence(visible=True), PerStep(), FixedPoint(), steps=6)
    trace = sampler.sample(Told(table), prompts=[[3]], length=3, record=True)
    expected = [[1, 0, 0, 0], [1, 0.91, 0.02, 0.6], [1, 0.91, 0.82, 0.6], [1, 0.91, 0.82, 0.6]]
    assert torch.allclose(trace.confidence[:, 0], torch.tensor(expected), atol=1e-6)
    remdm = named("remdm", "sampler.steps=10", "sampler.committer.eta=1")
    masks = remdm.sample(transformer(), count=4, length=8, record=True)
    assert torch.equal(masks.confidence == 0, masks.history == M)
    assert (masks.kinds == PositionChange.REMASKED).any()

"""The loop: blocks, budgets of steps, what is asked of the model and when, and what cannot be decoded."""

from __future__ import annotations

import pytest
import torch
from denoisers import REAL, VOCAB, M, Told, named, transformer, wants

from research_stack.corruption.process import Absorbing, Hybrid, Uniform, to_leave_one_out, to_posterior
from research_stack.sampling import sampler as module
from research_stack.sampling.choosers import Temperature
from research_stack.sampling.committers import All, PerStep, Remasking, Schedule, Threshold
from research_stack.sampling.inits import FromPrompt, Masks, MasksAndTokens, Noise, RandomTokens
from research_stack.sampling.proposers import Reverse
from research_stack.sampling.sampler import Sampler
from research_stack.sampling.selectors import AllPositions, AnyPosition, Confidence, RandomOrder
from research_stack.sampling.state import Decision, RowStreams
from research_stack.sampling.stoppers import Budget, FixedPoint, Steps

SAME = wants(*[(3, 0.5)] * 40)


def llada(**settings):
    return Sampler(Masks(), Temperature(0.0), Confidence(), Schedule(), Steps(), **settings)


# Blocks and steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["editing", "fill_then_correct", "flowlm", "remdm"])
def test_blocks_are_decoded_left_to_right_and_then_left_alone(name):
    for steps, block_length in ((12, 4), (10, 1), (4, 3)):
        sampler = named(name, f"++sampler.steps={steps}", f"++sampler.block_length={block_length}")
        trace = sampler.sample(transformer(), prompts=[[1, 2], [3, 4]], length=10, record=True)
        changed = (trace.history[1:] != trace.history[:-1])[:, :, 2:]
        for b in range(2):
            last = -1
            for start in range(0, 10, block_length):
                changes = changed[:, b, start : start + block_length].any(1).nonzero()
                assert int(changes.min()) > last
                last = int(changes.max())


@pytest.mark.parametrize(
    ("steps", "block_length", "shares"),
    [(8, 4, [3, 3, 2]), (7, 4, [3, 2, 2]), (5, 4, [2, 2, 1]), (3, 4, [1, 1, 1]), (8, None, [8])],
)
def test_steps_are_shared_out_evenly_earlier_blocks_first(steps, block_length, shares):
    denoiser = Told(SAME)
    sampler = Sampler(
        Masks(), Temperature(0.0), Confidence(), PerStep(), Steps(), steps=steps, block_length=block_length
    )
    sampler.sample(denoiser, length=10)
    width = block_length or 10
    firsts = [int(asked["where"][0].nonzero()[0]) // width for asked in denoiser.asked]
    assert [firsts.count(block) for block in range(len(shares))] == shares


def test_every_step_of_the_budget_is_taken():
    for steps in (1, 3, 7, 10):
        trace = named("llada", f"sampler.steps={steps}").sample(transformer(), length=10, record=True)
        assert len(trace.history) == steps + 1
        written = (trace.history[1:] != trace.history[:-1]).sum((1, 2))
        assert int(written.sum()) == 10 and int(written.max()) - int(written.min()) <= 1


def test_too_few_steps_fill_the_rest_in_the_last_one():
    sampler = Sampler(Masks(), Temperature(0.0), Confidence(), PerStep(2), Steps(), steps=3)
    trace = sampler.sample(Told(SAME), length=10, record=True)
    assert [(step == M).sum().item() for step in trace.history] == [10, 8, 6, 0]
    table = wants(*[(token, 0.9 - 0.05 * i) for i, token in enumerate(REAL)])
    assert sampler.sample(Told(table), length=10).tokens_BL[0].tolist() == REAL


def test_the_last_step_of_a_block_masks_nothing_again():
    class Undoing(All):
        def __call__(self, proposal, state):
            return Decision(state.mask_BG, state.inside_BG & ~state.mask_BG)

    sampler = Sampler(Masks(), Temperature(0.0), Confidence(), Undoing(), Steps(), steps=8, block_length=4)
    trace = sampler.sample(Told(SAME), length=8, record=True)
    assert (trace.history == M).sum((1, 2)).tolist() == [8, 4, 8, 4, 4, 0, 4, 0, 0]


def test_no_steps_means_one_per_token_and_no_tokens_mean_no_calls():
    assert llada().sample(Told(SAME), length=7).calls_B.tolist() == [7]
    trace = llada().sample(Told(SAME), prompts=[[1], [], [2, 3]], length=0, record=True)
    assert trace.tokens_BL.tolist() == [[1, 0], [0, 0], [2, 3]] and trace.calls_B.tolist() == [0, 0, 0]
    assert not trace.generated_BL.any() and len(trace.history) == 1


# What the model is asked ----------------------------------------------------------------------------------------------


def test_only_positions_that_may_be_written_get_logits():
    denoiser = Told(SAME)
    llada(steps=4, block_length=4).sample(denoiser, prompts=[[1, 2, 4], [6]], length=8)
    for asked in denoiser.asked:
        assert torch.equal(asked["where"] & (asked["z"] == M), asked["where"])
    assert [int(asked["where"].sum()) for asked in denoiser.asked] == [8, 4, 8, 4]
    remasking = Told(SAME)  # ranks what stands, too
    Sampler(Masks(), Temperature(0.0), Confidence(), Remasking(), Steps(), steps=2).sample(remasking, length=6)
    assert [int(asked["where"].sum()) for asked in remasking.asked] == [6, 6]


def test_a_committer_that_judges_tokens_in_place_rewrites_only_where_the_selector_looks():
    class Ranking(PerStep):
        ranks_visible = True

    def changes_its_mind(z_BL, t_B):
        return wants(*[(3 if bool((z_BL == M).all()) else 7, 0.9)] * 4).expand(len(z_BL), -1, -1)

    for visible, expected in ((False, [3, 3, 7, 7]), (True, [7, 7, 7, 7])):
        sampler = Sampler(Masks(), Temperature(0.0), Confidence(visible), Ranking(2), Steps(), steps=3)
        assert sampler.sample(Told(changes_its_mind), length=4).tokens_BL.tolist() == [expected]


def test_rows_that_are_done_leave_the_batch_and_shrink_the_columns():
    """One row settles at once, the other after two steps: the model sees two rows, then one, without its padding."""
    table = wants(*[(3, 0.95)] * 12)
    denoiser = Told(
        lambda z, t: (
            table[: z.shape[1]]
            .expand(len(z), -1, -1)
            .lerp(wants(*[(3, 0.5)] * z.shape[1]), (z[:, :1, None] == 4).double())
        )
    )
    sampler = Sampler(Masks(), Temperature(0.0), Confidence(), Threshold(0.9), Steps())
    trace = sampler.sample(denoiser, prompts=[[4], [1, 1, 1]], length=3)
    assert trace.calls_B.tolist() == [3, 1]
    assert [tuple(asked["z"].shape) for asked in denoiser.asked] == [(2, 6), (1, 4), (1, 4)]
    assert denoiser.asked[0]["attention_mask"].tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert denoiser.asked[1]["attention_mask"] is None


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_large_batches_go_through_the_model_in_parts(monkeypatch, rows):
    prompts = [[1, 2, 3], [], [4], [9, 9], [6]]
    sampler = named("flowlm", "sampler.steps=8", "sampler.proposer.temperature=1")
    batch = sampler.sample(transformer(), prompts=prompts, length=6, record=True)
    monkeypatch.setattr(module, "_CALL_BYTES", rows * 6 * 4 * VOCAB.size)
    asked, kind = [], type(transformer())
    logits = kind.logits
    monkeypatch.setattr(kind, "logits", lambda self, z, *rest: asked.append(len(z)) or logits(self, z, *rest))
    parts = sampler.sample(transformer(), prompts=prompts, length=6, record=True)
    assert torch.equal(parts.history, batch.history) and torch.equal(parts.calls_B, batch.calls_B)
    assert max(asked) == rows


def test_the_level_told_is_the_share_of_masks_or_of_steps_left():
    denoiser = Told(SAME)
    llada(steps=5).sample(denoiser, prompts=[[1, 2]], length=10)
    assert [round(float(asked["t"]), 6) for asked in denoiser.asked] == [1.0, 0.8, 0.6, 0.4, 0.2]
    denoiser = Told(SAME)
    llada(steps=6, block_length=5).sample(denoiser, length=10)  # the later block's masks count, too
    assert [round(float(asked["t"]), 6) for asked in denoiser.asked] == [1.0, 0.8, 0.6, 0.5, 0.3, 0.1]
    denoiser = Told(SAME)
    llada(steps=8, block_length=5, times="schedule").sample(denoiser, length=10)
    assert [float(asked["t"]) for asked in denoiser.asked] == [1.0, 0.75, 0.5, 0.25] * 2
    denoiser = Told(SAME)
    llada(steps=5, min_time=0.5).sample(denoiser, length=10)
    assert [round(float(asked["t"]), 6) for asked in denoiser.asked] == [1.0, 0.8, 0.6, 0.5, 0.5]


@pytest.mark.parametrize(
    ("predicts", "reads", "convert"),
    [
        ("posterior", "posterior", None),
        ("leave_one_out", "leave_one_out", None),
        ("posterior", "as_is", None),
        ("leave_one_out", "as_is", None),
        ("posterior", "leave_one_out", to_leave_one_out),
        ("leave_one_out", "posterior", to_posterior),
    ],
)
def test_predictions_are_converted_to_what_the_sampler_reads(predicts, reads, convert):
    """The confidence of what stands is that of the converted prediction, at the level of the step."""
    denoiser, process = Told(wants(*[(3, 0.5)] * 6)), Hybrid(p_u=0.3)
    denoiser.predicts = predicts
    sampler = Sampler(
        FromPrompt(),
        Temperature(0.0),
        Confidence(visible=True),
        Threshold(1.0),
        FixedPoint(),
        steps=4,
        reads=reads,
        min_time=0.2,
        process=process,
    )
    trace = sampler.sample(denoiser, prompts=[[7]], length=5, record=True)
    logits = denoiser.p[1:6].log()
    if convert is not None:
        level = torch.full((5,), 0.2, dtype=torch.float64)
        logits = convert(logits, torch.full((5,), 7), process.bind(len(REAL)), level, VOCAB)
    assert torch.allclose(trace.confidence[1, 0, 1:].double(), logits.softmax(1)[:, 7], atol=1e-6)


# Streams --------------------------------------------------------------------------------------------------------------


def test_each_row_has_a_stream_of_its_own():
    streams = RowStreams(3, range(4, 7), "cpu")
    first, second = streams.uniform([0, 1, 2], 2, 5), streams.uniform([0, 2], 2, 5)
    alone = RowStreams(3, [6], "cpu")
    assert torch.equal(first[2:], alone.uniform([0], 2, 5)) and torch.equal(second[1:], alone.uniform([0], 2, 5))
    assert len(first.unique()) == first.numel() and first.dtype == torch.float64
    assert not torch.equal(first, RowStreams(4, range(4, 7), "cpu").uniform([0, 1, 2], 2, 5))


@pytest.mark.parametrize(
    ("init", "committer"),
    [
        (MasksAndTokens(0.4), Schedule()),
        (Masks(), Schedule("cosine")),
        (MasksAndTokens(0.4), Remasking()),
        (Masks(), Remasking("cosine")),
        (RandomTokens(), Threshold(0.4)),
        (Masks(), PerStep(2)),
    ],
)
def test_rows_that_end_at_different_steps_do_not_disturb_each_other(init, committer):
    sampler = Sampler(init, Temperature(1.5), RandomOrder(), committer, Steps(), steps=9, block_length=4)
    prompts = [[1, 2, 3], [], [4], [9, 9, 7, 7], [6], [12, 1]]
    batch = sampler.sample(transformer(), prompts=prompts, length=8, seed=2, record=True)
    for b, prompt in enumerate(prompts):
        alone = sampler.sample(transformer(), prompts=[prompt], length=8, seed=2, record=True, first_row=b)
        own = batch.history[: len(alone.history), b, : len(prompt) + 8]
        assert torch.equal(own, alone.history[:, 0]) and batch.calls_B[b] == alone.calls_B[0]
        assert torch.equal(batch.tokens_BL[b, : len(prompt) + 8], alone.tokens_BL[0])


def test_one_prompt_serves_many_rows():
    sampler = named("llada_random")
    tokens = sampler.sample(transformer(), prompts=[[1, 2]], count=4, length=8).tokens_BL
    many = sampler.sample(transformer(), prompts=[torch.tensor([1, 2])] * 4, length=8).tokens_BL
    assert tokens.shape == (4, 10) and torch.equal(tokens, many)
    assert sampler.sample(transformer(), length=3).tokens_BL.shape == (1, 3)


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count=0 must be the number of prompts"),
        ({"prompts": []}, "count=None must be the number of prompts"),
        ({"prompts": [[1], [2]], "count": 3}, r"count=3 must be the number of prompts \(2\)"),
        ({"length": -1}, "length=-1 must be at least 0"),
        ({"prompts": [[1, 14]]}, r"prompts=... must hold token ids in \[0, 14\)"),
        ({"prompts": [[-1]]}, "prompts=... must hold token ids"),
    ],
)
def test_impossible_requests_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        llada().sample(Told(SAME), **{"length": 4, **arguments})


def test_steps_must_cover_the_blocks():
    blocks = "must be at least 3, one for each block of block_length=4 in length=10$"
    with pytest.raises(ValueError, match=f"^steps=2 {blocks}"):
        llada(steps=2, block_length=4).sample(Told(SAME), length=10)
    few = Sampler(
        Masks(), Temperature(0.0), Confidence(), Schedule(), Budget(5), steps=20, block_length=4, guidance=2.0
    )
    with pytest.raises(ValueError, match=f"^steps=2, all that the stopper's calls pay for, {blocks}"):
        few.sample(Told(SAME), prompts=[[1]], length=10)


class Short(Told):
    max_length = 12


@pytest.mark.parametrize(
    ("prompt", "length", "advice"),
    [(5, 8, "length can be at most 7"), (12, 1, "the prompt can have at most 11 tokens")],
)
def test_a_sequence_too_long_for_the_model_is_refused_with_what_would_fit(prompt, length, advice):
    message = f"^length={length} after a prompt of {prompt} tokens exceeds the model's max_length=12: {advice}$"
    with pytest.raises(ValueError, match=message):
        llada().sample(Short(SAME), prompts=[[1] * prompt, [1]], length=length)
    assert llada(steps=1).sample(Short(SAME), prompts=[[1] * 5], length=7).tokens_BL.shape == (1, 12)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(Noise(), Temperature(0.0), Confidence(), Schedule(), Steps()),
        Sampler(Masks(), Temperature(0.0), AllPositions(), All(), Steps()),
        Sampler(Masks(), Reverse(), Confidence(), All(), Steps()),
        Sampler(RandomTokens(), Temperature(0.0), AnyPosition(), PerStep(), Steps(), reads="leave_one_out"),
    ],
    ids=["init", "selector", "proposer", "reads"],
)
def test_parts_that_need_a_process_say_so(sampler):
    with pytest.raises(ValueError, match="^process=null must be a process"):
        sampler.sample(Told(SAME), length=4)


def test_the_process_is_that_of_the_models_corruption_unless_one_is_given():
    own = named("ancestral", "sampler.steps=4").sample(transformer("uniform"), count=3, length=8, record=True)
    assert M not in own.history[0]
    absorbing = "{_target_: research_stack.corruption.process.Absorbing}"
    given = named("ancestral", "sampler.steps=4", f"++sampler.process={absorbing}")
    assert (given.sample(transformer("uniform"), count=3, length=8, record=True).history[0] == M).all()
    assert given.process == Absorbing()


def test_masks_under_a_process_that_has_none_are_refused():
    parts = Masks(), Reverse(), AllPositions(), All(), Steps()
    sampler = Sampler(*parts, reads="leave_one_out", times="schedule", process=Uniform(), steps=3)
    with pytest.raises(ValueError, match="^init=... must not put masks where process=Uniform has none"):
        sampler.sample(Told(SAME), length=4)

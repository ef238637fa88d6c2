"""Every file in conf/sampler: it builds, and keeps the promises all decoders make."""

from __future__ import annotations

import pytest
import torch
from denoisers import COMPOSER, NAMES, REAL, VOCAB, M, named, transformer

from research_stack.config.build import build, plain
from research_stack.config.check_node import check_node
from research_stack.config.nodes import nodes
from research_stack.sampling.choosers import Temperature
from research_stack.sampling.sampler import Sampler

SHORT = {"gidd": ("sampler.init.steps=8",)}  # its draft takes 128 steps by default
PROMPTS = [[1, 2, 3], [], [9, 9, 4, 10, 1], [12], [6, 7]]
PARTS = "research_stack.sampling"
RANDOM = ["ancestral", "fill_then_correct", "gidd", "llada_random", "remdm"]
#: settings beside the file's own, all of which every decoder must bear
SETTINGS = {
    "few steps": ("++sampler.steps=3",),
    "one step": ("++sampler.steps=1",),
    "more steps than tokens": ("++sampler.steps=15",),
    "one per token": ("++sampler.steps=null",),
    "blocks": ("++sampler.steps=9", "++sampler.block_length=4"),
    "guided": ("++sampler.steps=6", "++sampler.guidance=2"),
    "without the prompt": ("++sampler.steps=6", "++sampler.guidance=0"),
}


def test_every_file_of_the_folder_is_here():
    assert NAMES == [
        "ancestral",
        "editing",
        "fill_then_correct",
        "flowlm",
        "gidd",
        "llada",
        "llada_random",
        "modernbert",
        "remdm",
        "threshold",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_no_mask_is_left_and_prompts_and_padding_stay(name):
    for setting, corruption in [*((s, "gidd") for s in SETTINGS), ("blocks", "absorbing")]:
        sampler = named(name, *SHORT.get(name, ()), *SETTINGS[setting])
        trace = sampler.sample(transformer(corruption), prompts=PROMPTS, length=10, seed=1, record=True)
        assert trace.tokens_BL.shape == trace.generated_BL.shape == (5, 15)
        assert torch.isin(trace.tokens_BL[trace.generated_BL], torch.tensor(REAL)).all()
        for b, prompt in enumerate(PROMPTS):
            width = len(prompt)
            for tokens in (trace.tokens_BL[b], *trace.history[:, b]):
                assert tokens[:width].tolist() == prompt
                assert tokens[width + 10 :].tolist() == [VOCAB.pad] * (5 - width)
            assert trace.generated_BL[b].nonzero().flatten().tolist() == list(range(width, width + 10))
        steps = sampler.steps or 10
        steps += sampler.init.steps if isinstance(sampler.init, Sampler) else 0  # a draft comes first
        assert len(trace.history) - 1 <= steps
        cost = 2 if setting == "guided" else 1
        assert (trace.calls_B <= steps * torch.tensor([cost, 1, cost, cost, cost])).all() and int(
            trace.calls_B.min()
        ) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_texts_and_another_seed_other_ones(name):
    sampler = named(name, *SHORT.get(name, ()), "++sampler.steps=12")
    if name not in ("ancestral", "remdm"):
        sampler.proposer = Temperature(2.0)  # for llada_random, whose order alone is random, too

    def sample(seed, first_row=0):
        return sampler.sample(transformer(), count=3, length=12, seed=seed, first_row=first_row).tokens_BL

    torch.manual_seed(5)
    tokens = sample(1)
    torch.manual_seed(6)  # the global generator plays no part
    assert torch.equal(tokens, sample(1))
    assert not torch.equal(tokens, sample(2))
    assert torch.equal(tokens[1:], sample(1, first_row=1)[:2])
    assert len({tuple(row) for row in tokens.tolist()}) == 3


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RANDOM])
def test_greedy_decoders_draw_nothing(name):
    tokens = [named(name).sample(transformer(), prompts=PROMPTS, length=8, seed=seed).tokens_BL for seed in (1, 2)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_a_transformer_gives_what_each_sequence_alone_gives(name):
    for setting, temperature in (("blocks", 0.0), ("guided", 1.0)):
        sampler = named(name, *SHORT.get(name, ()), *SETTINGS[setting])
        if name not in RANDOM:
            sampler.proposer = Temperature(temperature)
        batch = sampler.sample(transformer(), prompts=PROMPTS, length=9, seed=4)
        for b, prompt in enumerate(PROMPTS):
            alone = sampler.sample(transformer(), prompts=[prompt], length=9, seed=4, first_row=b)
            assert torch.equal(batch.tokens_BL[b, : len(prompt) + 9], alone.tokens_BL[0])
            assert batch.calls_B[b] == alone.calls_B[0]


CALLS = [
    ("llada", ("sampler.steps=5",), 5),
    ("llada", ("sampler.steps=null",), 20),
    ("llada", ("sampler.steps=40",), 20),
    ("llada_random", ("sampler.steps=7",), 7),
    ("modernbert", (), 20),
    ("modernbert", ("sampler.committer.k=3",), 7),
    ("threshold", ("sampler.committer.threshold=0",), 1),
    ("threshold", ("sampler.committer.threshold=1",), 20),
    ("flowlm", ("sampler.steps=8", "sampler.selector.visible_prior=0"), 6),
]


def test_calls_are_those_the_file_promises():
    for name, overrides, calls in CALLS:
        trace = named(name, *overrides).sample(transformer(), count=2, length=20)
        assert trace.calls_B.tolist() == [calls, calls]


BOUNDS = [
    ("editing", (1, 20)),
    ("flowlm", (15, 64)),
    ("fill_then_correct", (20, 128)),
    ("gidd", (2, 256)),
    ("threshold", (1, 20)),
    ("ancestral", (1, 128)),
    ("remdm", (1, 128)),
]


def test_calls_lie_in_the_bounds_of_the_file():
    for name, bounds in BOUNDS:
        calls_B = named(name).sample(transformer(), count=4, length=20).calls_B
        assert bounds[0] <= int(calls_B.min()) and int(calls_B.max()) <= bounds[1]


def problems(node):
    """What the check before a run has to say of a sampler's node."""
    found = (problem for path, part in nodes(plain(node), "sampler") for problem in check_node(path, part))
    return [problem.message for problem in found]


def test_files_pass_the_check_of_a_command():
    assert {name: problems(COMPOSER.compose_point([f"sampler={name}"]).cfg.sampler) for name in NAMES} == dict.fromkeys(
        NAMES, []
    )


WRONG = [
    (("sampler.steps=0",), "sampler.steps=0 must be at least 1, or null for one per token"),
    (("sampler.block_length=0",), "sampler.block_length=0 must be at least 1, or null for no blocks"),
    (("sampler.guidance=-1",), "sampler.guidance=-1 must be at least 0"),
    (("+sampler.reads=posteriors",), "sampler.reads=posteriors must be"),
    (("+sampler.times=mask",), "sampler.times=mask must be"),
    (("+sampler.min_time=1",), "sampler.min_time=1 must lie in"),
    (("sampler.proposer.temperature=-0.5",), "sampler.proposer.temperature=-0.5 must be at least 0"),
    (("sampler.committer.shape=square",), "sampler.committer.shape=square must be one of linear, cosine"),
    (("+sampler.committer.fill=0",), "sampler.committer.fill=0 must lie in"),
    (("+sampler.committer.revisions=0",), "sampler.committer.revisions=0 must be at least 1, or null"),
    (("sampler=threshold", "sampler.committer.threshold=1.5"), "sampler.committer.threshold=1.5 must be at most 1"),
    (("sampler=editing", "sampler.committer.edit_threshold=2"), "sampler.committer.edit_threshold=2 must be at most 1"),
    (("sampler=editing", "sampler.stopper.patience=0"), "sampler.stopper.patience=0 must be at least 1"),
    (("sampler=modernbert", "sampler.committer.k=0"), "sampler.committer.k=0 must be at least 1"),
    (("sampler=flowlm", "sampler.selector.visible_prior=2"), "sampler.selector.visible_prior=2 must lie in"),
    (("sampler=flowlm", "sampler.selector.min_gain=1"), "sampler.selector.min_gain=1 must lie in"),
    (("sampler=gidd", "sampler.selector.temperature=0"), "sampler.selector.temperature=0 must be above 0"),
    (("sampler=gidd", "sampler.stopper.patience=-1"), "sampler.stopper.patience=-1 must be at least 0"),
    (("sampler=remdm", "sampler.proposer.top_p=0"), "sampler.proposer.top_p=0 must lie in"),
    (("sampler=remdm", "sampler.proposer.temperature=-1"), "sampler.proposer.temperature=-1 must be at least 0"),
    (
        ("sampler=remdm", "sampler.committer.variant=max"),
        "sampler.committer.variant=max must be one of rescale, cap, loop",
    ),
    (("sampler=remdm", "sampler.committer.eta=1.1"), "sampler.committer.eta=1.1 must lie in"),
    (("sampler=remdm", "sampler.committer.t_off=.9"), "sampler.committer.t_off=0.9 must lie between"),
    (("sampler=remdm", "sampler.committer.alpha_on=1"), "sampler.committer.alpha_on=1 must lie in"),
    (
        (f"++sampler.init={{_target_: {PARTS}.inits.MasksAndTokens, mask_ratio: 2}}",),
        "sampler.init.mask_ratio=2 must lie in",
    ),
    ((f"++sampler.stopper={{_target_: {PARTS}.stoppers.Budget, calls: 0}}",), "sampler.stopper.calls=0 must be at"),
    (
        (f"++sampler.stopper={{_target_: {PARTS}.stoppers.Confident, threshold: 0}}",),
        "sampler.stopper.threshold=0 must lie",
    ),
]


def test_wrong_values_are_named_before_a_run_and_when_built():
    """Once from the source, before anything is imported, and once by the constructors."""
    for overrides, message in WRONG:
        group = [] if overrides[0].startswith("sampler=") else ["sampler=llada"]
        node = COMPOSER.compose_point([*group, *overrides]).cfg.sampler
        assert [problem.partition(" ")[0] for problem in problems(node)] == [message.partition(" ")[0]]
        with pytest.raises(ValueError) as built:
            build(node, "sampler")
        assert str(built.value).startswith(message)


def test_a_mask_in_the_prompt_is_left_alone():
    trace = named("llada").sample(transformer(), prompts=[[1, M, 2]], length=4)
    assert trace.tokens_BL[0, :3].tolist() == [1, M, 2]
    assert M not in trace.tokens_BL[0, 3:]

"""Writing from left to right: the laws of the choosers, batches of unequal texts, ends, the trace, and what cannot be
done.
"""

from __future__ import annotations

import math

import pytest
import torch
from causal_models import REAL, SMALL, Table, p_value, sequences_law
from denoisers import CAUSAL, COMPOSER, named, transformer

from research_stack.config.build import plain
from research_stack.config.check_node import check_node
from research_stack.config.nodes import nodes
from research_stack.sampling.autoregressive import Autoregressive
from research_stack.sampling.choosers import Choice, Chooser, ChooserInput, EntropyTemperature, MinP, Temperature
from research_stack.sampling.logits import keep_top_p, scale_by_temperature
from research_stack.sampling.trace import PositionChange

PROMPTS = [[1, 2, 3], [], [3], [0, 0, 1, 2, 2], [2, 1]]


def inputs(logits_nV):
    return ChooserInput(torch.as_tensor(logits_nV, dtype=torch.float64), None, None, None)


def frequencies(chooser, logits_V, count=40_000):
    """(V,) how often each token is drawn by evenly spaced numbers: its probability, within 1 / count."""
    u_n1 = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).unsqueeze(1)
    return torch.bincount(chooser(inputs(logits_V.expand(count, -1)), u_n1).token_n, minlength=len(logits_V)) / count


# Laws of the choosers -------------------------------------------------------------------------------------------------


def brute_force(logits_V, temperature, allowed):
    """p^(1 / temperature) over the allowed tokens, token by token."""
    weights = [math.exp(float(logit) / temperature) if v in allowed else 0.0 for v, logit in enumerate(logits_V)]
    return torch.tensor([w / sum(weights) for w in weights])


def likeliest_of(logits_V, temperature, top_p):
    p, total, kept = brute_force(logits_V, temperature, range(len(logits_V))), 0.0, set()
    for v in sorted(range(len(p)), key=lambda v: -p[v]):
        if total < top_p:
            kept.add(v)
        total += float(p[v])
    return kept


def at_least(logits_V, temperature, share):
    p = brute_force(logits_V, temperature, range(len(logits_V)))
    return {v for v in range(len(p)) if p[v] >= share * p.max()}


@pytest.mark.exact
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_choosers_draw_from_the_law_they_state(temperature):
    for seed in range(3):
        logits_V = 1.5 * torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        every = range(9)
        entropy = float(torch.special.entr(logits_V.softmax(0)).sum())
        cases = [
            (Temperature(temperature), temperature, every),
            (Temperature(temperature, top_p=0.7), temperature, likeliest_of(logits_V, temperature, 0.7)),
            (MinP(0.2, temperature), temperature, at_least(logits_V, temperature, 0.2)),
            (EntropyTemperature(0.3, temperature + 0.3, 0.5), 0.3 + temperature * math.exp(-0.5 / entropy), every),
        ]
        for chooser, used, allowed in cases:
            assert torch.allclose(
                frequencies(chooser, logits_V), brute_force(logits_V, used, allowed).float(), atol=1e-4
            ), chooser


def test_edt_is_the_entropy_temperature_from_zero():
    chooser, entropy = EntropyTemperature(0.0, 0.7, scale=0.4 * math.log(1 / 0.8)), torch.tensor([0.05, 0.6, 2.0])
    assert torch.allclose(chooser.temperature(entropy), 0.7 * 0.8 ** (0.4 / entropy))
    limits = EntropyTemperature(0.2, 0.9).temperature(torch.tensor([0.0, 1e9]))
    assert torch.allclose(limits, torch.tensor([0.2, 0.9]))


@pytest.mark.parametrize(
    "chooser",
    [
        Temperature(0.0),
        Temperature(0.0, 0.5),
        MinP(0.1, 0.0),
        MinP(1.0, 1.0),
        EntropyTemperature(0, 0),
        Temperature(1, 1e-9),
    ],
    ids=repr,
)
def test_the_cold_limit_is_the_likeliest_token_whatever_is_drawn(chooser):
    logits_nV = torch.randn(50, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for u in (0.0, 0.5, 1 - 1e-16):
        assert torch.equal(chooser(inputs(logits_nV), torch.full((50, 1), u)).token_n, logits_nV.argmax(1))


def test_a_tie_at_temperature_zero_goes_to_the_first_and_what_cannot_come_never_comes():
    logits = torch.tensor([[-torch.inf, 2.0, 2.0, 1.0]])
    for chooser in (Temperature(0.0), EntropyTemperature(0.0, 0.0)):
        assert chooser(inputs(logits), torch.tensor([[0.9]])).token_n.tolist() == [1]
    for chooser in (Temperature(5.0), MinP(0.0), EntropyTemperature(), Temperature(1.0, 0.99)):
        assert frequencies(chooser, logits[0].double())[0] == 0


def test_tempering_keeps_apart_what_float32_can_tell_apart():
    logits = torch.tensor([[80.0, 79.0, -1e4, -torch.inf]])
    assert torch.allclose(scale_by_temperature(logits, 0.5), torch.tensor([[0.0, -2.0, -20160.0, -torch.inf]]))
    assert scale_by_temperature(logits, torch.tensor([0.0])).tolist() == [[0.0, -torch.inf, -torch.inf, -torch.inf]]
    assert torch.isfinite(scale_by_temperature(logits, 1e-12)).tolist() == [[True, True, True, False]]


def test_the_nucleus_is_the_smallest():
    for seed in range(20):
        logits_nV = 2 * torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))
        kept = torch.isfinite(keep_top_p(logits_nV, 0.8))[0]
        p = logits_nV.softmax(-1)[0]
        assert p[kept].sum() >= 0.8 - 1e-6 and p[kept].sum() - p[kept].min() < 0.8 and p[kept].min() >= p[~kept].max()

    for count in (1, 2, 3, 4):  # a mass that is top_p exactly is enough
        assert int(torch.isfinite(keep_top_p(torch.zeros(1, 4), count / 4)).sum()) == count


# The law of texts -----------------------------------------------------------------------------------------------------


@pytest.mark.exact
@pytest.mark.parametrize("prompt", [[], [2, 1]])
def test_texts_follow_the_product_of_the_conditionals(prompt):
    model = Table()
    texts = Autoregressive(Temperature(0.8)).sample(model, [prompt], count=10_000, length=3, seed=5)
    distribution = sequences_law(lambda text: (model.at(text)[0] / 0.8).softmax(0), 3, prompt)
    assert p_value(texts.tokens_BL[:, len(prompt) :], distribution) > 1e-3
    wrong = sequences_law(lambda text: (model.at(text)[0] / 0.9).softmax(0), 3, prompt)
    assert p_value(texts.tokens_BL[:, len(prompt) :], wrong) < 1e-3  # the test can tell


@pytest.mark.exact
def test_texts_in_a_batch_of_unequal_prompts_follow_the_law_of_their_own_prompt():
    model, rows = Table(), 12_000
    prompts = [PROMPTS[b % 3] for b in range(rows)]
    trace = Autoregressive(Temperature()).sample(model, prompts, length=2, seed=6)
    for which in range(3):
        texts = torch.stack([trace.tokens_BL[b, len(prompts[b]) : len(prompts[b]) + 2] for b in range(which, rows, 3)])
        assert p_value(texts, sequences_law(lambda text: model.at(text)[0].softmax(0), 2, PROMPTS[which])) > 1e-3


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [False, True])
def test_a_text_comes_out_the_same_alone_and_in_a_batch(ends):
    sampler, model = Autoregressive(Temperature(1.2)), Table(sure=0.5, ends=ends)
    batch = sampler.sample(model, PROMPTS * 3, length=6, seed=2, record=True)
    assert len({int(made) for made in batch.generated_BL.sum(1)}) > 1 or not ends
    for b, prompt in enumerate(PROMPTS * 3):
        alone = sampler.sample(model, [prompt], length=6, seed=2, record=True, first_row=b)
        width = len(prompt) + 6
        assert torch.equal(batch.tokens_BL[b, :width], alone.tokens_BL[0]) and batch.calls_B[b] == alone.calls_B[0]
        assert torch.equal(batch.generated_BL[b, :width], alone.generated_BL[0])
        assert torch.equal(batch.history[: len(alone.history), b, :width], alone.history[:, 0])
        assert torch.equal(batch.confidence[: len(alone.history), b, :width], alone.confidence[:, 0])


def test_the_model_reads_no_padding_and_rows_that_are_done_leave():
    model = Table()
    Autoregressive(Temperature()).sample(model, [[1, 2, 3], [0, 1], [3, 3, 1, 0, 2]], length=3)
    assert model.readers[0].shapes == [(3, 2), (3, 1), (3, 1), (2, 1), (1, 1), (1, 1)]
    model = Table()
    Autoregressive(Temperature()).sample(model, [[1, 2, 3, 0]], count=2, length=3)
    assert model.readers[0].shapes == [(2, 4), (2, 1), (2, 1)]


def test_calls_are_those_of_each_text_alone():
    trace = Autoregressive(Temperature()).sample(Table(), PROMPTS, length=4)
    assert trace.calls_B.tolist() == [4] * 5


def test_prompts_stay_and_what_follows_is_real():
    trace = Autoregressive(Temperature(3.0)).sample(Table(), PROMPTS, length=4, record=True)
    assert trace.tokens_BL.shape == trace.generated_BL.shape == (5, 9)
    assert torch.isin(trace.tokens_BL[trace.generated_BL], torch.tensor(REAL)).all()
    for b, prompt in enumerate(PROMPTS):
        for tokens in (trace.tokens_BL[b], *trace.history[:, b]):
            assert tokens[: len(prompt)].tolist() == prompt and tokens[len(prompt) + 4 :].tolist() == [SMALL.pad] * (
                5 - len(prompt)
            )
        assert trace.generated_BL[b].nonzero().flatten().tolist() == list(range(len(prompt), len(prompt) + 4))


def test_a_text_without_a_prompt_begins_behind_the_separator():
    class Start(Table):
        def reader(self):
            self.readers.append(Noting(self))
            return self.readers[-1]

    class Noting(type(Table().reader())):
        def read(self, tokens_BL):
            self.first = getattr(self, "first", tokens_BL.clone())
            return super().read(tokens_BL)

    model = Start()
    trace = Autoregressive(Temperature()).sample(model, count=3, length=2)
    assert model.readers[0].first.tolist() == [[SMALL.end]] * 3
    assert trace.tokens_BL.shape == (3, 2) and SMALL.end not in trace.tokens_BL


def test_a_seed_gives_the_same_texts_and_another_seed_other_ones():
    def sample(seed, first_row=0):
        return (
            Autoregressive(Temperature(2.0))
            .sample(Table(), count=4, length=12, seed=seed, first_row=first_row)
            .tokens_BL
        )

    torch.manual_seed(5)
    tokens = sample(1)
    torch.manual_seed(6)  # the global generator plays no part
    assert torch.equal(tokens, sample(1)) and not torch.equal(tokens, sample(2))
    assert torch.equal(tokens[1:], sample(1, first_row=1)[:3])
    assert len({tuple(row) for row in tokens.tolist()}) == 4


# The trace ------------------------------------------------------------------------------------------------------------


def test_the_history_gives_one_token_a_step_with_its_probability():
    model = Table()
    trace = Autoregressive(Temperature(1.5)).sample(model, PROMPTS, length=4, seed=3, record=True)
    assert trace.history.shape == trace.confidence.shape == (5, 5, 9) and trace.mask == SMALL.mask
    for b, prompt in enumerate(PROMPTS):
        text = trace.tokens_BL[b].tolist()
        for step in range(5):
            written = len(prompt) + step
            shown = [*text[:written], *[SMALL.mask] * (4 - step), *text[len(prompt) + 4 :]]
            assert trace.history[step, b].tolist() == shown
            sure = [float(model.at(text[:i])[0].softmax(0)[text[i]]) for i in range(len(prompt), written)]
            expected = [1.0] * len(prompt) + sure + [0.0] * (4 - step) + [1.0] * (5 - len(prompt))
            assert trace.confidence[step, b].tolist() == pytest.approx(expected)
    filled = (trace.kinds == PositionChange.FILLED).sum(0)
    assert torch.equal(filled, trace.generated_BL.long()) and set(trace.kinds.unique().tolist()) == {
        PositionChange.KEPT,
        PositionChange.FILLED,
    }


def test_no_tokens_mean_no_calls():
    trace = Autoregressive(Temperature()).sample(Table(), [[1], [], [2, 3]], length=0, record=True)
    assert trace.tokens_BL.tolist() == [[1, 5], [5, 5], [2, 3]] and trace.calls_B.tolist() == [0, 0, 0]
    assert not trace.generated_BL.any() and trace.history.shape == (1, 3, 2)
    assert Autoregressive(Temperature()).sample(Table(), length=3).history is None


# Ends -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [True, False])
def test_a_text_stops_behind_the_separator_it_writes_if_it_may(stop):
    trace = Autoregressive(Temperature(), stop=stop).sample(Table(ends=True), PROMPTS * 8, length=6, record=True)
    ended = 0
    for b, prompt in enumerate(PROMPTS * 8):
        text, made = trace.tokens_BL[b, len(prompt) : len(prompt) + 6].tolist(), int(trace.generated_BL[b].sum())
        expected = text.index(SMALL.end) + 1 if stop and SMALL.end in text else 6
        assert made == expected and text[made:] == [SMALL.pad] * (6 - made) and trace.calls_B[b] == made
        assert SMALL.pad not in text[:made]
        ended += made < 6
    assert (ended > 0) == stop
    assert (trace.history[0][~trace.generated_BL] != SMALL.mask).all()


class Quitting(Chooser):
    """Ends every text whose last token was 2."""

    def __call__(self, inputs, u_nU):
        token_n = super().__call__(inputs, u_nU).token_n
        return Choice(token_n, self.last == 2)


def test_a_chooser_may_end_a_text_before_a_token():
    chooser, model = Quitting(), Table(sure=0.3)
    read = model.reader

    def reader():
        found = read()
        inner = found.read

        def noting(tokens_BL):
            prediction = inner(tokens_BL)
            chooser.last = found.text_BL[:, -1]
            return prediction

        found.read = noting
        return found

    model.reader = reader
    trace = Autoregressive(chooser).sample(model, [[1]] * 12 + [[2]], length=5, seed=1, record=True)
    for b in range(13):
        row = trace.tokens_BL[b].tolist()
        end = row.index(2) + 1 if 2 in row else 6
        assert trace.generated_BL[b].tolist() == [0 < i < end for i in range(6)] and row[end:] == [SMALL.pad] * (
            6 - end
        )
        assert trace.calls_B[b] == min(end, 5)  # the look that ended it counts
        assert trace.history[0, b].tolist() == [row[0]] + [SMALL.mask] * (end - 1) + [SMALL.pad] * (6 - end)
    assert trace.calls_B[12] == 1 and not trace.generated_BL[12].any()


# Mistakes -------------------------------------------------------------------------------------------------------------


class Needy(Temperature):
    needs_confidence = True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count=0 must be the number of prompts"),
        ({"prompts": [[1], [2]], "count": 3}, r"count=3 must be the number of prompts \(2\)"),
        ({"length": -1}, "length=-1 must be at least 0"),
        ({"prompts": [[1, 7]]}, r"prompts=... must hold token ids in \[0, 7\)"),
        (
            {"prompts": [[1] * 5], "length": 8},
            "length=8 after a prompt of 5 tokens exceeds the model's max_length=12: length can be at most 7$",
        ),
    ],
)
def test_impossible_requests_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Autoregressive(Temperature()).sample(Table(), **{"length": 4, **arguments})


def test_the_longest_text_that_fits_is_written():
    assert Autoregressive(Temperature()).sample(Table(), [[1] * 5, []], length=7).tokens_BL.shape == (2, 12)


def test_models_and_samplers_that_do_not_fit_say_what_does():
    with pytest.raises(
        ValueError, match="^sampler=Autoregressive .* FlowLM is no model of the next token; sampler=llada"
    ):
        Autoregressive(Temperature()).sample(transformer(), length=4)
    with pytest.raises(ValueError, match="^sampler=Sampler .* Table is no denoiser; sampler=gpt"):
        named("llada").sample(Table(), length=4)
    with pytest.raises(
        ValueError, match="^sampler.chooser=Needy needs a predicted future loss, which Table does not give; sampler=gpt"
    ):
        Autoregressive(Needy()).sample(Table(), length=4)
    assert Autoregressive(Needy()).sample(Table(predicts_loss=True), length=4).tokens_BL.shape == (1, 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Temperature(-0.1), "temperature=-0.1 must be at least 0"),
        (lambda: Temperature(1, 0), r"top_p=0 must lie in \(0, 1\]"),
        (lambda: MinP(1.1), r"min_p=1.1 must lie in \[0, 1\]"),
        (lambda: MinP(0.1, -1), "temperature=-1 must be at least 0"),
        (lambda: EntropyTemperature(2, 1), "low=2 must lie between 0 and high=1"),
        (lambda: EntropyTemperature(scale=-1), "scale=-1 must be at least 0"),
    ],
)
def test_choosers_refuse_what_they_cannot_mean(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_the_files_build_and_work(name):
    sampler = named(name)
    trace = sampler.sample(Table(predicts_loss=True), PROMPTS, length=5, seed=1, record=True)
    assert torch.isin(trace.tokens_BL[trace.generated_BL], torch.tensor(REAL)).all()
    assert sampler.name.startswith("Autoregressive ") and len(trace.history) >= 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.chooser.temperature=-1", "sampler.chooser.temperature=-1 must be at least 0"),
        ("++sampler.chooser.top=1", "has no parameter 'top'"),
    ],
)
def test_the_check_before_a_run_knows_the_choosers(override, message):
    node = COMPOSER.compose_point(["sampler=gpt", override]).cfg.sampler
    found = [problem.message for path, part in nodes(plain(node), "sampler") for problem in check_node(path, part)]
    assert len(found) == 1 and message in found[0]

"""A batch cut in pieces with a quantiser that normalises by the batch: gradients, losses and statistics are those of
the whole batch.
"""

from types import SimpleNamespace

import pytest
import torch
from tiny_latentwire import method, prepared

from research_stack.latentwire.features.deep_prefix import DeepPrefix
from research_stack.latentwire.losses import AnswerTokens
from research_stack.latentwire.losses_latents import RawRMS
from research_stack.latentwire.quantize import FSQ, Grouped
from research_stack.training.optimization import Optimization


def step(pieces, quantizer=FSQ, rows=4, **options):
    """(losses, gradients by name, buffers by name, how often the encoder ran) of one step."""
    losses = {"answer": AnswerTokens(), "rms": RawRMS(weight=0.3)}  # one of what is sent, one of the numbers before
    made = method(
        {"deep_prefix": DeepPrefix()},
        quantizer=quantizer(),
        losses=losses,
        optimization=Optimization(accumulate=pieces),
        questions_per_context=2,
        length_hint=True,
        **options,
    )
    made._trainer.strategy = SimpleNamespace(model=made)
    calls = []
    made.model.register_forward_hook(lambda *_: calls.append(1))
    made.manual_backward = lambda tensor, *gradient: tensor.backward(*gradient)
    found, denominator = prepared(made, rows=rows)
    means = made._accumulate_gradients(found, denominator, torch.tensor(list(made.loss_terms.values())))
    gradients = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    return (
        means,
        gradients,
        {name: b.clone() for name, b in made.named_buffers() if name.startswith("quantizer")},
        len(calls),
    )


@pytest.fixture(scope="module")
def whole():
    return step(1)


@pytest.mark.exact
@pytest.mark.parametrize("pieces", [2, 5, 99])
def test_nothing_depends_on_the_pieces(whole, pieces):
    means, gradients, buffers, _ = step(pieces)
    torch.testing.assert_close(means, whole[0], rtol=1e-4, atol=1e-5)
    assert (
        gradients.keys() == whole[1].keys()
        and gradients["model.embed.byte.weight"].any()
        and gradients["pooling.out.weight"].any()
    )
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, whole[1][name], rtol=2e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert buffers["quantizer.mean_d"].any() and all(
        torch.allclose(value, whole[2][name], rtol=1e-4, atol=1e-6) for name, value in buffers.items()
    )


def test_a_piece_alone_would_be_normalised_otherwise(whole):
    """Else the test above says nothing."""
    made = step(1, rows=2)
    assert not torch.allclose(made[1]["pooling.out.weight"], whole[1]["pooling.out.weight"], rtol=0.05)


def test_the_encoder_runs_twice_for_it_and_not_where_no_batch_counts():
    assert (
        step(2)[3] == 4
        and step(2, quantizer=lambda: FSQ(8, normalize=False))[3] == 2
        and step(2, quantizer=lambda: Grouped(4, 3))[3] == 2
    )


def test_an_encoder_that_is_not_trained_gets_nothing():
    _, gradients, _, calls = step(2, train_encoder=False)
    assert (
        calls == 2
        and not any(name.startswith(("model.", "pooling.")) for name in gradients)
        and gradients["adapters.llama.enter.weight"].any()
    )

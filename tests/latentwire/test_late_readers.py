"""A reader that joins a trained wire: it is sent the same bits, the sender does not change, and what does not fit is
named.
"""

import pytest
import torch
from tiny_latentwire import ASKED, method, prepared, reader, stirred

from research_stack.latentwire import wire
from research_stack.latentwire.features.deep_prefix import DeepPrefix
from research_stack.latentwire.quantize import FSQ

TEXTS = [q.context for q in ASKED[:4]]


def made(**options):
    return method({"deep_prefix": DeepPrefix()}, quantizer=FSQ(8), length_hint=True, **options)


@pytest.fixture(scope="module")
def state():
    first = stirred(made())
    rows, denominators = prepared(first)
    (first.loss_sum(rows) / denominators).sum().backward()  # statistics of a batch
    return first.eval(), first.state_dict()


def latents(wired, name):
    return [wire.decode(message, wired.salt(name)).latents() for message in wired.encode(TEXTS, name)]


def test_a_late_reader_is_sent_what_the_first_one_is(state):
    first, weights = state
    late = made(readers={"late": reader("qwen")}, train_encoder=False)
    late.load_initial_weights(weights)
    late.eval()
    assert all(torch.equal(a, b) for a, b in zip(latents(late, "late"), latents(first, "llama"), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(latents(first, "qwen"), latents(first, "llama"), strict=True)), (
        "or private latents say nothing"
    )


def test_readers_that_both_have_keep_all_in_any_order_and_the_new_one_begins_anew(state):
    first, weights = state
    more = made(readers={"new": reader("llama"), "qwen": reader("qwen")})
    before = {key: value.clone() for key, value in more.state_dict().items()}
    more.load_initial_weights(weights)
    more.eval()
    assert all(torch.equal(a, b) for a, b in zip(latents(more, "qwen"), latents(first, "qwen"), strict=True))
    for key, value in more.state_dict().items():
        if ".qwen." in key:
            assert torch.equal(value, weights[key]), key
        elif ".new." in key:
            assert torch.equal(value, before[key]), key


def test_a_sender_that_is_not_trained_keeps_its_statistics(state):
    late = made(readers={"late": reader("qwen")}, train_encoder=False)
    late.load_initial_weights(state[1])
    late.train()
    before = late.quantizer.mean_d.clone()
    late.loss_sum(prepared(late)[0])
    assert torch.equal(late.quantizer.mean_d, before) and before.any() and late.features.training


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"num_latents": 4},
            (
                "^init_from: that run's readers share 4 latents and those here 3; say the same method.num_latents and"
                " method.num_private in both$"
            ),
        ),
        ({"latent_dim": 4}, r"^init_from: .* is \(3,?.*\) there and \(4,?.*\) here; say the same in both$"),
    ],
)
def test_other_sizes_are_named(state, options, message):
    with pytest.raises(ValueError, match=message):
        made(**options).load_initial_weights(state[1])


def test_other_runs_and_features_are_named(state):
    with pytest.raises(ValueError, match="^init_from: that run is none of LatentWire"):
        method().load_initial_weights({"model.x": torch.zeros(1)})
    with pytest.raises(ValueError, match="it has deep_prefix, which this run has not$"):
        method(quantizer=FSQ(8), length_hint=True).load_initial_weights(state[1])

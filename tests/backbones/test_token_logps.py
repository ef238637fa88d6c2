"""Log-probabilities and entropies of given tokens against torch on whole logits, their gradients, and what is not
computed.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from research_stack.backbones.linear_loss import linear_loss
from research_stack.backbones.token_logps import token_logps

pytestmark = pytest.mark.exact


def problem(n=11, dim=5, vocab=9, dtype=torch.float64):
    stream = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, dim, generator=stream, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=stream, dtype=dtype).requires_grad_()
    bias = torch.zeros(vocab, dtype=dtype)
    bias[-2:] = -torch.inf
    return hidden, weight, torch.randint(vocab - 2, (n,), generator=stream), bias


def written_out(hidden, weight, token, bias, temperature):
    """By torch's distributions; the tokens that are ruled out are left out."""
    kept = torch.arange(len(weight)) if bias is None else (bias > -torch.inf).nonzero()[:, 0]
    logits = hidden @ weight[kept].T / temperature
    law = torch.distributions.Categorical(logits=logits if bias is None else logits + bias[kept])
    return law.log_prob(torch.searchsorted(kept, token)), law.entropy()


@pytest.mark.parametrize("chunk", [1, 4, 11, 100], ids=lambda c: f"chunk{c}")
@pytest.mark.parametrize("temperature", [1.0, 0.4, 2.5])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
def test_values_and_gradients_equal_torchs(chunk, temperature, biased):
    hidden, weight, token, bias = problem()
    bias = bias if biased else None
    up, bend = torch.linspace(-1, 2, 11, dtype=torch.float64), torch.linspace(3, -0.5, 11, dtype=torch.float64)
    for push in (
        lambda a, b: (up * a).sum(),
        lambda a, b: (bend * b).sum(),
        lambda a, b: (up * a.exp() + bend * b.square()).sum(),
    ):
        ours, theirs = (
            token_logps(hidden, weight, token, bias, temperature, chunk),
            written_out(hidden, weight, token, bias, temperature),
        )
        for found, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        for found, wanted in zip(
            torch.autograd.grad(push(*ours), (hidden, weight)),
            torch.autograd.grad(push(*theirs), (hidden, weight)),
            strict=True,
        ):
            assert wanted.abs().max() > 1e-2
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("chunk", [2, 100])
def test_gradcheck(chunk):
    hidden, weight, token, bias = problem(n=5)
    bias[0] = 0.7  # any bias, not only what rules out
    token[:] = torch.tensor([1, 3, 0, 6, 1])
    for temperature in (1.0, 0.6):
        assert torch.autograd.gradcheck(
            lambda h, w, t=temperature: token_logps(h, w, token, bias, t, chunk), (hidden, weight)
        )
        assert torch.autograd.gradcheck(
            lambda h, w, t=temperature: token_logps(h, w, token, bias, t, chunk)[1], (hidden, weight)
        )


def test_a_second_derivative_is_refused_and_not_wrong():
    hidden, weight, token, bias = problem()
    first = torch.autograd.grad(token_logps(hidden, weight, token, bias)[0].square().sum(), hidden, create_graph=True)[
        0
    ]
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


def test_a_law_of_one_token_and_a_token_that_is_ruled_out():
    hidden, weight, _, bias = problem(n=2)
    bias[1:] = -torch.inf
    logp, entropy = token_logps(hidden, weight, torch.tensor([0, 3]), bias)
    assert logp.tolist() == [0, -torch.inf] and entropy.tolist() == [0, 0]
    for value in (logp[0], entropy.sum()):
        assert all(bool((grad == 0).all()) for grad in torch.autograd.grad(value, (hidden, weight), retain_graph=True))


def test_a_certain_law_has_finite_gradients():
    hidden, weight, token, _ = problem(dtype=torch.float32)
    logp, entropy = token_logps(hidden * 1000, weight, token)
    grads = torch.autograd.grad(logp.sum() + entropy.sum(), (hidden, weight))
    assert entropy.min() >= 0 and entropy.max() < 1e-3 and all(bool(torch.isfinite(grad).all()) for grad in grads)


def test_no_position_is_no_number():
    hidden, weight, token, bias = problem(n=0)
    logp, entropy = token_logps(hidden, weight, token, bias)
    (logp.sum() + entropy.sum()).backward()
    assert logp.shape == entropy.shape == (0,) and logp.dtype == torch.float64 and not weight.grad.any()


def test_bf16_autocast_is_float32_of_bf16_logits():
    hidden, weight, token, bias = problem(n=64, dim=32, vocab=50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, entropy = token_logps(hidden, weight, token, bias, 0.7, 16)
    whole_logp, whole_entropy = written_out(hidden.bfloat16().float(), weight.bfloat16().float(), token, bias, 0.7)
    assert logp.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logp, whole_logp, rtol=0.02, atol=0.1)
    torch.testing.assert_close(entropy, whole_entropy, rtol=0.02, atol=0.1)
    (logp.sum() + entropy.sum()).backward()
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    for found, wanted in zip(
        (hidden.grad, weight.grad),
        torch.autograd.grad(whole_logp.sum() + whole_entropy.sum(), (hidden, weight)),
        strict=True,
    ):
        assert (found - wanted).norm() < 0.03 * wanted.norm() and not torch.equal(found, wanted)
    assert not weight.grad[-2:].any()


class Products(TorchDispatchMode):
    """The shapes that matrix products give."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.shapes.append(tuple(out.shape))
        return out


def logps(hidden, weight, token, chunk):
    logp, entropy = token_logps(hidden, weight, token, None, 1.0, chunk)
    return logp.sum() + entropy.sum()


def squares(hidden, weight, token, chunk):
    return linear_loss(
        hidden,
        weight,
        torch.ones(len(hidden), dtype=hidden.dtype),
        lambda logits, part: logits.square().sum(1),
        None,
        chunk,
    )


@pytest.mark.parametrize("loss", [logps, squares])
@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("of", ["both", "hidden", "unembedding"])
def test_only_the_gradients_that_are_needed_are_made(loss, chunk, of):
    """Under adapters the unembedding is frozen: its V x D gradient would be a third of the work."""
    hidden, weight, token, _ = problem(n=8, dim=5, vocab=9)
    both = torch.autograd.grad(loss(hidden, weight, token, chunk), (hidden, weight))
    with Products() as products:
        found = loss(hidden.requires_grad_(of != "unembedding"), weight.requires_grad_(of != "hidden"), token, chunk)
        found.backward()
    for tensor, wanted, needed in ((hidden, both[0], of != "unembedding"), (weight, both[1], of != "hidden")):
        assert (tensor.grad is not None) == needed
        if needed:
            torch.testing.assert_close(tensor.grad, wanted, rtol=0, atol=1e-12)
    part = min(chunk, 8)
    assert ((9, 5) in products.shapes) == (of != "hidden") and ((part, 5) in products.shapes) == (of != "unembedding")


class Largest(TorchDispatchMode):
    """Keeps the element count of the largest tensor any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.size = max(self.size, out.numel())
        return out


def test_no_tensor_of_positions_times_vocabulary():
    hidden, weight, token, bias = problem(n=512, dim=4, vocab=300)
    with Largest() as seen:
        logp, entropy = token_logps(hidden, weight, token, bias, 1.0, 32)
        (logp.sum() + entropy.sum()).backward()
    assert seen.size == 32 * 300


def test_without_gradients_there_is_no_graph():
    hidden, weight, token, bias = problem()
    with torch.no_grad():
        logp, entropy = token_logps(hidden, weight, token, bias)
    assert not logp.requires_grad and not entropy.requires_grad

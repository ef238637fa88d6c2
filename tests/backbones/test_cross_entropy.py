"""The chunked cross entropy against torch's own, and the memory it promises."""
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from research_stack.backbones.cross_entropy import chunked_cross_entropy


def problem(n=11, dim=5, vocab=9, dtype=torch.float64):
    stream = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, dim, generator=stream, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=stream, dtype=dtype).requires_grad_()
    bias = torch.zeros(vocab, dtype=dtype)
    bias[-2:] = -torch.inf
    return hidden, weight, torch.randint(vocab - 2, (n,), generator=stream), bias


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_values_and_gradients_equal_torchs(chunk):
    hidden, weight, targets, bias = problem()
    scale = torch.linspace(0.1, 2, len(targets), dtype=torch.float64)
    expected = F.cross_entropy(hidden @ weight.T + bias, targets, reduction="none")
    grads = torch.autograd.grad((expected * scale).sum(), (hidden, weight))
    loss = chunked_cross_entropy(hidden, weight, targets, bias, chunk)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad((loss * scale).sum(), (hidden, weight)), grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradcheck():
    hidden, weight, targets, _ = problem(n=4)
    assert torch.autograd.gradcheck(lambda h, w: chunked_cross_entropy(h, w, targets, None, 3), (hidden, weight))


def test_bf16_autocast_is_close_and_in_float32():
    hidden, weight, targets, bias = problem(n=64, dim=32, vocab=50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, targets, bias)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.T + bias, targets, reduction="none"), rtol=0.05, atol=0.05)
    loss.sum().backward()
    assert weight.grad.dtype == torch.float32 and bool(weight.grad[:-2].abs().sum(1).gt(0).all()) and not weight.grad[-2:].any()


def test_no_position_is_no_loss():
    hidden, weight, targets, bias = problem(n=0)
    loss = chunked_cross_entropy(hidden, weight, targets, bias)
    loss.sum().backward()
    assert loss.shape == (0,) and not weight.grad.any()


class Largest(TorchDispatchMode):
    """Keeps the element count of the largest tensor any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.size = max(self.size, out.numel())
        return out


def test_no_tensor_of_positions_times_vocabulary():
    hidden, weight, targets, bias = problem(n=512, dim=4, vocab=300)
    with Largest() as seen:
        chunked_cross_entropy(hidden, weight, targets, bias, chunk=32).sum().backward()
    assert seen.size == 32 * 300  # one chunk; all positions would be 512 * 300

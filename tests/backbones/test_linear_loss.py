"""The chunked loss against torch on whole logits, and the memory it promises."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from research_stack.backbones.linear_loss import linear_loss


def problem(n=11, dim=5, vocab=9, dtype=torch.float64):
    stream = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, dim, generator=stream, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=stream, dtype=dtype).requires_grad_()
    bias = torch.zeros(vocab, dtype=dtype)
    bias[-2:] = -torch.inf
    return hidden, weight, torch.randint(vocab - 2, (n,), generator=stream), bias


def cross_entropy(targets):
    return lambda logits, part: F.cross_entropy(logits, targets[part], reduction="none")


def test_value_and_gradients_equal_torchs():
    for chunk in (1, 4, 11, 100):
        hidden, weight, targets, bias = problem()
        scale = torch.linspace(0.1, 2, len(targets), dtype=torch.float64)
        expected = (F.cross_entropy(hidden @ weight.T + bias, targets, reduction="none") * scale).sum()
        loss = linear_loss(hidden, weight, scale, cross_entropy(targets), bias, chunk)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
        theirs = torch.autograd.grad(3 * expected, (hidden, weight))
        for ours, other in zip(torch.autograd.grad(3 * loss, (hidden, weight)), theirs, strict=True):
            torch.testing.assert_close(ours, other, rtol=0, atol=1e-12)


def test_gradcheck_with_any_loss():
    hidden, weight, targets, _ = problem(n=4)
    scale = torch.linspace(0.1, 2, 4, dtype=torch.float64)
    for loss in (cross_entropy(targets), lambda logits, part: logits.softmax(1).square().sum(1) * targets[part]):
        assert torch.autograd.gradcheck(
            lambda h, w, loss=loss: linear_loss(h, w, scale, loss, None, 3), (hidden, weight)
        )


def test_bf16_autocast_is_close_and_in_float32():
    hidden, weight, targets, bias = problem(n=64, dim=32, vocab=50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_loss(hidden, weight, torch.ones(64), cross_entropy(targets), bias)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, F.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum"), rtol=0.01, atol=0
    )
    loss.backward()
    assert (
        weight.grad.dtype == torch.float32
        and bool(weight.grad[:-2].abs().sum(1).gt(0).all())
        and not weight.grad[-2:].any()
    )


def test_no_position_is_no_loss():
    hidden, weight, targets, bias = problem(n=0)
    loss = linear_loss(hidden, weight, torch.zeros(0), cross_entropy(targets), bias)
    loss.backward()
    assert loss == 0 and not weight.grad.any()


def test_without_gradients_none_are_made():
    hidden, weight, targets, bias = problem()
    with torch.no_grad():
        loss = linear_loss(
            hidden, weight, torch.ones(11), lambda logits, part: logits[:, 0] * (not logits.requires_grad), bias
        )
    assert not loss.requires_grad and float(loss) == pytest.approx(float((hidden @ weight.T)[:, 0].sum()))


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
        linear_loss(hidden, weight, torch.ones(512), cross_entropy(targets), bias, chunk=32).backward()
    assert seen.size == 32 * 300  # one chunk; all positions would be 512 * 300

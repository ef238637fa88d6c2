"""RMSNorm against torch's, values and gradients, in each precision."""

import itertools

import torch
import torch.nn.functional as F

from research_stack.backbones.norm import RMSNorm


def inputs(dtype, shape=(3, 5, 8)):
    stream = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=stream, dtype=torch.float64)).to(dtype).requires_grad_()
    norm = RMSNorm(shape[-1]).to(dtype if dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(shape[-1], generator=stream))
    return x, norm, torch.randn(shape, generator=stream, dtype=torch.float64).to(dtype)


def test_values_and_gradients_are_torchs():
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 3e-6), (torch.bfloat16, 5e-2)):
        x, norm, grad = inputs(dtype)
        got = torch.autograd.grad(norm(x), (x, norm.weight), grad)
        exact_x, exact_w = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
        eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        out = F.rms_norm(exact_x, (8,), exact_w, eps)
        assert norm(x).dtype == dtype
        torch.testing.assert_close(norm(x).double(), out, rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(got, torch.autograd.grad(out, (exact_x, exact_w), grad.double()), strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=4 * tolerance)


def test_gradients_match_finite_differences():
    x, norm, _ = inputs(torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, x), (x, norm.weight.detach().requires_grad_())
    )


def test_zeros_stay_finite():
    norm = RMSNorm(4)
    x = torch.zeros(2, 4, requires_grad=True)
    norm(x).sum().backward()
    assert bool(torch.isfinite(x.grad).all())


def test_the_adaptive_norm_is_the_norm_scaled_and_shifted():
    for shape, (x_type, told_type) in itertools.product(
        ((3, 5, 8), (3, 1, 8)), ((torch.float64, torch.float64), (torch.float32, torch.bfloat16))
    ):
        x, norm, grad = inputs(x_type)
        stream = torch.Generator().manual_seed(1)
        scale, shift = (
            torch.randn(shape, generator=stream, dtype=torch.float64).to(told_type).requires_grad_() for _ in range(2)
        )
        out = norm(x, scale, shift)
        exact = [t.detach().double().requires_grad_() for t in (x, norm.weight, scale, shift)]
        expected = F.rms_norm(exact[0], (8,), exact[1], torch.finfo(x_type).eps) * (1 + exact[2]) + exact[3]
        tolerance = 1e-12 if x_type == torch.float64 else 3e-2
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
        got = torch.autograd.grad(out, (x, norm.weight, scale, shift), grad)
        for ours, theirs in zip(got, torch.autograd.grad(expected, exact, grad.double()), strict=True):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=10 * tolerance)

"""The plain form of attention gives what torch's kernel gives, forward and backward, masks and grouped heads
included.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from research_stack.backbones import attention
from research_stack.backbones.attention import attend

L, S, E = 6, 9, 16


def test_plain_products_agree_with_the_kernel():
    for kv_heads, masked in itertools.product((4, 2, 1), (False, True)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            torch.manual_seed(0)
            q, k, v = (torch.randn(2, heads, length, E) for heads, length in ((4, L), (kv_heads, S), (kv_heads, S)))
            mask = torch.rand(2, 1, 1, S) < 0.6 if masked else None
            outs, grads = [], []
            for limit in (512, 0):
                monkeypatch.setattr(attention, "SHORT", limit)
                inputs = [x.bfloat16().requires_grad_() for x in (q, k, v)]
                out = attend(*inputs, mask, causal=False, dropout=0.0)
                out.backward(torch.ones_like(out) * torch.linspace(-1, 1, E))
                outs.append(out.detach().float())
                grads.append([x.grad.float() for x in inputs])
            exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
            for out in outs:
                assert torch.allclose(out, exact, atol=0.03)
            for ours, theirs in zip(*grads, strict=True):
                assert torch.allclose(ours, theirs, rtol=0.02, atol=0.03)


def test_plain_products_are_taken_in_bf16_only(monkeypatch):
    called = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: called.append(a[0].dtype) or kernel(*a, **k))
    x = torch.randn(1, 2, L, E)
    attend(x, x, x, None, False, 0.0)
    attend(*[x.bfloat16()] * 3, None, False, 0.0)
    attend(*[x.bfloat16()] * 3, None, True, 0.0)
    attend(*[x.bfloat16()] * 3, None, True, 0.1)
    assert called == [torch.float32, torch.bfloat16], (
        "the second and third are plain, the last needs the kernel's dropout"
    )


def test_causal_plain_products_agree_with_the_kernel():
    q, k, v = (torch.randn(2, 4, L, E, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3))
    exact = F.scaled_dot_product_attention(
        q.float(), k[:, :2].float(), v[:, :2].float(), is_causal=True, enable_gqa=True
    )
    assert torch.allclose(attend(q, k[:, :2], v[:, :2], None, True, 0.0).float(), exact, atol=0.03)


def test_one_query_needs_no_copies_of_shared_keys():
    for kv_heads, masked in itertools.product((4, 2, 1), (False, True)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            q, k, v = (torch.randn(3, heads, length, E, generator=torch.Generator().manual_seed(i)).bfloat16()
                       for i, (heads, length) in enumerate(((4, 1), (kv_heads, S), (kv_heads, S))))  # fmt: skip
            mask = (torch.arange(S) >= torch.tensor([0, 3, 5]).unsqueeze(1))[:, None, None] if masked else None
            found = attend(q, k, v, mask, False, 0.0)
            exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, enable_gqa=True)
            assert found.shape == (3, 4, 1, E) and torch.allclose(found.float(), exact, atol=0.03)
            monkeypatch.setattr(attention, "_one_query_for_shared_keys", lambda *_: False)
            assert torch.equal(attend(q, k, v, mask, False, 0.0), found)


def test_a_row_of_padding_is_finite():
    x = torch.randn(2, 2, L, E).bfloat16()
    mask = torch.ones(2, 1, 1, L, dtype=torch.bool)
    mask[1] = False
    assert torch.isfinite(attend(x, x, x, mask, False, 0.0)).all()

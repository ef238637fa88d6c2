"""The backbone against plain attention, and the promises samplers and resumed runs lean on. All in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from research_stack.backbones.transformer import Transformer, rotate
from research_stack.config.build import build
from research_stack.config.compose import compose

V, L = 17, 12


def model(**options):
    return Transformer(V, **{"dim": 32, "layers": 2, "heads": 4, "seed": 3, **options}).double().eval()


def tokens(batch=3, length=L, seed=0):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


def plain_forward(m, ids):
    """The same network written out with loops over heads and an explicit softmax."""
    x = m.embedding.weight[ids]
    half = m.head_dim // 2
    angle = torch.arange(ids.shape[1])[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
    turn = torch.complex(angle.cos(), angle.sin())
    norm = lambda y, w: y / (y.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt() * w
    for block in m.blocks:
        a = block.attention
        q, k, v = (norm(x, block.attention_norm.weight) @ a.qkv.weight.T).split(
            [m.dim, a.kv_heads * m.head_dim, a.kv_heads * m.head_dim], -1
        )
        heads = []
        for h in range(a.heads):
            g = h * a.kv_heads // a.heads
            take = lambda y, i: y[..., i * m.head_dim : (i + 1) * m.head_dim]

            def spin(y):
                return (
                    torch.view_as_real(torch.complex(y[..., :half], y[..., half:]) * turn).transpose(-1, -2).flatten(-2)
                )

            score = spin(take(q, h)) @ spin(take(k, g)).transpose(-1, -2) / math.sqrt(m.head_dim)
            if m.causal:
                score = score.masked_fill(~torch.ones_like(score, dtype=torch.bool).tril(), -torch.inf)
            heads.append(score.softmax(-1) @ take(v, g))
        x = x + torch.cat(heads, -1) @ a.out.weight.T
        gate, up = (norm(x, block.ffn_norm.weight) @ block.ffn.gate_up.weight.T).chunk(2, -1)
        x = x + (gate * gate.sigmoid() * up) @ block.ffn.down.weight.T
    return norm(x, m.norm.weight)


@pytest.mark.parametrize("options", [{}, {"kv_heads": 2}, {"causal": True}, {"causal": True, "kv_heads": 1}])
def test_equals_the_network_written_out(options):
    m = model(**options)
    torch.testing.assert_close(m(tokens()), plain_forward(m, tokens()), rtol=1e-10, atol=1e-10)


def test_a_batch_gives_what_each_sequence_alone_gives():
    m, ids, lengths = model(), tokens(), [5, 12, 9]
    attend = torch.arange(L) < torch.tensor(lengths)[:, None]
    together = m(ids, attend)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(together[row, :length], m(ids[row : row + 1, :length])[0], rtol=0, atol=1e-12)


def test_bidirectional_sees_the_future_and_causal_does_not():
    changed = tokens().clone()
    changed[:, -1] = (changed[:, -1] + 1) % V
    for causal in (False, True):
        m = model(causal=causal)
        same = torch.equal(m(tokens())[:, :-1], m(changed)[:, :-1])
        assert same == causal


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 6]])
def test_cache_gives_the_full_forward(pieces):
    m = model(causal=True, kv_heads=2)
    cache, out = m.new_cache(), []
    for piece in tokens().split(pieces, dim=1):
        out.append(m(piece, cache=cache))
    torch.testing.assert_close(torch.cat(out, 1), m(tokens()), rtol=0, atol=1e-12)
    assert cache.length == L


def test_a_bidirectional_model_has_no_cache():
    with pytest.raises(ValueError, match="causal=False"):
        model().new_cache()


def test_time_conditioning_starts_as_no_conditioning_and_then_matters():
    m = model(time_conditioning=True)
    a, b = m(tokens(), t_B=torch.tensor([0.1, 0.5, 0.9]).double()), m(tokens(), t_B=torch.zeros(3).double())
    assert torch.equal(a, b)
    for block in m.blocks:
        torch.nn.init.normal_(block.modulation.weight)
    assert not torch.allclose(m(tokens(), t_B=torch.full((3,), 0.1).double()), m(tokens(), t_B=torch.zeros(3).double()))


def test_a_time_conditioned_model_needs_the_level():
    with pytest.raises(ValueError, match="time_conditioning=True"):
        model(time_conditioning=True)(tokens())


def test_padding_before_a_cached_prompt_stays_unseen():
    m, ids = model(causal=True), tokens()
    attend = torch.ones(3, L, dtype=torch.bool)
    attend[0, :2] = False
    cache = m.new_cache()
    pieces = torch.cat([m(ids[:, :6], attend[:, :6], cache=cache), m(ids[:, 6:], attend, cache=cache)], 1)
    torch.testing.assert_close(pieces[attend], m(ids, attend)[attend], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="attention_mask_BL has 6 columns and must have 12"):
        cache = m.new_cache()
        m(ids[:, :6], cache=cache)
        m(ids[:, 6:], attend[:, 6:], cache=cache)


def test_trains_after_its_first_use_in_inference_mode():
    m = Transformer(V, dim=32, layers=1, heads=2)
    with torch.inference_mode():
        m(tokens())
    m(tokens()).sum().backward()
    assert m.embedding.weight.grad is not None


def test_checkpointing_blocks_changes_no_gradient():
    grads = []
    for flag in (False, True):
        m = model(checkpoint_blocks=flag).train()
        m(tokens()).square().sum().backward()
        grads.append([p.grad.clone() for p in m.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    a = model()
    torch.manual_seed(2)
    b, c = model(), model(seed=4)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embedding.weight, c.embedding.weight)


def test_rotation_depends_on_distance_only():
    m = model()
    cos, sin = m._rope_at(slice(0, m.max_length), torch.device("cpu"), torch.float64)
    q, k = torch.randn(2, 1, 1, 1, m.head_dim, dtype=torch.float64)

    def score(i, j):
        return (rotate(q, (cos[i : i + 1], sin[i : i + 1])) * rotate(k, (cos[j : j + 1], sin[j : j + 1]))).sum()

    torch.testing.assert_close(score(3, 7), score(20, 24))
    assert not torch.isclose(score(3, 7), score(3, 8))


def test_head_and_tying():
    assert model().unembedding is not None and model(tie_embeddings=False).untied.shape == (V, 32)
    m = model()
    torch.testing.assert_close(m.head(m(tokens())), m(tokens()) @ m.embedding.weight.T)


@pytest.mark.parametrize(
    ("options", "named"), [({"dim": 30}, "dim=30"), ({"kv_heads": 3}, "kv_heads=3"), ({"layers": 0}, "layers=0")]
)
def test_a_bad_size_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        model(**options)


def test_too_long_a_sequence_is_named():
    with pytest.raises(ValueError, match="max_length=8 is less than the 12 tokens"):
        model(max_length=8)(tokens())


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("smoke", 0.1), ("tiny", 0.44), ("small", 25), ("base", 85), ("medium", 302), ("large", 1208)],
)
def test_presets_have_the_size_they_state(preset, millions):
    with torch.device("meta"):
        m = build(compose([f"model={preset}"]).model, "model", vocab_size=1000)
    assert m.parameters_count() / 1e6 == pytest.approx(millions, rel=0.1)


def test_flops_are_those_counted_by_torch():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    m, ids = Transformer(V, dim=64, layers=2, heads=2), tokens(batch=2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        m.head(m(ids))
    assert counter.get_total_flops() == m.flops_per_token(L) * ids.numel()


def test_dropout_acts_in_training_only():
    m = model(dropout=0.5)
    assert torch.equal(m(tokens()), m(tokens()))
    assert not torch.equal(m.train()(tokens()), m(tokens()))
    assert F.mse_loss(m.eval()(tokens()), m(tokens())) == 0


def test_the_gradient_of_a_rotation_is_that_of_finite_differences():
    cos, sin = model()._rope_at(slice(0, 1024), torch.device("cpu"), torch.float64)
    x = torch.randn(2, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: rotate(y, (cos[:3], sin[:3])), x)

"""Quantisers: the vectors of the definitions, what is trained on is what travels, gradients, batch statistics against
torch's.
"""

import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research_stack.config.check_node import check_node
from research_stack.latentwire.formats import (
    FP16_MAX,
    LARGE_GROUP_SIZES,
    FloatFormat,
    FSQFormat,
    GroupedFormat,
    format_of,
    has_extra,
)
from research_stack.latentwire.quantize import FSQ, Grouped
from research_stack.streams import generator

EVERY = [
    *(lambda levels=levels: FSQ(levels) for levels in (2, 3, 5, 8, 16, 37, 255, 256)),
    *(lambda bits=bits, group=group: Grouped(bits, group) for bits in (4, 6, 8) for group in (1, 3, 32, 65536)),
    lambda: Grouped(16), lambda: Grouped(32), lambda: FSQ(16, normalize=False),
]  # fmt: skip
NAMES = [f"{make().name}{i}" for i, make in enumerate(EVERY)]


def latents(*shape, name="z", scale=1.0):
    return torch.randn(shape, generator=generator(0, "test", name, *shape)) * scale


# ------------------------------------------------------------------------------------- vectors of the definitions
@pytest.mark.exact
def test_symmetric_int4_in_a_group_of_four():
    quantizer = Grouped(bits=4, group_size=4)
    codes = quantizer.codes(torch.tensor([7.0, -7, 3.4, 0]).view(1, 2, 2))
    assert codes.scales_BG.tolist() == [[1.0]]
    assert quantizer.values(*codes).tolist() == [[7.0, -7, 3, 0]]


@pytest.mark.exact
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_group_of_zeros_has_scale_1(bits):
    codes = Grouped(bits, group_size=4).codes(torch.zeros(1, 2, 4))
    assert codes.scales_BG.tolist() == [[1.0, 1.0]]
    assert Grouped(bits, group_size=4).values(*codes).tolist() == [[0.0] * 8]


@pytest.mark.exact
@pytest.mark.parametrize("levels", [2, 3, 5, 16, 255, 256])
def test_fsq_is_its_formula(levels):
    z = torch.linspace(-4, 4, 4001).view(1, 1, -1)
    expected = [round((math.tanh(x) + 1) * (levels - 1) / 2) * 2 / (levels - 1) - 1 for x in z.flatten().tolist()]
    found = FSQ(levels, normalize=False)(z).flatten()
    off = (found - torch.tensor(expected)).abs()
    assert (off < 1e-6).float().mean() > 0.999  # a tanh beside a border may round to the other side in float32
    assert off.max() <= 2 / (levels - 1) + 1e-6
    assert set(found.unique().tolist()) <= {torch.tensor(i * 2.0).div(levels - 1).sub(1).item() for i in range(levels)}
    assert FSQ(levels, normalize=False)(torch.tensor([[[-20.0, 20.0]]])).tolist() == [[[-1.0, 1.0]]]


TABLE = [  # M, d: fp32, fp16, int8 g32, int6 g32, int4 g32, FSQ-16
    ((32, 256), (32768, 16384, 8704, 6656, 4608, 4096)),
    ((40, 256), (40960, 20480, 10880, 8320, 5760, 5120)),
    ((48, 256), (49152, 24576, 13056, 9984, 6912, 6144)),
    ((64, 256), (65536, 32768, 17408, 13312, 9216, 8192)),
    ((32, 64), (8192, 4096, 2176, 1664, 1152, 1024)),
    ((32, 16), (2048, 1024, 544, 416, 288, 256)),
    ((8, 8), (256, 128, 68, 52, 36, 32)),
]


@pytest.mark.exact
@pytest.mark.parametrize("shape, expected", TABLE, ids=str)
def test_the_table_of_payloads(shape, expected):
    quantizers = [Grouped(32), Grouped(16), Grouped(8), Grouped(6), Grouped(4), FSQ(16)]
    assert tuple(quantizer.payload_bytes(*shape) for quantizer in quantizers) == expected


@pytest.mark.exact
def test_one_scale_for_all_of_a_small_message():
    assert Grouped(4, group_size=64).payload_bytes(8, 8) == 32 + 2  # with the two bytes of header of the definitions 36
    assert Grouped(4, group_size=65536).payload_bytes(8, 8) == 32 + 2


def test_payloads_by_the_formula_with_its_ceilings():
    for num_latents, width, bits, group in [(3, 5, 6, 4), (1, 1, 4, 1), (7, 3, 4, 32), (5, 5, 6, 8)]:
        expected = math.ceil(num_latents * width * bits / 8) + math.ceil(
            math.ceil(num_latents * width / group) * 16 / 8
        )
        assert Grouped(bits, group).payload_bytes(num_latents, width) == expected
    assert FSQ(5).payload_bytes(3, 3) == math.ceil(9 * 3 / 8)


# --------------------------------------------------------------------------------- what is trained on is what travels
@pytest.mark.parametrize("make", EVERY, ids=NAMES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_is_what_the_codes_stand_for(make, training, dtype):
    quantizer = make().bind(6).train(training)
    z = latents(5, 7, 6, scale=3).to(dtype)
    codes = quantizer.codes(z)  # before: a training step changes the running statistics
    found = quantizer(z)
    assert found.dtype == torch.float32 and found.shape == z.shape
    assert torch.equal(found.flatten(1), quantizer.values(*codes))
    assert codes.codes_BN.dtype == torch.int64 and codes.codes_BN.shape == (5, 42)
    assert codes.codes_BN.min() >= 0 and codes.codes_BN.max() < quantizer.format.num_codes
    assert codes.scales_BG.dtype == torch.float16 and codes.scales_BG.shape == (5, quantizer.format.groups(42))


@pytest.mark.parametrize("make", EVERY, ids=NAMES)
def test_autocast_changes_nothing(make):
    quantizer, z = make().bind(6).eval(), latents(2, 3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantizer(z)
    assert torch.equal(found, quantizer(z))


@pytest.mark.parametrize("make", EVERY, ids=NAMES)
def test_a_row_is_sent_alike_alone_and_in_a_batch(make):
    quantizer, z = make().bind(6).eval(), latents(4, 3, 6)
    assert torch.equal(quantizer(z)[2:3], quantizer(z[2:3]))


@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=40),
    st.sampled_from([4, 6, 8]),
    st.sampled_from([1, 3, 4, 32, 256]),
)
@settings(max_examples=150, deadline=None)
def test_the_error_is_at_most_half_a_scale(latent_dim, bits, group):
    z = torch.tensor(latent_dim, dtype=torch.float32).view(1, 1, -1)
    quantizer = Grouped(bits, group)
    codes = quantizer.codes(z)
    found, scale = (
        quantizer.values(*codes)[0].double(),
        codes.scales_BG[0].double().repeat_interleave(group)[: len(latent_dim)],
    )
    top = quantizer.format.top
    assert scale.isfinite().all() and (scale > 0).all()
    reach = z.flatten().double().clamp(-FP16_MAX * top, FP16_MAX * top)  # beyond it numbers are cut off
    assert ((reach - found).abs() <= scale / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_scales_beyond_fp16(bits):
    top = 2 ** (bits - 1) - 1
    scale = Grouped(bits, 2).codes(torch.tensor([[[1e30, -1.0, 1e-30, 0.0]]])).scales_BG[0].tolist()
    assert scale == [FP16_MAX, 2**-24]
    assert Grouped(bits, 2)(torch.tensor([[[1e30, -1e30]]])).tolist() == [[[FP16_MAX * top, -FP16_MAX * top]]]
    assert Grouped(bits, 2)(torch.tensor([[[1e-30, -1e-30]]])).tolist() == [[[0.0, 0.0]]]
    assert Grouped(16)(torch.tensor([[[1e30, -1e30, 2**-24, 1e-9]]])).tolist() == [[[FP16_MAX, -FP16_MAX, 2**-24, 0.0]]]


def test_a_scale_is_the_least_fp16_number_that_reaches():
    z = latents(1, 1, 999, scale=10.0)
    scale = Grouped(8, 1).codes(z).scales_BG[0]
    smaller = (scale.view(torch.int16) - 1).view(torch.float16)
    assert (scale.float() >= z.abs().flatten() / 127).all() and (smaller.float() < z.abs().flatten() / 127).all()


def test_the_last_group_may_be_shorter():
    z = torch.tensor([7.0, -7, 1, 14, -3.9]).view(1, 1, 5)
    codes = Grouped(4, group_size=3).codes(z)
    assert codes.scales_BG.tolist() == [[1.0, 2.0]]
    assert Grouped(4, group_size=3).values(*codes).tolist() == [[7.0, -7, 1, 14, -4]]


def test_floats_are_sent_as_they_are():
    z = latents(2, 3, 4)
    assert torch.equal(Grouped(16)(z), z.half().float())
    assert torch.equal(Grouped(32)(z), z)
    assert Grouped(16).codes(torch.tensor([[[1.0, -2.0]]])).codes_BN.tolist() == [[0x3C00, 0xC000]]
    assert Grouped(32).codes(torch.tensor([[[1.0, -2.0]]])).codes_BN.tolist() == [[0x3F800000, 0xC0000000]]


# ----------------------------------------------------------------------------------------------------- gradients
def gradient(function, z):
    z = z.clone().requires_grad_()
    weight = latents(*z.shape, name="weight")
    (function(z) * weight).sum().backward()
    return z.grad, weight


@pytest.mark.parametrize("levels", [2, 16, 37])
def test_the_gradient_of_fsq_is_that_of_tanh(levels):
    found, weight = gradient(FSQ(levels, normalize=False), latents(4, 3, 6))
    expected = weight * (1 - torch.tanh(latents(4, 3, 6)) ** 2)
    torch.testing.assert_close(found, expected)
    assert (found != 0).all()


def test_the_gradient_of_fsq_goes_through_the_batch():
    norm = torch.nn.BatchNorm1d(6, affine=False)
    found, _ = gradient(FSQ(16).bind(6), latents(4, 3, 6))
    expected, _ = gradient(lambda z: torch.tanh(norm(z.flatten(0, 1)).view_as(z)), latents(4, 3, 6))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found.abs().sum() > 0


@pytest.mark.parametrize("bits", [4, 6, 8, 16, 32])
def test_the_gradient_of_grouped_is_1(bits):
    found, weight = gradient(Grouped(bits, 4), latents(2, 3, 6))
    assert torch.equal(found, weight)


# ---------------------------------------------------------------------------------------------- batch statistics
def test_normalisation_is_that_of_torch():
    quantizer, norm = FSQ(16).bind(6), torch.nn.BatchNorm1d(6, affine=False)
    for step in range(5):
        z = latents(4, 3, 6, name=f"step{step}", scale=3) + 100
        torch.testing.assert_close(
            quantizer.smooth(z), torch.tanh(norm(z.flatten(0, 1)).view_as(z)), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(quantizer.mean_d, norm.running_mean)
    torch.testing.assert_close(quantizer.variance_d, norm.running_var, rtol=1e-4, atol=1e-4)
    z = latents(1, 1, 6) + norm.running_mean
    torch.testing.assert_close(
        quantizer.eval().smooth(z), torch.tanh(norm.eval()(z.flatten(0, 1)).view_as(z)), rtol=1e-4, atol=1e-5
    )


def test_alike_latents_are_driven_apart():
    z = 5 + 1e-2 * latents(16, 8, 4)
    assert FSQ(16, normalize=False)(z).unique().numel() == 1
    assert FSQ(16).bind(4)(z).unique().numel() >= 12


def test_statistics_belong_to_the_weights_and_only_training_moves_them():
    quantizer = FSQ(16).bind(6)
    quantizer.codes(latents(4, 3, 6))
    assert quantizer.mean_d.abs().sum() == 0
    quantizer(latents(4, 3, 6))
    moved = {name: value.clone() for name, value in quantizer.state_dict().items()}
    assert set(moved) == {"mean_d", "variance_d"} and moved["mean_d"].abs().sum() > 0
    quantizer.eval()(latents(4, 3, 6) + 9)
    again = FSQ(16).bind(6).eval()
    again.load_state_dict(moved)
    assert torch.equal(again(latents(2, 3, 6, name="new")), quantizer(latents(2, 3, 6, name="new")))
    assert not FSQ(16, normalize=False).bind(6).state_dict()


def test_what_two_devices_encode_counts_once():
    """Two halves of a row have the statistics, the numbers and, together, the gradient of the whole one."""
    z, weight = latents(3, 4, 6), latents(3, 4, 6, name="weight")
    unique_contexts, twice = z.clone().requires_grad_(), torch.cat([z, z[:1]]).requires_grad_()
    quantizers = FSQ(16).bind(6), FSQ(16).bind(6)
    (quantizers[0](unique_contexts) * weight).sum().backward()
    halves = torch.cat([weight * torch.tensor([0.5, 1, 1])[:, None, None], weight[:1] * 0.5])
    out = quantizers[1](twice, torch.tensor([0.5, 1, 1, 0.5]))
    (out * halves).sum().backward()
    torch.testing.assert_close(out[:3], quantizers[0](z))
    together = torch.cat([twice.grad[:1] + twice.grad[3:], twice.grad[1:3]])
    torch.testing.assert_close(together, unique_contexts.grad, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(FSQ(16).bind(6).smooth(twice)[:3], FSQ(16).bind(6).smooth(z))
    bare = [FSQ(16).bind(6) for _ in range(2)]
    bare[0].smooth(z), bare[1].smooth(twice, share_B=torch.tensor([0.5, 1, 1, 0.5]))
    for name in ("mean_d", "variance_d"):
        torch.testing.assert_close(getattr(bare[0], name), getattr(bare[1], name))


TWO_DEVICES = """
    import sys, torch, torch.distributed as dist
    from research_stack.latentwire.quantize import FSQ
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
    saved = torch.load(f"{sys.argv[2]}/z.pt", weights_only=True)
    z = saved["z"].chunk(2)[rank].clone().requires_grad_()
    quantizer = FSQ(16, sync=sys.argv[3] == "sync").bind(6)
    out = quantizer(z)
    (out * saved["weight"].chunk(2)[rank]).sum().backward()
    torch.save({"out": out.detach(), "grad": z.grad, "mean_d": quantizer.mean_d}, f"{sys.argv[2]}/{rank}.pt")
"""


@pytest.mark.slow
def test_two_devices_normalise_as_one(tmp_path):
    z, weight = latents(8, 3, 6), latents(8, 3, 6, name="weight")
    torch.save({"z": z, "weight": weight}, tmp_path / "z.pt")
    whole, quantizer = z.clone().requires_grad_(), FSQ(16).bind(6)
    out = quantizer(whole)
    (out * weight).sum().backward()
    for kind in ("sync", "apart"):
        (tmp_path / "meet").unlink(missing_ok=True)
        command = [sys.executable, "-c", textwrap.dedent(TWO_DEVICES)]
        ranks = [
            subprocess.Popen([*command, str(r), str(tmp_path), kind], env={**os.environ, "OMP_NUM_THREADS": "1"})
            for r in (0, 1)
        ]
        assert [rank.wait(120) for rank in ranks] == [0, 0]
        found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
        same = [torch.cat([f["out"] for f in found]), torch.cat([f["grad"] for f in found]), found[1]["mean_d"]]
        alike = [
            torch.allclose(a, b, rtol=1e-4, atol=1e-5)
            for a, b in zip(same, (out, whole.grad, quantizer.mean_d), strict=True)
        ]
        assert alike == ([True] * 3 if kind == "sync" else [False] * 3)


# ------------------------------------------------------------------------------------------------------ mistakes
@pytest.mark.parametrize("make, message", [
    (lambda: FSQ(1), r"^levels=1 must lie in 2 \.\. 256"),
    (lambda: FSQ(257), "^levels=257 must"),
    (lambda: FSQ(momentum=0), "^momentum=0 must"),
    (lambda: FSQ(eps=0), "^eps=0 must"),
    (lambda: FSQ().bind(0), "^latent_dim=0 must"),
    (lambda: FSQ()(torch.zeros(2, 2, 2)), "^latent_dim=None must be given by bind"),
    (lambda: FSQ().bind(2)(torch.zeros(1, 1, 2)), "^normalize=true needs more than one latent in a training batch"),
    (lambda: Grouped(5), "^bits=5 must be 4, 6 or 8"),
    (lambda: Grouped(4, 0), "^group_size=0 must"),
    (lambda: Grouped(4, 129), "^group_size=129 must"),
    (lambda: Grouped(4, 131072), "^group_size=131072 must"),
    (lambda: FSQFormat(0), "^levels=0 must"),
    (lambda: GroupedFormat(5), "^bits=5 must"),
    (lambda: GroupedFormat(4, 300), "^group_size=300 must"),
    (lambda: FloatFormat(8), "^bits=8 must"),
])  # fmt: skip
def test_a_mistake_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("target, arguments, said", [
    ("FSQ", {"levels": 300}, "q.levels=300 must lie in 2 .. 256"),
    ("Grouped", {"group_size": 131072}, "q.group_size=131072 must"),
    ("Grouped", {"group_size": 200}, "q.group_size=200 must lie in 1 .. 128 or be a power of two up to 65536"),
    ("Grouped", {"bits": 5}, "q.bits=5 must be one of 4, 6, 8, 16, 32"),
])  # fmt: skip
def test_a_mistake_is_named_before_anything_is_built(target, arguments, said):
    node = {"_target_": f"research_stack.latentwire.quantize.{target}"}
    assert not list(check_node("q", {**node, "group_size": 256} if target == "Grouped" else node))
    assert said in list(check_node("q", {**node, **arguments}))[0].message


# ------------------------------------------------------------------------------------------------- names of formats
def test_each_format_is_told_by_its_code():
    formats = [*map(FSQFormat, range(2, 257)), FloatFormat(16), FloatFormat(32)]
    formats += [GroupedFormat(bits, group) for bits in (4, 6, 8) for group in (*range(1, 129), *LARGE_GROUP_SIZES)]
    prefill_text = {}
    for format in formats:
        assert 0 <= format.code <= 15 and len(format.extra) == has_extra(format.code)
        assert format_of(format.code, *format.extra) == format
        assert prefill_text.setdefault((format.code, format.extra), format) is format
    assert len({format.name for format in formats}) == len(formats)
    assert [FSQFormat(2**bits).code for bits in range(1, 9)] == list(range(8)) and FSQFormat(16).extra == b""


def test_what_names_no_format_is_refused():
    named = {
        (format.code, *format.extra) for format in [*map(FSQFormat, range(2, 257)), FloatFormat(16), FloatFormat(32)]
    }
    named |= {
        (GroupedFormat(bits, group).code, *GroupedFormat(bits, group).extra)
        for bits in (4, 6, 8)
        for group in (*range(1, 129), *LARGE_GROUP_SIZES)
    }
    for what in [(code, *extra) for code in range(16) for extra in [(), *((byte,) for byte in range(256))]]:
        if what not in named:
            with pytest.raises(ValueError, match="^(code|extra)="):
                format_of(*what)

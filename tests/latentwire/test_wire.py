"""Messages: lengths as counted, there and back, and every kind of damage refused."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research_stack.latentwire import wire
from research_stack.latentwire.formats import LARGE_GROUP_SIZES, FloatFormat, FSQFormat, GroupedFormat
from research_stack.latentwire.quantize import FSQ, Grouped
from research_stack.latentwire.wire import Message, bytes_of, decode, encode, pack, parts_of, salt_of, unpack
from research_stack.streams import generator

FORMATS = st.one_of(
    st.builds(FSQFormat, st.integers(2, 256)),
    st.builds(
        GroupedFormat, st.sampled_from([4, 6, 8]), st.one_of(st.integers(1, 128), st.sampled_from(LARGE_GROUP_SIZES))
    ),
    st.builds(FloatFormat, st.sampled_from([16, 32])),
)
SALT = salt_of("encoder", "llama")


@st.composite
def contents(draw):
    """A message of any format, shape and content."""
    format, num_latents, latent_dim = draw(FORMATS), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    count, rng = num_latents * latent_dim, np.random.default_rng(draw(st.integers(0, 2**32)))
    codes_N = rng.integers(format.num_codes, size=count)
    if isinstance(format, FloatFormat):  # any finite number
        kind = np.dtype(f"f{format.bits // 8}")
        numbers_N = codes_N.astype(f"u{format.bits // 8}").view(kind)
        codes_N = np.where(np.isfinite(numbers_N), codes_N, 0)
    scales_G = rng.integers(1, 0x7C00, size=format.groups(count)).astype(np.uint16).view(np.float16)
    return Message(codes_N, scales_G, num_latents, latent_dim, format, draw(st.none() | st.integers(0, 255)))


def small(length_hint=None, levels=16, num_latents=8, latent_dim=8, seed=0):
    return Message(
        np.random.default_rng(seed).integers(levels, size=num_latents * latent_dim),
        np.zeros(0, np.float16),
        num_latents,
        latent_dim,
        FSQFormat(levels),
        length_hint,
    )


def grouped():
    return Message(np.arange(15), np.array([0.5], np.float16), 3, 5, GroupedFormat(4, 32), 7)


# ------------------------------------------------------------------------------------------------ there and back
@given(contents(), st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_there_and_back(message, salt):
    sent = encode(message, salt)
    found = decode(sent, salt)
    assert (found.num_latents, found.latent_dim, found.format, found.length_hint) == (
        message.num_latents,
        message.latent_dim,
        message.format,
        message.length_hint,
    )
    np.testing.assert_array_equal(found.codes_N, message.codes_N)
    np.testing.assert_array_equal(found.scales_G.view(np.uint16), message.scales_G.view(np.uint16))
    assert encode(found, salt) == sent
    assert torch.equal(found.latents(), message.latents())
    assert len(sent) == bytes_of(
        message.num_latents, message.latent_dim, message.format, message.length_hint is not None
    )
    assert len(sent) == sum(
        parts_of(message.num_latents, message.latent_dim, message.format, message.length_hint is not None).values()
    )


@pytest.mark.exact
@given(st.integers(1, 32), st.data())
@settings(max_examples=200, deadline=None)
def test_codes_are_packed_lowest_bit_first(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=30))
    number = sum(code << bits * i for i, code in enumerate(codes))
    packed = pack(np.array(codes), bits)
    assert packed == number.to_bytes(-(-len(codes) * bits // 8), "little")
    assert unpack(packed, bits, len(codes)).tolist() == codes


@pytest.mark.exact
def test_the_vectors_of_lengths():
    assert len(pack(np.array([1, 2, 3]), 4)) == 2 and unpack(pack(np.array([1, 2, 3]), 4), 4, 3).tolist() == [1, 2, 3]
    assert len(encode(small())) == 36
    assert len(encode(small(length_hint=3))) == 37
    assert parts_of(8, 8, FSQFormat(16)) == {"header": 3, "hint": 0, "values": 32, "scales": 0, "checksum": 1}
    assert parts_of(8, 8, GroupedFormat(4, 64), length_hint=True) == {
        "header": 4,
        "hint": 1,
        "values": 32,
        "scales": 2,
        "checksum": 1,
    }
    assert bytes_of(32, 256, GroupedFormat(8)) == 8704 + 5 and bytes_of(32, 256, FSQFormat(16)) == 4096 + 4


def test_a_message_byte_by_byte():
    message = Message(np.array([1, 2, 15, 4, 0, 8]), np.zeros(0, np.float16), 2, 3, FSQFormat(16), length_hint=9)
    body = bytes([0b001_1_0011, 1, 2, 9, 0x21, 0x4F, 0x80])
    assert encode(message, SALT)[:-1] == body and encode(message, SALT)[-1] == wire.check_byte(body, SALT)
    message = Message(np.array([0, 7, 14]), np.array([1.0, 0.5], np.float16), 1, 3, GroupedFormat(4, 2))
    assert encode(message)[:-1] == bytes([0b001_0_1001, 0, 2, 1, 0x70, 0x0E, 0x00, 0x3C, 0x00, 0x38])
    assert message.latents().tolist() == [[-7.0, 0.0, 3.5]]
    assert encode(Message(np.array([4]), np.zeros(0, np.float16), 1, 1, FSQFormat(5)))[:-1] == bytes(
        [0b001_0_1000, 0, 0, 4, 4]
    )


def test_all_sizes_to_256():
    for num_latents, latent_dim in [(1, 1), (256, 1), (1, 256), (256, 256)]:
        message = small(num_latents=num_latents, latent_dim=latent_dim)
        assert decode(encode(message)).latents().shape == (num_latents, latent_dim)


# -------------------------------------------------------------------------------------------------------- damage
@pytest.mark.exact
@pytest.mark.parametrize(
    "message", [small(), small(length_hint=5), grouped()], ids=["36 bytes", "with a hint", "grouped"]
)
def test_every_flipped_bit_is_refused(message):
    sent = encode(message, SALT)
    decode(sent, SALT)
    for place in range(8 * len(sent)):
        damaged = bytearray(sent)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="^message="):
            decode(bytes(damaged), SALT)


@pytest.mark.exact
@pytest.mark.parametrize("message", [small(), grouped()], ids=["36 bytes", "grouped"])
def test_every_truncation_and_every_addition_is_refused(message):
    sent = encode(message, SALT)
    for length in range(len(sent)):
        with pytest.raises(ValueError, match=rf"^message={length} bytes must be"):
            decode(sent[:length], SALT)
    for more in (b"\0", sent[-1:], b"\0" * 40, sent):
        with pytest.raises(ValueError, match="^message=.*added to"):
            decode(sent + more, SALT)


@pytest.mark.exact
def test_the_check_byte_finds_what_it_says():
    assert wire.crc8(b"123456789") == 0xF4
    sent = encode(small(), SALT)
    start, size = 8 * 3, 8 * len(sent) - 1  # bits behind the header, whose damage other checks find too
    body = int.from_bytes(sent[:-1], "little")

    def found(flips):
        damaged = (body ^ sum(1 << place for place in flips)).to_bytes(len(sent) - 1, "little")
        return wire.check_byte(damaged, SALT) != sent[-1]

    # Bits of a byte count from the lowest here and from the highest in the code: distances are taken in the order of
    # the code.
    order = [8 * (i // 8) + 7 - i % 8 for i in range(start, size - 7)]
    rng = random.Random(0)
    for distance in range(1, 127):
        at = rng.randrange(len(order) - distance)
        assert found([order[at], order[at + distance]])
    assert not found([order[0], order[127]])  # the limit of the code
    for at, pattern in itertools.product(range(0, len(order) - 8, 3), range(1, 256, 2)):
        assert found([order[at + i] for i in range(8) if pattern >> i & 1])
    for _ in range(500):
        assert found(rng.sample(order, rng.choice([3, 5, 7, 31])))
    missed = sum(not found(rng.sample(order, 8)) for _ in range(20000))
    assert missed < 2.5 * 20000 / 256  # even numbers of bits: twice 1 / 256, as odd ones are always found


def test_a_message_for_another_reader_is_refused():
    salts = [salt_of(encoder, reader) for encoder in ("one", "two") for reader in ("llama", "qwen", "")]
    assert len(set(salts)) == 6 and salt_of("a", "bc") != salt_of("ab", "c")
    messages = [small(seed=seed) for seed in range(400)]
    for mine, other in itertools.permutations(salts, 2):
        passed = sum(not _refused(encode(message, mine), other) for message in messages)
        assert passed <= 12  # 400 / 256 = 1.6 are expected of a pair, and no pair may pass always


def _refused(sent, salt):
    try:
        decode(sent, salt)
    except ValueError as error:
        assert "of another encoder, or for another reader" in str(error)
        return True
    return False


@pytest.mark.exact
def test_no_two_readers_are_mistaken_for_each_other_for_long():
    bodies = [bytes(row) for row in np.random.default_rng(0).integers(256, size=(100, 35), dtype=np.uint8)]
    check_RN = np.array(
        [[wire.check_byte(body, salt_of("encoder", f"reader{i}")) for body in bodies] for i in range(60)]
    )
    alike = np.array([(one == other).mean() for one, other in itertools.combinations(check_RN, 2)])
    assert alike.mean() == pytest.approx(1 / 256, abs=5e-4)  # 177,000 draws: an error of 1.5e-4
    assert (
        alike.max() < 0.1
    )  # a check byte that is only shifted by the salt is the same for every message of some pairs


def resealed(body):
    """With the right check byte: an encoder that writes nonsense, not damage on the way."""
    return bytes(body) + bytes([wire.check_byte(bytes(body), SALT)])


@pytest.mark.parametrize("change, said", [
    ({0: 0b010_0_0011}, "must be of version 1, not 2"),
    ({0: 0b000_0_0011}, "must be of version 1, not 0"),
    ({0: 0b001_0_1110}, "must name a format: code=14 must be one of"),
    ({0: 0b001_0_1000, 3: 15}, "must name a format: extra=15 must be a number of levels that is no power of two"),
    ({0: 0b001_0_1001, 3: 137}, "must name a format: extra=137 must be a size of group"),
    ({1: 8}, "must be 40 by its header: it was cut short or damaged"),
    ({2: 6}, "must be 32 by its header: it was added to or damaged"),
])  # fmt: skip
def test_what_no_encoder_writes_is_named(change, said):
    body = bytearray(encode(small(), SALT)[:-1])
    for place, value in change.items():
        body[place] = value
    with pytest.raises(ValueError, match="^message=36 bytes") as error:
        decode(resealed(body), SALT)
    assert said in str(error.value)


@pytest.mark.parametrize("body, said", [
    (bytes([0b001_0_1000, 0, 1, 4, 0b111_000]), "codes_N=0 .. 7 must lie in 0 .. 4"),
    (bytes([0b001_0_1001, 0, 0, 31, 0x0F, 0x00, 0x3C]), "codes_N=15 .. 15 must lie in 0 .. 14"),
    (bytes([0b001_0_0011, 0, 0, 0x10]), "must end in zero bits behind 1 codes"),
    (bytes([0b001_0_1001, 0, 0, 31, 0x01, 0x00, 0x00]), "scales_G=[0.] must be finite and above 0"),
    (bytes([0b001_0_1001, 0, 0, 31, 0x01, 0x00, 0xBC]), "scales_G=[-1.] must be finite and above 0"),
    (bytes([0b001_0_1001, 0, 0, 31, 0x01, 0x00, 0x7C]), "scales_G=[inf] must be finite and above 0"),
    (bytes([0b001_0_1100, 0, 0, 0x00, 0x7E]), "codes_N must stand for finite numbers"),
    (bytes([0b001_0_1101, 0, 0, 0x00, 0x00, 0x80, 0xFF]), "codes_N must stand for finite numbers"),
])  # fmt: skip
def test_numbers_that_no_encoder_writes_are_named(body, said):
    with pytest.raises(ValueError, match="^message=.* bytes must hold what an encoder writes") as error:
        decode(resealed(body), SALT)
    assert said in str(error.value)


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_refused_or_are_a_message(data):
    try:
        found = decode(data)
    except ValueError as error:
        assert str(error).startswith(f"message={len(data)} bytes")
    else:
        assert encode(found) == data


@pytest.mark.parametrize(
    "change, said",
    [
        ({"num_latents": 0}, "^num_latents=0 must lie in 1"),
        ({"num_latents": 257}, "^num_latents=257"),
        ({"latent_dim": 0}, "^latent_dim=0"),
        ({"latent_dim": 257}, "^latent_dim=257"),
        ({"length_hint": 256}, "^length_hint=256"),
        ({"length_hint": -1}, "^length_hint=-1"),
        ({"codes_N": np.zeros(3, np.int64)}, r"^codes_N=\(3,\) must"),
        ({"codes_N": np.full(64, 16)}, "^codes_N=16 .. 16 must lie in 0 .. 15"),
        ({"codes_N": np.full(64, -1)}, "^codes_N=-1 .. -1 must lie"),
        ({"scales_G": np.ones(1, np.float16)}, r"^scales_G=\(1,\) must be of shape \(0,\)"),
    ],
)
def test_what_cannot_be_written_is_named(change, said):
    content = {
        "codes_N": np.zeros(64, np.int64),
        "scales_G": np.zeros(0, np.float16),
        "num_latents": 8,
        "latent_dim": 8,
        "format": FSQFormat(16),
        "length_hint": None,
    }
    with pytest.raises(ValueError, match=said):
        Message(**{**content, **change})
    with pytest.raises(ValueError, match="^values=1 bytes must be 2"):
        unpack(b"\0", 4, 3)


# ---------------------------------------------------------------------------------------------------- accounting
def test_broadcast_and_unicast():
    assert wire.unicast_bytes(24, 8, 256, FSQFormat(16)) == bytes_of(32, 256, FSQFormat(16)) == 4100
    assert wire.broadcast_bytes(24, 8, 2, 256, FSQFormat(16)) == bytes_of(40, 256, FSQFormat(16)) == 5124
    assert wire.broadcast_bytes(24, 8, 1, 256, GroupedFormat(4), length_hint=True) == wire.unicast_bytes(
        24, 8, 256, GroupedFormat(4), length_hint=True
    )
    for wrong in [
        lambda: wire.broadcast_bytes(24, 8, 0, 256, FSQFormat(16)),
        lambda: bytes_of(257, 8, FSQFormat(16)),
        lambda: bytes_of(8, 0, FSQFormat(16)),
    ]:
        with pytest.raises(ValueError, match="^(readers|num_latents|latent_dim)="):
            wrong()


# ------------------------------------------------------------------------------------------------------- batches
@pytest.mark.parametrize(
    "make",
    [
        lambda: FSQ(16),
        lambda: FSQ(5),
        lambda: FSQ(256, normalize=False),
        lambda: Grouped(4, 32),
        lambda: Grouped(6, 7),
        lambda: Grouped(8, 65536),
        lambda: Grouped(16),
        lambda: Grouped(32),
    ],
)
@pytest.mark.parametrize("hints", [None, [1, 2, 0, 255, 9]])
def test_readers_get_exactly_the_quantisers_output(make, hints):
    quantizer = make().bind(6)
    z = 3 * torch.randn((5, 7, 6), generator=generator(0, "test", "wire"))
    quantizer(z)  # statistics that are not those of the start
    quantizer.eval()
    sent = wire.messages(quantizer, z, SALT, hints)
    assert torch.equal(wire.latents(sent, SALT), quantizer(z))
    assert {len(message) for message in sent} == {bytes_of(7, 6, quantizer.format, hints is not None)}
    assert [decode(message, SALT).length_hint for message in sent] == (hints or [None] * 5)
    assert quantizer.payload_bytes(7, 6) == sum(parts_of(7, 6, quantizer.format)[part] for part in ("values", "scales"))
    with pytest.raises(ValueError, match="^message="):
        wire.latents(sent, salt_of("encoder", "qwen"))


def test_what_may_not_be_sent_is_named():
    quantizer, z = FSQ(16).bind(6), torch.zeros(3, 2, 6)
    with pytest.raises(ValueError, match="^quantizer.training=True must be False"):
        wire.messages(quantizer, z)
    z[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^z_BMd=\(3, 2, 6\) must be finite: 1 of 3 rows are not"):
        wire.messages(quantizer.eval(), z)
    with pytest.raises(ValueError, match="^messages=2 must be of one shape"):
        wire.latents([encode(small()), encode(small(num_latents=4))])
    with pytest.raises(ValueError, match="shorter|longer"):
        wire.messages(quantizer, torch.zeros(3, 2, 6), hints=[1, 2])

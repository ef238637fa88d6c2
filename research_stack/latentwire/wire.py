"""Latents as bytes. The length of a message is the number that is reported: there is nothing beside it.

    byte 0      version (3 bits) | whether a hint follows (1) | code of the format (4)
    byte 1, 2   M - 1, d - 1
    (format)    one byte where the code does not say everything: size of group, or levels that are no power of two
    (hint)      one byte: length of the answer, for readers that are told it
    values      ceil(M d bits / 8) bytes: codes, lowest bit first
    (scales)    two bytes for each group, fp16, little-endian
    check byte  see `check_byte`

The length follows from the header, so a stream of messages needs no lengths between them. Eight latents of eight
numbers of 16 levels are 3 + 32 + 1 = 36 bytes.

Shapes: B messages, M latents, d dimensions of a latent, N = M d, G groups of numbers that share a scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from research_stack.latentwire.formats import WireFormat, format_of, has_extra
from research_stack.latentwire.quantize import Quantizer
from research_stack.require import require

VERSION = 1
MAX_LATENTS = 256  # latents, and dimensions of a latent: one byte each
MIN_HEADER = 3


@dataclass(frozen=True, eq=False)
class Message:
    """The content of a message.

    - codes_N: int64 (N,). scales_G: float16 (G,).
    - num_latents, latent_dim: M and d. format: what the codes mean. length_hint: length of the answer, 0 to 255; None
      where the reader is not told.

    Raises ValueError for what cannot be written.
    """

    codes_N: np.ndarray
    scales_G: np.ndarray
    num_latents: int
    latent_dim: int
    format: WireFormat
    length_hint: int | None = None

    def __post_init__(self) -> None:
        _check_sizes(self.num_latents, self.latent_dim)
        count = self.num_latents * self.latent_dim
        groups = self.format.groups(count)
        require(
            self.length_hint is None or 0 <= self.length_hint <= 255,
            f"length_hint={self.length_hint} must lie in 0 .. 255",
        )
        require(self.codes_N.shape == (count,), f"codes_N={self.codes_N.shape} must be of shape ({count},)")
        lowest, highest = self.codes_N.min(), self.codes_N.max()
        require(
            0 <= lowest and highest < self.format.num_codes,
            f"codes_N={lowest} .. {highest} must lie in 0 .. {self.format.num_codes - 1}",
        )
        require(self.scales_G.shape == (groups,), f"scales_G={self.scales_G.shape} must be of shape ({groups},)")
        bad = np.flatnonzero(~(np.isfinite(self.scales_G) & (self.scales_G > 0)))
        require(not len(bad), f"scales_G={self.scales_G[bad[:1]]} must be finite and above 0")
        require(bool(self.latents().isfinite().all()), "codes_N must stand for finite numbers")

    def latents(self) -> Tensor:
        """(M, d) float32: what a reader gets."""
        codes_1N, scales_1G = torch.from_numpy(self.codes_N[None]), torch.from_numpy(self.scales_G[None])
        return self.format.values(codes_1N, scales_1G).view(self.num_latents, self.latent_dim)


def _check_sizes(num_latents: int, latent_dim: int) -> None:
    require(1 <= num_latents <= MAX_LATENTS, f"num_latents={num_latents} must lie in 1 .. {MAX_LATENTS}")
    require(1 <= latent_dim <= MAX_LATENTS, f"latent_dim={latent_dim} must lie in 1 .. {MAX_LATENTS}")


# --------------------------------------------------------------------------------------------------------- bytes
def encode(message: Message, salt: bytes = b"") -> bytes:
    """The message as bytes, `bytes_of` many. salt: who may read it (`salt_of`)."""
    head = VERSION << 5 | (message.length_hint is not None) << 4 | message.format.code
    length_hint = b"" if message.length_hint is None else bytes([message.length_hint])
    values = pack(message.codes_N, message.format.bits)
    body = (
        bytes([head, message.num_latents - 1, message.latent_dim - 1])
        + message.format.extra
        + length_hint
        + values
        + message.scales_G.astype("<f2").tobytes()
    )
    return body + bytes([check_byte(body, salt)])


def decode(message: bytes, salt: bytes = b"") -> Message:
    """What `encode` was given. Raises ValueError for bytes that it would not have written with this salt: cut short,
    with something behind, of another version, or damaged or meant for another reader as far as `check_byte` tells.
    """
    size = f"message={len(message)} bytes"
    require(len(message) > MIN_HEADER, f"{size} must be more: its header alone has {MIN_HEADER}")
    version, has_hint, code = message[0] >> 5, message[0] >> 4 & 1, message[0] & 15
    require(version == VERSION, f"{size} must be of version {VERSION}, not {version}")
    start = MIN_HEADER + has_extra(code)
    num_latents, latent_dim = message[1] + 1, message[2] + 1
    try:
        format = format_of(code, message[MIN_HEADER] if has_extra(code) else None)
    except ValueError as error:
        raise ValueError(f"{size} must name a format: {error}") from error
    whole = bytes_of(num_latents, latent_dim, format, bool(has_hint))
    require(
        len(message) == whole,
        f"{size} must be {whole} by its header: it was {'cut short' if len(message) < whole else 'added to'} or"
        " damaged",
    )
    due = check_byte(message[:-1], salt)
    wrong = f"its check byte must be {due:02x} and is {message[-1]:02x}"
    require(message[-1] == due, f"{size} was damaged, or is of another encoder, or for another reader: {wrong}")
    values = message[start + has_hint :][: format.value_bytes(num_latents, latent_dim)]
    scales_G = np.frombuffer(
        message[:-1], dtype="<f2", count=format.groups(num_latents * latent_dim), offset=start + has_hint + len(values)
    )
    try:
        codes_N = unpack(values, format.bits, num_latents * latent_dim)
        return Message(
            codes_N, scales_G.astype(np.float16), num_latents, latent_dim, format, message[start] if has_hint else None
        )
    except ValueError as error:
        raise ValueError(f"{size} must hold what an encoder writes: {error}") from error


def pack(codes_N: np.ndarray, bits: int) -> bytes:
    """ceil(N bits / 8) bytes: codes of `bits` bits one behind the other, lowest bit first; what is left of the last
    byte is 0.
    """
    bits_Nb = codes_N[:, None] >> np.arange(bits) & 1
    return np.packbits(bits_Nb.astype(np.uint8), bitorder="little").tobytes()


def unpack(values: bytes, bits: int, count: int) -> np.ndarray:
    """(N,) int64: what `pack` was given. Raises ValueError where the length is not that of N codes or the rest of the
    last byte not 0.
    """
    require(
        len(values) == -(-count * bits // 8),
        f"values={len(values)} bytes must be {-(-count * bits // 8)} for {count} codes of {bits} bits",
    )
    flat = np.unpackbits(np.frombuffer(values, dtype=np.uint8), bitorder="little")
    require(not flat[count * bits :].any(), f"values={len(values)} bytes must end in zero bits behind {count} codes")
    return flat[: count * bits].reshape(count, bits).astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64))


# ---------------------------------------------------------------------------------------------------- check byte
def salt_of(encoder: str, reader: str) -> bytes:
    """What the check byte is keyed with: the fingerprint of the encoder's weights and the name of the reader a message
    is for.
    """
    return hashlib.sha256(b"\0".join(hashlib.sha256(part.encode()).digest() for part in (encoder, reader))).digest()


def check_byte(body: bytes, salt: bytes = b"") -> int:
    """The last byte of a message: its CRC-8, put through the permutation of 0 .. 255 that belongs to the salt.

    It finds every odd number of flipped bits, every burst of up to 8 bits, every two flipped bits less than 127 bits
    apart, and 255 of 256 other changes. A message under another salt has the right check byte with probability 1/256,
    for each message anew: two permutations agree on one value on average. A wrong reader is so found out at the first
    message or soon after it, at no byte of its own; it is a check against mistakes and no protection against forgery.
    """
    return _permutation(salt)[crc8(body)]


def crc8(data: bytes) -> int:
    """CRC-8 of polynomial x^8 + x^2 + x + 1 (SMBus): start 0, not reflected; of b"123456789" it is 0xf4."""
    table, crc = _crc_table(), 0
    for byte in data:
        crc = table[crc ^ byte]
    return crc


@cache
def _crc_table() -> bytes:
    table = bytearray(range(256))
    for _ in range(8):
        table = bytearray((crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF for crc in table)
    return bytes(table)


@lru_cache(maxsize=64)
def _permutation(salt: bytes) -> bytes:
    return bytes(sorted(range(256), key=lambda value: hashlib.sha256(salt + bytes([value])).digest()))


# ---------------------------------------------------------------------------------------------------- accounting
def parts_of(num_latents: int, latent_dim: int, format: WireFormat, length_hint: bool = False) -> dict[str, int]:
    """{header, hint, values, scales, checksum: bytes} of a message of M latents of d dimensions. Raises ValueError for
    sizes beyond 256.
    """
    _check_sizes(num_latents, latent_dim)
    values, scales = format.value_bytes(num_latents, latent_dim), format.scale_bytes(num_latents, latent_dim)
    return {
        "header": MIN_HEADER + len(format.extra),
        "hint": int(length_hint),
        "values": values,
        "scales": scales,
        "checksum": 1,
    }


def bytes_of(num_latents: int, latent_dim: int, format: WireFormat, length_hint: bool = False) -> int:
    """The length of a message, without writing it."""
    return sum(parts_of(num_latents, latent_dim, format, length_hint).values())


def unicast_bytes(
    num_shared: int, num_private: int, latent_dim: int, format: WireFormat, length_hint: bool = False
) -> int:
    """The message to one reader: the shared latents and its own private ones."""
    return bytes_of(num_shared + num_private, latent_dim, format, length_hint)


def broadcast_bytes(
    num_shared: int, num_private: int, readers: int, latent_dim: int, format: WireFormat, length_hint: bool = False
) -> int:
    """One message to all readers: the shared latents once and the private ones of each."""
    require(readers >= 1, f"readers={readers} must be at least 1")
    return bytes_of(num_shared + readers * num_private, latent_dim, format, length_hint)


# ------------------------------------------------------------------------------------------------------- batches
def messages(quantizer: Quantizer, z_BMd: Tensor, salt: bytes = b"", hints: Sequence[int] | None = None) -> list[bytes]:
    """One message for each row of latents (B, M, d).

    - hints: length of the answer of each row; None: readers are not told.

    Raises ValueError where the quantiser is in training mode (a row would depend on its batch) or latents are not
    finite.
    """
    require(not quantizer.training, "quantizer.training=True must be False: what is sent may not depend on the batch")
    bad = int((~z_BMd.isfinite()).flatten(1).any(1).sum())
    require(bad == 0, f"z_BMd={tuple(z_BMd.shape)} must be finite: {bad} of {len(z_BMd)} rows are not")
    codes_BN, scales_BG = (part.cpu().numpy() for part in quantizer.codes(z_BMd))
    told = [None] * len(z_BMd) if hints is None else hints
    rows = zip(codes_BN, scales_BG, told, strict=True)
    _, num_latents, latent_dim = z_BMd.shape
    return [
        encode(Message(codes_N, scales_G, num_latents, latent_dim, quantizer.format, length_hint), salt)
        for codes_N, scales_G, length_hint in rows
    ]


def latents(messages: Sequence[bytes], salt: bytes = b"") -> Tensor:
    """(B, M, d) float32: what readers get out of messages of one shape. Exactly the quantiser's output for what was
    sent.
    """
    found = [decode(message, salt).latents() for message in messages]
    shapes = {tuple(z_Md.shape) for z_Md in found}
    require(len(shapes) == 1, f"messages={len(found)} must be of one shape (M, d), not {sorted(shapes)}")
    return torch.stack(found)

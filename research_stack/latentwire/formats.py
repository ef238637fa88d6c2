"""How the numbers of a message are written: what its header says of them, and all that a reader needs to have them
back.

A format has no parameters and no memory. What becomes of a latent before it is rounded, and the gradient past the
rounding, is the sender's business (`quantize`).

Shapes: B messages, M latents, d dimensions of a latent, N = M d numbers of a message, G groups of them that share a
scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from research_stack.require import require

SCALE_BYTES = 2  # a scale is an fp16 number
FP16_MAX = 65504.0  # of fp16
LARGE_GROUP_SIZES = (
    256,
    512,
    1024,
    2048,
    4096,
    8192,
    16384,
    32768,
    65536,
)  # what one byte says beyond 1 to 128; the last is every message
UNEVEN = 8  # code of levels that are no power of two
GROUPED = {9: 4, 10: 6, 11: 8}  # bits of each code
FLOATS = {12: 16, 13: 32}


class WireFormat(ABC):
    """Base of the formats. `bits`: of one number; `kinds`: its codes are 0 .. kinds - 1; `name`: for tables."""

    bits: int

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for tables and figures."""

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """How many codes there are; the patterns of `bits` bits beyond them are refused."""

    @property
    @abstractmethod
    def code(self) -> int:
        """What the four bits of the header say, 0 to 15."""

    @property
    def extra(self) -> bytes:
        """The byte that follows in the header where the code does not say everything; else none."""
        return b""

    def groups(self, count: int) -> int:
        """G, how many scales `count` numbers have."""
        return 0

    @abstractmethod
    def values(self, codes_BN: Tensor, scales_BG: Tensor) -> Tensor:
        """(B, N) float32: the numbers that the codes (int64) and scales (float16) stand for."""

    def value_bytes(self, num_latents: int, latent_dim: int) -> int:
        """ceil(M d bits / 8)."""
        return -(-num_latents * latent_dim * self.bits // 8)

    def scale_bytes(self, num_latents: int, latent_dim: int) -> int:
        """Of the scales of M latents of d dimensions."""
        return SCALE_BYTES * self.groups(num_latents * latent_dim)

    def payload_bytes(self, num_latents: int, latent_dim: int) -> int:
        """Values and scales of a message: all of it but header, hint and check byte."""
        return self.value_bytes(num_latents, latent_dim) + self.scale_bytes(num_latents, latent_dim)


@dataclass(frozen=True)
class FSQFormat(WireFormat):
    """L = `levels` numbers evenly spaced over [-1, 1], both ends among them, without scales (Mentzer et al. 2023)."""

    levels: int

    def __post_init__(self) -> None:
        require(2 <= self.levels <= 256, f"levels={self.levels} must lie in 2 .. 256")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """ceil(log2 L)."""
        return (self.levels - 1).bit_length()

    @property
    def name(self) -> str:
        return f"fsq{self.levels}"

    @property
    def num_codes(self) -> int:
        return self.levels

    @property
    def code(self) -> int:
        return UNEVEN if self.extra else self.bits - 1

    @property
    def extra(self) -> bytes:
        return b"" if self.levels == 1 << self.bits else bytes([self.levels - 1])

    def values(self, codes_BN: Tensor, scales_BG: Tensor) -> Tensor:
        return codes_BN.float() * 2 / (self.levels - 1) - 1


@dataclass(frozen=True)
class GroupedFormat(WireFormat):
    """Whole numbers of -top .. top, top = 2^(bits - 1) - 1, times the fp16 scale of their group; code = number + top.

    - group_size: how many numbers, in the order of the latents, share a scale: 1 to 128 or a power of two up to 65536.
      The last group of a message may be shorter; one at least as large as the message is one scale for all of it.
    """

    bits: Literal[4, 6, 8] = 4
    group_size: int = 32

    def __post_init__(self) -> None:
        require(self.bits in (4, 6, 8), f"bits={self.bits} must be 4, 6 or 8")
        require(
            1 <= self.group_size <= 128 or self.group_size in LARGE_GROUP_SIZES,
            f"group_size={self.group_size} must lie in 1 .. 128 or be a power of two up to 65536",
        )

    @property
    def top(self) -> int:
        """The largest whole number."""
        return (1 << self.bits - 1) - 1

    @property
    def name(self) -> str:
        return f"int{self.bits}g{self.group_size}"

    @property
    def num_codes(self) -> int:
        return 2 * self.top + 1

    @property
    def code(self) -> int:
        return next(code for code, bits in GROUPED.items() if bits == self.bits)

    @property
    def extra(self) -> bytes:
        return bytes(
            [self.group_size - 1 if self.group_size <= 128 else 128 + LARGE_GROUP_SIZES.index(self.group_size)]
        )

    def groups(self, count: int) -> int:
        return -(-count // self.group_size)

    def values(self, codes_BN: Tensor, scales_BG: Tensor) -> Tensor:
        each_BN = scales_BG.float().repeat_interleave(self.group_size, 1)[:, : codes_BN.shape[1]]
        return (codes_BN - self.top).float() * each_BN


@dataclass(frozen=True)
class FloatFormat(WireFormat):
    """fp16 or fp32 numbers as they are; their codes are their bits."""

    bits: Literal[16, 32] = 16

    def __post_init__(self) -> None:
        require(self.bits in (16, 32), f"bits={self.bits} must be 16 or 32")

    @property
    def name(self) -> str:
        return f"fp{self.bits}"

    @property
    def num_codes(self) -> int:
        return 1 << self.bits

    @property
    def code(self) -> int:
        return next(code for code, bits in FLOATS.items() if bits == self.bits)

    def values(self, codes_BN: Tensor, scales_BG: Tensor) -> Tensor:
        signed_BN = codes_BN - (codes_BN >> self.bits - 1 << self.bits)  # the highest bit is the sign
        return (
            signed_BN.to(torch.int16).view(torch.float16)
            if self.bits == 16
            else signed_BN.to(torch.int32).view(torch.float32)
        ).float()


def has_extra(code: int) -> bool:
    """Whether a byte follows the code in the header."""
    return code == UNEVEN or code in GROUPED


def format_of(code: int, extra: int | None = None) -> WireFormat:
    """The format that a header names by its code and the byte behind it. Raises ValueError for what names none."""
    require(
        has_extra(code) == (extra is not None),
        f"code={code} must {'' if has_extra(code) else 'not '}be followed by a byte",
    )
    if code < UNEVEN:
        return FSQFormat(2 << code)
    if code in FLOATS:
        return FloatFormat(FLOATS[code])  # type: ignore[arg-type]
    require(code in GROUPED or code == UNEVEN, f"code={code} must be one of 0 .. {max(FLOATS)}")
    assert extra is not None  # both kinds are followed by a byte
    if code in GROUPED:
        require(extra < 128 + len(LARGE_GROUP_SIZES), f"extra={extra} must be a size of group")
        return GroupedFormat(GROUPED[code], extra + 1 if extra < 128 else LARGE_GROUP_SIZES[extra - 128])  # type: ignore[arg-type]
    found = FSQFormat(extra + 1) if extra else None
    if found is None or found.code != UNEVEN:
        raise ValueError(f"extra={extra} must be a number of levels that is no power of two")
    return found

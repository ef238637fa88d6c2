"""Latents rounded to the numbers of a format, with a gradient past the rounding. What is trained on is exactly what
travels.

Shapes: B rows, M latents, d dimensions of a latent, N = M d, G groups of numbers that share a scale.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from research_stack.latentwire.formats import FP16_MAX, FloatFormat, FSQFormat, GroupedFormat, WireFormat
from research_stack.require import require


class Codes(NamedTuple):
    """What travels of B latents: codes_BN int64, each in 0 .. kinds - 1; scales_BG float16, G = 0 where there are
    none.
    """

    codes_BN: Tensor
    scales_BG: Tensor


class Quantizer(nn.Module):
    """Base of the quantisers: latents to numbers of a `format` and back."""

    format: WireFormat  #: how the numbers are written; a reader needs nothing else
    of_batch = False  #: whether a latent in training depends on the others of its batch

    @property
    def name(self) -> str:
        """Of the format, for tables and figures."""
        return self.format.name

    @property
    def bits(self) -> int:
        """Of one number."""
        return self.format.bits

    @property
    def code(self) -> int:
        """Of the format in the header of a message."""
        return self.format.code

    def payload_bytes(self, num_latents: int, latent_dim: int) -> int:
        """Values and scales of a message of M latents of d dimensions."""
        return self.format.payload_bytes(num_latents, latent_dim)

    def bind(self, latent_dim: int) -> Quantizer:
        """Itself, made ready for latents of d = `latent_dim` numbers. Call it once, before weights are loaded."""
        return self

    def forward(self, z_BMd: Tensor, share_B: Tensor | None = None) -> Tensor:
        """(B, M, d) float32: the numbers a reader gets, bit for bit those of `values(*codes(z))`.

        The gradient is that of `smooth`.

        - share_B: what each row counts in statistics of a batch, below 1 where other devices have it too. None: all 1.
        """
        soft_BMd = self.smooth(z_BMd, share_B=share_B)
        hard_BMd = self.values(*self._rounded(soft_BMd)).view_as(soft_BMd)
        return hard_BMd + (
            soft_BMd - soft_BMd.detach()
        )  # the bracket is exactly 0, so that the numbers are exactly those sent

    @torch.no_grad()
    def codes(self, z_BMd: Tensor) -> Codes:
        """What travels of latents (B, M, d). It changes no statistics, in training mode neither."""
        return self._rounded(self.smooth(z_BMd, learn=False))

    def values(self, codes_BN: Tensor, scales_BG: Tensor) -> Tensor:
        """(B, N) float32: what the codes stand for, as a reader has them who has only the message."""
        return self.format.values(codes_BN, scales_BG)

    @abstractmethod
    def smooth(self, z_BMd: Tensor, learn: bool = True, share_B: Tensor | None = None) -> Tensor:
        """(B, M, d) float32: what is rounded, differentiable.

        - learn: whether statistics may be updated (in training mode only). share_B: as in `forward`.
        """

    @abstractmethod
    def _rounded(self, soft_BMd: Tensor) -> Codes:
        """The nearest numbers of the format."""


class _Total(Function):
    """The sum over devices. What every device makes of it sends its gradient back to all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class FSQ(Quantizer):
    """Finite scalar quantisation (Mentzer et al. 2023, section 3): z' = round((tanh z + 1) (L - 1) / 2) 2 / (L - 1) -
    1.

    Before it each of the d dimensions of a latent is batch normalised over rows and latents, without a learned scale:
    tanh then uses its whole range, and latents that a start has made all alike are driven apart. The gradient is that
    of tanh and of the normalisation.

    - levels: L, 2 to 256. A number takes ceil(log2 L) bits, so powers of two waste nothing.
    - normalize: whether to normalise. In training by the batch, in evaluation by running statistics, which stay with
      the sender.
    - momentum: weight of a batch in the running statistics. eps: added to the variance.
    - sync: several devices normalise by the batch of all of them, as one device would; otherwise each by its own part.
    """

    mean_d: Tensor  #: running statistics, from `bind` on
    variance_d: Tensor

    def __init__(
        self, levels: int = 16, normalize: bool = True, momentum: float = 0.1, eps: float = 1e-5, sync: bool = True
    ) -> None:
        require(2 <= levels <= 256, f"levels={levels} must lie in 2 .. 256")
        require(0 < momentum <= 1, f"momentum={momentum} must lie in (0, 1]")
        require(eps > 0, f"eps={eps} must be above 0")
        super().__init__()
        self.format = FSQFormat(levels)
        self.of_batch = normalize
        self.levels, self.normalize, self.momentum, self.eps, self.sync = levels, normalize, momentum, eps, sync

    def bind(self, latent_dim: int) -> FSQ:
        """Itself, with running statistics of d = `latent_dim` numbers: mean 0, variance 1 until a batch was seen."""
        require(latent_dim >= 1, f"latent_dim={latent_dim} must be at least 1")
        if self.normalize:
            self.register_buffer("mean_d", torch.zeros(latent_dim))
            self.register_buffer("variance_d", torch.ones(latent_dim))
        return self

    def smooth(self, z_BMd: Tensor, learn: bool = True, share_B: Tensor | None = None) -> Tensor:
        """tanh of the normalised latents, in (-1, 1). Raises ValueError for a training batch of a single latent, or
        before `bind`.
        """
        return torch.tanh(self._normalised(z_BMd.float(), learn, share_B) if self.normalize else z_BMd.float())

    def _normalised(self, z_BMd: Tensor, learn: bool, share_B: Tensor | None) -> Tensor:
        require(
            hasattr(self, "mean_d"), "latent_dim=None must be given by bind(latent_dim) before latents are normalised"
        )
        if not self.training:
            return (z_BMd - self.mean_d) * (self.variance_d + self.eps).rsqrt()
        require(
            z_BMd.shape[:2].numel() > 1,
            "normalize=true needs more than one latent in a training batch, whose variance it divides by; raise"
            " data.batch_size or method.latents",
        )
        share_B11 = 1.0 if share_B is None else share_B[:, None, None]
        rows = len(z_BMd) if share_B is None else share_B.sum().item()
        count = self._over_devices(z_BMd.new_tensor(rows * z_BMd.shape[1]))
        mean_d = self._over_devices((z_BMd * share_B11).sum((0, 1))) / count
        variance_d = self._over_devices(((z_BMd - mean_d).square() * share_B11).sum((0, 1))) / count
        if learn:
            with torch.no_grad():
                self.mean_d.lerp_(mean_d, self.momentum)
                self.variance_d.lerp_(variance_d * (count / (count - 1)), self.momentum)
        return (z_BMd - mean_d) * (variance_d + self.eps).rsqrt()

    def _over_devices(self, sum_d: Tensor) -> Tensor:
        return _Total.apply(sum_d) if self.sync and dist.is_available() and dist.is_initialized() else sum_d

    def _rounded(self, soft_BMd: Tensor) -> Codes:
        codes_BN = ((soft_BMd + 1) * (self.levels - 1) / 2).round().long().flatten(1)
        return Codes(codes_BN, soft_BMd.new_zeros((len(soft_BMd), 0), dtype=torch.float16))


class Grouped(Quantizer):
    """Symmetric rounding to whole multiples of a scale that a group of numbers shares: |z - z'| <= scale / 2, gradient
    1.

    The scale is the least fp16 number that has the largest number of its group within reach (1 for a group of zeros):
    it travels, so the rounding is by the scale that a reader has. Numbers beyond the reach of fp16 scales, 65504 times
    2^(bits - 1) - 1, are cut off there.

    - bits: 4, 6 or 8 of whole numbers; 16 or 32 are floating-point numbers as they are, without scales.
    - group_size: numbers, in the order of the latents, that share a scale: 1 to 128, or a power of two up to 65536
      (always all of a message). Where shared and private latents go out in one message, a group that holds both ties
      them together: take a divisor of d.
    """

    format: FloatFormat | GroupedFormat

    def __init__(self, bits: Literal[4, 6, 8, 16, 32] = 4, group_size: int = 32) -> None:
        require(
            1 <= group_size <= 128 or group_size in (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
            f"group_size={group_size} must lie in 1 .. 128 or be a power of two up to 65536",
        )
        super().__init__()
        self.format = FloatFormat(bits) if bits in (16, 32) else GroupedFormat(bits, group_size)

    def smooth(self, z_BMd: Tensor, learn: bool = True, share_B: Tensor | None = None) -> Tensor:
        """The latents themselves, float32."""
        return z_BMd.float()

    def _rounded(self, soft_BMd: Tensor) -> Codes:
        return (
            _float_codes(soft_BMd.flatten(1), self.bits)
            if isinstance(self.format, FloatFormat)
            else _group_codes(soft_BMd.flatten(1), self.format)
        )


def _float_codes(z_BN: Tensor, bits: int) -> Codes:
    """Bit patterns as numbers >= 0; fp16 ones are cut off at 65504."""
    signed_BN = (
        z_BN.clamp(-FP16_MAX, FP16_MAX).half().view(torch.int16) if bits == 16 else z_BN.contiguous().view(torch.int32)
    )
    return Codes(signed_BN.long() & (1 << bits) - 1, z_BN.new_zeros((len(z_BN), 0), dtype=torch.float16))


def _group_codes(z_BN: Tensor, format: GroupedFormat) -> Codes:
    count, top = z_BN.shape[1], format.top
    group = min(format.group_size, count)
    z_BGg = F.pad(z_BN, (0, -count % group)).unflatten(1, (-1, group))
    scale_BG = _at_least(z_BGg.abs().amax(-1) / top)
    whole_BGg = (z_BGg / scale_BG.float().unsqueeze(-1)).round().clamp(-top, top)
    return Codes(whole_BGg.flatten(1)[:, :count].long() + top, scale_BG)


def _at_least(scale_BG: Tensor) -> Tensor:
    """The least fp16 numbers that are not below, at most 65504; 1 for 0.

    Rounded to the nearest instead, small scales (below 6e-5 fp16 is coarse, below 3e-8 it is 0) would cut off the
    numbers they scale.
    """
    half_BG = scale_BG.clamp_max(FP16_MAX).half()
    below_BG = half_BG.float() < scale_BG.clamp_max(FP16_MAX)
    next_BG = (half_BG.view(torch.int16) + below_BG.short()).view(
        torch.float16
    )  # the bits of positive numbers count upwards
    return torch.where(scale_BG > 0, next_BG, torch.ones_like(next_BG))

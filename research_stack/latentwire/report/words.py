"""How LatentWire's names and numbers are written in sentences, tables and charts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from research_stack.latentwire.report.tables import PathScore
from research_stack.reporting.elements import cell, span


def joined(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def each(readers: Sequence[str], text: Callable[[str], str], named: bool) -> str:
    """94 % (llama) and 86 % (qwen); `named`: whether to name the readers."""
    return joined([f"{text(reader)} ({reader})" if named else text(reader) for reader in readers])


def bytes_text(size: float) -> str:
    """36, 35.9, 1,258: a mean of bytes, with a decimal where it is small and no whole number."""
    return f"{size:,.0f}" if size >= 100 or abs(size - round(size)) < 0.05 else f"{size:.1f}"


def bits_text(bits: float) -> str:
    """latents, 4 bits."""
    return f"latents, {bits:g} bits" if math.isfinite(bits) else "latents"


def share_text(share: float, missing: str = "-") -> str:
    """94 % of a share of what the whole text gives."""
    return f"{100 * share:.0f} %" if math.isfinite(share) else missing


def f1_cells(row: PathScore | None) -> list[str]:
    """F1 and its interval: 0.872 and 0.851 to 0.893; dashes for none."""
    return [cell(row.f1.value), span(row.f1.low, row.f1.high)] if row else ["-", "-"]


def file_name(*parts: str) -> str:
    """The parts as a name of a chart's files: letters, digits, points, hyphens and underscores."""
    return "_".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._") or "x" for part in parts)

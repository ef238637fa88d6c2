"""What of a corpus is used: one warning for what is lost, a refusal where that is much, one for a lopsided split."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)
FAR = 2.0  # a side that is so many times as large or as small as was asked for is worth a warning


def check_split(train: int, validation: int, fraction: float, what: str) -> None:
    """Warn in one line when the validation share is far from the fraction: then a few large groups hold most of the
    documents.
    """
    share = validation / (train + validation)
    if not (fraction / FAR <= share <= fraction * FAR and (1 - fraction) / FAR <= 1 - share <= (1 - fraction) * FAR):
        log.warning(
            "validation_fraction=%s: %d of %d %s (%.1f %%) are kept for validation, since what belongs together stays"
            " on one side (equal texts, pairs of one prompt, groups) and there are few such groups; another fraction,"
            " or more data, may come nearer",
            fraction,
            validation,
            train + validation,
            what,
            100 * share,
        )


def check_dropped(
    used: int, dropped: int, odd: Mapping[str, Any], most: float, why: str, truncated: int = 0, of: str = ""
) -> None:
    """Warn in one line of what is not used, or not whole. Raises ValueError when more than the share `most` is lost.

    - used: the documents that are left, cut ones among them. dropped: those that are not, and why.
    - odd: `OddRecords.summary()`; may be empty. truncated: documents that were cut. of: a data set, where there are
      several.
    """
    left_out, blank, first = odd.get("left_out", 0), odd.get("blank", 0), odd.get("first")
    total, lost = used + dropped + left_out + blank, dropped + left_out
    parts = [
        f"{_share(dropped, total)} are dropped: {why}" if dropped else "",
        f"{_share(truncated, total)} are cut at the end of their row" if truncated else "",
        f"{_share(left_out, total)} are left out, the first of them: {first}" if left_out else "",
        f"{_share(blank, total)} have an empty text and are passed over" if blank else "",
    ]
    line = f"of {total} records {f'of {of} ' * bool(of)}" + "; ".join(part for part in parts if part)
    if lost > most * total:
        raise ValueError(f"max_dropped={most} is exceeded: {line}; raise it if that is meant")
    if lost + truncated + blank:
        log.warning("%s", line)


def _share(count: int, total: int) -> str:
    return f"{count} ({100 * count / total:.1f} %)"

"""A window of a long context that holds the answer, cut where sentences or words end. No torch.

Where the answer stands in its window is drawn from the question's key: an answer that always stood in the middle would
give itself away. Offsets are bytes of UTF-8 throughout, the unit in which contexts are limited.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, bisect_right
from dataclasses import replace

from research_stack.data.questions.question import Question

SENTENCE = re.compile(
    rb"""(?<=[.!?])(["')\]]*)\s+(?=\S)"""
)  # the group ends where the sentence does, the match where the next begins
WORD = re.compile(rb"()\s+(?=\S)")


def window(question: Question, most: int) -> Question | None:
    """The question on at most `most` bytes of its context; itself where the context is no longer, None where its answer
    is.

    The window begins at a sentence where one that begins near enough has the answer within reach, else at a word, else
    at the answer; it ends with the last sentence that fits, else with the last word, else at the last whole character.
    Without a position of the answer any beginning will do.
    """
    text = question.context.encode()
    if len(text) <= most:
        return question
    start = max(question.start, 0)
    first = len(question.context[:start].encode())
    last = first + len(question.answers[0].encode()) if question.start >= 0 else first
    if last - first > most:
        return None
    begin = _begin(text, first, last, most, question)
    end = _end(text, max(last, begin), begin + most)
    context = text[begin:end].decode(errors="ignore").rstrip()
    return replace(question, context=context, start=len(text[begin:first].decode()) if question.start >= 0 else -1)


def _begin(text: bytes, first: int, last: int, most: int, question: Question) -> int:
    """Where the window begins: one of the sentences, or words, from which both ends of the answer are within reach."""
    placed = question.start >= 0
    low, high = (max(0, last - most), first) if placed else (0, len(text))
    for boundary in (SENTENCE, WORD):
        starts = [0, *(match.end() for match in boundary.finditer(text))]
        final = bisect_left(
            starts, len(text) - most
        )  # the first from which the window reaches the end: later ones are shorter for nothing
        choices = starts[bisect_left(starts, low) : min(bisect_right(starts, high), final + 1)]
        if choices:
            return choices[int(_share(question.key) * len(choices))]
    return first


def _end(text: bytes, last: int, limit: int) -> int:
    """Where the window ends: at the end of the text, of the last sentence or of the last word between the answer's end
    and the limit.
    """
    if limit >= len(text):
        return len(text)
    for boundary in (SENTENCE, WORD):
        ends = [match.end(1) for match in boundary.finditer(text, last) if match.end(1) <= limit]
        if ends:
            return ends[-1]
    return limit


def _share(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64

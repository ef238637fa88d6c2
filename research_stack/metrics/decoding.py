"""What happened while a sampler decoded: states of tokens step by step, and numbers about it. Numpy only.

Shapes: S steps, B sequences, L positions. A history is int (S + 1, B, L): the tokens at the start and after each step.
"""

from __future__ import annotations

import numpy as np

MASK, KEPT, FILLED, CHANGED, PROMPT = range(5)
STATES = ("mask", "kept", "filled", "changed", "prompt")


def states(history_SBL: np.ndarray, generated_BL: np.ndarray, mask: int) -> np.ndarray:
    """(S + 1, B, L) uint8 codes of `STATES`: what each step did to each position.

    mask: it holds the mask. filled: the mask gave way to a token. changed: a token was replaced by another one.
    kept: as before. prompt: given, never touched (padding too).
    """
    found = np.full(history_SBL.shape, KEPT, dtype=np.uint8)
    before, after = history_SBL[:-1], history_SBL[1:]
    found[1:][before != after] = CHANGED
    found[1:][(before == mask) & (after != mask)] = FILLED
    found[history_SBL == mask] = MASK
    found[:, ~generated_BL] = PROMPT
    return found


def changed_after_fill(history_SBL: np.ndarray, generated_BL: np.ndarray, mask: int) -> float:
    """Share of the generated positions that held a token and then another one; NaN without generated positions.

    A token that is masked again and comes back as the same token has not changed.
    """
    last_BL, changed_BL = history_SBL[0].copy(), np.zeros(generated_BL.shape, dtype=bool)
    for now_BL in history_SBL[1:]:
        token_BL = now_BL != mask
        changed_BL |= token_BL & (last_BL != mask) & (now_BL != last_BL)
        last_BL = np.where(token_BL, now_BL, last_BL)
    return float(changed_BL[generated_BL].mean()) if generated_BL.any() else float("nan")


def idle_steps(history_SBL: np.ndarray, generated_BL: np.ndarray) -> float:
    """Share of the steps before a sequence's last change in which nothing of it changed, mean over sequences.

    Sequences that never change are left out; NaN if none does.
    """
    active_SB = ((history_SBL[1:] != history_SBL[:-1]) & generated_BL).any(2)
    shares = []
    for active_S in active_SB.T:
        if active_S.any():
            last = int(np.flatnonzero(active_S)[-1]) + 1
            shares.append(1 - active_S[:last].mean())
    return float(np.mean(shares)) if shares else float("nan")


def distinct(sequences: list[np.ndarray], n: int = 2) -> float:
    """Distinct n-grams over all n-grams of the sequences (Li et al. 2016, distinct-n); NaN if there are none."""
    grams = [tuple(map(int, sequence[i : i + n])) for sequence in sequences for i in range(len(sequence) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition(sequences: list[np.ndarray], n: int = 4) -> float:
    """Share of the n-grams of a sequence that have occurred earlier in it, mean over sequences; NaN if none has an
    n-gram.
    """
    shares = []
    for sequence in sequences:
        grams = [tuple(map(int, sequence[i : i + n])) for i in range(len(sequence) - n + 1)]
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return float(np.mean(shares)) if shares else float("nan")


def token_entropy(sequences: list[np.ndarray]) -> float:
    """Entropy in nats of the token counts within a sequence, mean over sequences; low means repetition."""
    values = []
    for sequence in sequences:
        if len(sequence):
            _, counts = np.unique(sequence, return_counts=True)
            p = counts / counts.sum()
            values.append(float(-(p * np.log(p)).sum()))
    return float(np.mean(values)) if values else float("nan")

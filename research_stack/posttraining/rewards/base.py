"""What every reward is, and the one way to call one: whatever breaks its contract is a single clear line. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

SHOWN = 60  # characters of a text in a message


class RewardError(ValueError):
    """A reward failed or broke its contract; the message names it and what it was given."""


class Reward(Protocol):
    """Rewards of completions. The reward of a pair may not depend on the pairs beside it.

    - name: one word, for logs and messages.
    """

    name: str

    def check(self) -> None:
        """Raise ValueError or OSError with one line when the reward cannot work (a missing file or package); takes
        under a second.
        """

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """(n,) float64, finite: the reward of each completion as the answer to the prompt at its index."""
        ...


def call_reward(reward: Reward, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    """(n,) float64: what the reward says, once it is certain that it kept its contract.

    Raises RewardError (a ValueError) in one line when prompts and completions differ in number, when the result is no
    array of n finite real numbers, and when the reward raises: then with the pair it failed on, and the error as the
    cause.
    """
    if len(prompts) != len(completions):
        raise RewardError(
            f"reward={reward.name}: {len(prompts)} prompts came with {len(completions)} completions; there must be one"
            " each"
        )
    try:
        values = reward(prompts, completions)
    except RewardError:
        raise
    except Exception as error:
        at, cause = _failing_pair(reward, prompts, completions, error)
        pair = f" on prompt {quoted(prompts[at])} and completion {quoted(completions[at])}" if len(prompts) else ""
        raise RewardError(
            f"reward={reward.name} failed{pair}: {type(cause).__name__}: {' '.join(str(cause).split())}"
        ) from cause
    return _validated(reward.name, values, prompts, completions)


def _validated(name: str, values: Any, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    """The values as float64 (n,), or the line that says what is wrong with them."""
    if not isinstance(values, np.ndarray):
        raise RewardError(
            f"reward={name} returned a {type(values).__name__}, it must return a numpy array of one number per"
            " completion"
        )
    if values.dtype.kind not in "fiub":
        raise RewardError(f"reward={name} returned an array of {values.dtype}, it must hold real numbers")
    if values.shape != (len(completions),):
        raise RewardError(
            f"reward={name} returned shape {values.shape} for {len(completions)} completions, it must be"
            f" ({len(completions)},)"
        )
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        at = int(wrong[0])
        raise RewardError(
            f"reward={name} gave {values[at]} to {len(wrong)} of {len(values)} completions, the first one"
            f" {quoted(completions[at])} to the prompt {quoted(prompts[at])}; rewards must be finite"
        )
    return values.astype(np.float64)


def _failing_pair(
    reward: Reward, prompts: Sequence[str], completions: Sequence[str], error: Exception
) -> tuple[int, Exception]:
    """(index, error) of the first pair on which the reward fails alone; the first pair and the batch's error if none
    does.
    """
    for at in range(len(prompts)):
        try:
            reward(prompts[at : at + 1], completions[at : at + 1])
        except Exception as alone:
            return at, alone
    return 0, error


def quoted(text: Any) -> str:
    """A text in one line and in quotation marks, cut where it is long."""
    line = repr(text)
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"

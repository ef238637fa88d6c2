"""What a policy came to, in words: how often right, how many different right answers, and where it began."""

from __future__ import annotations

import math
from collections.abc import Mapping

from research_stack.metrics.interval import FEW
from research_stack.reporting.curves import series
from research_stack.reporting.measured import FEWER_THAN_WANTED, HELD_OUT, NAME, largest, parts
from research_stack.reporting.reading import RunFiles, real, reals

REPLY, REWARD, POLICY = "train/loss_reply", "train/reward", "train/loss_policy"
FIRST = "pass@1"
PHASE_WORDS = {"SFT": "SFT", "PolychromicSFT": "polychromic SFT", "GRPO": "GRPO"}


def answers(run: RunFiles) -> str:
    """A sentence on the trained prompts beside the phase before, and one on held-out prompts where there are enough;
    empty if nothing was measured.
    """
    own = of_result(run)
    if FIRST not in own:
        return _on_the_way(run)
    distinct = largest(own, "unique_correct")
    spread = (
        ""
        if distinct is None
        else (
            f", with {own[distinct]:.1f} different right answers among"
            f" {parts(distinct)[1]}{_between(run, distinct, 1.0, '')}"
        )
    )
    sentence = (
        f"Right at the first try {percent(own[FIRST])} of the"
        f" time{_between(run, FIRST, 100.0, ' %')}{spread}{_began(run, distinct)}."
    )
    return sentence + _held_out(run)


def of_result(run: RunFiles) -> dict[str, float]:
    """{metric: value} of result.json, those of held-out prompts with `held_out_` before them; finite ones."""
    return {
        key.removeprefix(NAME): value
        for key, value in run.metrics.items()
        if key.startswith(NAME) and math.isfinite(value)
    }


def percent(share: float) -> str:
    """84 %; 0.4 % where rounding would leave nothing, 99.6 % where it would leave all."""
    return f"{100 * share:.1f} %" if 0 < share < 0.01 or 0.99 < share < 1 - 1e-6 else f"{100 * share:.0f} %"


def _row(run: RunFiles, metric: str, side: str = "trained") -> Mapping[str, str]:
    return next(
        (row for row in run.tables.get("passk", []) if row.get("metric") == metric and row.get("prompts") == side), {}
    )


def _between(run: RunFiles, metric: str, factor: float, unit: str) -> str:
    """ " (79 to 88 %)"; empty without an interval, or where too few prompts stand behind it."""
    low, high, n = reals(_row(run, metric), "low", "high", "n")
    if not (math.isfinite(low) and math.isfinite(high) and n >= FEW):
        return ""
    form = ".0f" if factor == 100.0 else ".1f"
    return f" ({factor * low:{form}} to {factor * high:{form}}{unit})"


def _began(run: RunFiles, distinct: str | None) -> str:
    """ "; after SFT it was 55 % and 15.7": of the phase before, by the same evaluation, or at step 0 of the run's own
    dynamics.
    """
    if not run.earlier:
        return ""
    before = run.earlier[-1]
    same = before.setting("eval") is not None and before.setting("eval") == run.setting("eval")
    known = of_result(before) if same else {}
    if FIRST not in known:
        known = dynamics_at(run, first=True)
    if FIRST not in known:
        return ""
    method = str(before.setting("method._target_") or "").rpartition(".")[2]
    wide = f" and {known[distinct]:.1f}" if distinct in known else ""
    return f"; after {PHASE_WORDS.get(method, before.name)} it was {percent(known[FIRST])}{wide}"


def _held_out(run: RunFiles) -> str:
    own = of_result(run)
    n = real(_row(run, FIRST, "held_out").get("n"))
    if HELD_OUT + FIRST not in own or not n >= FEWER_THAN_WANTED:
        return ""
    return f" On {n:.0f} held-out prompts it is {percent(own[HELD_OUT + FIRST])}."


def dynamics_at(run: RunFiles, first: bool) -> dict[str, float]:
    """{metric: value} of the first measurement while training, if that was made on trained prompts, or of the last
    one.
    """
    points = run.dynamics.get("points")
    points = (
        [point for point in points if isinstance(point, Mapping) and isinstance(point.get("metrics"), Mapping)]
        if isinstance(points, list)
        else []
    )
    if not points or (first and (run.dynamics.get("which") != "trained" or points[0].get("step") != 0)):
        return {}
    bands = points[0 if first else -1]["metrics"]
    found = {str(name): real(band.get("value")) for name, band in bands.items() if isinstance(band, Mapping)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _on_the_way(run: RunFiles) -> str:
    """What the last measurement while training says; empty without one."""
    known = dynamics_at(run, first=False)
    if FIRST not in known:
        return ""
    step, distinct = real(run.dynamics["points"][-1].get("step")), largest(known, "unique_correct")
    where = {"held_out": " on held-out prompts"}.get(str(run.dynamics.get("which")), "")
    wide = f", with {known[distinct]:.1f} different right answers among {parts(distinct)[1]}" if distinct else ""
    return f"At step {step:,.0f} right at the first try {percent(known[FIRST])} of the time{where}{wide}."


def last_reward(run: RunFiles) -> str:
    """The last reward of a run that has no loss worth reading, as a sentence; empty for others."""
    points = series(run.history, REWARD)
    return f"The last training reward was {points[-1][1]:.3f}." if points and series(run.history, POLICY) else ""


def glance(run: RunFiles) -> dict[str, str]:
    """The numbers on top of the page."""
    own, found = of_result(run), {}
    if FIRST in own:
        found["right at the first try"] = percent(own[FIRST])
    if distinct := largest((name for name in own if not name.startswith(HELD_OUT)), "unique_correct"):
        found[f"different right of {parts(distinct)[1]}"] = f"{own[distinct]:.1f}"
    if rewards := [value for _, value in series(run.history, REWARD)]:
        tail = rewards[-max(1, len(rewards) // 10) :]
        found["reward in training"] = f"{sum(tail) / len(tail):.3f}"
    return found

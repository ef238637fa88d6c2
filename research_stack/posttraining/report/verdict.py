"""What a policy came to, in words: how often correct, how many unique correct answers, and where it began."""

from __future__ import annotations

import math
from collections.abc import Mapping

from research_stack.metrics.interval import FEW
from research_stack.posttraining.report.names import ENOUGH_PROMPTS, HELD_OUT, PREFIX, largest, parts, percent
from research_stack.reporting.run_files import RunFiles, real, reals

FIRST = "pass@1"
METHODS = {"SFT": "SFT", "PolychromicSFT": "polychromic SFT", "GRPO": "GRPO"}
DYNAMICS = "dynamics.json"


def method_name(run: RunFiles) -> str:
    """SFT, polychromic SFT, GRPO; the run's own name for another method."""
    method = str(run.setting("method._target_") or run.json(DYNAMICS).get("method") or "").rpartition(".")[2]
    return METHODS.get(method, run.name)


def verdict(run: RunFiles) -> str:
    """A sentence on the trained prompts beside the phase before, and one on held-out prompts where there are enough;
    empty if nothing was measured.
    """
    own = of_result(run)
    if FIRST not in own:
        return ""
    unique = largest(own, "unique_correct")
    answers = (
        ""
        if unique is None
        else (
            f", with {own[unique]:.1f} unique correct answers among {parts(unique)[1]}{_between(run, unique, 1.0, '')}"
        )
    )
    sentence = (
        f"Correct at the first try {percent(own[FIRST])} of the"
        f" time{_between(run, FIRST, 100.0, ' %')}{answers}{_began(run, unique)}."
    )
    return sentence + _held_out(run)


def of_result(run: RunFiles) -> dict[str, float]:
    """{metric: value} of result.json, those of held-out prompts with `held_out_` before them; finite ones."""
    return {
        key.removeprefix(PREFIX): value
        for key, value in run.metrics.items()
        if key.startswith(PREFIX) and math.isfinite(value)
    }


def _row(run: RunFiles, metric: str, side: str = "trained") -> Mapping[str, str]:
    return next((row for row in run.table("passk") if row.get("metric") == metric and row.get("prompts") == side), {})


def _between(run: RunFiles, metric: str, factor: float, unit: str) -> str:
    """ " (79 to 88 %)"; empty without an interval, or where too few prompts are behind it."""
    low, high, n = reals(_row(run, metric), "low", "high", "n")
    if not (math.isfinite(low) and math.isfinite(high) and n >= FEW):
        return ""
    form = ".0f" if factor == 100.0 else ".1f"
    return f" ({factor * low:{form}} to {factor * high:{form}}{unit})"


def _began(run: RunFiles, unique: str | None) -> str:
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
    answers = f" and {known[unique]:.1f}" if unique in known else ""
    return f"; after {method_name(before)} it was {percent(known[FIRST])}{answers}"


def _held_out(run: RunFiles) -> str:
    own = of_result(run)
    n = real(_row(run, FIRST, "held_out").get("n"))
    if HELD_OUT + FIRST not in own or not n >= ENOUGH_PROMPTS:
        return ""
    return f" On {n:.0f} held-out prompts it is {percent(own[HELD_OUT + FIRST])}."


def dynamics_at(run: RunFiles, first: bool) -> dict[str, float]:
    """{metric: value} of the first measurement while training, if that was made on trained prompts, or of the last
    one.
    """
    dynamics = run.json(DYNAMICS)
    points = dynamics.get("points")
    points = (
        [point for point in points if isinstance(point, Mapping) and isinstance(point.get("metrics"), Mapping)]
        if isinstance(points, list)
        else []
    )
    if not points or (first and (dynamics.get("which") != "trained" or points[0].get("step") != 0)):
        return {}
    bands = points[0 if first else -1]["metrics"]
    found = {str(name): real(band.get("value")) for name, band in bands.items() if isinstance(band, Mapping)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def last_measurement(run: RunFiles) -> str:
    """What the last measurement while training says; empty without one."""
    known = dynamics_at(run, first=False)
    if FIRST not in known:
        return ""
    dynamics = run.json(DYNAMICS)
    step, unique = real(dynamics["points"][-1].get("step")), largest(known, "unique_correct")
    where = {"held_out": " on held-out prompts"}.get(str(dynamics.get("which")), "")
    answers = f", with {known[unique]:.1f} unique correct answers among {parts(unique)[1]}" if unique else ""
    return f"At step {step:,.0f} correct at the first try {percent(known[FIRST])} of the time{where}{answers}."


def numbers(run: RunFiles) -> dict[str, str]:
    """Of the evaluation, on top of the page."""
    own, found = of_result(run), {}
    if FIRST in own:
        found["correct at the first try"] = percent(own[FIRST])
    if unique := largest((name for name in own if not name.startswith(HELD_OUT)), "unique_correct"):
        found[f"unique correct of {parts(unique)[1]}"] = f"{own[unique]:.1f}"
    return found

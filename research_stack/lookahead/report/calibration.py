"""What a run of a next-token model shows of `LookaheadCalibration`: its likelihood, exact and no bound, and how well it
predicts what its choices will cost.
"""

from __future__ import annotations

import math

from research_stack.lookahead.report import future_loss, next_token, overlays, selective
from research_stack.reporting.contract import Lines, Metric, Report, SweepReport
from research_stack.reporting.elements import between
from research_stack.reporting.run_files import RunFiles

PREFIX = "lookahead/"  # of the metrics in result.json


def verdict(run: RunFiles) -> str:
    """A sentence on the held-out loss and on the confidence head; empty if neither was measured."""
    value, low, high = _three(run, "nats", "nats_low", "nats_high")
    parts = (
        [f"{value:.2f} nats per held-out token{between(low, high)}{_beside_trigram(run)}"]
        if math.isfinite(value)
        else []
    )
    parts += [words] if (words := _confidence(run)) else []
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _three(run: RunFiles, *names: str) -> tuple[float, float, float]:
    value, low, high = (run.metric(PREFIX + name) for name in names)
    return value, low, high


def numbers(run: RunFiles) -> dict[str, str]:
    """Bits per byte, on top of the page."""
    bits = run.metric(PREFIX + "bits_per_byte")
    return {"bits per byte": f"{bits:.3f}"} if math.isfinite(bits) else {}


def terminal(run: RunFiles) -> list[Lines | str]:
    """Both tables."""
    return [*next_token.terminal(run), *future_loss.terminal(run)]


def _beside_trigram(run: RunFiles) -> str:
    gain, low, high = _three(run, "gain_over_trigram", "gain_low", "gain_high")
    if not math.isfinite(gain):
        return ""
    if low <= 0 <= high:
        return f", level with a trigram (difference {gain:+.2f}, within its interval)"
    return f", {gain:.2f} below a trigram" if gain > 0 else f", still {-gain:.2f} above a trigram"


def _confidence(run: RunFiles) -> str:
    """What the head explains beside what the entropy explains; empty without a head."""
    value, low, high = _three(run, "r2", "r2_low", "r2_high")
    if not math.isfinite(value):
        return ""
    entropy = run.metric(PREFIX + "r2_entropy")
    control = f", an entropy fit {100 * entropy:.0f} %" if math.isfinite(entropy) else ""
    if value <= 0:
        return (
            "the confidence head explains none of the variance of the future loss: R²"
            f" {value:.2f}{between(low, high)}{control}"
        )
    spread = between(100 * low, 100 * high, "{:.0f}", " %")
    return f"the confidence head explains {100 * value:.0f} % of the variance of the future loss{spread}{control}"


NATS, NUMBER = "nats per token", "{:.3f}"
METRICS = {
    "nats": Metric("held-out loss", NATS, "lower", headline=True, form=NUMBER, interval=True),
    "r2": Metric("R² of the confidence head", better="higher", headline=True, form=NUMBER, interval=True),
    "bits_per_byte": Metric("bits per byte", better="lower", plot=False, form=NUMBER),
    "unigram": Metric("unigram model", NATS, plot=False, form=NUMBER),
    "trigram": Metric("trigram model", NATS, plot=False, form=NUMBER),
    "gain_over_trigram": Metric(
        "nats below a trigram", better="higher", form=NUMBER, interval=(f"{PREFIX}gain_low", f"{PREFIX}gain_high")
    ),
    "accuracy": Metric("accuracy of the likeliest token", better="higher", form="{:.1%}"),
    "ece": Metric("calibration error (ECE)", better="lower", form=NUMBER),
    "ece_equal_mass": Metric("calibration error (ECE), equal mass", better="lower", form=NUMBER),
    "brier": Metric("Brier score", better="lower", form=NUMBER),
    "r2_entropy": Metric("R² of an entropy fit", form=NUMBER),
    "r2_probe": Metric("R² of a linear probe", form=NUMBER),
    "r2_ceiling": Metric("R² of the noise ceiling", form=NUMBER),
    "r2_over_entropy": Metric("R² above an entropy fit", better="higher", form=NUMBER, interval=True),
    "r2_of_mean": Metric("R² of the mean future loss", form=NUMBER),
    "r2_own_correct": Metric("R² where the own token is correct", form=NUMBER),
    "r2_own_wrong": Metric("R² where the own token is wrong", form=NUMBER),
    "pearson": Metric("Pearson, predicted and future loss", form=NUMBER),
    "spearman": Metric("Spearman, predicted and future loss", form=NUMBER),
    "slope": Metric("slope of the future loss on the prediction", form=NUMBER),
    "bias": Metric("bias of the prediction", "nats", form="{:+.3f}"),
    "calibration_error": Metric("calibration error, nats", better="lower", form=NUMBER),
    "future": Metric("future loss", "nats", form=NUMBER),
    "future_std": Metric("standard deviation of the future loss", "nats", form=NUMBER),
    "own_accuracy": Metric("accuracy of the own token", form="{:.1%}"),
    "rollout_gap": Metric("loss with confidences fed token by token, less the usual", "nats", form="{:+.4f}"),
    "aurc_confidence_head_future": Metric("AURC of the head, future loss", form=NUMBER),
    "aurc_confidence_head_next": Metric("AURC of the head, next-token loss", form=NUMBER),
    "aurc_entropy_future": Metric("AURC of the entropy, future loss", form=NUMBER),
    "aurc_entropy_next": Metric("AURC of the entropy, next-token loss", form=NUMBER),
    "coverage_at_*": Metric("coverage at a risk of {0}", form="{:.1%}"),
}
REPORT = Report(
    metrics={PREFIX + name: metric for name, metric in METRICS.items()},
    results=(next_token.next_token, future_loss.predictors, selective.risk_coverage, selective.abstention),
    verdict=verdict,
    numbers=numbers,
    terminal=terminal,
    sweep=SweepReport(sections=(overlays.section,)),
)

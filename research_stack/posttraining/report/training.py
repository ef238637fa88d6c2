"""Training curves of a policy: reward and what happens to its answers. The loss of a policy gradient is a surrogate
whose height says nothing, so it is not drawn; that of replies (SFT) is.
"""

from __future__ import annotations

from dataclasses import dataclass

from research_stack.posttraining.report.verdict import last_measurement
from research_stack.reporting.charts import Chart, Series, axis_of, line_chart
from research_stack.reporting.contract import Metric, Report, SweepReport, TrainingCurve
from research_stack.reporting.curves import Point, even, quantile, series, smooth, thin
from research_stack.reporting.elements import note
from research_stack.reporting.html import Node, el
from research_stack.reporting.run_files import RunFiles
from research_stack.reporting.training_curves import loss_chart, norm_chart

REPLY, POLICY, REWARD = "train/loss_reply", "train/loss_policy", "train/reward"
NATS = "nats per reply token"


@dataclass(frozen=True)
class Curve:
    """A logged number.

    - key: in metrics.jsonl; held_out: its like on held-out prompts, or "". factor: 100 for shares, which are drawn in
      percent.
    """

    key: str
    title: str
    small: str
    held_out: str = ""
    factor: float = 1.0


CURVES = (
    Curve(REWARD, "Reward", "mean of the answers drawn", "val/reward"),
    Curve("train/entropy", "Entropy", "nats per token"),
    Curve("train/kl", "KL from the reference", "nats per token"),
    Curve("train/clip_ratio", "Clipped", "% of tokens", factor=100.0),
    Curve("train/completion_length", "Completion length", "tokens per answer"),
    Curve("train/truncated", "Truncated", "% of answers", factor=100.0),
    Curve("train/frac_reward_zero_std", "Groups of equal reward", "% of groups: nothing to learn from", factor=100.0),
    Curve("train/unique_fraction", "Unique answers", "% of a group", factor=100.0),
    Curve("train/different_pairs", "Answers that differ", "% of the pairs of a group", factor=100.0),
)


def values(run: RunFiles, curve: Curve) -> tuple[list[Point], list[Point]]:
    """(training, held out), in the curve's units."""
    own, other = (series(run.history, key) if key else [] for key in (curve.key, curve.held_out))
    return [(x, curve.factor * y) for x, y in own], [(x, curve.factor * y) for x, y in other]


def changing(run: RunFiles) -> tuple[list[Curve], list[tuple[Curve, float]]]:
    """(the curves that change, those that are constant with their value)."""
    logged = [(curve, [y for _, y in values(run, curve)[0]]) for curve in CURVES]
    logged = [(curve, ys) for curve, ys in logged if ys]
    found = [curve for curve, ys in logged if max(ys) - min(ys) > 1e-9]
    return found, [(curve, ys[0]) for curve, ys in logged if curve not in found]


def training(run: RunFiles) -> Node:
    """The section; None for a run that trained no policy."""
    if not any(series(run.history, key) for key in (REPLY, POLICY)):
        return None
    reply, norm = series(run.history, REPLY), series(run.history, "train/grad_norm")
    charts: list[Chart] = []
    if reply:
        held_out = series(run.history, "val/loss_reply")
        charts.append(loss_chart(reply, held_out, NATS, "Loss of the replies", table_name="training_loss"))
    charts += [_chart(run, curve) for curve in changing(run)[0]]
    charts += [norm_chart(norm, run.setting("optimization.clip"))] if norm else []
    return [el("h2", "Training"), el("div", charts, class_="charts"), note(words(run))]


def words(run: RunFiles) -> str:
    """What is drawn, what is not, and what is constant."""
    found = []
    if series(run.history, POLICY):
        found.append("The loss of a policy gradient is a surrogate: its height says nothing, and it is not drawn.")
    if series(run.history, REPLY):
        found.append("The loss is the cross entropy of the reply's tokens behind the prompt, its end included.")
    if any(series(run.history, curve.held_out) for curve in CURVES if curve.held_out):
        found.append("Dots are held-out prompts.")
    constant = [f"{curve.title.lower()} {value:g} ({curve.small})" for curve, value in changing(run)[1]]
    return " ".join([*found, *([f"The same at every step: {', '.join(constant)}."] if constant else [])])


def _chart(run: RunFiles, curve: Curve) -> Chart:
    own, other = values(run, curve)
    mean = smooth(own)
    ys = [y for _, y in own]
    y = axis_of(
        [quantile(ys, 0.01), quantile(ys, 0.99), *(v for _, v in mean), *(v for _, v in other)],
        margin=0.08,
        floor=0.0 if min(ys) >= 0 else None,
    )
    lines = [
        Series(thin(own), opacity=0.22, width=1, title="training"),
        Series(even(mean), width=2, title="training, smoothed"),
    ]
    lines += [Series(other, color="var(--c1)", dots=3.2, width=1.4, title="held-out prompts")] if other else []
    legend = [("var(--c0)", "training, smoothed", False), ("var(--c1)", "held-out prompts", True)] if other else []
    return line_chart(
        lines,
        axis_of([0.0, own[-1][0]], "optimizer step", margin=0),
        y,
        f"{curve.title} over {own[-1][0]:.0f} steps, ending at {mean[-1][1]:.3g}",
        name=f"training_{curve.key.partition('/')[2]}",
        title=curve.title,
        note=curve.small,
        legend=legend,
    )


def progress(run: RunFiles) -> str:
    """The last measurement while training, else the last reward, else the last loss of the replies."""
    rewards, replies = (series(run.history, key) for key in (REWARD, REPLY))
    if found := last_measurement(run):
        return found
    if rewards and series(run.history, POLICY):
        return f"The last training reward was {rewards[-1][1]:.3f}."
    return f"The last training loss was {replies[-1][1]:.3f} {NATS}." if replies else ""


def numbers(run: RunFiles) -> dict[str, str]:
    """The mean reward over the last tenth of training, on top of the page."""
    rewards = [value for _, value in series(run.history, REWARD)]
    last = rewards[-max(1, len(rewards) // 10) :]
    return {"reward in training": f"{sum(last) / len(last):.3f}"} if last else {}


REPORT = Report(
    metrics={
        "train/reward": Metric("training reward", better="higher"),
        "val/reward": Metric("held-out reward", better="higher"),
        "val/pass@*": Metric("held out in training: pass@{0}", better="higher", plot=False),
        "train/loss_reply": Metric("loss of the replies", NATS, "lower"),
        "val/loss_reply": Metric("held-out loss of the replies", NATS, "lower"),
        "train/loss": Metric("training loss", plot=False),
        "val/loss": Metric("validation loss", plot=False),
        **{curve.key: Metric(curve.title.lower(), curve.small, plot=False) for curve in CURVES[1:]},
    },
    training=training,
    progress=progress,
    numbers=numbers,
    measured_by="passk",
    sweep=SweepReport(curve=TrainingCurve(REPLY, "val/loss", note="of the replies, nats per token, smoothed")),
)

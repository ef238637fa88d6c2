"""The parts of a run's report, each from the run's files; a part without files is None."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from research_stack.metrics.interval import FEW, few_words
from research_stack.reporting import film as films
from research_stack.reporting import latentwire_words
from research_stack.reporting.charts import Series, axis_of, line_chart
from research_stack.reporting.curves import Point, even, number, quantile, series, smooth, thin, ticks
from research_stack.reporting.html import Html, el
from research_stack.reporting.policy_words import answers, last_reward
from research_stack.reporting.policy_words import glance as policy_glance
from research_stack.reporting.reading import RunFiles, real
from research_stack.reporting.reward_words import correlation
from research_stack.reporting.verdicts import FAMILY, held_out

INTERVALS = f"The interval, over documents by Student's t and meant for {FEW} of them or more,"
NOT_BOUNDED = (
    "The bound above is not one of these texts' probability: a decoder of few steps draws the tokens of a step "
    "independently, greedily or from a cut law, so it writes by a law of its own. Only a sampler that follows the "
    "process in many small steps comes near the bounded one."
)
TEXT_LIMIT = 4000  # characters of a sample
SAMPLE_LIMIT = 6  # samples of a decoder
COLORS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)")


# Words ---------------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """43 s, 2 min 58 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def moment(time: Any) -> str:
    """2026-11-21 00:43 UTC of an ISO 8601 time; empty without one."""
    return str(time)[:16].replace("T", " ") + " UTC" if time else ""


def count(value: Any) -> str:
    """1,234,567; whatever is no number as it is."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def verdict(run: RunFiles) -> str:
    """What the run came to, in a sentence."""
    prefix = {
        "failed": f"The run failed at step {run.steps:,}. ",
        "interrupted": f"The run was interrupted at step {run.steps:,}. ",
        "running": f"The run is under way, at step {run.steps:,}. ",
        "unknown": "The folder has no result. ",
    }.get(run.status, "")
    found = headline(run)
    if found is None:
        rest = (
            answers(run)
            or held_out(run)
            or correlation(run.metrics)
            or latentwire_words.verdict(run)
            or latentwire_words.last_step(run)
            or last_loss(run)
        )
        return (prefix + rest) or "The run ended; nothing was measured."
    value, _, _ = found
    sentence = f"{prefix}At most {value:.2f} nats per held-out token, a perplexity of {math.exp(value):,.4g} or less"
    gain = tuple(
        run.metrics.get(f"likelihood/{key}", math.nan) for key in ("gain_over_trigram", "gain_low", "gain_high")
    )
    return sentence + comparison(gain) + "."


def comparison(gain: tuple[float, float, float]) -> str:
    """How the bound stands to the trigram, from the difference and its interval."""
    value, low, high = gain
    if not math.isfinite(value):
        return ""
    if not low <= 0 <= high:
        side = f"{value:.2f} below a trigram model" if value > 0 else f"still {-value:.2f} above a trigram model"
        return f": {side} of the same tokens"
    return f": level with a trigram model of the same tokens (difference {value:+.2f}, within its interval)"


def headline(run: RunFiles) -> tuple[float, float, float] | None:
    """(bound, low, high) in nats per token; None if none was measured."""
    value, low, high = (run.metrics.get(f"likelihood/{key}", math.nan) for key in ("bound", "bound_low", "bound_high"))
    return (value, low, high) if math.isfinite(value) else None


def last_loss(run: RunFiles) -> str:
    """The last logged training loss, or the reward where the loss is a mere surrogate, as a sentence; empty without
    one.
    """
    if words := last_reward(run):
        return words
    of_model, of_replies = series(run.history, "train/loss_lm"), series(run.history, "train/loss_reply")
    points, unit = (
        (of_model, "nats per token")
        if of_model
        else (of_replies, "nats per reply token")
        if of_replies
        else (series(run.history, "train/loss"), loss_unit(run))
    )
    return f"The last training loss was {points[-1][1]:.3f} {unit}." if points else ""


def loss_unit(run: RunFiles) -> str:
    """What the training loss is measured in."""
    method = str(run.setting("method._target_")).rpartition(".")[2]
    if _is_reward_model(run):
        return (
            "Huber's loss, standardised target"
            if run.setting("method.loss") == "huber"
            else "squared standard deviations of the target"
        )
    if method == "SFT":
        return "nats per reply token"
    if latentwire_words.is_wire(run):
        return "in all, the weighted sum of its parts"
    return {"tokens": "nats per token", "answer": "nats per answer token"}.get(
        str(run.setting("method.loss.normalize")), "nats per position"
    )


def _is_reward_model(run: RunFiles) -> bool:
    return str(run.setting("method._target_")).endswith(".RewardModel")


def loss_note(run: RunFiles) -> str:
    """What is drawn as the loss, and what it is not."""
    if _is_reward_model(run):
        mean = ": always predicting the mean gives about 1" if run.setting("method.loss") == "mse" else ""
        return f"The loss is {loss_words(run)}, in {loss_unit(run)}{mean}. Dots are held-out pairs."
    return (
        f"The loss is {loss_words(run)}, in {loss_unit(run)}. It is what the optimizer sees, averaged over noise"
        " levels: no likelihood, and not comparable between losses or corruptions."
    )


def loss_words(run: RunFiles) -> str:
    """Which loss was trained, from its config."""
    if _is_reward_model(run):
        return "the error of the predicted engagement"
    positions, weight = run.setting("method.loss.positions"), run.setting("method.loss.weight")
    if positions is None and weight is None:
        return "training loss"
    where = {"masked": "masked positions", "corrupted": "corrupted positions", "all": "all eligible positions"}.get(
        str(positions), str(positions)
    )
    how = {"none": "unweighted", "inv_t": "weighted by 1/p"}.get(str(weight), f"weight {weight}")
    kind = "bound terms" if weight in ("elbo", "clip", "dynamic") else "cross entropy"
    return f"{kind} at {where}, {how}"


# Header --------------------------------------------------------------------------------------------------------------


def header(run: RunFiles) -> list[Html]:
    """Name, status, verdict, the figures at a glance, what went wrong."""
    facts = glance(run)
    return [
        el(
            "h1",
            el("b", run.name),
            el("span", run.status, class_=f"pill {run.status}"),
            el("time", moment(run.result.get("finished") or run.result.get("started"))),
        ),
        el("p", verdict(run), class_="verdict"),
        el("dl", [el("div", el("dt", key), el("dd", value)) for key, value in facts.items()], class_="facts"),
        el("p", run.error, class_="error") if run.error else Html(""),
        *(el("p", problem, class_="error") for problem in run.problems),
    ]


def glance(run: RunFiles) -> dict[str, str]:
    """The few numbers on top."""
    found, metrics = {}, run.metrics
    if "likelihood/bits_per_byte" in metrics:
        found["bits per byte"] = f"≤ {metrics['likelihood/bits_per_byte']:.3f}"
    elif math.isfinite(metrics.get(f"{FAMILY}bits_per_byte", math.nan)):
        found["bits per byte"] = f"{metrics[f'{FAMILY}bits_per_byte']:.3f}"
    found |= policy_glance(run) | latentwire_words.glance(run)
    if math.isfinite(pearson := metrics.get("reward/pearson", math.nan)):
        found["Pearson, unseen prompts"] = f"{pearson:.2f}"
    model, data = run.run.get("model") or {}, run.run.get("data") or {}
    if isinstance(model.get("parameters"), int):
        found["parameters"] = number(float(f"{model['parameters']:.3g}"))
    if isinstance(data.get("train_tokens"), int):
        found["corpus tokens"] = number(float(f"{data['train_tokens']:.3g}"))
    if run.steps:
        found["optimizer steps"] = f"{run.steps:,}"
    if run.seconds:
        found["time"] = duration(run.seconds)
    return found


# Likelihood ----------------------------------------------------------------------------------------------------------


def likelihood(run: RunFiles) -> list[Html] | None:
    """The bound beside its baselines: a picture, the table, what it means."""
    rows = [row for row in run.likelihood if math.isfinite(real(row.get("nats_per_token")))]
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: -real(row["nats_per_token"]))
    sequences, tokens, few = rows[0].get("sequences", "?"), rows[0].get("tokens", "?"), few_documents(rows)
    return [
        el("h2", "Likelihood of held-out text"),
        el("p", "Nats per token, lower is better; bars are 95 % intervals."),
        intervals([_bar(row) for row in rows]),
        el(
            "p",
            f"The same {int(real(tokens)):,} tokens in {int(real(sequences)):,} validation sequences for all rows;"
            " separators are context only. An upper bound holds for any noise process: the model's own -ln p is this"
            " or less. The model's own law is that of infinitely many small steps: samplers of few steps write by"
            f" other laws, which it does not bound. {INTERVALS} covers the choice of documents and the noise of the"
            f" estimate, not a new training run.{few}",
            class_="note",
        ),
        el(
            "div",
            listing(
                ("", "nats per token", "95 % interval", "perplexity", "bits per byte", "kind"),
                [_cells(row) for row in rows],
                text=(0, 5),
            ),
            class_="scroll",
        ),
    ]


def few_documents(rows: Sequence[Mapping[str, str]]) -> str:
    """What is to be said, after a blank, of intervals over few documents; empty where there are enough, or nobody
    counted them.
    """
    count = real(rows[0].get("documents")) if rows else math.nan
    words = few_words(int(count), "documents") if math.isfinite(count) else ""
    return f" {words}" if words else ""


def _bar(row: Mapping[str, str]) -> dict[str, Any]:
    value, low, high = (real(row.get(key)) for key in ("nats_per_token", "low", "high"))
    baseline = row.get("kind") == "baseline"
    return {
        "name": row["name"] if baseline else "this run",
        "small": "n-gram model" if baseline else f"upper bound, {row['name']}",
        "value": value,
        "low": low,
        "high": high,
        "color": "var(--c5)" if baseline else "var(--c0)",
        "head": "headline" in row.get("kind", ""),
        "limit": "" if baseline else "≤ ",
    }


def intervals(bars: Sequence[Mapping[str, Any]]) -> Html:
    """Values with their intervals on one axis, as HTML, which takes any width."""
    ends = [v for bar in bars for v in (bar["low"], bar["value"], bar["high"]) if math.isfinite(v)]
    axis = axis_of(ends, margin=0.12)

    def share(value: float) -> float:
        return 100 * axis.place(value)

    cells: list[Html] = []
    for bar in bars:
        low, high = (v if math.isfinite(v) else bar["value"] for v in (bar["low"], bar["high"]))
        head = " head" if bar["head"] else ""
        spread = f"± {(high - low) / 2:.3f}" if math.isfinite(bar["low"]) else ""
        cells += [
            el("div", bar["name"], el("small", bar["small"]), class_=f"name{head}"),
            el(
                "div",
                el("span", class_="whisk", style=f"left:{share(low):.2f}%;width:{share(high) - share(low):.2f}%"),
                el("span", class_="dot", style=f"left:{share(bar['value']):.2f}%"),
                class_="track",
                style=f"color:{bar['color']}",
            ),
            el("div", f"{bar['limit']}{bar['value']:.3f}", el("small", spread), class_=f"value{head}"),
        ]
    marks = [el("span", number(v), style=f"left:{share(v):.2f}%") for v in ticks(axis.low, axis.high, 6)]
    cells += [el("div", class_="blank"), el("div", marks, class_="ticks"), el("div", class_="blank")]
    return el("div", cells, class_="bars")


def _cells(row: Mapping[str, str]) -> tuple[list[str], bool]:
    value, low, high = (real(row.get(key)) for key in ("nats_per_token", "low", "high"))
    sign = "" if row.get("kind") == "baseline" else "≤ "
    interval = f"{low:.3f} to {high:.3f}" if math.isfinite(low) else "-"
    perplexity, bits = real(row.get("perplexity")), real(row.get("bits_per_byte"))
    kind = row.get("kind", "")
    return [
        row["name"],
        f"{sign}{value:.3f}",
        interval,
        f"{sign}{perplexity:,.4g}",
        f"{sign}{bits:.3f}",
        kind,
    ], "headline" in kind


def listing(header: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]], text: Sequence[int] = (0,)) -> Html:
    """Rows of (cells, whether they stand out); the columns in `text` are words, the others numbers."""
    kinds = [None if i in text else "num" for i in range(len(header))]
    head = el("tr", [el("th", text, class_=kind) for text, kind in zip(header, kinds, strict=True)])
    lines = [
        el(
            "tr",
            [el("td", text, class_=kind) for text, kind in zip(cells, kinds, strict=True)],
            class_="head" if strong else None,
        )
        for cells, strong in rows
    ]
    return el("table", el("thead", head), el("tbody", lines))


# Training ------------------------------------------------------------------------------------------------------------


def training(run: RunFiles) -> list[Html] | None:
    """Curves of the loss, the gradient norm and the learning rate."""
    loss, validation = series(run.history, "train/loss"), series(run.history, "val/loss")
    if not loss:
        return None
    norm = series(run.history, "train/grad_norm")
    charts = [loss_chart(loss, validation, loss_unit(run))]
    if norm:
        charts.append(norm_chart(norm, run.setting("optimization.clip")))
    return [el("h2", "Training"), el("div", charts, class_="charts"), el("p", loss_note(run), class_="note")]


def loss_chart(
    loss: Sequence[Point], validation: Sequence[Point], unit: str, title: str = "Loss", log: bool | None = None
) -> Html:
    """Raw and smoothed training loss, validation points; on a log scale if wanted or, by default, if it spans a factor
    of thirty.
    """
    mean = smooth(loss)
    values = [y for _, y in loss]
    shown = [
        quantile(values, 0.002),
        quantile(values, 0.995),
        *(y for _, y in mean[len(mean) // 50 :]),
        *(y for _, y in validation),
    ]
    y = axis_of(shown, log=min(shown) > 0 and (max(shown) > 30 * min(shown) if log is None else log))
    x = axis_of([0.0, loss[-1][0]], "optimizer step", margin=0)
    lines = [
        Series(thin(loss), opacity=0.28, width=1),
        Series(even(mean), width=2),
        Series(validation, color="var(--c1)", dots=3.2, width=1.4, opacity=0.95),
    ]
    chart = line_chart(
        lines, x, y, f"training {title.lower()} over {loss[-1][0]:.0f} steps, ending at {mean[-1][1]:.3f} {unit}"
    )
    entries = [
        ("var(--c0)", "training, smoothed over a fortieth of the run", False),
        *([("var(--c1)", "validation, same loss", True)] if validation else []),
    ]
    return el(
        "figure",
        el("figcaption", f"{title} ", el("small", f"{unit}{', log scale' if y.log else ''}")),
        chart,
        keys(entries),
    )


def norm_chart(norm: Sequence[Point], clip: Any) -> Html:
    """The global gradient norm before clipping, on a log scale, with the clipping threshold."""
    positive = [p for p in norm if p[1] > 0] or [(norm[-1][0], 1.0)]
    limit = float(clip) if isinstance(clip, int | float) and clip > 0 else None
    log_mean = [(step, math.exp(v)) for step, v in smooth([(step, math.log(v)) for step, v in positive])]
    y = axis_of([*(v for _, v in positive), *([limit] if limit else [])], log=True)
    x = axis_of([0.0, norm[-1][0]], "optimizer step", margin=0)
    lines = [
        Series(thin(positive), color="var(--c2)", opacity=0.28, width=1),
        Series(even(log_mean), color="var(--c2)", width=2),
    ]
    entries = [("var(--c2)", "smoothed", False)]
    if limit:
        lines.append(Series([(0.0, limit), (norm[-1][0], limit)], color="var(--faint)", width=1.2))
        entries.append(("var(--faint)", f"clipped above {limit:g}", False))
    chart = line_chart(lines, x, y, f"gradient norm over {norm[-1][0]:.0f} steps, ending at {log_mean[-1][1]:.3g}")
    return el(
        "figure", el("figcaption", "Gradient norm ", el("small", "before clipping, log scale")), chart, keys(entries)
    )


def keys(entries: Sequence[tuple[str, str, bool]]) -> Html:
    """A legend of (colour, text, whether it is a dot)."""
    return el(
        "ul",
        [
            el("li", el("i", class_="dot" if dot else None, style=f"color:{color}"), text)
            for color, text, dot in entries
        ],
        class_="legend",
    )


# Samples and films ---------------------------------------------------------------------------------------------------


def samples(run: RunFiles) -> list[Html] | None:
    """Texts of each decoder beside what they cost."""
    names = list(dict.fromkeys(str(row.get("sampler", "")) for row in run.samples))
    if not names:
        return None
    bounded = any(row.get("kind") != "baseline" for row in run.likelihood)
    return [
        el("h2", "Samples"),
        _decoding(run, names),
        el("p", NOT_BOUNDED, class_="note") if bounded else None,
        el(
            "div",
            [
                el(
                    "section",
                    el("h3", name),
                    [
                        _sample(row)
                        for row in [r for r in run.samples if str(r.get("sampler", "")) == name][:SAMPLE_LIMIT]
                    ],
                )
                for name in names
            ],
            class_="samples",
        ),
    ]


def _sample(row: Mapping[str, Any]) -> Html:
    text, prompt = str(row.get("text", "")), str(row.get("prompt") or "")
    cut = f"… ({len(text) - TEXT_LIMIT:,} more characters)" if len(text) > TEXT_LIMIT else ""
    return el(
        "div",
        el("span", prompt[-TEXT_LIMIT:], class_="prompt") if prompt else None,
        text[:TEXT_LIMIT],
        cut,
        class_="sample",
        tabindex="0",
    )


MEASURES = {
    "calls": ("model calls a text", "{:.1f}"),
    "distinct_2": ("distinct-2", "{:.3f}"),
    "entropy": ("token entropy, nats", "{:.2f}"),
    "changed": ("changed after filled", "{:.1%}"),
    "idle": ("idle steps", "{:.1%}"),
}


def _decoding(run: RunFiles, names: Sequence[str]) -> Html | None:
    """What each decoder cost and did, as a table."""
    rows = []
    for name in names:
        values = [run.metrics.get(f"samples/{name}/{key}", math.nan) for key in MEASURES]
        if any(map(math.isfinite, values)):
            rows.append(
                (
                    [
                        name,
                        *(
                            form.format(v) if math.isfinite(v) else "-"
                            for v, (_, form) in zip(values, MEASURES.values(), strict=True)
                        ),
                    ],
                    False,
                )
            )
    return (
        el("div", listing(("decoder", *(label for label, _ in MEASURES.values())), rows), class_="scroll")
        if rows
        else None
    )


def refinement(run: RunFiles) -> list[Html] | None:
    """The films: a table each, and a player where the script runs."""
    if not run.films:
        return None
    found = [el("h2", "Refinement, step by step"), films.legend()]
    for index, (name, film) in enumerate(run.films.items()):
        found += [
            el("h3", name),
            el("p", f"The first sample, {film.get('calls', '?')} model calls: {films.caption(film)}", class_="note"),
            films.as_table(film),
            *films.player(film, f"film{index}"),
        ]
    return found


# How it was made -----------------------------------------------------------------------------------------------------


def provenance(run: RunFiles) -> list[Html]:
    """Command, code, machine, data; how to run it again; the whole config."""
    facts, git, machine = run.run, run.run.get("git") or {}, run.run.get("machine") or {}
    data, versions = facts.get("data") or {}, facts.get("versions") or {}
    rows: dict[str, Any] = {
        "command": el("code", facts["command"]) if facts.get("command") else None,
        "code": _code(git),
        "seed": facts.get("seed"),
        "config hash": facts.get("hash"),
        "started": moment(run.result.get("started")),
        "finished": moment(run.result.get("finished")),
        "time": duration(run.seconds) if run.seconds else None,
        "machine": _machine(machine),
        "python": facts.get("python"),
        "folder": el("code", str(run.folder)),
    }
    return [
        el("h2", "How it was made"),
        _facts(rows),
        *_again(run),
        (
            _details(
                "Data",
                _facts({key.replace("_", " "): count(value) for key, value in data.items() if value is not None}),
            )
            if data
            else Html("")
        ),
        _details("Versions", _facts(versions)) if versions else Html(""),
        (
            _details("All metrics", _facts({key: f"{value:.6g}" for key, value in run.metrics.items()}))
            if run.metrics
            else Html("")
        ),
        _details("Config", el("pre", run.config_text)) if run.config_text else Html(""),
    ]


def _facts(rows: Mapping[str, Any]) -> Html:
    return el(
        "dl",
        [
            [el("dt", key), el("dd", value if isinstance(value, Html) else str(value))]
            for key, value in rows.items()
            if value not in (None, "")
        ],
        class_="facts2",
    )


def _details(title: str, inside: Html) -> Html:
    return el("details", el("summary", title), inside)


def _code(git: Mapping[str, Any]) -> str | None:
    if not git.get("sha"):
        return None
    patch = (
        f", with the changes in {git['diff']}"
        if git.get("diff")
        else ", with changes that were not kept"
        if git.get("dirty")
        else ""
    )
    return f"{git['sha'][:12]}{' on ' + git['branch'] if git.get('branch') else ''}{patch}"


def _machine(machine: Mapping[str, Any]) -> str | None:
    if not machine:
        return None
    gpus = ", ".join(machine.get("gpus") or [])
    return (
        f"{machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, {machine.get('memory_gib', '?')}"
        f" GiB{', ' + gpus if gpus else ''} ({machine.get('host', '?')})"
    )


def _again(run: RunFiles) -> list[Html]:
    """The commands that repeat, resume, measure and sample."""
    folder, command = shlex.quote(str(run.folder)), run.run.get("command") or "research-stack"
    sha = (run.run.get("git") or {}).get("sha")
    again = f"git checkout {sha[:12]} && {command}" if sha else command
    lines = [("go on where it stopped", f"research-stack run={folder}")] if run.status != "ok" else []
    measures = (
        ""
        if run.tables or latentwire_words.verdict(run)
        else " eval=latentwire"
        if latentwire_words.is_wire(run)
        else " eval=likelihood"
    )
    lines += [
        ("run it again from the start", again),
        ("measure it anew", f"research-stack task=eval run={folder}{measures}"),
        ("sample from it", f"research-stack task=sample run={folder}"),
    ]
    return [el("h3", "Again"), el("pre", "\n".join(f"# {what}\n{text}" for what, text in lines))]

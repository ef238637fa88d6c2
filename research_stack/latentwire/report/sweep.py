"""What a sweep shows: every setting beside the baseline, in words, as a table and a picture for each reader."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from research_stack.latentwire.report import sweep_sizes
from research_stack.latentwire.report.sweep_numbers import (
    F1,
    FIRST,
    GATE,
    SHARE,
    Difference,
    Setting,
    comparable,
    gate,
    key,
    passed,
    readers,
    settings,
)
from research_stack.latentwire.report.words import file_name, joined, share_text
from research_stack.records.sweep_table import Row, SweepTable, show_mean
from research_stack.reporting.charts import Axis, Chart, Series, axis_of, line_chart
from research_stack.reporting.contract import FewColumns, SweepReport
from research_stack.reporting.elements import span
from research_stack.reporting.sweep_axes import label_of

MAX_SETTINGS = 24  # that are drawn
ROW = 35  # height of a setting in a chart
HEADER = ["setting", "seeds", "bytes", "F1", "against the baseline", "95 % interval", "of the text", "FirstTok@1"]


def verdict(table: SweepTable) -> str:
    """What a byte is worth where the sizes of messages were swept, else what came of the settings."""
    return sweep_sizes.verdict(table) or headline(table)


def headline(table: SweepTable) -> str:
    """Whether the gate was passed and what came of the settings, in a sentence; empty for one setting."""
    found = settings(table)
    if len(found) < 2:
        return ""
    values = gate(table)
    if not values:
        return "The baseline, the point with the first value of every swept key, has no result: no feature is compared."
    if not passed(table):
        shown = joined(
            [f"{'unknown' if math.isnan(value) else percent(value)} ({reader})" for reader, value in values.items()]
        )
        return (
            f"The gate was not passed: the baseline's first token is correct {shown} of the time, and every reader"
            f" needs {percent(GATE)}. No feature is compared."
        )
    rest = [setting for setting in found if setting.differences]
    if not rest:
        return "No setting shares a seed with the baseline."
    best = max(rest, key=lambda setting: statistics.fmean(one.value for one in setting.differences.values()))
    better, worse = (
        sum(all(one.sign == sign for one in setting.differences.values()) for setting in rest) for sign in (1, -1)
    )
    changes = joined([f"{one.value:+.3f} ({reader}{_interval(one)})" for reader, one in best.differences.items()])
    every = "every reader" if len(values) > 1 else next(iter(values))
    name = label_of(found[0].row, table)
    known = "" if name == "baseline" else f", {name},"
    return (
        f"Of {len(rest)} setting{'s' if len(rest) > 1 else ''} {better or 'none'} {'is' if better < 2 else 'are'}"
        f" better than the baseline{known} for {every} and {worse or 'none'} worse; the best,"
        f" {label_of(best.row, table)}, changes F1 by {changes}."
    )


def percent(value: float) -> str:
    """9 %; 14.8 % where rounding would hide on which side of the gate it is."""
    return f"{100 * value:.0f} %" if abs(value - GATE) >= 0.005 or value == GATE else f"{100 * value:.1f} %"


def _interval(one: Difference) -> str:
    return f", {one.low:+.3f} to {one.high:+.3f}" if math.isfinite(one.low) else ""


# Tables --------------------------------------------------------------------------------------------------------------


def tables(table: SweepTable) -> list[FewColumns]:
    """A table and a picture for each reader."""
    found, names = settings(table), readers(table)
    compared = comparable(table)
    words = "Against the baseline" if compared else "Settings, not compared"
    text = explanation(table, found)
    text += " Bold: the baseline, and settings whose interval leaves out zero." if compared and len(found) > 1 else ""
    return [
        FewColumns(
            title=f"{words if len(found) > 1 else 'Answers from latents'}: {reader}",
            lines=[HEADER, *(_cells(table, setting, reader) for setting in found)],
            strong=frozenset(i for i, setting in enumerate(found) if _stands_out(setting, reader)),
            note=text if reader == names[-1] else "",
            charts=[chart] if (chart := differences_chart(table, found, reader)) is not None else [],
        )
        for reader in names
    ]


def _stands_out(setting: Setting, reader: str) -> bool:
    return setting.is_baseline or (reader in setting.differences and setting.differences[reader].sign != 0)


def _cells(table: SweepTable, setting: Setting, reader: str) -> list[str]:
    share, one = setting.row.mean(key(reader, SHARE)), setting.differences.get(reader)
    size = setting.row.mean(key(reader, "bytes"))
    return [
        label_of(setting.row, table),
        str(setting.row.n),
        "-" if size is None else f"{size:.4g}",
        _mean(setting.row, key(reader, F1)),
        "baseline" if setting.is_baseline else f"{one.value:+.3f}" if one else "-",
        span(one.low, one.high, "{:+.3f}") if one else "-",
        share_text(math.nan if share is None else share),
        _mean(setting.row, key(reader, FIRST)),
    ]


def _mean(row: Row, metric: str) -> str:
    mean = row.mean(metric)
    return "-" if mean is None else show_mean(mean, row.standard_error(metric)) if row.n > 1 else f"{mean:.3f}"


def explanation(table: SweepTable, found: Sequence[Setting]) -> str:
    """What the numbers are and what they do not cover."""
    differences = [one for setting in found for one in setting.differences.values()]
    counts = sorted({one.questions for one in differences if one.questions})
    text = (
        "F1 is that of the answers from latents, with its standard error over seeds; of the text: the share of what the"
        " whole text gives. "
    )
    if not comparable(table):
        return f"{text}Nothing is compared with a baseline that does not work."
    if counts:
        text += (
            f"Differences are paired over the same {' or '.join(f'{n:,}' for n in counts)} questions, a question's"
            " scores averaged over the seeds that both have; the interval is over questions and does not cover a new"
            " training run: several seeds tell that, below. "
        )
    if any(not one.questions for one in differences):
        text += "Without the scores of single questions there is no interval. "
    return f"{text}Nothing is corrected for the number of comparisons."


def differences_chart(table: SweepTable, found: Sequence[Setting], reader: str) -> Chart | None:
    """Settings below each other, their difference of F1 from the baseline to the right; None without one."""
    shown = [(label_of(s.row, table), s.differences[reader]) for s in found if reader in s.differences][:MAX_SETTINGS]
    if not shown:
        return None
    ends = [v for _, one in shown for v in (one.value, one.low, one.high) if math.isfinite(v)]
    x = axis_of([0.0, *ends], "F1 less that of the baseline", margin=0.08)
    y = Axis(0.0, len(shown) + 0.7, names=("",))  # a tick without a name, at the bottom
    drawn = [Series([(0.0, y.low), (0.0, y.high)], color="var(--faint)", width=1.3, dashed=True, title="the baseline")]
    for row, (label, one) in enumerate(shown):
        color = {1: "var(--ok)", -1: "var(--bad)", 0: "var(--c5)"}[one.sign]
        half = max(one.high - one.value, one.value - one.low) if math.isfinite(one.low) else None
        drawn.append(
            Series(
                [(one.value, len(shown) - row - 0.2)],
                color=color,
                line=False,
                dots=4,
                widths=[half],
                title=label,
                label=label if len(label) < 46 else label[:45] + "…",
                anchor="middle",
            )
        )
    return line_chart(
        drawn,
        x,
        y,
        f"difference of F1 from the baseline for {reader}",
        name=file_name("latentwire_differences", reader),
        title=reader,
        note="difference of F1 from the baseline, 95 % intervals over questions",
        height=70 + ROW * len(shown),
    )


REPORT = SweepReport(verdict=verdict, first=(sweep_sizes.section,), tables=tables, comparable=comparable)

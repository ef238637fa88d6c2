"""A sweep over the size of a message as one curve: its points, the seeds' means, and sweeps that are none."""

import latentwire_runs as runs
import pytest

from research_stack.records import sweep_table
from research_stack.reporting.latentwire_sizes import section, sizes
from research_stack.reporting.sweep_figures import write_sweep_figures
from research_stack.reporting.sweep_names import named
from research_stack.reporting.sweep_report import write_sweep_report

BYTES = {8: 36, 3: 16, 17: 72}


def of_size(num_latents, best, numbers=8):
    """Scores of a run that was trained for so many num_latents; also rows of fewer ones, which are not main."""
    rows = runs.scores({"llama": best, "qwen": best - 0.1}, curve=False)
    for row in rows:
        if row[2] not in ("text", "none"):
            row[3], row[5] = num_latents, BYTES[num_latents] * numbers // 8
    return rows + [
        [*row[:3], num_latents - 1, row[4], row[5] - 4, *row[6:-1], ""] for row in rows if row[2] == "latent"
    ]


@pytest.fixture
def table(tmp_path):
    def make(settings, axis="num_latents"):
        folders = [
            runs.make_wire(
                tmp_path / "sweep" / f"{place}-{seed}",
                seed=seed,
                method={axis: value},
                rows=of_size(num_latents, best + 0.02 * (seed - 1)),
            )
            for place, (value, num_latents, best) in enumerate(settings)
            for seed in (1, 2)
        ]
        return named(sweep_table.collect(folders))

    return make


CURVE = [(8, 8, 0.9), (3, 3, 0.5), (17, 17, 0.95)]


def test_each_setting_is_a_point_and_the_first_one_the_main(table):
    wire = sizes(table(CURVE))
    latents = wire.of("qa_facts", "llama", "latent")
    assert [(row.bytes, row.num_latents, row.main) for row in latents] == [
        (16, 3, False),
        (36, 8, True),
        (72, 17, False),
    ]
    assert [row.f1.value for row in latents] == pytest.approx([0.51, 0.91, 0.96])  # means of two seeds
    assert [(row.f1.low, row.f1.high) for row in latents] == [
        pytest.approx((value - 0.02, value + 0.02)) for value in (0.51, 0.91, 0.96)
    ]
    assert [row.bytes for row in wire.of("qa_facts", "qwen", "text_bytes")] == [16, 36, 72]
    assert len(wire.of("qa_facts", "qwen", "text")) == len(wire.of("qa_facts", "qwen", "shuffled")) == 1


def test_the_page_and_the_figures_show_it(table, tmp_path):
    found = table(CURVE)
    page = write_sweep_report(tmp_path / "sweep", found).read_text()
    assert (
        "16 bytes of latents keep 55\u00a0% and 41\u00a0%, 36 bytes 98\u00a0% and 82\u00a0%, 72 bytes 103\u00a0% and"
        " 87\u00a0% of what llama and qwen answer from the whole text (F1)." in page
    )
    assert (
        "What a byte is worth" in page
        and page.count("F1 against bytes on the wire") == 2
        and page.count("F1 against the number of latents") == 2
    )
    names = {path.name for path in write_sweep_figures(tmp_path / "sweep", found)}
    assert {"latentwire.png", "latentwire_slots.png"} <= names


@pytest.mark.parametrize(
    "settings, axis",
    [(CURVE, "features"), ([(8, 8, 0.9), (9, 8, 0.5)], "num_latents"), (CURVE[:1], "num_latents")],
    ids=["features", "same size", "one setting"],
)
def test_other_sweeps_are_no_curve(table, settings, axis):
    found = table(settings, axis)
    assert sizes(found) is None and section(found) is None

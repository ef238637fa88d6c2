"""Wires of latents in the terminal and on the page of a sweep: the gate shuts every comparison."""

import latentwire_runs as runs
import pytest

from research_stack.records import sweep_table
from research_stack.reporting import summary
from research_stack.reporting.sweep_axes import better, metric_words, worth_plotting
from research_stack.reporting.sweep_figures import metrics_figure
from research_stack.reporting.sweep_names import named
from research_stack.reporting.sweep_report import as_markdown, as_text, verdict, write_sweep_report


@pytest.fixture
def sweep(tmp_path):
    def make(**law):
        folders = [
            runs.make_wire(
                tmp_path / "sweep" / f"{name}{seed}",
                seed=seed,
                shift=shift,
                method={"features": [name]},
                readers={"llama": 0.6, "qwen": 0.5},
                **law,
            )
            for name, shift in (("none", 0.0), ("prefix", 0.2))
            for seed in (1, 2)
        ]
        return named(sweep_table.collect(folders))

    return make


def test_the_terminal_says_what_the_readers_keep(tmp_path):
    lines = summary(runs.make_wire(tmp_path / "run")).splitlines()
    assert "latents                          36  0.870  0.850 to 0.890  0.830  0.810 to 0.850" in lines
    assert any(line.startswith("36 bytes of latents keep 94 % (llama) and 84 % (qwen)") for line in lines)
    unfinished = summary(runs.make_wire(tmp_path / "b", evaluated=False, status="interrupted"))
    assert "At step 500 the first token is right" in unfinished


def test_a_sweep_is_compared_with_its_baseline(sweep, tmp_path):
    table = sweep()
    assert verdict(table).startswith(
        "Of 1 setting 1 is better than the baseline, features=[none], for every reader and none worse"
    )
    page = write_sweep_report(tmp_path / "sweep", table).read_text()
    assert "Against the baseline" in page and "Differences, seed by seed" in page and metrics_figure(table) is not None
    assert (
        "## Against the baseline" in as_markdown(table)
        and "## Differences, seed by seed" in as_markdown(table)
        and "against the baseline" in as_text(table, 200)
    )
    assert (
        worth_plotting(table)[:2] == ["latentwire/llama/f1_latent", "latentwire/qwen/f1_latent"]
        and better("latentwire/llama/f1_latent") is False
    )
    assert metric_words("latentwire/llama/f1_latent") == "latentwire: llama, F1 from latents"


def test_behind_a_shut_gate_nothing_is_compared(sweep, tmp_path):
    table = sweep(first1={"llama": 0.05, "qwen": 0.4})
    assert verdict(table).startswith(
        "The gate was not passed: the baseline's first token is right 5 % (llama) and 40 % (qwen)"
    )
    page = write_sweep_report(tmp_path / "sweep", table).read_text()
    assert (
        "No feature is compared." in page
        and "Differences, seed by seed" not in page
        and "Over features" not in page
        and metrics_figure(table) is None
    )
    assert "Differences" not in as_markdown(table) and "No feature is compared." in as_text(table, 200)

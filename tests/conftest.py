"""How many processes the tests run in, and what each of them computes on."""

from __future__ import annotations

import gc
import os
import random
import sys

import pytest
from hypothesis import settings

# In CI the same examples every time, so that no test fails by chance there; elsewhere new ones.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

MOST = 8  # processes; each loads torch, lightning and transformers


@pytest.fixture(autouse=True)
def same_draws():
    """What a test draws without a seed of its own is the same at each run."""
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def few_figures(request, monkeypatch):
    """Figures are half of a run of a few steps: files are written only by tests that are marked `figures`, and charts
    are drawn into pages only there and by tests of pages.
    """
    if request.node.get_closest_marker("figures"):
        return
    from research_stack.reporting.charts import Chart
    from research_stack.reporting.html import Html
    from research_stack.sampling.film import Picture

    for kind in (Chart, Picture):
        monkeypatch.setattr(kind, "write", lambda self, folder: [])
    if request.path.parent.name != "reporting" and "page" not in request.path.name:
        monkeypatch.setattr(Chart, "svg", Html("<svg></svg>"))


def pytest_collection_finish():
    """What has been imported lives to the end: the collector, which else looks at it again and again (a third of the
    time of a composition), leaves it alone.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_configure(config):
    """Give each process of pytest-xdist a core of its own.

    Else each run takes all cores for its threads, and threads that wait for one another on busy cores are thirty times
    slower than one. The slow tests say hardware.threads=1; the processes they start share all cores.
    """
    worker = getattr(config, "workerinput", {}).get("workerid")  # gw0, gw1, ...
    if worker is not None and config.option.markexpr != "slow" and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Processes for `-n auto`, which pyproject.toml says: one per core for all the tests; none beside this one for
    chosen files, which run sooner so.
    """
    if config.args != config.getini("testpaths"):
        return 0
    return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

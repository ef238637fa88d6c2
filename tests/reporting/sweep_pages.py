"""The page of a sweep, and what its metrics are, in one call each."""

from research_stack.evaluation.seed_differences import seed_differences
from research_stack.reporting import sweep_axes, sweep_page
from research_stack.reporting.contract import Metrics, reports_of_sweep


def metrics(table):
    return Metrics(reports_of_sweep(table))


def render(folder, table):
    return sweep_page.write_sweep_report(folder, table, seed_differences(table)).read_text()


def verdict(table):
    return sweep_page.verdict(table, metrics(table))


def plotted(table):
    return sweep_axes.plotted(table, metrics(table))

"""What a run and a sweep leave to look at: one page each, figures, and a few lines for the terminal."""

from research_stack.reporting.report import write_report
from research_stack.reporting.table import summary

__all__ = ["summary", "write_report"]

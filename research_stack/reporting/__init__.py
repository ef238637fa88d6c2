"""What a run and a sweep leave to look at: one page each, figures, and a few lines for the terminal."""

from research_stack.reporting.page import write_report
from research_stack.reporting.terminal import summary

__all__ = ["summary", "write_report"]

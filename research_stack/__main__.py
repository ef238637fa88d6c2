"""`python -m research_stack` is the `research-stack` command."""

from __future__ import annotations

import sys

from research_stack.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

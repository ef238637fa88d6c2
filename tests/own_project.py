"""The project that docs/extending.md builds: its files and commands, as the page has them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()


def write_project(folder: Path) -> None:
    """Every code block that opens with the path of a file, as that file."""
    for path, content in re.findall(r"```(?:python|yaml|toml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)


def commands() -> list[str]:
    """The lines of the shell blocks, in order; those for a cluster left out."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if "# on a cluster" not in line]


def cluster_commands() -> list[str]:
    """The lines for a cluster."""
    return re.findall(r"^(research-stack .*?) +# on a cluster$", PAGE, re.MULTILINE)


def mistakes() -> list[tuple[str, str]]:
    """(command, its one line on standard error) of the console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    return [pair for block in blocks for pair in re.findall(r"^\$ (.*)\n(.*)$", block, re.MULTILINE)]

"""What README.md, CONTRIBUTING.md and docs/ tell a reader to do, done to the letter."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from research_stack.cli.command import Command
from research_stack.config.check import check
from research_stack.config.composer import Composer
from research_stack.config.hints import UserError

ROOT = Path(__file__).parent.parent
RECIPE = "### A corruption: one class, one YAML"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text, heading):
    """{path: content} of the code blocks of a section that open with the path of a file."""
    section = text.partition(heading)[2].partition("\n## ")[0]
    found = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", section, re.DOTALL)
    return {path: f"# {path}\n{content}" for path, content in found}


@pytest.mark.slow
def test_the_recipe_for_a_corruption_leaves_the_tests_green_and_trains(tmp_path):
    files = blocks((ROOT / "CONTRIBUTING.md").read_text(), RECIPE)
    assert sorted(files) == ["conf/corruption/growing.yaml", "research_stack/corruption/growing.py"]
    for folder in ("research_stack", "conf", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, content in files.items():
        (tmp_path / path).write_text(
            content.partition("\n")[2]
        )  # the line that says where it goes is no part of the file
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "RESEARCH_STACK_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }

    def ran(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    rules = ["tests/test_structure.py", "tests/corruption/test_configs.py"]
    code, said = ran(
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tmp_path),
        "-k",
        "growing or documented or each_config",
        *rules,
    )
    assert code == 0 and re.search(r"\b[3-9] passed", said), said
    small = ["model=smoke", "data=smoke", "trainer=smoke", "trainer.max_steps=2", "eval=none", "corruption=growing"]
    code, said = ran("research_stack", *small, "corruption.max_ratio=.7")
    assert code == 0 and "ok, 2 steps" in said, said
    for mistake, hint in (
        ("corruption.max_ratio=1.7", "must lie in (0, 1]"),
        ("corruption.max_rato=.7", "did you mean 'max_ratio'"),
    ):
        code, said = ran("research_stack", *small, mistake)
        assert code == 2 and hint in said and said.count("\n") == 1, said


def commands():
    """(page, arguments) of every research-stack command in the pages that needs nothing of the reader's own."""
    for page in PAGES:
        if page.name in ("configuration.md", "extending.md"):  # the latter's are run by tests/slow/test_own_package.py
            continue
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.rpartition(" && ")[2] if "&& research-stack" in line else line
                if line.startswith("research-stack") and not re.search(r"RUN|FOLDER|FILE|KEY|GROUP|\.jsonl|<", line):
                    yield page.name, shlex.split(line, comments=True)[1:]


def test_every_command_of_the_pages_is_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong, verbs, composer, found = [], ("list", "why", "-sc"), Composer(), list(commands())
    for page, arguments in found:
        if arguments and arguments[0] in verbs:
            continue
        try:
            for point in composer.points(Command.parse(arguments).overrides)[1]:
                wrong += [(page, arguments, problem.message) for problem in check(composer.compose_point(point).cfg)]
        except UserError as error:
            wrong.append((page, arguments, str(error)))
    assert wrong == [] and len(found) > 30

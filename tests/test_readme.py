"""What README.md tells a reader to do, done to the letter."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPE = "## Add your own corruption"


def blocks(text, heading):
    """{path: content} of the code blocks of a section that open with the path of a file."""
    section = text.partition(heading)[2].partition("\n## ")[0]
    found = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", section, re.DOTALL)
    return {path: f"# {path}\n{content}" for path, content in found}


def test_the_recipe_for_a_corruption_leaves_the_tests_green_and_trains(tmp_path):
    files = blocks((ROOT / "README.md").read_text(), RECIPE)
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
    code, said = ran("research_stack", *small, "corruption.most=.7")
    assert code == 0 and "ok, 2 steps" in said, said
    for mistake, hint in (("corruption.most=1.7", "must lie in (0, 1]"), ("corruption.mots=.7", "did you mean 'most'")):
        code, said = ran("research_stack", *small, mistake)
        assert code == 2 and hint in said and said.count("\n") == 1, said

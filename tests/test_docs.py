"""The pages of docs/ say what the files say: keys, links, the head of each experiment."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXPERIMENTS = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def configuration():
    """docs/make_configuration.py as a module."""
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_configuration_is_current(configuration):
    assert configuration.PAGE.read_text() == configuration.page(), "run python docs/make_configuration.py"


def anchors(page, anchor):
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)}


def test_every_link_leads_somewhere(configuration):
    broken = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, fragment = target.partition("#")
            if re.match(r"https?:", target):
                continue
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (fragment and fragment not in anchors(there, configuration.anchor)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_experiment_opens_with_idea_command_reference_time_and_result():
    wanting = []
    for file in EXPERIMENTS:
        head = file.read_text().partition("defaults:")[0]
        command = (
            r"#   research-stack( |$)" if file.stem == "flowlm" else rf"#   research-stack experiment={file.stem}\b"
        )
        lines = [r"# @package _global_\n# \w", command, r"# Reference: \w", r"# Time: ", r"# Result: .*\d"]
        wanting += [f"{file.name}: {line}" for line in lines if not re.search(line, head, re.MULTILINE)]
        if not re.search(rf"^name: {file.stem}$", file.read_text(), re.MULTILINE):
            wanting.append(f"{file.name}: name")
    assert wanting == []


def test_the_newest_release_of_the_changelog_is_this_version():
    from research_stack import __version__

    released = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert not released or released[0] == __version__

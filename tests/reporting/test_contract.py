"""The contract between what measures and what shows: found by convention, and the engine knows nothing of it."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import research_stack
from research_stack.reporting.contract import Metric, Metrics, Report, report_of, reports_of
from research_stack.reporting.run_files import RunFiles

PACKAGE = Path(research_stack.__file__).parent
CONF = PACKAGE.parent / "conf"
METHODS = {f"research_stack.{name}" for name in ("flowlm.module.FlowLM", "latentwire.module.LatentWire")}
GENERIC = {"train/loss", "val/loss", "train/grad_norm"}  # logged by whatever is trained


def report_modules():
    """Every module of ours that holds a REPORT."""
    names = (found.name for found in pkgutil.walk_packages([str(PACKAGE)], "research_stack."))
    return [name for name in names if re.search(r"(\.report\b|_report$)", name)]


def reports():
    found = (vars(importlib.import_module(name)).get("REPORT") for name in report_modules())
    return [report for report in found if isinstance(report, Report)]


def classes(node):
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from classes(value)
    elif isinstance(node, list):
        for value in node:
            yield from classes(value)


def configured(*groups):
    """The class names that the options of some groups build."""
    paths = (path for group in groups for path in (CONF / group).glob("*.yaml"))
    return sorted({name for path in paths for name in classes(yaml.safe_load(path.read_text())) if "${" not in name})


def test_what_is_measured_and_trained_has_a_report():
    evaluations = {next(classes(yaml.safe_load(path.read_text())), None) for path in (CONF / "eval").glob("*.yaml")}
    for name in (evaluations - {None}) | set(
        filter(lambda name: "Wire" in name or "FlowLM" in name, configured("method"))
    ):
        assert report_of(name) is not None, name
    assert report_of("research_stack.data.module.TokenData") is None and report_of("os.path.join") is None
    assert report_of("research_stack.nowhere.Thing") is None and report_of("Thing") is None


def test_reports_import_no_torch():
    script = "import sys; " + "; ".join(f"import {name}" for name in report_modules())
    script += "; print([m for m in ('torch', 'lightning', 'transformers', 'matplotlib') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_the_engine_names_no_family_evaluation_or_metric():
    """No string in reporting/ spells one: what it shows, it is handed."""
    families = {"flowlm", "lookahead", "latentwire", "posttraining", "grpo", "polychromic", "llada", "minigpt", "passk"}
    names = {name.rpartition(".")[2] for name in configured("method", "eval")}
    metrics = {key for report in reports() for key in report.metrics} - GENERIC
    prefixes = {key.partition("/")[0] + "/" for key in metrics if "/" in key} - {"train/", "val/"}
    found = []
    for path in sorted((PACKAGE / "reporting").glob("*.py")):
        tree = ast.parse(path.read_text())
        explained = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explained:
                words = set(re.findall(r"[\w@/]+", node.value))
                said = (words & (families | names | metrics)) | {w for w in words if w.startswith(tuple(prefixes))}
                found += [f"{path.name}:{node.lineno} {word}" for word in sorted(said)]
    assert found == []


def test_the_engine_is_a_small_part():
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    own = sum(count for path, count in lines.items() if path.parent.name == "reporting")
    assert own <= 0.08 * sum(lines.values()), f"{own} of {sum(lines.values())} lines"


def test_a_report_is_found_beside_a_class_of_a_package_opted_into(tmp_path, monkeypatch):
    package = tmp_path / "project_of_mine"
    (package / "report").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "report" / "__init__.py").write_text("")
    (package / "report" / "single.py").write_text(
        "from research_stack.reporting.contract import Report\nREPORT = Report(measured_by='one')\n"
    )
    (package / "other_report.py").write_text("REPORT = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert report_of("project_of_mine.single.Thing") is None  # nobody opted in
    report_of.cache_clear()
    monkeypatch.setenv("RESEARCH_STACK_PACKAGES", "project_of_mine")
    assert report_of("project_of_mine.single.Thing").measured_by == "one"
    with pytest.raises(TypeError, match="project_of_mine.other_report.REPORT must be a Report, not int"):
        report_of("project_of_mine.other.Thing")
    report_of.cache_clear()


def test_evaluations_come_first_and_later_ones_count():
    run = RunFiles(
        Path("."),
        config={
            "sampler": {"_target_": "research_stack.sampling.sampler.Sampler"},
            "method": {"_target_": "research_stack.flowlm.module.FlowLM"},
        },
        result={"measured": {"x": {"_target_": "research_stack.evaluation.likelihood.Likelihood"}}},
    )
    homes = [report_of(f"research_stack.{name}") for name in (
        "flowlm.module.FlowLM", "sampling.sampler.Sampler", "evaluation.likelihood.Likelihood")]  # fmt: skip
    assert [id(report) for report in reports_of(run)] == [id(report) for report in homes]


def test_metrics_are_found_by_name_and_pattern():
    one = Report(
        metrics={"a/f1": Metric("F1", better="higher", headline=True, interval=True), "a/*/f1": Metric("{0}: F1")}
    )
    two = Report(
        metrics={"a/*/*": Metric("{0}, {1}"), "b": Metric("B", "s", interval=("b0", "b1")), "a/f1": Metric("no")}
    )
    metrics = Metrics([one, two])
    assert [metrics.of(name).label for name in ("a/f1", "a/x/f1", "a/x/em", "b")] == ["F1", "x: F1", "x, em", "B"]
    assert (
        metrics.find("c/d_e") is None and metrics.of("c/d_e").label == "c: d e" and metrics.of("b").with_unit == "B (s)"
    )
    ends = ("a/f1_low", "a/f1_high", "b0", "b1", "a/x/f1_low", "b_low")
    assert [metrics.is_interval_end(name) for name in ends] == [True, True, True, True, False, False]
    assert metrics.is_declared("b1") and not metrics.is_declared("c")
    assert sorted(("zz", "b", "a/x/em", "a/f1"), key=metrics.rank) == ["a/f1", "a/x/em", "b", "zz"]

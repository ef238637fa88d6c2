"""The house rules, read from the sources: where imports may go, what no module does, what each YAML file says."""

import ast
import functools
import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "research_stack"
TORCH = {"torch", "lightning", "transformers", "peft", "wandb", "datasets"}
HEAVY = TORCH | {"tokenizers", "matplotlib", "pyarrow", "numpy", "scipy", "pandas"}
#: Floors of the house, the lowest first: a module imports from its own floor and from those below. Families, on one
#: floor, import nothing of each other.
FLOORS = (
    {"require", "streams", "__init__"},
    {"records"},
    {"config", "reporting"},
    {"data"},
    {"metrics", "training"},
    {"backbones", "corruption"},
    {"sampling"},
    {"evaluation"},
    {"flowlm", "lookahead", "latentwire", "posttraining"},
    {"running"},
    {"cli"},
    {"__main__"},
)
FAMILIES = FLOORS[8]
NO_TORCH = {"cli": HEAVY, "config": HEAVY, "records": HEAVY, "metrics": TORCH, "data/sources": TORCH}

FILES = sorted(PACKAGE.rglob("*.py"))
YAMLS = sorted((ROOT / "conf").rglob("*.yaml"))


def name(path):
    return str(path.relative_to(PACKAGE))


@functools.cache
def tree(path):
    return ast.parse(path.read_text(), str(path))


def statements(node):
    """What runs when the module is imported: not the bodies of functions, not `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child)


def imports(path, nodes):
    """Dotted names of the modules that the nodes import, relative ones made absolute."""
    package = ["research_stack", *path.relative_to(PACKAGE).parent.parts]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def module_file(dotted):
    """The source of a module of the package; None for names that are no module."""
    path = ROOT.joinpath(*dotted.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def floor(dotted):
    """The index in FLOORS of a module; None outside the package and for the package itself, whose names are lazy."""
    parts = dotted.split(".")
    if parts[0] != "research_stack" or len(parts) == 1:
        return None
    return next((index for index, rooms in enumerate(FLOORS) if parts[1] in rooms), None)


def dotted_name(path):
    return ".".join(["research_stack", *path.relative_to(PACKAGE).with_suffix("").parts])


def imports_go_one_way(path):
    own = dotted_name(path)
    here = floor(own)
    for target in imports(path, live(tree(path))) if path != PACKAGE / "__init__.py" else ():
        if (where := floor(target)) is None:
            continue
        assert where <= here, f"{name(path)} imports {target}, which stands above it"
        if where == here and own.split(".")[1] != target.split(".")[1]:
            assert own.split(".")[1] not in FAMILIES, f"{name(path)} imports the other family {target}"


def live(node):
    """Every node, those in functions too, but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from live(child)


def circles():
    """Modules that import each other, directly or round about, imports in functions counted."""
    known = {dotted_name(path).removesuffix(".__init__"): path for path in FILES}
    graph = {
        own: {t for t in imports(path, live(tree(path))) if t in known and t != own} for own, path in known.items()
    }
    for own, targets in graph.items():  # importing a name of a package's module is no import of the package
        graph[own] = {t for t in targets if not any(other.startswith(f"{t}.") for other in targets)}
    return [sorted(part) for part in strong_components(graph) if len(part) > 1]


def strong_components(graph):
    """Sets of nodes that reach each other (Kosaraju 1978), without recursion."""
    order, seen = [], set()
    for start in graph:
        stack = [(start, iter(graph[start]))] if start not in seen else []
        seen.add(start)
        while stack:
            node, rest = stack[-1]
            step = next((n for n in rest if n not in seen), None)
            if step is None:
                order.append(stack.pop()[0])
            else:
                seen.add(step)
                stack.append((step, iter(graph[step])))
    back = {node: [other for other in graph if node in graph[other]] for node in graph}
    found, taken = [], set()
    for start in reversed(order):
        part, stack = set(), [start]
        while stack:
            node = stack.pop()
            if node not in taken:
                taken.add(node)
                part.add(node)
                stack += back[node]
        found.append(part)
    return found


def heavy_chain(path, heavy, seen):
    """How importing this file leads to a heavy package, as a list of names; None if it does not."""
    for target in imports(path, statements(tree(path))):
        if target.split(".")[0] in heavy:
            return [name(path), target]
        parts = target.split(".")
        for count in range(1, len(parts) + 1) if parts[0] == "research_stack" else ():
            file = module_file(".".join(parts[:count]))  # importing a.b.c runs a, a.b and a.b.c
            if file is not None and file not in seen:
                seen.add(file)
                if chain := heavy_chain(file, heavy, seen):
                    return [name(path), *chain]
    return None


def imports_nothing_heavy(light):
    path, heavy = light
    chain = heavy_chain(path, heavy, {path})
    assert chain is None, " -> ".join(chain)


def calls(path):
    return [(ast.unparse(node.func), node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


def breaks_no_rule(path):
    for function, node in calls(path):
        where = f"{name(path)}:{node.lineno}"
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        assert function != "print", f"{where} prints: use logging"
        assert function not in ("eval", "exec"), f"{where} evaluates text"
        assert function not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "pickle.load", "pickle.loads"), (
            f"{where} runs what it loads"
        )
        if function == "torch.load":
            assert ast.unparse(keywords.get("weights_only", ast.Constant(None))) == "True", (
                f"{where} loads without weights_only=True"
            )
        if function.endswith(".from_pretrained"):
            said = ast.unparse(keywords.get("trust_remote_code", ast.Constant(None)))
            assert said == "False", f"{where} could run code of the folder"
        if function in ("AutoModel.from_pretrained", "AutoModelForCausalLM.from_pretrained"):
            said = ast.unparse(keywords.get("use_safetensors", ast.Constant(None)))
            assert said == "True", f"{where} could load a pickle"
        if function == "getattr" and ast.unparse(node.args[0]).split(".")[-1] in ("cfg", "config"):
            raise AssertionError(f"{where} reads the config by getattr")
        if function.endswith("instantiate"):
            assert name(path) == "config/build.py", f"{where} instantiates: only build() does"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            silent = all(
                isinstance(s, ast.Pass | ast.Continue)
                or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
                for s in node.body
            )
            assert not (broad and silent), f"{name(path)}:{node.lineno} silences every error"
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert not ast.unparse(node.exc).startswith("NotImplementedError"), f"{name(path)}:{node.lineno} is a stub"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text()), f"{name(path)} has something left to do"


def public(path):
    """Public functions and classes of the module, and public methods of public classes."""
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith(("_", "visit_"))
                )


def inherits(path, node):
    """Whether a method overrides one that says what both do."""
    owners = [c for c in tree(path).body if isinstance(c, ast.ClassDef) and node in c.body]
    return any(
        inspect.getdoc(getattr(getattr(importlib.import_module(dotted_name(path)), c.name), node.name)) for c in owners
    )


def is_documented_and_annotated(path):
    assert ast.get_docstring(tree(path)) or not path.read_text().strip(), f"{name(path)} has no docstring"
    for node in public(path):
        overload = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
        assert overload or ast.get_docstring(node) or inherits(path, node), (
            f"{name(path)}:{node.lineno} {node.name} has no docstring"
        )
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{name(path)}:{node.lineno} {node.name} has no return annotation"


def says_what_it_is(path):
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    comments = [line for line in lines[:2] if line.startswith("#") and "@package" not in line]
    assert comments, f"{path.relative_to(ROOT)} does not open with a comment that says what it is"
    assert yaml.safe_load(path.read_text()) is not None, f"{path.relative_to(ROOT)} is empty"


def targets(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_" and isinstance(value, str):
                yield value
            else:
                yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


ALL_TARGETS = sorted(
    {(target, str(path.relative_to(ROOT))) for path in YAMLS for target in targets(yaml.safe_load(path.read_text()))}
)


def target_exists(target_and_file):
    target, file = target_and_file
    if "${" in target:
        return
    parts = target.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            if error.name is None or not target.startswith(error.name):
                raise
            continue
        for part in parts[count:]:
            assert hasattr(found, part), f"{file}: {target}: {found.__name__} has no {part}"
            found = getattr(found, part)
        assert callable(found), f"{file}: {target} cannot be called"
        return
    raise AssertionError(f"{file}: {target}: no such module")


def faults(rule, cases):
    """What the rule has to say of all cases, in one list."""
    found = []
    for case in cases:
        try:
            rule(case)
        except AssertionError as error:
            found.append(str(error).splitlines()[0])
    return found


def test_imports_go_one_way():
    assert faults(imports_go_one_way, FILES) == []


def test_no_module_imports_itself_round_about():
    assert circles() == []


def test_the_command_line_imports_nothing_heavy():
    assert (
        faults(
            imports_nothing_heavy,
            [(path, heavy) for room, heavy in NO_TORCH.items() for path in sorted((PACKAGE / room).rglob("*.py"))],
        )
        == []
    )


def test_no_module_breaks_a_rule():
    assert faults(breaks_no_rule, FILES) == []


def test_public_names_are_documented_and_annotated():
    assert faults(is_documented_and_annotated, FILES) == []


def test_a_class_name_stands_in_one_module():
    where = {}
    for path in FILES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(name(path))
    assert {known: files for known, files in where.items() if len(files) > 1} == {}


def test_each_config_says_what_it_is_and_names_what_there_is():
    assert faults(says_what_it_is, YAMLS) + faults(target_exists, ALL_TARGETS) == []


# ---------------------------------------------------------------------------------------- the rules themselves
def parse(tmp_path, monkeypatch, where, source):
    path = tmp_path / "research_stack" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "research_stack")
    return path


@pytest.mark.parametrize("where, source", [
    ("sampling/x.py", "from research_stack.flowlm import losses"),
    ("sampling/x.py", "from ..flowlm import losses"),
    ("sampling/x.py", "def f():\n    import research_stack.flowlm.losses"),
    ("flowlm/x.py", "from research_stack.latentwire import y"),
    ("streams.py", "from research_stack.data import y"),
])  # fmt: skip
def test_a_wrong_import_is_seen(tmp_path, monkeypatch, where, source):
    with pytest.raises(AssertionError, match="imports"):
        imports_go_one_way(parse(tmp_path, monkeypatch, where, source))


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "import yaml\nyaml.load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "A.from_pretrained(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=False)",
        "getattr(self.cfg, 'x', 1)",
        "try:\n    x\nexcept Exception:\n    pass",
        "try:\n    x\nexcept:\n    ...",
        "def f():\n    raise NotImplementedError",
        "# TODO",
        "eval('1')",
        "from hydra.utils import instantiate\ninstantiate(x)",
    ],
)
def test_a_broken_rule_is_seen(tmp_path, monkeypatch, source):
    with pytest.raises(AssertionError):
        breaks_no_rule(parse(tmp_path, monkeypatch, "x.py", source))


@pytest.mark.parametrize(
    "source, heavy",
    [
        ("import torch.nn", True),
        ("class A:\n    import torch", True),
        ("try:\n    import numpy\nexcept ImportError:\n    raise", True),
        ("def f():\n    import torch", False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", False),
    ],
)
def test_a_heavy_import_is_seen(tmp_path, monkeypatch, source, heavy):
    path = parse(tmp_path, monkeypatch, "x.py", source)
    assert (heavy_chain(path, HEAVY, {path}) is not None) is heavy

"""The static check: no mistake passes that it can see, nothing right is refused, nothing is imported."""

from __future__ import annotations

import ast
import sys

import pytest
from omegaconf import OmegaConf

from research_stack.config import check, signatures
from research_stack.config.annotations import fits, literals, written
from research_stack.config.build import build
from research_stack.config.check_node import check_node
from research_stack.config.compose import compose
from research_stack.config.composer import Composer
from research_stack.config.expressions import CannotSay, Evaluator
from research_stack.config.hints import UserError
from research_stack.config.nodes import nodes
from research_stack.config.signatures import signature
from research_stack.records import paths


def messages(**node):
    return [p.message for p in check_node("node", node)]


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("int", [1, -3], [True, 1.5, "1", None]),
        ("float", [1, 1.5], [True, "x", [1.0]]),
        ("bool", [True], [1, "true"]),
        ("str", ["a"], [1, None]),
        ("int | None", [1, None], ["a", 1.5]),
        ("Optional[int]", [1, None], ["a"]),
        ("Union[int, str]", [1, "a"], [1.5]),
        ("Literal['a', 'b'] | None", ["a", None], ["c", 1]),
        ("Literal[1, 2]", [1], [True, 3, "1"]),
        ("list[int]", [[1, 2], []], [[1, "a"], 1, "ab"]),
        ("tuple[float, float]", [[1, 2.0]], [[1], [1, "a"], 3]),
        ("tuple[int, ...]", [[1, 2, 3]], [["a"]]),
        ("Sequence[float]", [[1, 2]], [3]),
        ("float | Sequence[float]", [0.5, [0.1, 0.2]], ["a", [0.1, "b"]]),
        ("Annotated[int, 'x']", [1], ["a"]),
        ("dict[str, int]", [{"a": 1}], [3, "a"]),
        ("'int | None'", [3, None], ["a"]),
    ],
)
def test_values_against_annotations(annotation, right, wrong):
    node = ast.parse(annotation, mode="eval").body
    assert all(fits(v, node, None) is not False for v in right)
    assert all(fits(v, node, None) is False for v in wrong)


@pytest.mark.parametrize(
    "annotation", ["Path", "Model", "torch.dtype", "int | Model", "Callable[[int], int]", "Any", "list[Model]"]
)
def test_what_is_not_simple_passes(annotation):
    node = ast.parse(annotation, mode="eval").body
    assert all(fits(v, node, None) is not False for v in (["x"], [1]))
    if "list" not in annotation:
        assert fits("x", node, None) is not False


def test_signatures_are_followed(conf):
    assert messages(_target_="toylib.Child", dims=3)[0].endswith("did you mean 'dim'?")
    assert messages(_target_="toylib.Child", dim=3) == ["node.dim=3 must be even"]
    assert "no parameter 'sise'; did you mean 'size'?" in messages(_target_="toylib.Renamed", sise=3)[0]
    assert messages(_target_="toylib.Loose", anything=3, dim="x") == []
    assert "extra=a must be int" in messages(_target_="toylib.Loose", extra="a")[0]
    assert messages(_target_="toylib.Strange", a=3, b={"_target_": "toylib.Model"}) == []
    assert messages(_target_="toylib.Model", name=None, dim=8, scale=2) == []
    assert messages(_target_="toylib.Model", dim="???") == []
    assert "node._target_=subprocess.run lies outside" in messages(_target_="subprocess.run")[0]


@pytest.mark.parametrize(
    "target",
    ["lightning.pytorch.callbacks.ModelCheckpoint", "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
     "lightning.Trainer", "research_stack.data.TokenData", "research_stack.data.module.TokenData"],
)  # fmt: skip
def test_real_targets_are_never_refused(target):
    assert messages(_target_=target) == []


def test_lazy_names_lead_to_their_signature():
    assert "batch_size" in signatures.signature("research_stack.data.TokenData").parameters
    assert not signatures.signature("research_stack.data.TokenData").open
    assert signatures.signature("research_stack.data.TokenData").module.name == "research_stack.data.module"


def test_source_is_read_and_nothing_imported(conf, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "classes"))
    assert messages(_target_="toylib.Model", dimm=1)
    assert "toylib" not in sys.modules


def test_expressions_refuse_what_is_not_listed():
    evaluate = Evaluator({"a": 2, "b": [1, 2]})

    def value(text):
        return evaluate(ast.parse(text, mode="eval").body)

    assert value("0 < a <= 2 and len(b) == 2 and a in (1, 2)") is True
    assert value("all(x > 0 for x in b) or unknown") is True
    assert value("f'{a:.1f} {b!r}'") == "2.0 [1, 2]"
    for text in (
        "__import__('os')",
        "a.__class__",
        "open('x')",
        "unknown > 1",
        "(lambda: 1)()",
        "a ** 9",
        "'x' * 9",
        "a + b",
        "1 / 0",
    ):
        with pytest.raises(CannotSay):
            value(text)


def test_compose_from_python(conf):
    cfg = compose("model=small", ["seed=3"])
    assert (cfg.model.dim, cfg.seed, cfg.trainer.max_steps) == (16, 3, 700) and "hydra" not in cfg
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        compose("model=tinny")
    with pytest.raises(UserError, match=r"model.dim=7 must be even \(.*odd.yaml:2\)"):
        compose("model=odd")
    assert compose("model=odd", check=False).model.dim == 7


def test_points_share_parsed_files_but_not_values(conf):
    composer = Composer()
    composer.compose(["model.dim=64"])
    assert composer.compose([]).cfg.model.dim == 8


def test_points_compose_as_they_would_alone(conf):
    composer = Composer()
    for point in (
        ["model=small", "model.dim=64", "seed=1"],
        ["model=small", "seed=2", "+model.dropout=.1"],
        ["corruption=mask"],
        ["experiment=second", "trainer.max_steps=3", "~corruption.mask_ratio"],
        ["++eval={a: 1}", "model={dim: 4}"],
    ):
        assert composer.compose_point(point).cfg == Composer().compose(point).cfg
    with pytest.raises(UserError, match="did you mean 'dropout'"):
        composer.compose_point(["model=small", "model.drop_out=1"])


def every_choice():
    composer = Composer()
    groups = {g: o for g, o in composer.groups().items() if not g.startswith(("sweep", "launcher", "hydra"))}
    return [f"{group}={option}" for group, options in groups.items() for option in options]


@pytest.fixture(scope="module")
def composer():
    """The package's own configs, each file parsed once."""
    return Composer()


@pytest.mark.parametrize("choice", every_choice())
def test_every_option_of_every_group_passes(choice, composer):
    """No false alarm on anything that is in the box (what needs a file of the user's is given one)."""
    group, _, option = choice.partition("=")
    needs = (
        ["data.path=README.md"]
        if group == "data" and option in ("text", "hub", "prompts", "squad", "hotpotqa", "nq")
        else []
    )
    needs += (
        [f"method={'grpo' if group in ('method/advantage', 'method/reward') else 'latentwire'}"]
        if group.startswith("method/")
        else ["experiment=latentwire"]
        if group == "ablation"
        else []
    )
    needs += ["model=hf_causal", "model.path=."] if choice == "data/tokenizer=pretrained" else []
    needs += ["method.reward.run=."] if choice == "method/reward=learned" else []
    composed = composer.compose([choice, *needs])
    assert [p.message for p in check.check(composed.cfg) if "???" not in p.message] == []
    assert group not in composed.cfg or composed.cfg[group] is not None


def test_config_folder_stands_in_package_or_beside_it():
    assert (paths.CONF / "config.yaml").is_file()


def test_a_value_outside_a_literal_is_refused_by_the_check_and_by_build_alike():
    """Every class that a config of ours names; the constructors say nothing of it."""
    composer, targets = Composer(), set()
    for group, options in composer.groups().items():
        for option in options:
            file = next(folder / group / f"{option}.yaml" for folder in composer.folders)
            found = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
            targets |= {node["_target_"] for _, node in nodes(found)}
    tried, wrong = 0, []
    for target in sorted(target for target in targets if target.startswith("research_stack.")):
        known = signature(target)
        for name, parameter in known.parameters.items():
            allowed = literals(parameter.annotation)
            if not allowed or fits("zzqq", parameter.annotation, known.module) is not False:
                continue
            tried += 1
            line = f"a.{name}=zzqq must be one of {', '.join(dict.fromkeys(map(written, allowed)))}"
            if [p.message for p in check_node("a", {"_target_": target, name: "zzqq"})][:1] != [line]:
                wrong.append((target, name, "check"))
            with pytest.raises(ValueError) as caught:
                build({"_target_": target, name: "zzqq"}, "a")
            if str(caught.value) != line:
                wrong.append((target, name, str(caught.value)))
    assert tried > 20 and wrong == []

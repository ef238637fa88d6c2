"""debug=smoke: what it makes small, and what it leaves."""

from __future__ import annotations

import inspect

from omegaconf import OmegaConf

from research_stack.config.build import target
from research_stack.config.composer import Composer
from research_stack.config.smoke import shrink, smaller


def test_numbers_shrink_typed_keys_and_the_model_of_a_given_run_stay(tmp_path, monkeypatch):
    assert [smaller(*pair) for pair in ((9, 4), (2, 4), (None, 4), ([1, 8, 32], [1, 8]), (3, None))] == [
        4,
        2,
        4,
        [1, 8],
        None,
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    model = {"_target_": "research_stack.backbones.transformer.Transformer", "layers": 9}
    source = {"_target_": "research_stack.data.questions.facts.Facts", "contexts": 900}
    for init_from, typed, layers, contexts, name in (
        (None, [], 2, 60, "a_smoke"),
        ("run", [], 9, 60, "a_smoke"),
        (None, ["source.contexts=900", "name=a"], 2, 900, "a"),
    ):
        cfg = OmegaConf.create({"name": "a", "init_from": init_from, "model": model, "source": source})
        shrink(cfg, typed)
        assert (cfg.model.layers, cfg.source.contexts, cfg.name) == (layers, contexts, name)


def test_what_classes_declare_are_parameters_of_theirs():
    composer, wrong = Composer(), {}
    for name in composer.groups()["experiment"]:
        cfg = OmegaConf.to_container(composer.compose_point([f"experiment={name}"]).cfg, resolve=True)
        waiting = [cfg]
        while waiting:
            node = waiting.pop()
            waiting += [v for v in (node.values() if isinstance(node, dict) else node) if isinstance(v, dict | list)]
            kind = target(node) if isinstance(node, dict) and "_target_" in node else object
            if declared := set(vars(kind).get("smoke", ())):
                wrong[kind] = declared - set(inspect.signature(kind).parameters)
    assert len(wrong) > 10 and not any(wrong.values()), wrong

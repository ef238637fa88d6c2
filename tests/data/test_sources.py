"""The corpora embedded in Python."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from research_stack.data.packing import TRAIN, VALIDATION, split
from research_stack.data.sources import embedded
from research_stack.data.sources.base import clean
from research_stack.data.sources.embedded import Docstrings, PythonCode, PythonDocs, library_docstrings, without_repeats


def test_python_docs_are_megabytes_of_clean_text(parsed):
    documents = list(PythonDocs().documents())
    assert sum(len(d.text) for d in documents) > 1_500_000
    assert len(documents) > 400
    assert all(d.prompt is None and d.text == d.text.strip() and "\n\n\n" not in d.text for d in documents)


ANOTHER_PROCESS = """
import hashlib, sys
from research_stack.data.sources import embedded, hub, text
from research_stack.data.sources.embedded import Docstrings, PythonDocs
library = list(embedded.library_docstrings())
embedded.library_docstrings = lambda: iter(library)
for source in (PythonDocs(), Docstrings()):
    source.check()
    print(hashlib.sha256(repr(list(source.documents())).encode()).hexdigest(), source.fingerprint())
unwanted = ("antigravity", "this", "tkinter", "torch", "lightning", "datasets", "transformers")
print([m for m in unwanted if m in sys.modules])
"""


def test_another_process_has_the_same_order_and_imports_no_library_module_and_no_torch(parsed):
    found = subprocess.check_output(
        [sys.executable, "-c", ANOTHER_PROCESS], text=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    expected = [
        f"{hashlib.sha256(repr(list(source.documents())).encode()).hexdigest()} {source.fingerprint()}"
        for source in (PythonDocs(), Docstrings())
    ]
    assert found.splitlines() == [*expected, "[]"]


def test_docstring_pairs_ask_with_a_signature(parsed):
    pairs = {d.prompt: d.text for d in Docstrings().documents()}
    assert len(pairs) > 4000
    assert pairs["textwrap.dedent(text)\n"].startswith("Remove any common leading whitespace from every line")
    assert any("email.message.Message." in prompt for prompt in pairs)


def test_paragraphs_that_stood_before_are_left_out(parsed):
    kept = list(without_repeats([("a", "one\n\ntwo  words"), ("b", "two\nwords"), ("c", "one\n\nthree")]))
    assert [(d.key, d.text) for d in kept] == [("a", "one\n\ntwo  words"), ("c", "three")]


def shared_windows(source, fraction=0.05, width=60):
    """The share of the validation texts' stretches of `width` characters that stand word for word in the training
    texts.
    """
    sided = list(zip(split(source, fraction), (d.text for d in source.documents()), strict=True))

    def windows(of):
        return (text[i : i + width] for side, text in sided if side == of for i in range(len(text) - width + 1))

    held_out = Counter(windows(VALIDATION))  # the smaller side: the other is only walked through
    found, total = sum(held_out[w] for w in {w for w in windows(TRAIN) if w in held_out}), held_out.total()
    assert total > 20_000
    return found / total


def test_almost_nothing_of_the_validation_side_stands_in_the_training_side(parsed):
    assert shared_windows(PythonDocs()) < 0.02
    assert shared_windows(Docstrings()) < 0.03


def test_pairs_of_a_module_stay_together(parsed):
    source = Docstrings()
    sides = {}
    for side, document in zip(split(source, 0.2), source.documents(), strict=True):
        sides.setdefault(document.group, set()).add(int(side))
    assert all(len(s) == 1 for s in sides.values()) and {TRAIN} in sides.values() and {VALIDATION} in sides.values()


def test_docstring_options(parsed):
    assert all(len(d.text) >= 50 for d in Docstrings(min_chars=50).documents())
    assert not any("\n\n" in d.text for d in Docstrings(summary=True).documents())
    assert len(list(Docstrings(limit=7).documents())) == 7


def test_fingerprint_depends_on_options_and_on_the_extraction(monkeypatch):
    before = PythonDocs().fingerprint()
    assert before != PythonDocs(docstrings=False).fingerprint() != PythonDocs(limit=3).fingerprint()
    monkeypatch.setattr(embedded, "EXTRACTION", 99)
    assert PythonDocs().fingerprint() != before


def test_a_library_file_that_does_not_parse_is_left_out(monkeypatch, tmp_path):
    (tmp_path / "bad.py").write_text("def (:\n")
    (tmp_path / "good.py").write_text('if True:\n    def f(a, *, b=1):\n        """Say so."""\n')
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda name: str(tmp_path))
    assert [(d.module, d.name, d.arguments, d.text) for d in library_docstrings()] == [
        ("good", "f", "a, *, b=1", "Say so.")
    ]


def test_a_python_without_library_sources_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda name: str(tmp_path))
    PythonDocs(docstrings=False).check()
    for source in (PythonDocs(), Docstrings()):
        with pytest.raises(OSError, match="standard library's source files"):
            source.check()


def test_clean_removes_what_utf8_cannot_hold():
    assert clean("a\n    b  \n\n\n\n    c\udc80") == "a\nb\n\nc?"


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="^reference=False"):
        PythonDocs(reference=False, docstrings=False)
    with pytest.raises(ValueError, match="^limit=1 "):
        Docstrings(limit=1)


# ------------------------------------------------------------------------------------------------------------ source
# code
def test_source_code_is_whole_files_with_their_indentation_and_no_repeats():
    documents = list(PythonCode().documents())
    by_key = {d.key: d.text for d in documents}
    assert 300 < len(documents) and sum(len(d.text) for d in documents) > 5_000_000
    assert "\n    def __init__(self" in by_key["argparse"] and not any(key.startswith("encodings.") for key in by_key)
    assert max(map(len, re.findall(r"\n+", by_key["argparse"]))) == 2
    paragraphs = [" ".join(part.split()) for d in documents for part in d.text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))


def test_source_code_has_a_fingerprint_and_limits():
    assert len(list(PythonCode(limit=3).documents())) == 3
    assert (
        PythonCode().fingerprint() != PythonCode(limit=3).fingerprint() and "python_code" in PythonCode().fingerprint()
    )
    with pytest.raises(ValueError, match="^limit=1 must be at least 2"):
        PythonCode(limit=1)


def test_little_of_the_validation_side_of_the_code_stands_in_the_training_side():
    assert shared_windows(PythonCode(limit=125), fraction=0.15) < 0.05

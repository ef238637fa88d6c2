"""Where documents come from: the corpora embedded in Python itself. No torch.

Python ships two megabytes of English: the language reference (`pydoc_data.topics`) and the docstrings of the
standard library. Both are read from the running interpreter without importing any of its modules: the library's
source files are parsed, so nothing runs and the order is always the same. Files and the hub are in `text.py` and
`hub.py`.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from pydoc_data import topics

from research_stack.data.sources.base import PAIRS, Document, clean, encodable
from research_stack.require import require

EXTRACTION = 2  # raise it when the text that is extracted changes: it is part of the fingerprint
SKIPPED_FOLDERS = frozenset(
    "test tests idle_test idlelib lib2to3 turtledemo site-packages dist-packages pydoc_data __pycache__".split()
)
SHARED_CHARS = 60  # a paragraph at least so long that stands in two modules is a copy
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Docstring:
    """A docstring of the standard library: `module.Class.name`, the unparsed arguments (functions only), the text."""

    module: str
    name: str
    arguments: str | None
    text: str


def library_files() -> list[Path]:
    """The standard library's own source files, sorted; tests and installed packages are left out."""
    files = []
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = sorted(n for n in subfolders if n not in SKIPPED_FOLDERS and not n.startswith("config-"))
        files += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    return files


def module_name(file: Path) -> str:
    """`email/__init__.py` below the library's folder -> `email`."""
    parts = file.relative_to(sysconfig.get_path("stdlib")).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _definitions(node: ast.AST, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Definition]]:
    """Classes and functions below a module or class with their qualified names; those inside functions are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            inner = (*names, child.name)
            yield ".".join(inner), child
            if isinstance(child, ast.ClassDef):
                yield from _definitions(child, inner)
        elif isinstance(child, ast.stmt):  # if, try, with: their bodies belong to this level
            yield from _definitions(child, names)


def library_docstrings() -> Iterator[Docstring]:
    """Every docstring of the standard library, by file and line. A file that does not parse is left out."""
    for file in library_files():
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # deliberate syntax errors live in some distributions' libraries
            continue
        module = module_name(file)
        if text := clean(ast.get_docstring(tree) or ""):
            yield Docstring(module, "", None, text)
        for name, node in _definitions(tree):
            if text := clean(ast.get_docstring(node) or ""):
                arguments = None if isinstance(node, ast.ClassDef) else ast.unparse(node.args)
                yield Docstring(module, name, arguments, text)


def without_repeats(texts: Iterable[tuple[str, str]]) -> Iterator[Document]:
    """Documents of (key, text) without the paragraphs that stood before; a document of which nothing is left is out."""
    seen: set[str] = set()
    for key, text in texts:
        fresh = []
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if words not in seen:
                fresh.append(paragraph)
            seen.add(words)
        if fresh:
            yield Document("\n\n".join(fresh), key=key)


def library_fingerprint() -> str:
    """Version of the interpreter and SHA-256 of the reference and of every library file (about 0.1 s)."""
    digest = hashlib.sha256(repr(sorted(topics.topics.items())).encode())
    for file in library_files():
        digest.update(module_name(file).encode() + b"\0" + file.read_bytes())
    return f"python-{platform.python_version()}-{EXTRACTION}-{digest.hexdigest()[:24]}"


class PythonDocs:
    """The language reference and the standard library's docstrings, about 2 MB of English in 600 documents.

    Each topic of the reference and each module's docstrings make one document. A paragraph that stood before,
    whatever its line breaks, is left out: topics repeat each other's sections and modules copy docstrings, so that
    a tenth of a validation side split by docstring would stand in the training side word for word.

    - reference: include the topics of the language reference (0.4 MB).
    - docstrings: include the docstrings (1.5 MB).
    - limit: keep only the first so many documents; None for all.
    """

    def __init__(self, reference: bool = True, docstrings: bool = True, limit: int | None = None) -> None:
        require(reference or docstrings, f"reference={reference} must be true when docstrings is false")
        require(limit is None or limit > 1, f"limit={limit} must be at least 2, or null for all documents")
        self.reference, self.docstrings, self.limit = reference, docstrings, limit

    def check(self) -> None:
        """Raise OSError when the interpreter comes without its library's source files."""
        if self.docstrings and not library_files():
            raise OSError(
                f"docstrings={self.docstrings} needs the standard library's source files, and there are none in "
                f"{sysconfig.get_path('stdlib')}; set docstrings=false for the language reference alone"
            )

    def documents(self) -> Iterator[Document]:
        """The topics, longest first, then the modules by file."""
        return islice(iter(self._all), self.limit)

    @cached_property
    def _all(self) -> list[Document]:
        texts: dict[str, list[str]] = {}
        if self.reference:
            for name, text in sorted(topics.topics.items(), key=lambda item: (-len(item[1]), item[0])):
                texts[f"topic {name}"] = [clean(text)]
        for docstring in library_docstrings() if self.docstrings else ():
            texts.setdefault(f"module {docstring.module}", []).append(docstring.text)
        return list(without_repeats((key, "\n\n".join(parts)) for key, parts in texts.items()))

    def fingerprint(self) -> str:
        """Interpreter version, content hash and options."""
        return f"python_docs-{self.reference}-{self.docstrings}-{self.limit}-{library_fingerprint()}"


class PythonCode:
    """The standard library's source code, about 10 MB in 600 documents, a file each.

    Paragraphs (parts between blank lines) that stood before are left out, as in `PythonDocs`: copies of code would
    stand on both sides of the split. The tables of `encodings`, which are no text, are left out too.

    - limit: keep only the first so many documents; None for all.
    """

    def __init__(self, limit: int | None = None) -> None:
        require(limit is None or limit > 1, f"limit={limit} must be at least 2, or null for all documents")
        self.limit = limit

    def check(self) -> None:
        """Raise OSError when the interpreter comes without its library's source files."""
        if not library_files():
            raise OSError(
                f"the standard library's source files are missing in {sysconfig.get_path('stdlib')}; choose data=text"
                " data.path=FOLDER"
            )

    def documents(self) -> Iterator[Document]:
        """The files by path."""
        texts = (
            (name, _code(file)) for file in library_files() if not (name := module_name(file)).startswith("encodings.")
        )
        return islice(without_repeats(texts), self.limit)

    def fingerprint(self) -> str:
        """Interpreter version, content hash and options."""
        return f"python_code-{self.limit}-{library_fingerprint()}"


def _code(file: Path) -> str:
    """A source file with its indentation, without trailing blanks and runs of blank lines."""
    lines = encodable(file.read_bytes().decode(errors="replace")).splitlines()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip()


class Docstrings:
    """About 5,000 pairs: the prompt is a function's qualified name and arguments, the response its docstring.

    All pairs of a module stand on one side of the split, since neighbours often differ by a word; a response that
    stood before, or that shares a paragraph with another module's, is left out.

    - min_chars: shorter docstrings ("Return x.") are left out.
    - summary: keep only the first paragraph of each docstring.
    - limit: keep only the first so many pairs; None for all.
    """

    def __init__(self, min_chars: int = 30, summary: bool = False, limit: int | None = None) -> None:
        require(min_chars >= 1, f"min_chars={min_chars} must be at least 1")
        require(limit is None or limit > 1, f"limit={limit} must be at least 2, or null for all pairs")
        self.min_chars, self.summary, self.limit = min_chars, summary, limit

    def check(self) -> None:
        """Raise OSError when the interpreter comes without its library's source files."""
        if not library_files():
            raise OSError(f"the standard library's source files are missing in {sysconfig.get_path('stdlib')}")

    def documents(self) -> Iterator[Document]:
        """The pairs, by file and line."""
        return islice(iter(self._all), self.limit)

    @cached_property
    def _all(self) -> list[Document]:
        pairs: dict[str, Document] = {}
        homes: dict[str, str] = {}  # of each paragraph: the first module that has it
        for docstring in library_docstrings():
            text = self._response(docstring.text)
            if docstring.arguments is None or len(text) < self.min_chars or text in pairs:
                continue
            shared = [words for p in text.split("\n\n") if len(words := " ".join(p.split())) >= SHARED_CHARS]
            if all(homes.setdefault(words, docstring.module) == docstring.module for words in shared):
                prompt = f"{docstring.module}.{docstring.name}({docstring.arguments})\n"
                pairs[text] = Document(text, prompt, key=prompt.strip(), group=docstring.module)
        return list(pairs.values())

    def _response(self, text: str) -> str:
        return text.partition("\n\n")[0] if self.summary else text

    def fingerprint(self) -> str:
        """Interpreter version, content hash and options."""
        return f"docstrings-{self.min_chars}-{self.summary}-{self.limit}-{PAIRS}-{library_fingerprint()}"

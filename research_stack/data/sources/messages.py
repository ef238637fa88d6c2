"""Conversations as prompt and response pairs: one for each turn of the assistant, everything before it the prompt. No
torch.

Two layouts of records are read, from jsonl and parquet files:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]}

The names of the fields may be those of the other layout, and a content may be a list of parts of text, {"type": "text",
"text": "..."}, which are joined. All turns of a conversation, and all conversations that open with the same question,
stand on one side of the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from research_stack.data.sources.base import PAIRS, Document
from research_stack.data.sources.embedded import Docstrings
from research_stack.data.sources.record_reader import OddRecords, nearest, pick, records_of
from research_stack.data.sources.records import RecordFiles
from research_stack.data.sources.text import lenient
from research_stack.records.paths import expanded
from research_stack.require import require

EXTRACTION = 1  # raise it when the text that is made of a conversation changes: it is part of the fingerprint
LAYOUTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
ROLES = {**{role: role for role in ("system", "user", "assistant", "tool")}, "human": "user", "gpt": "assistant"}
Message = dict[str, str]


class Plain:
    """`role:`, a line's end, the content, a line's end; a response follows `assistant:` and a line's end.

    A prompt ends with a line's end, as elsewhere: no common tokenizer lets a token span it and the word that follows,
    so a prompt and its response have the same ids apart and together.
    """

    def check(self) -> None:
        """Always available."""

    def pair(self, earlier: Sequence[Message], content: str, where: str) -> tuple[str, str]:
        """(prompt, response) of an assistant's turn after the earlier messages."""
        return "".join(f"{m['role']}:\n{m['content']}\n" for m in earlier) + "assistant:\n", content

    def fingerprint(self) -> str:
        """Constant."""
        return "plain"


class ChatML:
    """`<|im_start|>role`, a line's end, the content, `<|im_end|>`, a line's end (ChatML, OpenAI 2023).

    In a tokenizer that has these two as special tokens they become such; the response is closed by the end token of the
    codec.
    """

    def check(self) -> None:
        """Always available."""

    def pair(self, earlier: Sequence[Message], content: str, where: str) -> tuple[str, str]:
        """(prompt, response) of an assistant's turn after the earlier messages."""
        return (
            "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in earlier)
            + "<|im_start|>assistant\n",
            content,
        )

    def fingerprint(self) -> str:
        """Constant."""
        return "chatml"


class OfTokenizer:
    """The chat template in the folder of a Hugging Face tokenizer.

    The prompt is what `apply_chat_template(earlier, add_generation_prompt=True)` gives; the response is what the
    template puts after it when the turn is there, up to the tokenizer's eos, with which the codec of that tokenizer
    closes it again. Special tokens are spelt out in the prompt, and that codec reads them as such, in the contents of
    messages too.

    - path: the folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def check(self) -> None:
        """Raise OSError or ValueError when the folder is not there or holds no chat template; loads nothing."""
        folder = expanded(self.path)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"template={self.path} must be plain, chatml or the folder of a tokenizer, and there is no such"
                f" folder{nearest(folder)}"
            )
        config = folder / "tokenizer_config.json"
        named = config.exists() and '"chat_template"' in config.read_text(errors="replace")
        if (
            not named
            and not any(folder.glob("chat_template.*"))
            and not (folder / "additional_chat_templates").is_dir()
        ):
            raise ValueError(
                f"template={self.path} has no chat template (neither chat_template.jinja nor a chat_template in"
                " tokenizer_config.json)"
            )

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                str(expanded(self.path)), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # a damaged file makes the loaders raise anything
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            raise OSError(f"template={self.path} holds no tokenizer that can be loaded: {line}") from error

    def _apply(self, messages: Sequence[Message], where: str, generation: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation)
        except Exception as error:  # a template raises what it likes: jinja2.TemplateError, TypeError, ...
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"path={where} does not fit the chat template of template={self.path}: {line}") from error

    def pair(self, earlier: Sequence[Message], content: str, where: str) -> tuple[str, str]:
        """(prompt, response) of an assistant's turn after the earlier messages. Raises ValueError where the template is
        none of the kind.
        """
        prompt = self._apply(earlier, where, True)
        whole = self._apply([*earlier, {"role": "assistant", "content": content}], where, False)
        if not whole.startswith(prompt):
            raise ValueError(
                f"template={self.path} does not go on from its own generation prompt {prompt[-40:]!r} ({where}); choose"
                " plain or chatml"
            )
        response = whole[len(prompt) :].rstrip().removesuffix(self._tokenizer.eos_token or "")
        if not response.strip().endswith(content.strip()):  # before the content a template may put an empty thought
            rest = response.strip().rpartition(content.strip())[2][:40]
            raise ValueError(
                f"template={self.path} closes a turn of the assistant with {rest!r}, which is not the tokenizer's eos "
                f"'{self._tokenizer.eos_token}' ({where}); set eos_token in its tokenizer_config.json"
            )
        return prompt, response

    def fingerprint(self) -> str:
        """SHA-256 of the folder's tokenizer and template files."""
        folder, digest = expanded(self.path), hashlib.sha256()
        for file in sorted(
            f
            for f in {
                *folder.glob("*token*"),
                *folder.rglob("chat_template*"),
                *folder.glob("additional_chat_templates/*"),
            }
            if f.is_file()
        ):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return f"tokenizer-{digest.hexdigest()[:24]}"


class Instructions(RecordFiles):
    """A pair for each turn of the assistant in the conversations of local files.

    - path: a file, a folder, a glob or a list of them; None for the embedded ones: a question and its answer for each
      of the `Docstrings`, split by module as those are.
    - template: how messages become text: plain, chatml, or the folder of a tokenizer whose chat template is applied.
    - limit: keep only the first so many pairs; None for all.
    - strict: an odd conversation is an error; False leaves it out and counts it.
    """

    def __init__(
        self,
        path: str | list[str] | None = None,
        template: str = "plain",
        limit: int | None = None,
        strict: bool = True,
    ) -> None:
        require(template != "", f"template={template!r} must be plain, chatml or the folder of a tokenizer")
        require(limit is None or limit > 1, f"limit={limit} must be at least 2, or null for all pairs")
        super().__init__(path, limit, strict)
        self.template = template
        self._template: Plain | ChatML | OfTokenizer = (
            Plain() if template == "plain" else ChatML() if template == "chatml" else OfTokenizer(template)
        )
        self._embedded = Docstrings(limit=limit) if path is None else None

    def check(self) -> None:
        """Raise ValueError or OSError in one line: file, layout, role, content (first 4 MB) wrong, or no template
        there.

        Whether the conversations fit the template of a tokenizer shows in `documents()`: it would have to be loaded for
        that.
        """
        self._template.check()
        if self._embedded is not None:
            self._embedded.check()
        elif isinstance(self._template, OfTokenizer):
            Instructions(self.path, limit=self.limit, strict=self.odd.strict).check()
        else:
            super().check()

    def documents(self) -> Iterator[Document]:
        """The pairs, conversation by conversation."""
        if self._embedded is None:
            yield from super().documents()
            return
        for document in self._embedded.documents():
            question: Message = {"role": "user", "content": (document.prompt or "").strip()}
            prompt, response = self._template.pair([question], document.text, document.key)
            yield Document(response, prompt, document.key, document.group)

    def read(self, file: Path) -> Iterator[Document]:
        """The pairs of one file."""
        for where, record in records_of(file, self.odd, [_layout(file)]):
            pairs: list[Document] = []
            with self.odd:
                pairs = list(self._pairs(record, where))
            yield from pairs

    def _pairs(self, record: dict[str, Any], where: str) -> Iterator[Document]:
        """A pair for each turn of the assistant."""
        conversation = messages_of(record, where)
        group = next((m["content"] for m in conversation if m["role"] == "user"), conversation[0]["content"])
        for turn, message in enumerate(conversation):
            if message["role"] == "assistant":
                prompt, response = self._template.pair(conversation[:turn], message["content"], where)
                yield Document(response, prompt, f"{where} turn {turn + 1}", group)

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes, or the embedded corpus, and the template."""
        what = (
            f"{self.limit}{lenient(self.odd)}-{PAIRS}-{self.digest()}"
            if self._embedded is None
            else self._embedded.fingerprint()
        )
        return f"messages{EXTRACTION}-{self._template.fingerprint()}-{what}"


def _layout(file: Path) -> str:
    """The column of a parquet file that holds the conversations; `messages` for other files and where it has
    neither.
    """
    if file.suffix.lower() != ".parquet":
        return "messages"
    _, first = next(records_of(file, OddRecords(strict=False), ["messages"]), ("", {}))
    return "conversations" if "conversations" in first else "messages"


def messages_of(record: dict[str, Any], where: str) -> list[Message]:
    """The conversation of a record as {"role", "content"} messages. Raises ValueError, naming `where`, for what is no
    such thing.
    """
    layout = next((name for name in LAYOUTS if name in record), None)
    if layout is None:
        raise ValueError(
            f"path={where} has neither the field 'messages' nor 'conversations'; the fields there: {', '.join(record)}"
        )
    turns = record[layout]
    if not isinstance(turns, list) or not turns:
        raise ValueError(
            f"path={where} field '{layout}' must be a list of messages, not"
            f" {'an empty one' if turns == [] else type(turns).__name__}"
        )
    found = [_message(turn, layout, f"{where} message {number}") for number, turn in enumerate(turns, 1)]
    if not any(message["role"] == "assistant" for message in found):
        raise ValueError(f"path={where} has no turn of the assistant, so nothing can be learned from it")
    return found


def _message(turn: Any, layout: str, where: str) -> Message:
    role_field, content_field = LAYOUTS[layout]
    if not isinstance(turn, dict):
        raise ValueError(
            f"path={where} must be an object with '{role_field}' and '{content_field}', not a {type(turn).__name__}"
        )
    role_field, content_field = next(
        (names for names in LAYOUTS.values() if set(names) <= set(turn)), (role_field, content_field)
    )
    role, content = pick(turn, role_field, where), _content(turn, content_field, where)
    if role not in ROLES:
        raise ValueError(f"path={where} has the unknown {role_field} '{role:.60}'; known: {' '.join(ROLES)}")
    if not content.strip():
        raise ValueError(f"path={where} ({role}) has an empty content")
    return {"role": ROLES[role], "content": content}


def _content(turn: dict[str, Any], field: str, where: str) -> str:
    """The text of a message, or of its parts one after another. Raises ValueError in one line for a part that is no
    text.
    """
    parts = turn.get(field)
    if not isinstance(parts, list):
        return pick(turn, field, where)
    texts = []
    for number, part in enumerate(parts, 1):
        at = f"{where} field '{field}' part {number}"
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"path={at} is of the kind {kind!r:.60}; only text is read")
        texts.append(pick(part, "text", at))
    return "".join(texts)

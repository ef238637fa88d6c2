"""Sender and receiver as two processes that share a trained run and otherwise only the bytes of a message.

research-stack task=send run=RUN reader=llama < context > message
research-stack task=receive run=RUN reader=llama prompt="Where does Ada live?" < message
"""

from __future__ import annotations

import sys
from typing import BinaryIO

from research_stack.config.hints import did_you_mean
from research_stack.evaluation.context import Context
from research_stack.latentwire.encoder import ByteEncoder
from research_stack.latentwire.module import LatentWire
from research_stack.latentwire.receiver import greedy
from research_stack.records import terminal
from research_stack.require import require

MESSAGE = 1 << 24  # bytes of standard input that are read as a message: far more than any has
QUESTION = 1024  # tokens of a question, prompt included: its attention grows with the square


def send_input(context: Context, reader: str) -> None:
    """task=send: the context on standard input as the message to one reader on standard output."""
    _write(send(context, reader, given(context, "send", sys.stdin.buffer)))


def receive_input(context: Context, reader: str, prompt: str) -> None:
    """task=receive: what the reader answers to the question `prompt` about the message on standard input."""
    answer = receive(context, reader, prompt, given(context, "receive", sys.stdin.buffer))
    _write(f"{terminal.visible(answer) if sys.stdout.isatty() else answer}\n".encode())


def _write(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def given(context: Context, verb: str, stream: BinaryIO) -> bytes:
    """Standard input of `send` and `receive`, read no further than either takes; ValueError names the limit."""
    method = context.method
    what, limit = "message must have at most {} bytes", MESSAGE
    if verb == "send" and isinstance(method, LatentWire):
        assert isinstance(method.model, ByteEncoder)
        what, limit = "model.max_length={} is less than the bytes of the context", method.model.max_length
    end = 2 if verb == "send" else 0  # a line break behind a context is left out
    read = stream.read(limit + end + 1)
    if len(read) > limit + end:
        raise ValueError(f"{what.format(limit)} on standard input, of which the first {len(read)} were read")
    return read


def send(context: Context, reader: str, text: bytes) -> bytes:
    """The message of a context in UTF-8 to one reader; a line break at its very end is left out.

    Raises ValueError in one line for other runs and readers, bytes that are no text, an empty context and one that is
    too long.
    """
    method = method_of(context, reader)
    try:
        said = text.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"context={len(text)} bytes must be text in UTF-8: byte {error.start} is not") from error
    with context.inference():
        return method.encode([said], reader)[0]


def receive(context: Context, reader: str, question: str, message: bytes) -> str:
    """What the reader answers to a question about the context that the message is of.

    Raises ValueError in one line for other runs and readers, a question that is too long, and a message that is
    damaged, or is of another encoder, or for another reader.
    """
    method = method_of(context, reader)
    own = method.readers[reader]
    tokens, room = (
        len(own.prompt_ids(question)),
        min(QUESTION, own.model.max_length - len(own.bos_ids) - own.max_answer_tokens),
    )
    said = f"question={question[:40]!r}{'...' if len(question) > 40 else ''}"
    require(tokens <= room, f"{said} has {tokens} tokens with its prompt, and reader={reader} takes at most {room}")
    with context.inference():
        given = method.prefill(reader, method.decode([message], reader))
        answers, _ = greedy(own, given, [own.prompt_ids(question)], own.max_answer_tokens)
    return own.decode(answers[0])


def method_of(context: Context, reader: str) -> LatentWire:
    """The run's method. Raises ValueError if it sends no latents, or has no such reader."""
    method = context.method
    require(
        isinstance(method, LatentWire),
        f"run={context.folder} must be one of LatentWire, not of {type(method).__name__}",
    )
    assert isinstance(method, LatentWire)
    require(
        reader in method.readers,
        f"reader={reader} must be one of the run's{did_you_mean(reader, list(method.readers), 'they')}",
    )
    return method

"""A message from one process to another, as the command line sends it; mistakes are one line."""

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_wires import context, facts, folders, wire

from research_stack import compose, run
from research_stack.latentwire import sending
from research_stack.latentwire.receiver import greedy
from research_stack.latentwire.sending import MESSAGE, receive_input, send, send_input

QUESTION = "Where does Ada live?"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("readers"))


@pytest.fixture(scope="module")
def here(places, tmp_path_factory):
    data = facts(contexts=20)
    return context(wire(places, data), data, tmp_path_factory.mktemp("run"))


@pytest.fixture
def command(here, monkeypatch):
    """A task with bytes as standard input: (its error as one line, bytes of standard output)."""

    def called(task, *arguments, given=b"", terminal=False):
        out = SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: terminal)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given)))
            patched.setattr(sys, "stdout", out)
            try:
                task(here, *arguments)
            except ValueError as error:
                return str(error), out.buffer.getvalue()
        return "", out.buffer.getvalue()

    return called


def test_a_message_is_all_that_the_receiver_needs(here, command):
    method, text = here.method, here.data.questions[0].context
    for name, reader in method.readers.items():
        said, message = command(send_input, name, given=f"{text}\n".encode())
        assert said == "" and message == method.encode([text], name)[0] and len(message) == 14
        said, answer = command(receive_input, name, QUESTION, given=message)
        with torch.inference_mode():
            ids, _ = greedy(
                reader,
                method.prefill(name, method.decode([message], name)),
                [reader.prompt_ids(QUESTION)],
                reader.max_answer_tokens,
            )
        assert said == "" and answer == f"{reader.decode(ids[0])}\n".encode()


def test_other_contexts_are_other_messages(here):
    first, second = (send(here, "llama", q.context.encode()) for q in (here.data.questions[0], here.data.questions[-1]))
    assert first != second and len(first) == len(second)
    assert send(here, "llama", here.data.questions[0].context.encode() + b"\r\n") == first


@pytest.mark.parametrize("given, said", [
    (b"", "is empty: there is nothing to send"), (b"\n", "is empty: there is nothing to send"),
    (b"caf\xe9", "must be text in UTF-8: byte 3 is not"),
    (b"x" * 300, "max_length=256 is less than the bytes of the context on standard input, of which the first 259 were"),
])  # fmt: skip
def test_what_cannot_be_sent_is_said_in_one_line(command, given, said):
    error, out = command(send_input, "llama", given=given)
    assert out == b"" and said in error and "\n" not in error


def test_what_cannot_be_received_is_said_in_one_line(here, command):
    message = send(here, "llama", b"Ada lives in Oslo.")
    flipped = bytes([*message[:5], message[5] ^ 4, *message[6:]])
    for reader, given, said in (
        ("llama", flipped, "damaged"),
        ("llama", message[:-1], "cut short"),
        ("llama", b"", "must be more"),
        ("qwen", message, "for another reader"),
        ("lama", message, "did you mean 'llama'"),
    ):
        error, out = command(receive_input, reader, QUESTION, given=given)
        assert out == b"" and said in error and "\n" not in error, error
    too_much = "tokens with its prompt, and reader=llama takes at most "
    for question, given, said in (
        ("where? " * 1500, message, too_much),
        (QUESTION, bytes(MESSAGE + 9), "16777216 bytes"),
    ):
        error, out = command(receive_input, "llama", question, given=given)
        assert out == b"" and said in error and "\n" not in error and len(error) < 300, error


def test_an_answer_on_a_terminal_moves_nothing(here, command, monkeypatch):
    monkeypatch.setattr(sending, "receive", lambda *arguments: "a\x1b[2Jb\u202ec")
    assert command(receive_input, "llama", QUESTION)[1] == "a\x1b[2Jb\u202ec\n".encode()
    assert command(receive_input, "llama", QUESTION, terminal=True)[1] == b"a\\x1b[2Jb\\u202ec\n"


def test_another_method_sends_nothing(here):
    other = SimpleNamespace(method=torch.nn.Linear(1, 1), folder="RUN")
    with pytest.raises(ValueError, match="run=RUN must be one of LatentWire, not of Linear"):
        send(other, "llama", b"text")


@pytest.mark.slow
def test_two_processes_share_a_run_and_a_file_of_bytes(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        "experiment=latentwire",
        "method/readers=pretrained",
        *(f"method.readers.{key}.path={path}" for key, path in zip("ab", places.values(), strict=True)),
        "trainer=smoke",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "eval=none",
        "model.dim=16",
        "model.layers=1",
        "data.sources.qa_facts.contexts=60",
        "data.batch_size=4",
        "method.features.deep_prefix.texts=4",
        "hardware.threads=1",
    ]
    assert run(compose(options), "run").status == "ok"

    def process(*arguments, given):
        return subprocess.run([sys.executable, "-m", "research_stack", *arguments], input=given, capture_output=True)

    sent = process("task=send", "run=run", "reader=a", given=b"Ada lives in Oslo. Ada is a baker.\n")
    assert sent.returncode == 0 and len(sent.stdout) == 36, sent.stderr
    answers = [
        process("task=receive", "run=run", "reader=a", f"prompt={QUESTION}", given=sent.stdout) for _ in range(2)
    ]
    assert (
        all(answer.returncode == 0 for answer in answers)
        and answers[0].stdout == answers[1].stdout
        and answers[0].stdout.endswith(b"\n")
    )
    refused = process("task=receive", "run=run", "reader=b", f"prompt={QUESTION}", given=sent.stdout)
    assert refused.returncode in (0, 2)  # one message in 256 is taken
    assert refused.returncode == 0 or refused.stderr.count(b"\n") == 1

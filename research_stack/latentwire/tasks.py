"""The tasks of LatentWire: both ends of the wire as commands."""

from research_stack.config.tasks import Task

TASKS = (
    Task(
        name="send",
        run="research_stack.latentwire.sending.send_input",
        help="a context as the bytes of a message: task=send run=RUN reader=llama < context > message",
        needs_run=True,
        writes="standard output",
    ),
    Task(
        name="receive",
        run="research_stack.latentwire.sending.receive_input",
        help='what a reader answers: task=receive run=RUN reader=llama prompt="Where does Ada live?" < message',
        needs_run=True,
        writes="standard output",
    ),
)

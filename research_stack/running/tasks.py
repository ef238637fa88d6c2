"""The tasks that every run knows. A family or a project adds its own in a `tasks.py` beside its code."""

from research_stack.config.tasks import Task

TASKS = (
    Task(
        name="train",
        run="research_stack.running.train.train",
        help="train, measure, report; with run=FOLDER, go on with a run that was interrupted",
        writes="a run folder below outputs/, report.html in it",
    ),
    Task(
        name="eval",
        run="research_stack.running.evaluate.evaluate_run",
        help="measure a finished run: task=eval run=RUN eval=likelihood",
        needs_run=True,
        reads=("eval", "sampler"),
        writes="result.json and report.html of the run",
    ),
    Task(
        name="sample",
        run="research_stack.running.sample.sample_run",
        help='texts of a finished run: task=sample run=RUN sampler=flowlm prompt="..."',
        needs_run=True,
        reads=("sampler", "prompt"),
        writes="standard output, samples.jsonl of the run",
    ),
    Task(
        name="export",
        run="research_stack.running.sample.export_run",
        help="the model of a finished run in another format: task=export run=RUN format=hf",
        needs_run=True,
        reads=("format",),
        writes="export/FORMAT in the run",
    ),
    Task(
        name="compare",
        run="research_stack.running.compare.compare",
        help="one table and one page of several runs: task=compare 'runs=[RUN_A,RUN_B]'",
        writes="a table and report.html below outputs/compare/, or in the sweep",
    ),
)

"""infer run"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from infer.artifact import Artifact
from infer.cli.output import print_json, to_json
from infer.drafts import file_draft
from infer.errors import InputError
from infer.npz import load_npz, save_npz
from infer.options import MAX_THREADS, PlanOptions, SessionOptions
from infer.session import Session, open_artifact, open_session
from infer.tasks import StreamTask, Task
from infer.tasks.lines import split_lines
from infer.wording import shown


@click.command("run")
@click.argument("artifact", type=click.Path(path_type=Path, readable=False))
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path, readable=False))
@click.option("--text", "texts", multiple=True, help="An input given on the command line. Repeatable.")
@click.option(
    "--feeds",
    type=click.Path(path_type=Path, readable=False),
    help="Arrays by input name, from an .npz file.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, readable=False),
    help="Write the answers: NAME.json, or NAME.npz for arrays; - is stdout, as JSON.",
)
@click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto. A demand, not a wish."
)
@click.option("--backend", help="onnxruntime or openvino; default: the one the variant was made for.")
@click.option("--variant", help="Which variant to run; default: the fastest here, or the first.")
@click.option(
    "--threads",
    type=click.IntRange(min=1, max=MAX_THREADS),
    help="Threads a run may use; default: the cores at hand.",
)
@click.option(
    "--json", "as_json", is_flag=True, help='Print {"schema_version": 1, "results": [one per input]}.'
)
@click.option(
    "--untrusted",
    is_flag=True,
    help="Try the graph in a process of its own first, within limits of memory and time.",
)
@click.option("--explain", is_flag=True, help="Print the plan, and why, before anything runs.")
def command(
    artifact: Path,
    inputs: tuple[Path, ...],
    texts: tuple[str, ...],
    feeds: Path | None,
    output: Path | None,
    device: str,
    backend: str | None,
    variant: str | None,
    threads: int | None,
    as_json: bool,
    untrusted: bool,
    explain: bool,
) -> None:
    """Answer inputs with an artifact, or with a plain .onnx file.

    INPUTS are files of the kind the artifact's task takes: pictures, recordings, .txt with a text a line,
    .csv or .jsonl with a row a line, .npz. Without any, lines are read from stdin.

    \b
    Examples:
      infer run classifier.infer cat.jpg dog.jpg
      infer run minilm.infer --text "a sentence" --json
      cat sentences.txt | infer run minilm.infer --json
      infer run net.infer rows.csv
      infer run net.infer --feeds x.npz -o y.npz
      infer run net.infer --explain
    """
    if feeds is not None and (inputs or texts):
        raise click.UsageError("give either --feeds, or files and texts, not both")
    if str(output) == "-":
        output, as_json = None, True
    opened = open_artifact(artifact)
    if output is not None:
        _check_output(output)
        if output.suffix == ".npz" and feeds is None:
            feeds, inputs = _lone_feeds(opened, inputs, texts), ()
    options = PlanOptions(device=device, backend=backend, variant=variant, num_threads=threads)
    plan = _explain(opened, options, as_json) if explain else {}
    if explain and not (inputs or texts or feeds):
        if as_json:
            print_json(plan)
        return
    # a command answers once: a warm-up would cost more than it saves
    with open_session(opened, options, SessionOptions(warm_up=False, untrusted=untrusted)) as session:
        if feeds is not None:
            _run_feeds(session, feeds, output, as_json, plan)
        else:
            _run_task(session, inputs, texts, output, as_json, plan)


def _check_output(output: Path) -> None:
    # a pipe or a device has no name to tell by, and gets JSON
    if output.suffix not in (".json", ".npz") and (output.is_file() or not output.exists()):
        raise click.UsageError(f"-o '{output}' is neither .json nor .npz; name it so, or give - for stdout")


def _lone_feeds(opened: Artifact, inputs: tuple[Path, ...], texts: tuple[str, ...]) -> Path:
    """The one file whose outputs an .npz file can hold."""
    if opened.manifest.task is not None:
        raise click.UsageError(
            f"the task '{opened.manifest.task.name}' answers with no arrays; give -o NAME.json,"
            f" or run the graph alone with --feeds x.npz"
        )
    if len(inputs) != 1 or texts:
        raise click.UsageError("an .npz file holds the outputs for one .npz file of inputs; give one")
    return inputs[0]


def _explain(opened: Artifact, options: PlanOptions, as_json: bool) -> dict[str, Any]:
    """Print the plan, or give its part of the one JSON document."""
    from infer.machine import this_machine
    from infer.planner import make_plan

    plan = make_plan(opened.manifest, this_machine(), options)
    if as_json:
        return {"plan": plan.to_dict()}
    variant, graph, precision = shown(plan.variant), shown(plan.graph), shown(plan.precision)
    click.echo(str(replace(plan, variant=variant, graph=graph, precision=precision)))
    return {}


def _run_feeds(
    session: Session, feeds: Path, output: Path | None, as_json: bool, plan: dict[str, Any]
) -> None:
    if not feeds.is_file():
        raise InputError(f"there is no file '{feeds}'; check the path")
    outputs = session.run(load_npz(feeds))
    if output is not None and output.suffix == ".npz":
        with file_draft(output) as draft:
            save_npz(draft, outputs)
        output = None
        if not as_json:
            return
    if as_json or output is not None:
        _give_json([{name: array.tolist() for name, array in outputs.items()}], output, as_json, plan)
    else:
        from infer.tasks.tensors import describe_arrays

        _echo_lines(describe_arrays(outputs))


def _give_json(results: list[Any], output: Path | None, as_json: bool, plan: dict[str, Any]) -> None:
    """The results in the file `output`, and on stdout if they are asked for there."""
    if output is not None:
        with file_draft(output) as draft:
            draft.write_text(to_json({"results": results}) + "\n", encoding="utf-8")
    if as_json:
        print_json({**plan, "results": results})


def _run_task(
    session: Session,
    inputs: tuple[Path, ...],
    texts: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    plan: dict[str, Any],
) -> None:
    task = session.task
    labelled = [(str(path), item) for path in inputs for item in task.read(path)]
    labelled += [(text, task.parse(text)) for text in texts]
    if not labelled and not inputs:
        labelled = _stdin_inputs(task)
    if not labelled:
        raise InputError("there is nothing to answer: the input is empty")
    results = list(session([item for _, item in labelled]))
    if as_json or output is not None:
        _give_json([task.to_json(result) for result in results], output, as_json, plan)
        return
    for (label, _), result in zip(labelled, results, strict=True):
        click.secho(shown(label if len(label) < 100 else f"{label[:99]}…"), bold=True)
        _echo_lines(task.describe(result))


def _echo_lines(text: str) -> None:
    click.echo("\n".join(shown(line) for line in text.split("\n")))


def _stdin_inputs(task: Task) -> list[tuple[str, Any]]:
    """Inputs on stdin, each with what it is called."""
    # python has no stdin at all where the shell closed it (<&-)
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("give files, --text or --feeds, or pipe lines into stdin")
    if isinstance(task, StreamTask):
        try:
            rows = task.parse_stream(sys.stdin, "stdin")
        except UnicodeDecodeError as error:
            raise InputError(f"stdin is not UTF-8 text ({error.reason} at byte {error.start})") from error
        return [(f"row {number}", row) for number, row in enumerate(rows, 1)]
    return [(line, task.parse(line)) for line in split_lines(sys.stdin.buffer.read(), "stdin")]

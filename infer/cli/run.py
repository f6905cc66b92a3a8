"""infer run"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from infer.cli.output import print_json, shown, to_json
from infer.drafts import file_draft
from infer.errors import InputError
from infer.npz import load_npz, save_npz
from infer.options import PlanOptions, SessionOptions
from infer.session import Session, open_artifact, open_session


@click.command("run")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, help="An input given on the command line. Repeatable.")
@click.option("--feeds", type=click.Path(path_type=Path), help="Arrays by input name, from an .npz file.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write outputs as .npz (with --feeds) or JSON."
)
@click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto. A demand, not a wish."
)
@click.option("--variant", help="Which variant to run; default: the first.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads a run may use; default: the cores at hand."
)
@click.option(
    "--json", "as_json", is_flag=True, help='Print {"schema_version": 1, "results": [one per input]}.'
)
@click.option("--explain", is_flag=True, help="Print the plan, and why, before anything runs.")
def command(
    artifact: Path,
    inputs: tuple[Path, ...],
    texts: tuple[str, ...],
    feeds: Path | None,
    output: Path | None,
    device: str,
    variant: str | None,
    threads: int | None,
    as_json: bool,
    explain: bool,
) -> None:
    """Answer inputs with an artifact, or with a plain .onnx file.

    INPUTS are files of the kind the artifact's task takes: pictures, recordings, .txt with a text a line,
    .csv with a row a line, .npz. Without any, lines are read from stdin.

    \b
    Examples:
      infer run classifier.infer cat.jpg dog.jpg
      infer run minilm.infer --text "a sentence" --json
      cat sentences.txt | infer run minilm.infer --json
      infer run net.infer rows.csv
      infer run net.infer --feeds x.npz -o y.npz
      infer run net.infer --explain
    """
    opened = open_artifact(artifact)
    options = PlanOptions(device=device, variant=variant, num_threads=threads)
    if explain:
        _explain(opened, options, as_json)
        if not (inputs or texts or feeds):
            return
    if feeds is not None and (inputs or texts):
        raise click.UsageError("give either --feeds, or files and texts, not both")
    # a command answers once: a warm-up would cost more than it saves
    with open_session(opened, options, SessionOptions(warm_up=False)) as session:
        if feeds is not None:
            _run_feeds(session, feeds, output, as_json)
        else:
            _run_task(session, inputs, texts, output, as_json)


def _explain(opened: Any, options: PlanOptions, as_json: bool) -> None:
    from infer.machine import this_machine
    from infer.planner import make_plan

    plan = make_plan(opened.manifest, this_machine(), options)
    if as_json:
        print_json({"plan": plan.to_dict()})
    else:
        variant, graph, precision = shown(plan.variant), shown(plan.graph), shown(plan.precision)
        click.echo(str(replace(plan, variant=variant, graph=graph, precision=precision)))


def _run_feeds(session: Session, feeds: Path, output: Path | None, as_json: bool) -> None:
    if not feeds.is_file():
        raise InputError(f"there is no file '{feeds}'; check the path")
    outputs = session.run(load_npz(feeds))
    if output is not None:
        with file_draft(output) as draft:
            save_npz(draft, outputs)
    if as_json:
        print_json({"results": [{name: array.tolist() for name, array in outputs.items()}]})
    elif output is None:
        from infer.tasks.tensors import describe_arrays

        _echo_lines(describe_arrays(outputs))


def _run_task(
    session: Session, inputs: tuple[Path, ...], texts: tuple[str, ...], output: Path | None, as_json: bool
) -> None:
    task = session.task
    labelled = [(str(path), item) for path in inputs for item in task.read(path)]
    labelled += [(text, task.parse(text)) for text in texts]
    if not labelled and not inputs:
        if sys.stdin.isatty():
            raise click.UsageError("give files, --text or --feeds, or pipe lines into stdin")
        labelled = [(line, task.parse(line)) for line in _stdin_lines()]
    if not labelled:
        raise InputError("there is nothing to answer: the input is empty")
    results = list(session([item for _, item in labelled]))
    if as_json or output is not None:
        document = {"results": [task.to_json(result) for result in results]}
        if output is not None:
            with file_draft(output) as draft:
                draft.write_text(to_json(document) + "\n", encoding="utf-8")
        if as_json:
            print_json(document)
        return
    for (label, _), result in zip(labelled, results, strict=True):
        click.secho(shown(label if len(label) < 100 else f"{label[:99]}…"), bold=True)
        _echo_lines(task.describe(result))


def _echo_lines(text: str) -> None:
    click.echo("\n".join(shown(line) for line in text.split("\n")))


def _stdin_lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not UTF-8 text ({error.reason} at byte {error.start})") from error

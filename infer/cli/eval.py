"""infer eval"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from infer.cli.output import heading, print_json
from infer.cli.progress import Progress
from infer.errors import missing_package
from infer.options import PlanOptions, SessionOptions
from infer.session import Session, open_artifact, open_session
from infer.wording import shown


@click.command("eval")
@click.argument("artifact", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, readable=False),
    help="Inputs with known answers.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="WHAT=NAME",
    help="A table's column for what the task needs, such as label=sentiment. Repeatable.",
)
@click.option("--against", metavar="SOURCE", help="The PyTorch original, evaluated the same way beside it.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, readable=False),
    help="The original's weights, with --against.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option("--backend", help="onnxruntime or openvino; default: the one the variant was made for.")
@click.option("--variant", help="Which variant to evaluate; default: the fastest here, or the first.")
@click.option(
    "--untrusted",
    is_flag=True,
    help="Try the graph in a process of its own first, within limits of memory and time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    artifact: Path,
    data: Path,
    columns: tuple[str, ...],
    against: str | None,
    weights: Path | None,
    device: str,
    backend: str | None,
    variant: str | None,
    untrusted: bool,
    as_json: bool,
) -> None:
    """Say how good an artifact is at its task, on data whose answers are known.

    What --data may be depends on the task:

    \b
      image-classification     a folder with a folder of pictures for each class, a .csv or .jsonl with
                               the columns file and label, an .npz with inputs and labels
      object-detection         a folder with COCO annotations (.json) and pictures, or the .json beside them
      image-segmentation       a folder with images/ and masks/ of equal names: PNG, TIFF, NIfTI, .npz
      text-classification      .csv or .jsonl with the columns text and label (and text_pair), class
                               folders, .npz
      token-classification     .jsonl with text and entities, a list of {"start", "end", "label"}
      tabular-classification   .csv or .jsonl with the model's columns and label, .npz
      tabular-regression       .csv or .jsonl with the model's columns and targets, .npz with inputs
                               and targets
      recommendation           .csv or .jsonl with the columns user and item, one a held-out item; .npz
                               with users and items
      audio-classification     a folder with a folder of recordings for each class, .csv or .jsonl with
                               the columns file and label
      voice-activity           .jsonl with the columns file, and segments: [[start, end], …] in seconds
      speaker-embedding        a folder with a folder of recordings for each voice, .csv or .jsonl with
                               the columns first, second (files) and same

    \b
    Examples:
      infer eval classifier.infer --data photos/
      infer eval sentiment.infer --data test.csv --column label=sentiment --json
      infer eval net.infer --data test.csv --against net.py:Net --weights net.safetensors
    """
    from infer.evaluation import evaluate_task, read_dataset

    renamed = dict(_column(text) for text in columns)
    opened = open_artifact(artifact)
    options = PlanOptions(device=device, backend=backend, variant=variant)
    session_options = SessionOptions(warm_up=False, untrusted=untrusted)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(quiet=as_json))
        session = stack.enter_context(open_session(opened, options, session_options))
        dataset = read_dataset(session.task, data, renamed)
        found = {"artifact": evaluate_task(session.task, dataset, progress)}
        if against is not None:
            original = stack.enter_context(_original(against, session, weights))
            found["original"] = evaluate_task(
                original, dataset, lambda sentence: progress(f"original: {sentence}")
            )
    if as_json:
        print_json({"evaluations": {name: asdict(evaluation) for name, evaluation in found.items()}})
    else:
        _report(found)


def _original(source: str, session: Session, weights: Path | None) -> Any:
    try:
        from converters.original import original_task
    except (ImportError, OSError) as error:
        raise missing_package("torch", "convert", error) from error
    return original_task(source, session.artifact, weights)


def _column(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\w+)=(.+)", text)
    if not match:
        raise click.UsageError(f"--column '{text}' is not WHAT=NAME, such as label=sentiment")
    return match[1], match[2]


def _report(found: Mapping[str, Any]) -> None:
    ours = found["artifact"]
    heading(f"{ours.task} on {ours.dataset}, {ours.count} examples")
    width = max(len(name) for name in ours.metrics)
    if "original" in found:
        click.echo(f"  {'':<{width}}  {'artifact':>10}  {'original':>10}  {'difference':>10}")
    for name, value in ours.metrics.items():
        line = f"  {name:<{width}}  {value:>10.4f}"
        if "original" in found:
            other = found["original"].metrics[name]
            line += f"  {other:>10.4f}  {value - other:>+10.1e}"
        click.echo(line)
    if ours.classes:
        _report_classes(ours)
    if ours.confusion:
        _report_confusion(ours)


_MOST_CLASSES = 20


def _report_classes(evaluation: Any) -> None:
    classes = [row for row in evaluation.classes if row.support]
    # of many classes, the worst are what one looks for
    listed = sorted(classes, key=lambda row: row.f1)[:_MOST_CLASSES] if len(classes) > 20 else classes
    heading("classes" if listed == classes else f"the {len(listed)} weakest of {len(classes)} classes")
    labels = [shown(row.label)[:40] for row in listed]
    width = max(map(len, labels))
    overlap = any(row.iou is not None for row in listed)
    click.echo(f"  {'':<{width}}  precision  recall      f1{'     iou' if overlap else ''}  examples")
    for label, row in zip(labels, listed, strict=True):
        click.echo(
            f"  {label:<{width}}  {row.precision:>9.3f}  {row.recall:>6.3f}  {row.f1:>6.3f}"
            f"{'' if row.iou is None else f'  {row.iou:>6.3f}'}  {row.support:>8}"
        )


def _report_confusion(evaluation: Any) -> None:
    if len(evaluation.confusion) > _MOST_CLASSES:
        return
    heading("confusion: a row for what it is, a column for what it was called")
    labels = [shown(row.label)[:20] for row in evaluation.classes]
    width = max(map(len, labels))
    cell = max(len(str(max(map(max, evaluation.confusion)))), 3) + 2
    click.echo(f"  {'':<{width}}  {''.join(f'{label[: cell - 1]:>{cell}}' for label in labels)}")
    for label, row in zip(labels, evaluation.confusion, strict=True):
        click.echo(f"  {label:<{width}}  {''.join(f'{count:>{cell}}' for count in row)}")

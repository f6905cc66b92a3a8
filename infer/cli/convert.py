"""infer convert"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from infer.artifact import Artifact
from infer.cli.output import print_json, rows, stdout_kept_clean
from infer.cli.progress import Progress
from infer.errors import ConversionError, missing_package
from infer.manifest import Measured, TaskSpec
from infer.npz import load_npz
from infer.parity import Tolerance
from infer.signature import DTYPES, Array
from infer.wording import size


@click.command("convert")
@click.argument("source")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, readable=False),
    help="The artifact: NAME.infer.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, readable=False),
    help="A .safetensors file, or a state dict, to load into the model.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SHAPE[:DTYPE[:LOW..HIGH]]",
    help="An example input, such as x=2x3x224x224:float32 or ids=2x16:int64:0..30521. Repeatable.",
)
@click.option(
    "--feeds",
    type=click.Path(path_type=Path, readable=False),
    help="Example inputs from an .npz file with one array for each input.",
)
@click.option(
    "--dynamic",
    multiple=True,
    metavar="NAME:AXIS=DIM",
    help="An axis that must be able to vary, such as x:2=height. The batch need not be named. Repeatable.",
)
@click.option(
    "--tolerance",
    "tolerances",
    multiple=True,
    metavar="NAME=SCALED",
    help="How far an output, or a dtype such as float32, may be off, relative to its largest value;"
    " default: float32=2e-5. Repeatable.",
)
@click.option(
    "--task",
    type=click.Path(path_type=Path, readable=False),
    help='What the model is for: a JSON file with {"name": ..., "spec": {...}}.',
)
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="PATH",
    type=click.Path(path_type=Path, readable=False),
    help="A file the task needs, such as tokenizer.json; it becomes files/NAME. Repeatable.",
)
@click.option("--force", is_flag=True, help="Replace an existing artifact.")
@click.option(
    "--freeze-branches",
    is_flag=True,
    help="Accept a model that branches on values; its graph always takes the example's side.",
)
@click.option(
    "--allow-mismatch", is_flag=True, help="Write the artifact even if it failed parity, marked so."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    source: str,
    output: Path,
    weights: Path | None,
    inputs: tuple[str, ...],
    feeds: Path | None,
    dynamic: tuple[str, ...],
    tolerances: tuple[str, ...],
    task: Path | None,
    files: tuple[Path, ...],
    force: bool,
    freeze_branches: bool,
    allow_mismatch: bool,
    as_json: bool,
) -> None:
    """Make an artifact from a trained model, and prove it equal to the original.

    SOURCE is one of: file.py:name or package.module:name (a module, a class, or a function that
    returns a model, or a model and its example inputs), a transformers or sentence-transformers
    folder, a .pt2 program, a TorchScript .pt file, or an .onnx file.

    \b
    Examples:
      infer convert net.py:Net --weights net.safetensors --input x=2x10 -o net.infer
      infer convert ./all-MiniLM-L6-v2 -o minilm.infer
      infer convert model.onnx -o model.infer
    """
    spec = _read_task(task) if task else None
    axes = _parse_dynamic(dynamic)
    stated = dict(_tolerance(text) for text in tolerances)
    examples: dict[str, Array] = {}
    for text in inputs:
        name, array = _example(text)
        if name in examples:
            raise click.UsageError(f"--input names '{name}' twice; give each input once")
        examples[name] = array
    try:
        import converters
    except (ImportError, OSError) as error:
        raise missing_package("torch", "convert", error) from error
    if feeds is not None:
        examples = {**load_npz(_existing(feeds)), **examples}
    with stdout_kept_clean(), Progress(quiet=as_json) as progress:
        artifact = converters.convert(
            source,
            output,
            example_inputs=examples or None,
            dynamic=axes,
            tolerances=stated,
            weights=weights,
            task=spec,
            files={f"files/{path.name}": _existing(path) for path in files},
            freeze_branches=freeze_branches,
            allow_mismatch=allow_mismatch,
            overwrite=force,
            progress=progress,
        )
    if as_json:
        print_json({"artifact": str(artifact.path), "manifest": json.loads(artifact.manifest.to_json())})
    else:
        report(artifact)


def report(artifact: Artifact) -> None:
    """What was converted and proved, for a person."""
    manifest, provenance = artifact.manifest, artifact.manifest.provenance
    parity = manifest.parity
    winner = next((a for a in provenance.attempts if a.reason is None), None)
    lines: list[tuple[str, str | Sequence[str]]] = [
        ("artifact", f"{artifact.path}  ({size(sum(v.size_bytes for v in manifest.variants))})"),
        ("source", provenance.source),
        ("inputs", [str(spec) for spec in manifest.inputs]),
        ("outputs", [str(spec) for spec in manifest.outputs]),
    ]
    if manifest.limits:
        lines.append(("limits", [f"{dim}: {limit}" for dim, limit in manifest.limits.items()]))
    if manifest.task:
        lines.append(("task", manifest.task.name))
    if winner:
        lines.append(("exporter", f"{winner.exporter}, opset {winner.opset}"))
        lost = [a for a in provenance.attempts if a.reason is not None]
        lines += [("", f"{a.exporter} at opset {a.opset} lost: {a.reason}") for a in lost]
    if parity and parity.measured:
        lines.append(("parity", parity_line(parity.measured)))
    lines += [("patch", patch) for patch in provenance.patches]
    lines += [("note", note) for note in provenance.notes]
    rows(lines, indent="")
    if parity and parity.mismatch_allowed:
        click.secho("This artifact FAILED parity and is marked so.", fg="red", err=True)


def parity_line(measured: tuple[Measured, ...]) -> str:
    """The worst of all points in one line."""
    points = len({m.point for m in measured})
    worst = max((m.max_abs for m in measured if m.max_abs is not None), default=0.0)
    relative = max((m.max_relative for m in measured if m.max_relative is not None), default=0.0)
    cosine = min((m.cosine for m in measured if m.cosine is not None), default=1.0)
    verdict = "equal" if all(m.within for m in measured) else "DIFFERENT"
    return (
        f"{verdict} at {points} points: max abs {worst:.1e}, relative {relative:.1e}, cosine {cosine:.9f}"
    )


_MAX_EXAMPLE = 2**28
_INPUT = re.compile(
    r"(?P<name>[^=]+)=(?P<shape>\d+(x\d+)*|scalar)"
    r"(:(?P<dtype>\w+))?(:(?P<low>-?\d+)\.\.(?P<high>-?\d+))?"
)


def _example(text: str) -> tuple[str, Array]:
    """An input's name and seeded random values, from NAME=SHAPE[:DTYPE[:LOW..HIGH]]."""
    match = _INPUT.fullmatch(text)
    if not match:
        raise click.UsageError(
            f"--input '{text}' is not NAME=SHAPE[:DTYPE[:LOW..HIGH]], such as x=2x10:float32"
        )
    dtype = match["dtype"] or "float32"
    if dtype not in DTYPES or dtype == "string":
        raise click.UsageError(f"--input '{text}': unknown dtype '{dtype}'; use one of {', '.join(DTYPES)}")
    shape = () if match["shape"] == "scalar" else tuple(int(n) for n in match["shape"].split("x"))
    if math.prod(shape) > _MAX_EXAMPLE:
        raise click.UsageError(
            f"--input '{text}' has more than {_MAX_EXAMPLE} elements; a small example will do"
        )
    # without limits 0 and 1: they are ids of every vocabulary, and a mask
    low, high = (int(match["low"]), int(match["high"])) if match["low"] else (0, 1)
    least, most = _limits(dtype)
    if not least <= low <= high <= most:
        raise click.UsageError(
            f"--input '{text}': LOW..HIGH must rise, and lie within {least}..{most} of {dtype}"
        )
    rng = np.random.default_rng(0)
    values: Array
    if dtype == "uint64":
        values = rng.integers(low, high, shape, dtype=np.uint64, endpoint=True)
    elif not dtype.startswith("float"):
        values = np.asarray(rng.integers(low, high, shape, endpoint=True))
    elif match["low"]:
        values = np.asarray(rng.uniform(low, high, shape))
    else:
        values = np.asarray(rng.standard_normal(shape))
    return match["name"], values.astype(DTYPES[dtype])


def _limits(dtype: str) -> tuple[int, int]:
    if dtype == "bool":
        return 0, 1
    limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _parse_dynamic(items: tuple[str, ...]) -> dict[str, dict[int, str]]:
    axes: dict[str, dict[int, str]] = {}
    for text in items:
        match = re.fullmatch(r"(?P<name>.+):(?P<axis>\d+)=(?P<dim>[A-Za-z_]\w*)", text)
        if not match:
            raise click.UsageError(f"--dynamic '{text}' is not NAME:AXIS=DIM, such as x:2=height")
        axes.setdefault(match["name"], {})[int(match["axis"])] = match["dim"]
    return axes


def _tolerance(text: str) -> tuple[str, Tolerance]:
    name, _, number = text.rpartition("=")
    try:
        scaled = float(number)
    except ValueError:
        scaled = math.nan
    if not name or not 0 <= scaled < 1:
        raise click.UsageError(
            f"--tolerance '{text}' is not NAME=SCALED with a number from 0 to 1, such as float32=1e-4"
        )
    return name, Tolerance(atol=1e-7, rtol=0.0, scaled=scaled)


def _read_task(path: Path) -> TaskSpec:
    from infer import schema
    from infer.tasks import TASKS

    try:
        spec = schema.decode(TaskSpec, schema.parse(_existing(path).read_bytes()), "task")
    except schema.SchemaError as error:
        raise ConversionError(
            f"'{path}' is not a task: {error}; expected JSON such as"
            f' {{"name": "text-classification", "spec": {{…}}}}'
        ) from error
    if spec.name not in TASKS:
        raise ConversionError(f"'{path}' names the task '{spec.name}'; infer has {', '.join(TASKS)}")
    return spec


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConversionError(f"there is no file '{path}'; check the path")
    return path

"""infer compare"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infer.cli.output import heading, print_json, rows
from infer.cli.progress import Progress
from infer.errors import ArtifactError, ParityError, missing_package
from infer.manifest import Variant
from infer.measure.feeds import example_feeds
from infer.npz import load_npz
from infer.parity import TOLERANCES, Tolerance
from infer.session import check_graph, open_artifact
from infer.wording import shown

if TYPE_CHECKING:
    from infer.artifact import Artifact
    from infer.optimizer.divergence import Divergence


@click.command("compare")
@click.argument("first", type=click.Path(path_type=Path, readable=False))
@click.argument("second", type=click.Path(path_type=Path, readable=False))
@click.option("--first-variant", metavar="NAME", help="Which variant of the first; default: its reference.")
@click.option(
    "--second-variant", metavar="NAME", help="Which variant of the second; default: its last one."
)
@click.option(
    "--feeds",
    type=click.Path(path_type=Path, readable=False),
    help="Inputs from an .npz file; default: the first one's golden feeds.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    metavar="SCALED",
    help="How far values may be apart, relative to the largest; default: 2e-5 for float32.",
)
@click.option(
    "--repro",
    type=click.Path(path_type=Path, readable=False, file_okay=False),
    help="Write repro.onnx and repro.npz to this folder: the smallest part that shows the difference.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    first: Path,
    second: Path,
    first_variant: str | None,
    second_variant: str | None,
    feeds: Path | None,
    tolerance: float | None,
    repro: Path | None,
    as_json: bool,
) -> None:
    """Say where two graphs of one model part: the first value that differs, and who made it.

    Graphs are artifacts or .onnx files that name their values alike, as an artifact's variants do. They run
    as they are written, without the backend's optimizations, and all values that both have are compared.
    Exit code 1 if any differs.

    \b
    Examples:
      infer compare fast.infer fast.infer
      infer compare net.infer fast.infer --second-variant int8-dynamic --repro repro/
    """
    try:
        from infer.optimizer.divergence import compare_files
    except ImportError as error:
        raise missing_package("onnx-ir", "optimize", error) from error
    one, other = open_artifact(first), open_artifact(second)
    paths = [
        _graph(one, first_variant or one.manifest.variants[0].name),
        _graph(other, second_variant or other.manifest.variants[-1].name),
    ]
    given = load_npz(feeds) if feeds else example_feeds(one)
    tolerances = TOLERANCES
    if tolerance is not None:
        tolerances = {dtype: Tolerance(t.atol, t.rtol, tolerance) for dtype, t in TOLERANCES.items()}
    with Progress(quiet=as_json) as progress:
        progress("comparing values")
        found = compare_files(paths[0], paths[1], given, tolerances, repro)
    if as_json:
        print_json({**asdict(found), "repro": [str(path) for path in found.repro]})
    else:
        _report(found)
    if found.first is not None:
        raise ParityError(f"they part at {shown(str(found.first))}")


def _graph(artifact: Artifact, name: str) -> Path:
    variant: Variant | None = next((v for v in artifact.manifest.variants if v.name == name), None)
    if variant is None:
        known = ", ".join(v.name for v in artifact.manifest.variants)
        raise ArtifactError(f"'{artifact.path}' has no variant '{name}'; it has: {known}")
    path = artifact.file(variant.graph)
    check_graph(artifact, path)
    return path


def _report(found: Divergence) -> None:
    click.echo(f"{found.compared} values compared")
    if found.first is None:
        click.echo("none differs")
        return
    heading("first")
    rows([(found.first.value, str(found.first))])
    heading("where most is lost")
    rows([(part.value, str(part)) for part in found.steps])
    if found.repro:
        heading("to see it alone")
        rows([(path.name, str(path)) for path in found.repro])

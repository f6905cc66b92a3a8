"""infer compare"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infer.cli.candidates import is_graph
from infer.cli.output import heading, print_json, rows, stdout_kept_clean
from infer.cli.progress import Progress
from infer.errors import ArtifactError, ConversionError, ParityError, missing_package
from infer.feeds import Feeds, example_feeds
from infer.integrity import check_graph
from infer.manifest import Variant
from infer.npz import load_npz
from infer.parity import TOLERANCES, Tolerance
from infer.session import open_artifact
from infer.wording import shown

if TYPE_CHECKING:
    from infer.artifact import Artifact
    from infer.optimizer.as_run import AsRun
    from infer.optimizer.divergence import Divergence, Part
    from infer.optimizer.modules import ModuleDivergence, ModulePart


@click.command("compare")
@click.argument("first")
@click.argument("second", type=click.Path(path_type=Path, readable=False))
@click.option("--first-variant", metavar="NAME", help="Which variant of the first; default: its reference.")
@click.option(
    "--second-variant", metavar="NAME", help="Which variant of the second; default: its last one."
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, readable=False),
    help="The weights of a PyTorch source: a .safetensors file, or a state dict.",
)
@click.option(
    "--feeds",
    type=click.Path(path_type=Path, readable=False),
    help="Inputs from an .npz file; default: golden feeds of the first graph.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    metavar="SCALED",
    help="How far values may be apart, relative to the largest; default: 2e-5 for float32, or what"
    " the artifact was held to when it was converted from the source.",
)
@click.option(
    "--repro",
    type=click.Path(path_type=Path, readable=False, file_okay=False),
    help="Write repro.onnx and repro.npz to this folder: the smallest part that shows the difference.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    first: str,
    second: Path,
    first_variant: str | None,
    second_variant: str | None,
    weights: Path | None,
    feeds: Path | None,
    tolerance: float | None,
    repro: Path | None,
    as_json: bool,
) -> None:
    """Say where two graphs of one model part, or a graph and its PyTorch original: what differs first, and
    who made it.

    Graphs are artifacts or .onnx files that name their values alike, as an artifact's variants do. They run
    as they are written, without the backend's optimizations, and all values that both have are compared,
    and all outputs; what is not compared is said. A variant that was made for another backend, or is
    computed in another type, is also run so: its outputs are compared, since what is inside cannot be seen
    there. FIRST may also be a source as for infer convert: file.py:name, package.module:name, a
    transformers folder. Then what each of its modules gives is compared with the value the graph has in its
    place. Exit code 1 if any differs.

    \b
    Examples:
      infer compare fast.infer fast.infer
      infer compare net.infer fast.infer --second-variant int8-dynamic --repro repro/
      infer compare net.py:Net net.infer --weights net.safetensors
    """
    theirs = _variant(open_artifact(second), second_variant, -1)
    given = load_npz(feeds) if feeds else None
    with stdout_kept_clean(), Progress(quiet=as_json) as progress:
        found: Divergence | ModuleDivergence
        if is_graph(first):
            if weights is not None:
                raise click.UsageError(f"--weights is for a source in PyTorch; '{first}' has its own")
            ours = _variant(open_artifact(Path(first)), first_variant, 0)
            progress("comparing values")
            inputs = example_feeds(ours.artifact) if given is None else given
            by_value, as_run = _by_value(ours, theirs, inputs, _scaled(TOLERANCES, tolerance), repro)
            counted = [f"{by_value.compared} values compared", *by_value.notes]
            found, steps = by_value, by_value.steps
        else:
            if first_variant is not None:
                raise click.UsageError(f"--first-variant is for an artifact, and '{first}' is none")
            inputs = failing_feeds(theirs.artifact) if given is None else given
            by_module, as_run = _by_module(first, weights, theirs, inputs, tolerance, repro, progress)
            found, counted, steps = by_module, _counted(by_module), ()
    if as_json:
        ran = None if as_run is None else asdict(as_run)
        print_json({**asdict(found), "repro": [str(path) for path in found.repro], "as_run": ran})
    else:
        _report(counted, found.first, steps, found.repro, as_run)
    if found.first is not None:
        raise ParityError(f"they part at {shown(str(found.first))}")
    if as_run is not None and as_run.differing is not None:
        raise ParityError(f"{as_run.first} and {as_run.second} part at {shown(str(as_run.differing))}")


@dataclass(frozen=True)
class _Chosen:
    """A variant that was asked for, and its graph's file."""

    artifact: Artifact
    variant: Variant
    graph: Path


def _by_value(
    first: _Chosen,
    second: _Chosen,
    feeds: Feeds,
    tolerances: Mapping[str, Tolerance],
    repro: Path | None,
) -> tuple[Divergence, AsRun | None]:
    """The graphs as they are written, and the variants as sessions run them, if that is something else."""
    try:
        from infer.optimizer.as_run import compare_runs, has_way_of_its_own, ran
        from infer.optimizer.divergence import compare_files
    except ImportError as error:
        raise missing_package("onnx-ir", "optimize", error) from error
    found = compare_files(first.graph, second.graph, feeds, tolerances, repro)
    if not any(has_way_of_its_own(each.variant) for each in (first, second)):
        return found, None
    one, other = (ran(each.artifact, each.variant, feeds) for each in (first, second))
    return found, compare_runs(one, other, tolerances)


def _by_module(
    source: str,
    weights: Path | None,
    chosen: _Chosen,
    feeds: Feeds,
    tolerance: float | None,
    repro: Path | None,
    progress: Progress,
) -> tuple[ModuleDivergence, AsRun | None]:
    """The modules beside the graph as it is written, and the outputs beside those of a session, if the
    variant is run otherwise."""
    try:
        from converters.original import original
        from infer.optimizer.as_run import Ran, compare_runs, has_way_of_its_own, ran
        from infer.optimizer.modules import compare_modules
    except (ImportError, OSError) as error:
        raise missing_package("torch", "convert", error) from error
    artifact, manifest = chosen.artifact, chosen.artifact.manifest
    tolerances = _scaled(manifest.parity.tolerances if manifest.parity else TOLERANCES, tolerance)
    progress("asking the original")
    with original(source, manifest.name, feeds, weights) as asked:
        _check_fit(asked.described, "takes", asked.feeds, (spec.name for spec in manifest.inputs))
        outputs, modules = asked.run(feeds), asked.modules(feeds)
    _check_fit(asked.described, "gives", outputs, (spec.name for spec in manifest.outputs))
    progress(f"comparing {len(modules)} modules")
    reference = _variant(artifact, None, 0).graph
    found = compare_modules(modules, outputs, reference, chosen.graph, feeds, tolerances, repro)
    if not has_way_of_its_own(chosen.variant):
        return found, None
    answered = ran(artifact, chosen.variant, feeds)
    return found, compare_runs(Ran(outputs, "PyTorch"), answered, tolerances)


def failing_feeds(artifact: Artifact) -> Feeds:
    """Golden feeds at which the conversion failed parity; the first ones if there are none such."""
    parity = artifact.manifest.parity
    failed = {measured.point for measured in parity.measured if not measured.within} if parity else set()
    wrong = (feeds for name, feeds, _ in artifact.golden() if name in failed)
    return next(wrong, None) or example_feeds(artifact)


def _check_fit(source: str, verb: str, theirs: Iterable[str], ours: Iterable[str]) -> None:
    found, expected = sorted(theirs), sorted(ours)
    if found != expected:
        raise ConversionError(
            f"{source} {verb} {', '.join(found)}, but the graph {', '.join(expected)}; name the source"
            f" it was converted from"
        )


def _scaled(tolerances: Mapping[str, Tolerance], scaled: float | None) -> Mapping[str, Tolerance]:
    if scaled is None:
        return tolerances
    return {name: replace(tolerance, scaled=scaled) for name, tolerance in tolerances.items()}


def _variant(artifact: Artifact, name: str | None, place: int) -> _Chosen:
    """The variant of this name, or the one at `place`."""
    variants = artifact.manifest.variants
    found = variants[place] if name is None else next((v for v in variants if v.name == name), None)
    if found is None:
        known = ", ".join(v.name for v in variants)
        raise ArtifactError(f"'{artifact.path}' has no variant '{name}'; it has: {known}")
    path = artifact.file(found.graph)
    check_graph(artifact, path)
    return _Chosen(artifact, found, path)


def _counted(found: ModuleDivergence) -> list[str]:
    lines = [f"{found.compared} modules and all outputs compared with PyTorch"]
    if found.unmatched:
        reasons = "; ".join(f"{count} {reason}" for reason, count in found.unmatched.items())
        lines.append(f"{sum(found.unmatched.values())} modules not compared: {reasons}")
    return lines


def _report(
    counted: Sequence[str],
    first: Part | ModulePart | None,
    steps: Sequence[Part],
    repro: Sequence[Path],
    as_run: AsRun | None,
) -> None:
    for line in counted:
        click.echo(shown(line))
    if as_run is not None:
        click.echo("as the graphs are written; what is inside cannot be seen as they are run")
        heading(f"outputs of {as_run.second} beside those of {as_run.first}")
        rows([(difference.output, difference.said) for difference in as_run.outputs])
        rows([("", note) for note in as_run.notes])
    if first is None:
        if as_run is None or as_run.differing is None:
            click.echo("none differs")
        return
    heading("first")
    rows([(first.value, str(first))])
    if steps:
        heading("where most is lost")
        rows([(part.value, str(part)) for part in steps])
    if repro:
        heading("to see it alone")
        rows([(path.name, str(path)) for path in repro])

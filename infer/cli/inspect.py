"""infer inspect"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from infer.artifact import Artifact
from infer.batching.proof import NEIGHBOURLY
from infer.cli.convert import parity_line
from infer.cli.output import heading, print_json, rows
from infer.graphfile import GraphFile, read_graph_file
from infer.manifest import Variant
from infer.session import open_artifact
from infer.wording import size

_MOST_OPERATORS = 12


@click.command("inspect")
@click.argument("artifact", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document: the manifest and operator counts."
)
def command(artifact: Path, as_json: bool) -> None:
    """Show what an artifact is, takes, gives, and what was proved about it.

    \b
    Examples:
      infer inspect minilm.infer
      infer inspect model.onnx --json
    """
    opened = open_artifact(artifact)
    graphs = {v.name: read_graph_file(opened.file(v.graph)) for v in opened.manifest.variants}
    if as_json:
        print_json(
            {
                "artifact": str(artifact),
                "manifest": json.loads(opened.manifest.to_json()),
                "operators": {name: dict(graph.operators.most_common()) for name, graph in graphs.items()},
            }
        )
    else:
        _show(opened, graphs)


def _evidence(variant: Variant) -> Iterator[str]:
    found = variant.evidence
    if found is None:
        return
    yield "; ".join(f"{name}: {change}" for name, change in found.changes.items())
    figures = ", ".join(f"{name} {value:.5g}" for name, value in found.figures.items())
    yield f"budget {found.budget}: {figures}, on {found.data}"
    speed = found.speed
    at = "" if speed.rows is None else f", with {speed.rows} rows"
    yield f"time ×{speed.ratio:.3f} ({speed.low:.3f}–{speed.high:.3f}) of {speed.against}'s{at}"
    if found.neighbours is None:
        yield "whether an answer moves with its neighbours in a batch was not measured"
    elif found.neighbours > NEIGHBOURLY:
        yield f"an answer moves by up to {found.neighbours:.1%} with its neighbours in a batch"
    if found.saturation is not None:
        yield f"{found.saturation}"


def _made_for(variant: Variant) -> str:
    """The backend that runs it, and what it computes in, if that is not as ever."""
    if not variant.backend:
        return ""
    return f", for {variant.backend}{f' in {variant.compute_dtype}' if variant.compute_dtype else ''}"


def _show(artifact: Artifact, graphs: dict[str, GraphFile]) -> None:
    manifest, provenance = artifact.manifest, artifact.manifest.provenance
    heading(manifest.name)
    task = manifest.task.name if manifest.task else "none: arrays in, arrays out"
    lines: list[tuple[str, str | Sequence[str]]] = [
        ("task", task),
        ("inputs", [str(spec) for spec in manifest.inputs]),
        ("outputs", [str(spec) for spec in manifest.outputs]),
    ]
    if manifest.limits:
        lines.append(("limits", [f"{dim}: {limit}" for dim, limit in manifest.limits.items()]))
    if manifest.task:
        labels = manifest.task.spec.get("labels")
        if labels and isinstance(labels, list):
            first = ", ".join(map(str, labels[:6]))
            lines.append(("labels", f"{len(labels)}: {first}{', …' if len(labels) > 6 else ''}"))
    rows(lines)
    heading("variants")
    for variant in manifest.variants:
        graph = graphs[variant.name]
        counts = [f"{name} {n}" for name, n in graph.operators.most_common()]
        if (more := len(counts) - _MOST_OPERATORS) > 0:
            counts[_MOST_OPERATORS:] = [f"… {more} more"]
        rows(
            [
                (
                    variant.name,
                    f"{variant.precision}, opset {variant.opset}, {size(variant.size_bytes)}"
                    f"{_made_for(variant)}",
                ),
                (
                    "",
                    f"{sum(graph.operators.values())} nodes: {', '.join(counts)}",
                ),
                *(("", line) for line in _evidence(variant)),
            ]
        )
    if manifest.tuned:
        heading("fastest")
        rows(
            [
                (
                    tuned.variant,
                    f"{tuned.runtime}, {tuned.num_threads} threads on {tuned.device} of {tuned.machine}"
                    f"{'' if tuned.spinning else ', no spinning'}"
                    f"{'' if tuned.prepacking else ', weights as they are'}"
                    f"{', memory in huge pages' if tuned.huge_pages else ''}"
                    f"{f', {tuned.streams} runs at once' if (tuned.streams or 1) > 1 else ''}"
                    f"{'' if tuned.rows_from == 1 else f', from {tuned.rows_from} rows on'}",
                )
                for tuned in manifest.tuned
            ]
        )
    heading("proved")
    if manifest.parity:
        rows([("parity", parity_line(manifest.parity.measured)), ("oracle", manifest.parity.oracle)])
        if manifest.parity.mismatch_allowed:
            click.secho("  This artifact FAILED parity and was written all the same.", fg="red")
    else:
        rows([("parity", "nothing was proved about this file")])
    heading("made from")
    made = [("source", provenance.source)]
    if provenance.parameters is not None:
        made.append(("parameters", f"{provenance.parameters:,}"))
    if provenance.weights_sha256:
        made.append(("weights", f"sha256 {provenance.weights_sha256[:16]}…"))
    made += [
        (f"{a.exporter} at {a.opset}", a.reason or "passed, and is what you see")
        for a in provenance.attempts
    ]
    if provenance.census:
        made.append(("does", ", ".join(f"{kind} {n}" for kind, n in provenance.census.items())))
    made += [("patch", patch) for patch in provenance.patches]
    if provenance.versions:
        made.append(("versions", ", ".join(f"{name} {v}" for name, v in provenance.versions.items())))
    if provenance.created:
        made.append(("created", provenance.created))
    made += [("note", note) for note in provenance.notes]
    rows(made)

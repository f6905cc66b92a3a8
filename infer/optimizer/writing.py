"""The output: the artifact as it was, the variants that were kept, and why."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import onnx_ir as ir

from infer.artifact import MANIFEST, Artifact, record_files
from infer.drafts import artifact_draft
from infer.graphfile import read_graph_file
from infer.machine import this_machine
from infer.manifest import Evidence, GoldenPoint, Manifest, Speed, Tuned, Variant
from infer.npz import save_npz
from infer.optimizer.budget import EQUAL
from infer.optimizer.outcome import Outcome
from infer.optimizer.saving import save
from infer.optimizer.verdict import Verdict
from infer.optimizer.workshop import Workshop
from infer.options import PlanOptions
from infer.parity import TOLERANCES, Tolerance, compare
from infer.session import Session, open_session, run_golden

_ROOM = 1.5
"""Another processor of the same kind may round differently; a damaged graph is further off."""


def write_output(
    artifact: Artifact,
    workshop: Workshop,
    output: Path,
    outcome: Outcome,
    reference: Session,
    golden: Mapping[str, object],
    budget: str,
    data: str,
    *,
    overwrite: bool,
) -> Artifact:
    """Write the artifact, whole or not at all, and run every new variant once. Raises `ArtifactError`."""
    machine, device = this_machine().fingerprint, reference.plan.device
    with artifact_draft(output, overwrite=overwrite) as draft:
        for name in _still_needed(artifact.manifest, outcome, machine, device):
            _copy(artifact.file(name), draft / name)
        points = artifact.manifest.golden or _golden(draft, reference, golden)
        added = []
        for name, verdict in outcome.variants.items():
            graph, size_bytes = _write_graph(workshop, verdict, name, draft)
            added.append(
                Variant(
                    name,
                    graph,
                    verdict.precision,
                    read_graph_file(draft / graph).opset,
                    size_bytes,
                    _evidence(verdict, outcome, name, budget, data, machine),
                    verdict.backend,
                )
            )
        manifest = _with(artifact.manifest, added, outcome, machine, device)
        manifest = replace(manifest, golden=points, files=record_files(draft))
        (draft / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        opened = Artifact.open(draft)
        proved = [replace(variant, evidence=_proved(opened, variant, device)) for variant in added]
        by_name = {variant.name: variant for variant in proved}
        variants = tuple(by_name.get(variant.name, variant) for variant in manifest.variants)
        (draft / MANIFEST).write_text(replace(manifest, variants=variants).to_json(), encoding="utf-8")
    return Artifact.open(output)


def _write_graph(workshop: Workshop, verdict: Verdict, name: str, draft: Path) -> tuple[str, int]:
    """A variant's graph in the draft, and its size in bytes; one as the reference is not written again."""
    assert verdict.graph is not None
    if verdict.graph == workshop.reference.graph:
        return verdict.graph, verdict.size_bytes
    graph = f"graphs/{name}.onnx"
    # written anew, because a graph says what its file of weights is called
    return graph, save(ir.load(workshop.folder / verdict.graph), draft / graph)


def _still_needed(before: Manifest, outcome: Outcome, machine: str, device: str) -> list[str]:
    """The artifact's files but the graphs of variants that are replaced or have lost their plan."""
    kept = {variant.graph for variant in _with(before, [], outcome, machine, device).variants}
    gone = {variant.graph for variant in before.variants} - kept
    return [name for name in before.files if name not in gone and name.removesuffix(".data") not in gone]


def _with(before: Manifest, added: list[Variant], outcome: Outcome, machine: str, device: str) -> Manifest:
    """The manifest with these variants, and the plan for this machine; those for others stay."""
    others = tuple(tuned for tuned in before.tuned if (tuned.machine, tuned.device) != (machine, device))
    needed = {tuned.variant for tuned in others} - {variant.name for variant in added}
    kept = [variant for variant in before.variants[1:] if variant.name in needed]
    others = tuple(t for t in others if t.variant in {v.name for v in (before.variants[0], *kept)})
    best = added[-1].name if added else before.variants[0].name
    tuned = Tuned(
        machine=machine,
        device=device,
        variant=best,
        num_threads=outcome.num_threads,
        runtime=outcome.runtime,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return replace(before, variants=(before.variants[0], *kept, *added), tuned=(*others, tuned))


def _evidence(
    verdict: Verdict, outcome: Outcome, name: str, budget: str, data: str, machine: str
) -> Evidence:
    assert verdict.ratio is not None
    ratio = verdict.ratio
    return Evidence(
        changes=outcome.changes[name],
        budget=EQUAL if verdict.exact else budget,
        figures=verdict.figures,
        data=data,
        speed=Speed(verdict.against, ratio.value, ratio.low, ratio.high, machine),
        neighbours=verdict.neighbours,
    )


def _proved(artifact: Artifact, variant: Variant, device: str) -> Evidence | None:
    """A new variant's evidence with what its golden outputs are to be held to, opened as a user would."""
    evidence, parity = variant.evidence, artifact.manifest.parity
    assert evidence is not None
    tolerances = parity.tolerances if parity else TOLERANCES
    found: dict[str, Tolerance] = {}
    with open_session(artifact, PlanOptions(device=device, variant=variant.name)) as session:
        for name, feeds, expected in artifact.golden():
            for difference in compare(expected, run_golden(session, name, feeds), tolerances):
                if not difference.within and difference.max_relative is not None:
                    scaled = _ROOM * difference.max_relative
                    before = found.get(difference.output)
                    if before is None or before.scaled < scaled:
                        found[difference.output] = Tolerance(atol=1e-7, rtol=0.0, scaled=scaled)
    return replace(evidence, tolerances=found)


def _golden(draft: Path, reference: Session, feeds: Mapping[str, object]) -> tuple[GoldenPoint, ...]:
    """A point for an artifact that has none: the reference's own answer."""
    arrays = {name: feeds[name] for name in feeds}
    (draft / "golden").mkdir(exist_ok=True)
    save_npz(draft / "golden/0-feeds.npz", arrays)  # type: ignore[arg-type]
    save_npz(draft / "golden/0-outputs.npz", reference.run(arrays))
    return (GoldenPoint("example", "golden/0-feeds.npz", "golden/0-outputs.npz"),)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)

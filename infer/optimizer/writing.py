"""The output: the artifact as it was, the variants that were kept, and why."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import onnx_ir as ir

from infer.artifact import MANIFEST, Artifact, record_files, sha256
from infer.drafts import artifact_draft
from infer.errors import ArtifactError
from infer.feeds import EXAMPLE, Feeds, batch_dim, example_feeds, resized
from infer.graphfile import read_graph_file
from infer.graphwriting import save
from infer.machine import this_machine
from infer.manifest import (
    Evidence,
    FileRecord,
    GoldenPoint,
    Manifest,
    Saturation,
    Speed,
    Tuned,
    Variant,
)
from infer.npz import save_npz
from infer.optimizer.budget import CLOSEST, EQUAL, FARTHER, figures
from infer.optimizer.outcome import REFERENCE, Outcome, Settings
from infer.optimizer.preparing import compile_ahead, files_of, prepare
from infer.optimizer.verdict import Verdict
from infer.optimizer.workshop import Workshop
from infer.options import PlanOptions
from infer.parity import TOLERANCES, Tolerance, compare
from infer.session import Session, open_session
from infer.signature import Array
from infer.warm_up import run_golden

_ROOM = 1.5
"""Another processor of the same kind may round differently; a damaged graph is further off."""


def write_output(
    artifact: Artifact,
    workshop: Workshop,
    output: Path,
    outcome: Outcome,
    reference: Session,
    golden: Feeds,
    budget: str,
    data: str,
    *,
    prepared: bool,
    overwrite: bool,
) -> Artifact:
    """Write the artifact, whole or not at all, and prove every new variant as it was written; `golden` was
    judged. Raises `ArtifactError`."""
    machine, device = this_machine().fingerprint, reference.plan.device
    with artifact_draft(output, overwrite=overwrite) as draft:
        kept = _elsewhere(artifact.manifest, machine, device)
        for name in _still_needed(artifact.manifest, kept):
            _copy(artifact.file(name), draft / name)
        points = artifact.manifest.golden or _golden(draft, reference, golden)
        added: dict[str, Variant] = {}
        for verdict_name, (verdict, evidence) in _chosen(outcome, budget, data, machine).items():
            name = _free(verdict_name, [variant.name for variant in kept.variants])
            graph, size_bytes = _write_graph(workshop, verdict, name, draft)
            opset = read_graph_file(draft / graph).opset
            added[verdict_name] = Variant(
                name,
                graph,
                verdict.precision,
                opset,
                size_bytes,
                evidence,
                verdict.backend,
                verdict.compute_dtype,
            )
        variants = (*kept.variants, *added.values())
        names = {verdict_name: variant.name for verdict_name, variant in added.items()}
        plans = _tuned(outcome, names, variants[0].name, machine, device)
        manifest = replace(
            kept, variants=variants, tuned=(*kept.tuned, *plans), golden=points, files=record_files(draft)
        )
        opened = _written(manifest, draft)
        proved = {variant.name: _proved(opened, variant, reference, golden) for variant in added.values()}
        variants = tuple(replace(v, evidence=proved.get(v.name, v.evidence)) for v in variants)
        manifest = replace(manifest, variants=variants)
        if prepared and device == "cpu":
            runs_on = {variant.name: variant.backend for variant in variants}
            for place, plan in enumerate(plans):
                if runs_on[plan.variant] == "openvino":
                    plans[place] = _compiled(opened, plan)
                elif runs_on[plan.variant] in (None, "onnxruntime"):
                    plans[place], files = _prepared(opened, plan, golden)
                    manifest = replace(manifest, files={**manifest.files, **files})
            manifest = replace(manifest, tuned=(*kept.tuned, *plans))
        _written(manifest, draft)
    return Artifact.open(output)


def _written(manifest: Manifest, draft: Path) -> Artifact:
    (draft / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Artifact.open(draft)


def _elsewhere(before: Manifest, machine: str, device: str) -> Manifest:
    """The manifest with the reference, and with the plans for other machines and devices and what they
    need."""
    others = [tuned for tuned in before.tuned if (tuned.machine, tuned.device) != (machine, device)]
    needed = {tuned.variant for tuned in others}
    reference, *variants = before.variants
    return replace(
        before,
        variants=(reference, *(variant for variant in variants if variant.name in needed)),
        tuned=tuple(others),
    )


def _still_needed(before: Manifest, kept: Manifest) -> list[str]:
    """The files but the graphs of variants that are gone, and what was prepared of them."""
    gone = _graphs(before) - _graphs(kept)
    return [name for name in before.files if name not in gone and name.removesuffix(".data") not in gone]


def _graphs(manifest: Manifest) -> set[str]:
    prepared = {tuned.prepared.graph for tuned in manifest.tuned if tuned.prepared}
    return prepared | {variant.graph for variant in manifest.variants}


def _free(name: str, taken: Sequence[str]) -> str:
    """The name, or with a number if what is for another machine has it."""
    count, free = 1, name
    while free in taken:
        count, free = count + 1, f"{name}-{count + 1}"
    return free


def _chosen(outcome: Outcome, budget: str, data: str, machine: str) -> dict[str, tuple[Verdict, Evidence]]:
    """The new variants, by what they are called in the search."""

    def evidence(verdict: Verdict, changes: dict[str, str]) -> Evidence:
        saturation = outcome.saturation.get(verdict.name)
        return _evidence(verdict, changes, budget, data, machine, saturation)

    found = {
        name: (verdict, evidence(verdict, outcome.changes[name]))
        for name, verdict in outcome.variants.items()
    }
    other = outcome.other
    if other is not None and other.variant not in (*found, REFERENCE):
        verdict = replace(other.found, ratio=other.ratio, against=_best(outcome))
        beside = evidence(verdict, {verdict.name: other.change})
        beside = replace(beside, speed=replace(beside.speed, rows=other.rows))
        found = {other.variant: (verdict, beside), **found}  # the best comes last
    return found


def _best(outcome: Outcome) -> str:
    return next(reversed(outcome.variants), REFERENCE)


def _tuned(
    outcome: Outcome, names: Mapping[str, str], reference: str, machine: str, device: str
) -> list[Tuned]:
    """The plan for the best, and the one for feeds of other sizes if there is one; those for few rows
    first. `names` are those of new variants in the artifact."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def plan(variant: str, runtime: str, settings: Settings) -> Tuned:
        name = names.get(variant, reference)
        return Tuned(machine, device, name, runtime=runtime, created=created, **asdict(settings))

    best = plan(_best(outcome), outcome.runtime, outcome.settings)
    other = outcome.other
    if other is None:
        return [best]
    beside = plan(other.variant, other.runtime, other.settings)
    few, many = (best, beside) if other.larger else (beside, best)
    return [few, replace(many, rows_from=other.rows_from)]


def _prepared(artifact: Artifact, plan: Tuned, feeds: Feeds) -> tuple[Tuned, dict[str, FileRecord]]:
    """The plan with its graph as the backend optimizes it here, if that loads sooner, and the new files."""
    where = hashlib.sha256(f"{plan.machine}|{plan.device}".encode()).hexdigest()[:8]
    options = PlanOptions(
        device=plan.device,
        variant=plan.variant,
        num_threads=plan.num_threads,
        spinning=plan.spinning,
        prepacking=plan.prepacking,
        huge_pages=plan.huge_pages,
    )
    # each of them may be written with its weights packed, too, under a name of its own
    taken = [path.stem.removesuffix("-packed") for path in (artifact.path / "prepared").glob("*.onnx")]
    name = _free(f"{plan.variant}-{where}", taken)
    found = prepare(artifact, options, f"prepared/{name}", feeds)
    if found is None:
        return plan, {}
    files = {
        file.relative_to(artifact.path).as_posix(): FileRecord(sha256(file), file.stat().st_size)
        for file in files_of(artifact.path / found.graph)
    }
    return replace(plan, prepared=found), files


def _compiled(artifact: Artifact, plan: Tuned) -> Tuned:
    """The plan with its model as the backend compiles it here for the feeds that warm a session up, if the
    first answer comes sooner with it."""
    options = PlanOptions(
        device=plan.device,
        variant=plan.variant,
        num_threads=plan.num_threads,
        streams=plan.streams,
    )
    signature, feeds = artifact.manifest.signature, example_feeds(artifact)
    dim = batch_dim(signature)
    if dim is not None and signature.allows(dim, plan.rows_from):
        feeds = resized(signature, feeds, {dim: plan.rows_from})
    return replace(plan, compiled=compile_ahead(artifact, options, feeds))


def _write_graph(workshop: Workshop, verdict: Verdict, name: str, draft: Path) -> tuple[str, int]:
    """A variant's graph in the draft, and its size in bytes; one as the reference is not written again."""
    assert verdict.graph is not None
    if verdict.graph == workshop.reference.graph:
        return verdict.graph, verdict.size_bytes
    files = [path.stem for path in (draft / "graphs").glob("*.onnx")]
    graph = f"graphs/{_free(name, files)}.onnx"
    # written anew, because a graph says what its file of weights is called
    return graph, save(ir.load(workshop.folder / verdict.graph), draft / graph)


def _evidence(
    verdict: Verdict,
    changes: dict[str, str],
    budget: str,
    data: str,
    machine: str,
    saturation: Saturation | None,
) -> Evidence:
    assert verdict.ratio is not None
    ratio = verdict.ratio
    return Evidence(
        changes=changes,
        budget=EQUAL if verdict.exact else budget,
        figures=verdict.figures,
        data=data,
        speed=Speed(verdict.against, ratio.value, ratio.low, ratio.high, machine),
        neighbours=verdict.neighbours,
        saturation=saturation,
    )


def _proved(artifact: Artifact, variant: Variant, reference: Session, judged: Feeds) -> Evidence:
    """A new variant's evidence with what its golden outputs are to be held to, opened as a user would.

    What is to be equal must be so at every golden point, to the source or to the reference as it answers
    here, and at a feed that was judged. What approximates is held to its figures there, and must be finite
    at golden points, which need not be like the data. Raises `ArtifactError`, which names the variant.
    """
    evidence, parity = variant.evidence, artifact.manifest.parity
    assert evidence is not None
    tolerances, exact = parity.tolerances if parity else TOLERANCES, evidence.budget == EQUAL
    found: dict[str, Tolerance] = {}
    with open_session(artifact, PlanOptions(device=reference.plan.device, variant=variant.name)) as session:
        _hold(variant, evidence, reference.run(judged), session.run(judged), tolerances)
        for name, feeds, expected in artifact.golden():
            answer = run_golden(session.artifact, session.run, name, feeds)
            here = {each.output: each for each in compare(reference.run(feeds), answer, tolerances)}
            for difference in compare(expected, answer, tolerances):
                if difference.within:
                    continue
                ours = here[difference.output]
                if not (ours.within or (not exact and ours.comparable and difference.comparable)):
                    raise _broken(variant, f"at the golden point '{name}', {difference}")
                if difference.max_relative is None:  # the reference itself answers so here
                    continue
                scaled = _ROOM * difference.max_relative
                before = found.get(difference.output)
                if before is None or before.scaled < scaled:
                    found[difference.output] = Tolerance(atol=1e-7, rtol=0.0, scaled=scaled)
    return replace(evidence, tolerances=found)


def _hold(
    variant: Variant,
    evidence: Evidence,
    expected: Mapping[str, Array],
    answer: Mapping[str, Array],
    tolerances: Mapping[str, Tolerance],
) -> None:
    """Hold the answer to a judged feed to what was judged. Raises `ArtifactError`."""
    for difference in compare(expected, answer, tolerances):
        if evidence.budget == EQUAL and not difference.within:
            raise _broken(variant, f"at a feed that was judged, {difference}")
        if not difference.comparable:
            raise _broken(variant, f"at a feed that was judged, {difference}")
    # of a single element, one answer tells nothing: figures are of all of them together
    several = {name: array for name, array in expected.items() if array.size > 1}
    found = figures([several], [answer], tolerances)["min-cosine"]
    least = 1 - FARTHER * max(1 - evidence.figures["min-cosine"], CLOSEST)
    if found < least:
        raise _broken(variant, f"at a feed that was judged, its cosine is {found:.5f}, below {least:.5f}")


def _broken(variant: Variant, why: str) -> ArtifactError:
    return ArtifactError(
        f"the variant '{variant.name}' does not answer, as it was written, as it did when it was judged:"
        f" {why}; nothing was written, try again"
    )


def _golden(draft: Path, reference: Session, feeds: Feeds) -> tuple[GoldenPoint, ...]:
    """A point for an artifact that has none: the reference's own answer."""
    (draft / "golden").mkdir(exist_ok=True)
    save_npz(draft / "golden/0-feeds.npz", feeds)
    save_npz(draft / "golden/0-outputs.npz", reference.run(feeds))
    return (GoldenPoint(EXAMPLE, "golden/0-feeds.npz", "golden/0-outputs.npz"),)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)

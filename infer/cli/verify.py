"""infer verify"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from infer.artifact import Artifact
from infer.cli.output import print_json, rows
from infer.cli.progress import Progress
from infer.compiled import kept
from infer.errors import MissingPackageError, ParityError
from infer.golden import prove
from infer.machine import this_machine
from infer.manifest import Manifest
from infer.options import PlanOptions, SessionOptions
from infer.parity import Difference
from infer.plan import Plan
from infer.planner import make_plan
from infer.session import open_session


@click.command("verify")
@click.argument("artifact", type=click.Path(path_type=Path, readable=False))
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option(
    "--untrusted",
    is_flag=True,
    help="Try each graph in a process of its own first, within limits of memory and time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(artifact: Path, device: str, untrusted: bool, as_json: bool) -> None:
    """Prove an artifact again on this machine: every file's sha256, and every golden output.

    Exit code 1 if a file was changed, an output differs beyond the tolerance in the manifest, or a golden
    point lacks an output. A variant that approximates is held to what it had on the machine that made it:
    its answers may be half as far again from the original's. An artifact without golden points proves
    nothing: "equal" is null.

    \b
    Example:
      infer verify minilm.infer
    """
    opened = Artifact.open(artifact)
    manifest = opened.manifest
    as_it_is = SessionOptions(verify=False, warm_up=False, untrusted=untrusted)
    with Progress(quiet=as_json) as progress:
        progress(f"hashing {len(manifest.files)} files")
        opened.verify_files()
        found: dict[str, dict[str, tuple[Difference, ...]]] = {}
        absent: dict[str, str] = {}  # variants that cannot be run here
        wanted: list[str | Plan] = [variant.name for variant in manifest.variants]
        wanted += _ahead(manifest, device)
        for wish in wanted:
            options = PlanOptions(device=device, variant=wish if isinstance(wish, str) else None)
            given = wish if isinstance(wish, Plan) else None
            try:
                opening = open_session(opened, options, as_it_is, given)
            except MissingPackageError as error:
                if given or wish == manifest.variants[0].name:
                    raise
                absent[str(wish)] = str(error)
                continue
            with opening as session:
                plan = session.plan
                ahead = "prepared" if plan.prepared else "compiled before" if given else ""
                told = f"{plan.variant}, {ahead}" if ahead else plan.variant
                if told in found:  # another number of threads
                    told = f"{told}, threads {plan.num_threads}"
                progress(f"running the golden points of {told}")
                found[told] = prove(session)
    _report(opened, found, absent, as_json)
    wrong = [
        f"variant '{variant}' at {point}: {difference}"
        for variant, points in found.items()
        for point, differences in points.items()
        for difference in differences
        if not difference.within
    ]
    if wrong:
        raise ParityError(f"'{artifact}' does not answer here as it was proved to: {'; '.join(wrong[:3])}")


def _ahead(manifest: Manifest, device: str) -> list[Plan]:
    """The parts of the plan here that load what was prepared or compiled before."""
    if not any(tuned.prepared or tuned.compiled for tuned in manifest.tuned):
        return []
    plan = make_plan(manifest, this_machine(), PlanOptions(device=device))
    parts = [replace(plan, larger=None), *([plan.larger] if plan.larger else [])]
    return [part for part in parts if part.prepared or (part.compiled and kept(part.compiled) is not None)]


def _report(
    opened: Artifact,
    found: dict[str, dict[str, tuple[Difference, ...]]],
    absent: dict[str, str],
    as_json: bool,
) -> None:
    parity = opened.manifest.parity
    all_within = all(d.within for points in found.values() for ds in points.values() for d in ds)
    was_asked = any(found.values())
    if as_json:
        print_json(
            {
                "artifact": str(opened.path),
                "files": len(opened.manifest.files),
                "equal": all_within if was_asked else None,
                "mismatch_allowed": parity is not None and parity.mismatch_allowed,
                "variants": {
                    variant: {
                        point: [asdict(d) for d in differences] for point, differences in points.items()
                    }
                    for variant, points in found.items()
                },
                "not_proved": absent,
            }
        )
        return
    rows(
        [("files", f"{len(opened.manifest.files)}, all as the manifest recorded")]
        + [
            (f"{variant} at {point}", str(difference))
            for variant, points in found.items()
            for point, differences in points.items()
            for difference in differences
        ]
        + [(variant, f"not proved here: {why}") for variant, why in absent.items()],
        indent="",
    )
    if not was_asked:
        click.echo("The artifact has no golden outputs, so its answers could not be checked.", err=True)
    if parity is not None and parity.mismatch_allowed:
        click.secho("This artifact FAILED parity when it was made and is marked so.", fg="red", err=True)

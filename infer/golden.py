"""Golden points asked again: whether an opened artifact answers here as it was recorded to."""

from __future__ import annotations

from collections.abc import Iterable

from infer.parity import Difference, compare
from infer.session import Session
from infer.signature import Array
from infer.warm_up import run_golden

GoldenPoint = tuple[str, dict[str, Array], dict[str, Array]]
"""Its name, feeds, and the source's outputs for them, as `Artifact.golden` gives them."""


def prove(
    session: Session, points: Iterable[GoldenPoint] | None = None
) -> dict[str, tuple[Difference, ...]]:
    """One `Difference` for each output of the signature at each of `points`, by default all that the
    artifact has, whatever the point holds of them; nothing for an artifact without golden points.

    Outputs are held to the tolerances in the manifest, those of a variant that approximates to the ones in
    its evidence. Raises `ArtifactError` for feeds that do not fit, and what `Session.run` raises.
    """
    manifest = session.artifact.manifest
    found = {}
    for name, feeds, expected in session.artifact.golden() if points is None else points:
        absent = [spec.name for spec in session.signature.outputs if spec.name not in expected]
        answer = run_golden(session.artifact, session.run, name, feeds)
        tolerances = manifest.tolerances((session.plan_for(feeds).variant,))
        found[name] = compare(expected, answer, tolerances) + tuple(
            Difference(output, None, None, None, "the golden point does not hold it") for output in absent
        )
    return found

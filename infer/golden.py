"""Golden points asked again: whether an opened artifact answers here as it was recorded to."""

from __future__ import annotations

from infer.parity import TOLERANCES, Difference, compare
from infer.session import Session, run_golden


def prove(session: Session) -> dict[str, tuple[Difference, ...]]:
    """One `Difference` for each output of the signature at each golden point, whatever the point holds of
    them; nothing for an artifact without golden points.

    Outputs are held to the tolerances in the manifest, those of a variant that approximates to the ones in
    its evidence. Raises `ArtifactError` for feeds that do not fit, and what `Session.run` raises.
    """
    manifest = session.artifact.manifest
    (variant,) = (each for each in manifest.variants if each.name == session.plan.variant)
    tolerances = {
        **(manifest.parity.tolerances if manifest.parity else TOLERANCES),
        **(variant.evidence.tolerances if variant.evidence else {}),
    }
    found = {}
    for name, feeds, expected in session.artifact.golden():
        absent = [spec.name for spec in session.signature.outputs if spec.name not in expected]
        found[name] = compare(expected, run_golden(session, name, feeds), tolerances) + tuple(
            Difference(output, None, None, None, "the golden point does not hold it") for output in absent
        )
    return found

"""What a caller of `converters.convert` may ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from infer.errors import ConversionError
from infer.parity import TOLERANCES, Tolerance


@dataclass(frozen=True)
class ConvertOptions:
    """Each field says its default and why."""

    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Axes that must be able to vary: input → axis → dim name. In addition to the batch, and to
    what the model's family usually varies."""

    tolerances: Mapping[str, Tolerance] = field(default_factory=lambda: dict(TOLERANCES))
    """How close the export must be: for each float dtype, or for an output by its name."""

    freeze_branches: bool = False
    """Accept a trace of a model that branches on the values of its inputs, which then always takes the
    side that the example takes. Marked in the manifest's notes."""

    allow_mismatch: bool = False
    """Write the artifact although it failed parity, marked in its manifest. For finding out why."""

    overwrite: bool = False
    """Replace an existing artifact."""


def check_tolerances(tolerances: Mapping[str, Tolerance], outputs: Iterable[str]) -> None:
    """Raise `ConversionError` for a tolerance that nothing would be held to."""
    known = [*TOLERANCES, *outputs]
    if unknown := sorted(tolerances.keys() - set(known)):
        raise ConversionError(
            f"there is no output or dtype '{unknown[0]}' to give a tolerance; there are {', '.join(known)}"
        )

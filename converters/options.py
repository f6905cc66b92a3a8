"""What a caller of `converters.convert` may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from infer.parity import TOLERANCES, Tolerance


@dataclass(frozen=True)
class ConvertOptions:
    """Each field says its default and why."""

    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Axes that must be able to vary: input → axis → dim name. In addition to the batch, and to
    what the model's family usually varies."""

    tolerances: Mapping[str, Tolerance] = field(default_factory=lambda: dict(TOLERANCES))
    """How close the export must be, per dtype."""

    allow_mismatch: bool = False
    """Write the artifact although it failed parity, marked in its manifest. For finding out why."""

    overwrite: bool = False
    """Replace an existing artifact."""

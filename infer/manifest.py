"""The manifest: everything an artifact says about itself, as frozen data.

It is readable with a JSON parser alone. Field names are the file format: a change of meaning
needs a new `FORMAT_VERSION`, and this release refuses versions it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from infer import schema
from infer.errors import ArtifactError
from infer.parity import TOLERANCES, Tolerance
from infer.signature import DTYPES, Range, Signature, TensorSpec
from infer.structure import Structure, tensor_names

FORMAT_VERSION = 1


@dataclass(frozen=True)
class FileRecord:
    """What a file of the artifact must be; `sha256` in lower-case hex, None only in memory."""

    sha256: str | None
    size_bytes: int


@dataclass(frozen=True)
class Speed:
    """Time over that of the variant, pass or graph called `against`, with its 95 % interval, measured in
    turns on the machine with this fingerprint; with feeds of so many `rows`, if not with those of the
    search."""

    against: str
    ratio: float
    low: float
    high: float
    machine: str
    rows: int | None = None


@dataclass(frozen=True)
class Saturation:
    """Channels of int8 weights two of whose products can overflow on x86 without VNNI.

    Attributes:
        possible: whatever is multiplied.
        seen: where inputs are as large as those of so many `feeds` of the calibration, channel by channel.
    """

    possible: int = 0
    seen: int = 0
    feeds: int = 0

    def __str__(self) -> str:
        if not self.possible:
            return "no product can overflow on x86 without VNNI"
        return (
            f"on x86 without VNNI products of {self.possible} channels can overflow, of"
            f" {self.seen or 'none'} with {self.feeds} inputs of calibration"
        )


@dataclass(frozen=True)
class Evidence:
    """Why the optimizer kept a variant.

    Attributes:
        changes: pass or recipe → how often it rewrote what it found.
        budget: what answers were allowed to lose against the reference's.
        figures: what they lost: "equal", "cosine", "min-cosine", "length" (how large all of them are over
            the reference's), "cosine-from-mean" (of single numbers), "batch-cosine" (the mean of rows
            beside others), and metrics of the task.
        data: what they were compared on.
        neighbours: how far an answer moved with its neighbours in a batch, relative to its largest value;
            None if that could not be measured.
        tolerances: what golden outputs are held to by `infer verify`, by output, where that is more than
            the conversion's: half as much again as they were off when the variant was made.
        saturation: what int8 products would be on the other kind of x86; None where there are none.
    """

    changes: dict[str, str]
    budget: str
    figures: dict[str, float]
    data: str
    speed: Speed
    neighbours: float | None
    tolerances: dict[str, Tolerance] = field(default_factory=dict)
    saturation: Saturation | None = None


@dataclass(frozen=True)
class Variant:
    """One graph that answers the signature. `graph` is its path; external data lies beside it. The
    reference needs no `evidence`: it was converted, and has its parity. `backend` runs it, if it was made
    for one, and computes in `compute_dtype` what is float32 in the graph, if that is another."""

    name: str
    graph: str
    precision: str
    opset: int
    size_bytes: int
    evidence: Evidence | None = None
    backend: str | None = None
    compute_dtype: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A graph as the library optimized it on the machine, which takes `load_ratio` of the time to load."""

    graph: str
    load_ratio: float


@dataclass(frozen=True)
class Compiled:
    """A model as the library compiled it on the machine, which takes `load_ratio` of the time to its first
    answer. It is no file of the artifact: see `infer.compiled`."""

    sha256: str
    load_ratio: float


@dataclass(frozen=True)
class Tuned:
    """What was measured to be fastest on this device of machines with this fingerprint; `runtime` is the
    library and its version, and `prepared` and `compiled` hold for that one alone; `spinning`,
    `prepacking`, `huge_pages` and `streams` are as in `PlanOptions`. It is for feeds of `rows_from` rows or
    more, up to where another one begins."""

    machine: str
    device: str
    variant: str
    num_threads: int
    runtime: str
    created: str
    prepared: Prepared | None = None
    compiled: Compiled | None = None
    spinning: bool = True
    prepacking: bool = True
    huge_pages: bool = False
    streams: int | None = None
    rows_from: int = 1


@dataclass(frozen=True)
class GoldenPoint:
    """Feeds and the source's outputs for them, kept as `.npz` files so anyone can prove it again.

    Attributes:
        outputs: None where they are too large to be kept: then the feeds say what the model is asked.
    """

    name: str
    feeds: str
    outputs: str | None

    @property
    def files(self) -> tuple[str, ...]:
        """All that it consists of."""
        return (self.feeds,) if self.outputs is None else (self.feeds, self.outputs)


@dataclass(frozen=True)
class Measured:
    """How far one output was from the source at one point; None where that is not a number."""

    point: str
    output: str
    max_abs: float | None
    max_relative: float | None
    cosine: float | None
    within: bool


@dataclass(frozen=True)
class Parity:
    """The tolerance every float output was held to, by dtype or by its name, and what was measured.

    `oracle` says what the outputs were compared with. `mismatch_allowed` marks an artifact
    that was written although it failed.
    """

    oracle: str
    tolerances: dict[str, Tolerance]
    measured: tuple[Measured, ...]
    mismatch_allowed: bool = False

    @property
    def passed(self) -> bool:
        return all(m.within for m in self.measured)


@dataclass(frozen=True)
class Attempt:
    """One exporter that was tried, and why it lost (None: it won)."""

    exporter: str
    opset: int
    reason: str | None


@dataclass(frozen=True)
class Provenance:
    """Where the graph comes from. Times are ISO 8601 in UTC.

    `census` counts what the original does in one call: "attention", "norm", "batch norm", "activation",
    "convolution", "linear", "embedding", "recurrent".
    """

    source: str
    source_class: str | None
    weights_sha256: str | None
    parameters: int | None
    attempts: tuple[Attempt, ...]
    patches: tuple[str, ...]
    versions: dict[str, str]
    created: str
    notes: tuple[str, ...] = ()
    census: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskSpec:
    """The task's name and its settings, as the task's own spec class reads them."""

    name: str
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`. The first variant is the reference. `limits` holds the sizes of dims
    that cannot have all of them; `tuned`, what is fastest where."""

    format_version: int
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: Any
    task: TaskSpec | None
    variants: tuple[Variant, ...]
    golden: tuple[GoldenPoint, ...]
    parity: Parity | None
    provenance: Provenance
    files: dict[str, FileRecord]
    limits: dict[str, Range] = field(default_factory=dict)
    tuned: tuple[Tuned, ...] = ()

    @property
    def signature(self) -> Signature:
        return Signature(self.inputs, self.outputs, self.limits)

    def tolerances(self, variants: Collection[str]) -> dict[str, Tolerance]:
        """What outputs are held to, by dtype or by name, where these variants answer: the conversion's, or
        the widest of their own."""
        found = dict(self.parity.tolerances if self.parity else TOLERANCES)
        own: dict[str, Tolerance] = {}
        for variant in self.variants:
            if variant.name in variants and variant.evidence:
                for output, tolerance in variant.evidence.tolerances.items():
                    if output not in own or own[output].scaled < tolerance.scaled:
                        own[output] = tolerance
        return found | own

    def to_json(self) -> str:
        """Raises `ArtifactError` if the task's spec holds what JSON does not have."""
        try:
            return json.dumps(schema.encode(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"the manifest of '{self.name}' cannot be written as JSON ({error}); give the task's spec"
                f" finite numbers, text, lists and mappings only"
            ) from error

    @staticmethod
    def from_json(text: str | bytes, where: str) -> Manifest:
        """Parse and check a manifest; `where` names it in errors. Raises `ArtifactError`."""
        try:
            data = schema.parse(text)
        except schema.SchemaError as error:
            raise ArtifactError(
                f"{where} is not valid JSON ({error}); the artifact is damaged, convert it again"
            ) from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if type(version) is not int or version != FORMAT_VERSION:
            raise ArtifactError(
                f"{where} has format version {version!r:.40}, but this release of infer reads version"
                f" {FORMAT_VERSION}; convert the model again, or install the release that wrote it"
            )
        try:
            manifest = schema.decode(Manifest, data, "manifest")
        except schema.SchemaError as error:
            raise ArtifactError(f"{where} does not follow its schema: {error}") from error
        _check(manifest, where)
        return manifest


def _check(manifest: Manifest, where: str) -> None:
    """What types alone cannot say."""
    for side in (manifest.inputs, manifest.outputs):
        for spec in side:
            if spec.dtype not in DTYPES:
                raise ArtifactError(f"{where}: tensor '{spec.name}' has unknown dtype '{spec.dtype}'")
            if any(isinstance(dim, int) and dim < 0 for dim in spec.dims):
                raise ArtifactError(f"{where}: tensor '{spec.name}' has a negative dim: {spec}")
        if len({spec.name for spec in side}) != len(side):
            raise ArtifactError(f"{where} names two tensors alike: {', '.join(s.name for s in side)}")
    dims = set(manifest.signature.dims)
    for dim, limit in manifest.limits.items():
        if dim not in dims or limit.least < 1 or (limit.most is not None and limit.most < limit.least):
            raise ArtifactError(f"{where} limits dim '{dim}' to {limit}, which no input can follow")
    if not manifest.variants:
        raise ArtifactError(f"{where} lists no variant, so there is nothing to run")
    outputs = {spec.name for spec in manifest.outputs}
    if stray := set(tensor_names(manifest.structure)) - outputs:
        raise ArtifactError(f"{where}: its structure names unknown outputs {sorted(stray)}")
    if unhashed := [name for name, record in manifest.files.items() if record.sha256 is None]:
        raise ArtifactError(f"{where} lacks the sha256 of {unhashed}")
    names = [variant.name for variant in manifest.variants]
    if len(set(names)) != len(names):
        raise ArtifactError(f"{where} names two variants alike: {', '.join(names)}")
    if unknown := {tuned.variant for tuned in manifest.tuned} - set(names):
        raise ArtifactError(f"{where} has a plan for unknown variants {sorted(unknown)}")
    if any(tuned.num_threads < 1 for tuned in manifest.tuned):
        raise ArtifactError(f"{where} has a plan for less than one thread")
    if any(tuned.streams is not None and tuned.streams < 1 for tuned in manifest.tuned):
        raise ArtifactError(f"{where} has a plan for less than one run at once")
    for place in {(tuned.machine, tuned.device) for tuned in manifest.tuned}:
        begins = sorted(t.rows_from for t in manifest.tuned if (t.machine, t.device) == place)
        if begins[0] != 1 or len(begins) > 2 or len(set(begins)) < len(begins):
            raise ArtifactError(f"{where} has plans for {place[1]} that begin at {begins} rows")
        first = manifest.inputs[0].dims if manifest.inputs else ()
        rows = first[0] if first else None
        if len(begins) > 1 and not isinstance(rows, str):
            raise ArtifactError(f"{where} has a plan from {begins[1]} rows on, but its rows are fixed")
        if len(begins) > 1 and rows in manifest.limits and begins[1] not in manifest.limits[str(rows)]:
            raise ArtifactError(f"{where} has a plan from {begins[1]} rows on, which there cannot be")
    named = [v.graph for v in manifest.variants]
    named += [path for point in manifest.golden for path in point.files]
    named += [tuned.prepared.graph for tuned in manifest.tuned if tuned.prepared]
    if stray := set(named) - set(manifest.files):
        raise ArtifactError(f"{where} names files it does not list: {sorted(stray)}")


__all__ = [
    "FORMAT_VERSION", "Attempt", "Compiled", "Evidence", "FileRecord", "GoldenPoint", "Manifest",
    "Measured", "Parity", "Prepared", "Provenance", "Saturation", "Speed", "Structure",
    "TaskSpec", "Tuned", "Variant",
]  # fmt: skip

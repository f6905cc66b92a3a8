"""What variants answer as sessions run them: on the backend and in the type they were made for.

Inner values come from ONNX Runtime, from graphs as they are written. What another backend makes of a graph,
or another type, shows in its final outputs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infer.artifact import Artifact
from infer.backends import BACKENDS
from infer.feeds import Feeds
from infer.manifest import Variant
from infer.optimizer.divergence import pair_outputs
from infer.options import PlanOptions, SessionOptions
from infer.parity import Difference, Tolerance, compare_tensor
from infer.session import open_session
from infer.signature import Array


@dataclass(frozen=True)
class Ran:
    """The outputs of a variant, and how they came about: the backend, and the type if it is not the
    graph's; `notes` say where that is not what the variant asks for."""

    outputs: Mapping[str, Array]
    on: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AsRun:
    """How far outputs are apart, and what gave them."""

    first: str
    second: str
    outputs: tuple[Difference, ...]
    notes: tuple[str, ...] = ()

    @property
    def differing(self) -> Difference | None:
        """The first output that differs."""
        return next((difference for difference in self.outputs if not difference.within), None)


def has_way_of_its_own(variant: Variant) -> bool:
    """Whether a variant is run otherwise than its graph says: on another backend than the default one, or
    computed in another type."""
    default = next(iter(BACKENDS))
    return variant.backend not in (None, default) or variant.compute_dtype is not None


def ran(artifact: Artifact, variant: Variant, feeds: Feeds) -> Ran:
    """The outputs of a variant as a session runs it on the CPU. Raises what `infer.load` raises."""
    plan = PlanOptions(device="cpu", variant=variant.name)
    with open_session(artifact, plan, SessionOptions(verify=False, warm_up=False)) as session:
        outputs, dtype, backend = session.run(feeds), session.plan.compute_dtype, session.plan.backend
    notes: tuple[str, ...] = ()
    if dtype != variant.compute_dtype:
        notes = (f"'{variant.name}' ran in float32: {backend} has no faster {variant.compute_dtype} here",)
    return Ran(outputs, f"{backend} in {dtype}" if dtype else backend, notes)


def compare_runs(first: Ran, second: Ran, tolerances: Mapping[str, Tolerance]) -> AsRun:
    """The outputs of two variants, or of an original and a variant, beside each other: by name, or by place
    where names differ."""
    pairs, notes = pair_outputs(list(first.outputs), list(second.outputs))
    found = [compare_tensor(a, first.outputs[a], second.outputs[b], tolerances) for a, b in pairs]
    return AsRun(first.on, second.on, tuple(found), (*first.notes, *second.notes, *notes))

"""Backends run graphs. This is the seam: two protocols, and one table.

Nothing outside a backend's own file imports its library.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from infer.errors import MissingPackageError
from infer.guard import Feeds
from infer.machine import Machine
from infer.plan import Plan
from infer.signature import Array, Signature

Switch = Callable[[str], str]
"""Says which stage of a run begins: "copy", "compute", …; gives the one that was under way."""


class Executable(Protocol):
    """A graph made ready on a device. `run` may be called from several threads at once."""

    def run(self, feeds: Feeds, outputs: tuple[str, ...]) -> dict[str, Array]:
        """The named outputs for `feeds`, in arrays the caller owns. Raises `BackendError`."""
        ...

    def watched(self, switch: Switch) -> Executable:
        """Another one of the same loaded graph, which calls `switch("compute")` when its library begins to
        work, and `switch` with what that gave when it is done. It ends when this one is closed."""
        ...

    def close(self) -> None:
        """Give memory and threads back. Called once, when no run is under way."""
        ...


class Backend(Protocol):
    """A library that runs graphs."""

    name: str
    version: str
    spins: bool
    """Whether its idle threads can wait by spinning."""
    overlaps: bool
    """Whether runs on a CPU that go on at once share its threads, and do not wait for each other."""
    has_arena: bool
    """Whether it can keep the memory of a run for the next one, or not."""

    @property
    def shared_threads(self) -> int | None:
        """How many threads all sessions of this process share; None if each has its own. Raises
        `DeviceError`."""
        ...

    def device_kinds(self) -> tuple[str, ...]:
        """Kinds of device the installed build can drive, such as ("cpu", "cuda")."""
        ...

    def compute_dtypes(self, machine: Machine, signature: Signature) -> tuple[str, ...]:
        """What it can compute in where a graph of this signature has float32, in less time, on such a
        machine; of those, `FIXED_SHAPES` only where the graph was loaded for the shapes that are fed."""
        ...

    def prepare(self, graph: Path, plan: Plan, signature: Signature) -> Executable:
        """Load `graph` as `plan` says. Raises `BackendError` or `DeviceError`."""
        ...


FIXED_SHAPES = "bfloat16-fixed-shapes"
"""Computes in bfloat16 what was loaded for the shapes that are fed, so that all that follows from shapes
alone was computed before, in float32; for feeds of other shapes it computes in float32."""

BACKENDS: dict[str, str] = {
    "onnxruntime": "infer.backends.ort:OrtBackend",
    "openvino": "infer.backends.openvino:OpenvinoBackend",
}
"""Backend name → where its class is. The first is the default, with which what is converted is proved;
others run what was measured to be faster with them, or what is asked for."""

EXTRAS: dict[str, str] = {"onnxruntime": "cpu", "openvino": "openvino"}
"""Backend name → the extra of infer-onnx that brings it, for the CPU."""


def load_backend(name: str) -> Backend:
    """The backend called `name`. Raises `MissingPackageError` if its library is not installed, or this
    release has no such backend."""
    if name not in BACKENDS:
        raise MissingPackageError(
            f"this needs the backend '{name}', and this release of infer has {', '.join(BACKENDS)}; install"
            f" the release that made the artifact"
        )
    module, _, cls = BACKENDS[name].partition(":")
    return cast(Backend, getattr(importlib.import_module(module), cls)())


def told(call: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
    """`call`, of whose work `switch` is told, as `Executable.watched` has it."""

    def watched(*arguments: Any) -> Any:
        before = switch("compute")
        try:
            return call(*arguments)
        finally:
            switch(before)

    return watched

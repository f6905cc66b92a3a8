"""The OpenVINO backend, for CPUs. The only file that imports openvino.

It computes in float32 where the graph does, unless the plan says bfloat16: by default it would take that
or float16 wherever the processor has them. What follows from shapes alone it computes as it compiles for
these shapes, in float32. Of float64 it would make float32, so graphs that take or give it are refused.
Integers of 64 bits it computes in 32: feeds that do not fit are refused, but what a graph makes inside may
wrap.

Small feeds take a shortcut, as with ONNX Runtime: making tensors takes longer than a small model does, so
they are copied into buffers that stay bound to a request.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infer.backends import FIXED_SHAPES, Switch, told
from infer.compiled import kept
from infer.errors import BackendError, missing_package
from infer.guard import Feeds, Shapes
from infer.machine import Machine
from infer.plan import Plan
from infer.signature import Array, Signature

# Its Python package sends an event home as soon as it is imported; without this one it has a stub instead.
_TELEMETRY = "openvino_telemetry"
_unheard = _TELEMETRY not in sys.modules
if _unheard:
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # an import of None is refused
try:
    import openvino as ov
    from openvino.passes import ConstantFolding, Manager

    ov.Core  # noqa: B018  a folder that an uninstall left behind imports, and is empty
except (ImportError, OSError, AttributeError) as _error:
    raise missing_package("openvino", "openvino", _error) from _error
finally:
    if _unheard:
        del sys.modules[_TELEMETRY]

# Models compiled for the shapes that came first; each has a copy of the weights. Others share one.
_MAX_FIXED = 4

_PRECISION = "INFERENCE_PRECISION_HINT"
_HINTS = {None: "f32", "bfloat16": "bf16", FIXED_SHAPES: "bf16"}
_BFLOAT16_ISA = frozenset({"avx512_bf16", "amx_bf16"})

# Its names of the steps that `infer.optimizer.positions` refuses in bfloat16.
_COUNTING = frozenset(
    {"Sin", "Cos", "Tan", "Floor", "Ceiling", "Round", "Mod", "FloorMod", "Range", "CumSum", "GridSample",
     "ROIAlign"}
)  # fmt: skip
_COMPARING = frozenset({"Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual"})

_PICTURE_RANK = 4  # batch, channels, height, width

_REFUSED = ("string", "float64")

# Above this, copying costs more than the tensors that it saves.
_MAX_BOUND_BYTES = 64 * 1024

# A request keeps its feeds until it is asked again: of larger ones so many are kept, or one a stream.
_SMALL_BYTES, _MAX_IDLE_LARGE = 2**20, 2

_LEAST, _MOST = -(2**31), 2**31 - 1
# So many integers Python compares sooner than numpy, which starts slowly: 10 % of a small model's time.
_FEW = 32

Infer = Callable[[Any, dict[int, Array] | None], tuple[Array, ...]]
"""Runs a request on arrays by the places of their inputs, or on what is bound to it; its outputs are views,
which the next run overwrites."""


def _infer(request: Any, arrays: dict[int, Array] | None) -> tuple[Array, ...]:
    found: tuple[Array, ...] = request.infer(arrays, share_inputs=True, share_outputs=True).to_tuple()
    return found


class OpenvinoBackend:
    """OpenVINO's CPU plugin."""

    name = "openvino"
    version: str = str(ov.__version__).split("-")[0]
    spins = False
    overlaps = False
    has_arena = False
    shared_threads = None

    def device_kinds(self) -> tuple[str, ...]:
        return ("cpu",)

    def compute_dtypes(self, machine: Machine, signature: Signature) -> tuple[str, ...]:
        if not _BFLOAT16_ISA & set(machine.isa):
            return ()
        return ("bfloat16", FIXED_SHAPES) if _shapes_compiled_for(signature) else ("bfloat16",)

    def prepare(self, graph: Path, plan: Plan, signature: Signature) -> OpenvinoExecutable:
        if plan.graph_optimization != "all":
            raise BackendError("OpenVINO cannot run a graph as it is written; use the backend onnxruntime")
        if plan.compute_dtype not in _HINTS:
            raise BackendError(
                f"OpenVINO computes in float32 or bfloat16 here, not in {plan.compute_dtype}"
            )
        for spec in (*signature.inputs, *signature.outputs):
            if spec.dtype in _REFUSED:
                raise BackendError(
                    f"OpenVINO computes with no {spec.dtype}, which '{spec.name}' is; use the backend"
                    f" onnxruntime"
                )
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(plan.streams),
            "INFERENCE_NUM_THREADS": plan.num_threads,
            _PRECISION: _HINTS[plan.compute_dtype],
            # sessions that share cores would be pinned to the same ones
            "ENABLE_CPU_PINNING": False,
        }

        def compiled(model: Any, shapes: Shapes | None) -> tuple[Any, bool]:
            as_planned = plan.compute_dtype != FIXED_SHAPES or (
                shapes is not None and _counts_nothing(model)
            )
            precise = {} if as_planned else {_PRECISION: _HINTS[None]}
            return core.compile_model(model, "CPU", {**settings, **precise}), as_planned

        core = ov.Core()
        ready = _compiled_before(core, plan, settings, signature)
        models = _Models(
            lambda: core.read_model(graph),
            compiled,
            signature,
            ready,
            max(_MAX_IDLE_LARGE, plan.streams),
        )
        return OpenvinoExecutable(models, signature)


def export(graph: Path, plan: Plan, feeds: Feeds, signature: Signature) -> bytes:
    """What `plan` runs for feeds of these shapes, compiled, for `infer.compiled` to keep. Raises
    `BackendError`."""
    executable = OpenvinoBackend().prepare(graph, replace(plan, compiled=None), signature)
    return executable.export(feeds)


def _compiled_before(core: Any, plan: Plan, settings: dict[str, Any], signature: Signature) -> Any:
    """The compiled model that the plan names; None if it is not kept, or is another's."""
    kept_model = kept(plan.compiled) if plan.compiled else None
    if kept_model is None:
        return None
    try:
        found = core.import_model(io.BytesIO(kept_model), "CPU", settings)
    except Exception:  # then it is compiled again
        return None
    ports, specs = (*found.inputs, *found.outputs), (*signature.inputs, *signature.outputs)
    alike = (len(found.inputs), len(ports)) == (len(signature.inputs), len(specs)) and all(
        spec.name in port.get_names() and port.get_element_type().to_dtype() == spec.numpy_dtype
        for port, spec in zip(ports, specs, strict=True)
    )
    fixed = all(port.get_partial_shape().is_static for port in found.inputs)
    return found if alike and (fixed or plan.compute_dtype != FIXED_SHAPES) else None


def _counts_nothing(model: Any) -> bool:
    """Whether no step that bfloat16 could break is left once what is constant is computed."""
    folded, manager = model.clone(), Manager()  # what is compiled keeps its integer weights
    manager.register_pass(ConstantFolding())
    manager.run_passes(folded)
    return not any(map(_counts, folded.get_ops()))


def _counts(op: Any) -> bool:
    kind = op.get_type_name()
    if kind == "Convert":
        return bool(op.get_input_element_type(0).is_real() and op.get_output_element_type(0).is_integral())
    if kind in _COMPARING:
        sources = [value.get_source_output().get_node().get_type_name() for value in op.inputs()]
        return bool(op.get_input_element_type(0).is_real() and "Constant" not in sources)
    return kind in _COUNTING


def _shapes_compiled_for(signature: Signature) -> int:
    """For how many shapes a model is compiled, each as it comes first: for pictures, and where shapes
    differ in one dim at most."""
    pictures = all(len(spec.dims) >= _PICTURE_RANK for spec in signature.inputs)
    return _MAX_FIXED if pictures or len(signature.dims) <= 1 else 0


class OpenvinoExecutable:
    """A loaded model, and how its requests are run."""

    def __init__(self, models: _Models, signature: Signature, infer: Infer = _infer) -> None:
        self._models, self._signature, self._infer = models, signature, infer
        self._dtypes = {spec.name: spec.numpy_dtype for spec in signature.outputs}
        self._wide = tuple(spec.name for spec in signature.inputs if spec.dtype in ("int64", "uint64"))

    def run(self, feeds: Feeds, outputs: tuple[str, ...]) -> dict[str, Array]:
        for name in self._wide:
            if not _fits(feeds[name]):
                raise BackendError(
                    f"OpenVINO computes with integers of 32 bits, and input '{name}' has larger ones; use"
                    f" the backend onnxruntime"
                )
        requests = self._models.requests(feeds.shapes)
        try:
            request = requests.take(feeds)
            for buffer, array in zip(request.buffers, feeds.values(), strict=False):
                buffer[...] = array
            found = self._infer(request.request, None if request.buffers else _arrays(feeds))
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"OpenVINO failed while running the graph: {_words(error)}") from error
        places, dtypes = self._models.places, self._dtypes
        answer = {name: np.array(found[places[name]], dtypes[name]) for name in outputs}
        requests.give_back(request, feeds)
        return answer

    def export(self, feeds: Feeds) -> bytes:
        """The compiled model that answers `feeds`. Raises `BackendError`, also if it is in float32 where
        the plan is not: it would be taken as the plan says."""
        return self._models.requests(feeds.shapes).export()

    def watched(self, switch: Switch) -> OpenvinoExecutable:
        return OpenvinoExecutable(self._models, self._signature, told(self._infer, switch))

    def close(self) -> None:
        self._models.clear()


class _Models:
    """A model compiled once for feeds of any shape, and for pictures, or where shapes differ in one dim at
    most, anew for each of the first few: what is compiled for a shape is faster.

    A model that takes texts of any length would be compiled too often, so it has one for all; pictures
    mostly come in one size, also where a model takes any.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        compile_model: Callable[[Any, Shapes | None], tuple[Any, bool]],
        signature: Signature,
        ready: Any,
        kept_large: int,
    ) -> None:
        """`compile_model`: for feeds of these shapes, or of any, and whether in the plan's type. `ready`: a
        model that need not be read and compiled, or None. `kept_large`: so many requests with large feeds
        are kept."""
        self._read, self._compile, self._kept_large = read, compile_model, kept_large
        self._model: Any = None
        self._fixed: dict[Shapes, _Requests] = {}
        self._any: _Requests | None = None
        self._most = _shapes_compiled_for(signature)
        self._compiling = threading.Lock()
        if ready is None:
            self._model = self._read_model()
            self._any = None if self._most else self._compiled(None)
        elif all(port.get_partial_shape().is_static for port in ready.inputs):
            self._fixed[tuple(tuple(port.shape) for port in ready.inputs)] = self._requests_of(
                ready, fixed=True
            )
        else:
            self._any = self._requests_of(ready, fixed=False)
        ports = (ready or self._model).outputs
        self.places = {name: place for place, port in enumerate(ports) for name in port.get_names()}

    def requests(self, shapes: Shapes) -> _Requests:
        """Those of the model for feeds of these shapes."""
        full = len(self._fixed) >= self._most
        return self._fixed.get(shapes) or (full and self._any) or self._first_of(shapes)

    def _first_of(self, shapes: Shapes) -> _Requests:
        with self._compiling:
            if shapes in self._fixed:
                return self._fixed[shapes]
            if len(self._fixed) < self._most:
                try:
                    self._fixed[shapes] = self._compiled(shapes)
                except BackendError:  # it computes with the sizes of its example
                    self._fixed[shapes] = self._any = self._any or self._compiled(None)
                return self._fixed[shapes]
            self._any = self._any or self._compiled(None)
            return self._any

    def _compiled(self, shapes: Shapes | None) -> _Requests:
        self._model = self._model or self._read_model()
        try:
            model = self._model
            if shapes is not None:
                model = model.clone()
                model.reshape(dict(enumerate(shapes)))
            compiled, as_planned = self._compile(model, shapes)
            return self._requests_of(compiled, fixed=shapes is not None, as_planned=as_planned)
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"OpenVINO cannot compile the graph: {_words(error)}") from error

    def _requests_of(self, compiled: Any, *, fixed: bool, as_planned: bool = True) -> _Requests:
        return _Requests(compiled, self._kept_large, fixed=fixed, as_planned=as_planned)

    def _read_model(self) -> Any:
        try:
            return self._read()
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"OpenVINO cannot load the graph: {_words(error)}") from error

    def clear(self) -> None:
        self._fixed.clear()
        self._any = self._model = None


@dataclass(frozen=True, slots=True)
class _Request:
    """A request, and the buffers bound to it, one for each input; none, if it takes feeds as they are."""

    request: Any
    buffers: tuple[Array, ...]


class _Requests:
    """Requests of one compiled model; each is used by one thread at a time."""

    def __init__(self, compiled: Any, kept_large: int, *, fixed: bool, as_planned: bool) -> None:
        self._compiled, self._kept_large = compiled, kept_large
        self._fixed, self._as_planned = fixed, as_planned
        self._idle: list[_Request] = []  # pop and append are atomic

    def take(self, feeds: Feeds) -> _Request:
        try:
            return self._idle.pop()
        except IndexError:
            return self._made(feeds)

    def _made(self, feeds: Feeds) -> _Request:
        request = self._compiled.create_infer_request()
        if not (self._fixed and 0 < _bytes(feeds) <= _MAX_BOUND_BYTES):
            return _Request(request, ())
        buffers = tuple(array.copy() for array in feeds.values())
        for place, buffer in enumerate(buffers):
            request.set_input_tensor(place, ov.Tensor(buffer, shared_memory=True))
        return _Request(request, buffers)

    def export(self) -> bytes:
        if not self._as_planned:
            raise BackendError("OpenVINO compiled in f32 what the plan has in bf16")
        try:
            return bytes(self._compiled.export_model().getvalue())
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"OpenVINO cannot export what it compiled: {_words(error)}") from error

    def give_back(self, request: _Request, feeds: Feeds) -> None:
        if request.buffers or _bytes(feeds) <= _SMALL_BYTES or len(self._idle) < self._kept_large:
            self._idle.append(request)


def _arrays(feeds: Feeds) -> dict[int, Array]:
    """By place. OpenVINO's Python copies what is read-only, but for scalars, which it refuses."""
    return {
        place: array if array.flags.writeable else array.copy()
        for place, array in enumerate(feeds.values())
    }


def _bytes(feeds: Feeds) -> int:
    return sum(array.nbytes for array in feeds.values())


def _fits(array: Array) -> bool:
    """Whether all of these integers have 32 bits."""
    if array.size > _FEW:
        return bool(array.max() <= _MOST and array.min() >= _LEAST)
    return all(_LEAST <= value <= _MOST for value in array.ravel().tolist())


def _words(error: Exception) -> str:
    """The message on one line, bounded, without the lines that say where in its sources it arose."""
    lines = [
        line
        for line in str(error).splitlines()
        if line and not line.startswith(("Exception from", "Check '"))
    ]
    return " ".join(" ".join(lines or [str(error)]).split())[:600]

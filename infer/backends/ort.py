"""The ONNX Runtime backend. The only file that imports onnxruntime.

Small feeds take a shortcut. `InferenceSession.run` spends most of a small model's time on
making and releasing tensors; here inputs and outputs of the shapes seen before are bound once
to buffers that stay, and a run is two copies and a call. Each binding is used by one thread at a
time.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infer.backends import Switch, told
from infer.errors import BackendError, DeviceError, missing_package
from infer.guard import Feeds, Shapes
from infer.machine import Machine, this_machine
from infer.options import MAX_THREADS
from infer.plan import Plan
from infer.signature import Array, Signature

# Its wheels have telemetry (on Linux, too, as of 1.32), whose thread starts with the import. A process that
# is forked after that hangs when it ends: the thread did not come along.
_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_unset = _TELEMETRY not in os.environ
if _unset:
    os.environ[_TELEMETRY] = "1"
try:
    import onnxruntime as ort

    ort.InferenceSession  # noqa: B018  a folder that an uninstall left behind imports, and is empty
except (ImportError, OSError, AttributeError) as _error:
    raise missing_package("onnxruntime", "cpu", _error) from _error
finally:
    if _unset:
        del os.environ[_TELEMETRY]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_OPTIMIZATION = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

_LEFT_OUT = {"cpu": ["SkipLayerNormFusion"], "cuda": []}
"""Kind of device → rewrites of ONNX Runtime's own that cost time there. Its kernel for norms of sums takes
three times as long as its LayerNormalization."""

# So long idle threads spin. It covers the pauses within a run and those of a caller who asks again at once;
# by default it would be 30 to 90 ms, which keep the cores from all others.
_SPIN_US = "50"

# Above this, copying through a bound buffer costs more than making a tensor (~2 µs) saves.
_MAX_BOUND_BYTES = 64 * 1024
# A longer run does not notice what binding saves, and texts have more lengths than there are to remember.
_MAX_BOUND_S = 1e-3
# Shapes remembered before all are forgotten: bounds memory to 32 · 2 · 64 KiB a thread.
_MAX_BOUND_SHAPES = 32

# A large run within so many after another is one of a row.
_RUNS_OF_A_ROW = 8

_Key = tuple[tuple[str, ...], Shapes]
"""Output names, and the shapes of the feeds."""


@dataclass(frozen=True)
class _Shared:
    """The threads of a process that all its sessions use."""

    num_threads: int
    pid: int


_shared: _Shared | None = None
_any_opened = False


def share_threads(num_threads: int | None = None) -> None:
    """Let all sessions of this process on ONNX Runtime use the same threads, as many as there are cores by
    default; otherwise each has as many of its own.

    Call it once, before the first session is opened, and where processes are forked, in each one after the
    fork. There is no way back. Shared threads spin: ONNX Runtime has no option for them. Sessions that
    other code opens then need `use_per_session_threads = False`; those on OpenVINO keep their own threads.
    Raises `DeviceError`.
    """
    global _shared
    wanted = this_machine().cores if num_threads is None else num_threads
    if type(wanted) is not int or not 1 <= wanted <= MAX_THREADS:
        raise DeviceError(f"num_threads must be an int from 1 to {MAX_THREADS}, but is {wanted!r:.60}")
    if _shared == _Shared(wanted, os.getpid()):
        return
    if _shared is not None or _any_opened:
        already = f"already share {_shared.num_threads} threads" if _shared else "have threads of their own"
        raise DeviceError(
            f"share_threads({wanted}) comes too late: sessions of this process, or of the one that it was"
            f" forked from, {already}; call it once, before the first infer.load"
        )
    try:
        ort.set_global_thread_pool_sizes(wanted, 1)
    except Exception as error:  # its exceptions share no base class
        raise DeviceError(f"ONNX Runtime cannot share {wanted} threads: {_words(error)}") from error
    _shared = _Shared(wanted, os.getpid())


class OrtBackend:
    """ONNX Runtime, CPU or CUDA build."""

    name = "onnxruntime"
    version: str = ort.__version__
    spins = True
    overlaps = True
    has_arena = True

    @property
    def shared_threads(self) -> int | None:
        if _shared is None:
            return None
        if _shared.pid != os.getpid():
            raise DeviceError(
                f"process {_shared.pid} called share_threads, and its threads did not come along into the"
                f" forked process {os.getpid()}; call it after the fork, in each process"
            )
        return _shared.num_threads

    def device_kinds(self) -> tuple[str, ...]:
        available = ort.get_available_providers()
        return tuple(kind for kind, provider in _PROVIDERS.items() if provider in available)

    def compute_dtypes(self, machine: Machine, signature: Signature) -> tuple[str, ...]:
        return ()

    def prepare(self, graph: Path, plan: Plan, signature: Signature) -> OrtExecutable:
        if plan.compute_dtype is not None:
            raise BackendError(f"ONNX Runtime computes in what the graph has, not in {plan.compute_dtype}")
        session = _open(graph, plan, _options(plan))
        shrinking = _Shrinking(plan)
        bind = plan.device == "cpu" and shrinking.above_bytes > _MAX_BOUND_BYTES
        return OrtExecutable(session, signature, shrinking, bind=bind)


@dataclass(frozen=True)
class Recording:
    """The file of events that ONNX Runtime wrote, and the outputs of the last run."""

    events: Path
    outputs: dict[str, Array]


def record(
    graph: Path,
    plan: Plan,
    feeds: Feeds,
    runs: int,
    folder: Path,
    *,
    saved: Path | None,
    prepack: bool = True,
) -> Recording:
    """Run `graph` as `plan` says, and let ONNX Runtime write into `folder` what it did.

    The graph that it made of the file's goes to `saved`. Without `prepack`, all weights stay inputs of the
    nodes that use them. Raises `BackendError` and `DeviceError`.
    """
    options = _options(plan if prepack else replace(plan, prepacking=False))
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    if saved is not None:
        options.optimized_model_filepath = str(saved)
        # beside it, because protobuf holds no more than 2 GiB
        data = f"{saved.stem}.data"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
    session = _open(graph, plan, options)
    names = [output.name for output in session.get_outputs()]
    results = []
    try:
        for _ in range(runs):
            results = session.run(names, feeds)
    except Exception as error:  # its exceptions share no base class
        raise BackendError(f"ONNX Runtime failed while running the graph: {_words(error)}") from error
    finally:
        events = session.end_profiling()
    return Recording(Path(events), dict(zip(names, results, strict=True)))


def save_optimized(graph: Path, plan: Plan, target: Path, *, packed: bool) -> None:
    """Write to `target` what ONNX Runtime makes of `graph` when it is loaded as `plan` says, with large
    weights beside it; if `packed`, as its kernels pack them. Raises `BackendError` and `DeviceError`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    options = _options(plan)
    options.optimized_model_filepath = str(target)
    entries = {
        "session.optimized_model_external_initializers_file_name": f"{target.name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "1" if packed else "0",
    }
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    _open(graph, plan, options)


def _options(plan: Plan) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its messages come to us as exceptions
    if plan.shared_threads:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = plan.num_threads
        options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = plan.arena
    options.graph_optimization_level = _OPTIMIZATION["none" if plan.prepared else plan.graph_optimization]
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if plan.spinning else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    options.add_session_config_entry("session.disable_prepacking", "0" if plan.prepacking else "1")
    # whatever the file is called: its own format .ort was not looked at by infer.graphfile
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _open(graph: Path, plan: Plan, options: Any) -> Any:
    if any("\ud800" <= character <= "\udfff" for character in str(graph)):
        raise BackendError(
            f"ONNX Runtime opens only paths that are UTF-8, and '{graph}' is not; rename the folder"
        )
    global _any_opened
    _any_opened = True
    kind, _, index = plan.device.partition(":")
    provider = _PROVIDERS[kind]
    wanted: list[Any] = [provider if kind == "cpu" else (provider, {"device_id": index})]
    try:
        session = ort.InferenceSession(
            graph, options, providers=wanted, enable_fallback=0, disabled_optimizers=_LEFT_OUT[kind]
        )
    except Exception as error:  # its exceptions share no base class
        raise BackendError(f"ONNX Runtime cannot load '{graph}': {_words(error)}") from error
    # a provider that fails to initialise is dropped with a mere warning
    if session.get_providers()[0] != provider:
        raise DeviceError(
            f"device '{plan.device}' was asked for, but ONNX Runtime gave"
            f" {session.get_providers()[0]}; its libraries (CUDA, cuDNN) do not load here,"
            f" see: infer doctor"
        )
    return session


@dataclass(slots=True)
class _Binding:
    """Buffers for feeds and outputs of one shape, by name, bound to the session."""

    binding: Any
    inputs: list[tuple[str, Array]]
    outputs: list[tuple[str, Array]]


@dataclass(slots=True)
class _Bindings:
    """Those for feeds of one shape.

    Attributes:
        outputs: what a run on such feeds gives: name, dtype, shape.
        idle: those that no run uses; list.pop and append are atomic.
    """

    outputs: list[tuple[str, np.dtype[Any], tuple[int, ...]]]
    idle: list[_Binding]


class OrtExecutable:
    """A loaded session."""

    def __init__(self, session: Any, signature: Signature, shrinking: _Shrinking, *, bind: bool) -> None:
        self._session = session
        self._signature = signature
        self._shrinking = shrinking
        self._bindable = bind and _can_bind(signature)
        self._bindings: dict[_Key, _Bindings] = {}  # by output names and input shapes

    def run(self, feeds: Feeds, outputs: tuple[str, ...]) -> dict[str, Array]:
        if not self._bindable or self._shrinking.grown:
            return self._run_plain(feeds, outputs)
        key = (outputs, feeds.shapes)
        bindings = self._bindings.get(key)
        if bindings is None:
            return self._run_first(feeds, outputs, key)
        # a tiny model itself takes 3 µs, so from here on every 0.1 µs counts
        idle = bindings.idle
        try:
            bound = idle.pop() if idle else self._bind(feeds, bindings)
            for name, buffer in bound.inputs:
                buffer[...] = feeds[name]
            self._session.run_with_iobinding(bound.binding)
        except IndexError:  # another thread took the last one between the look and the pop
            return self._run_plain(feeds, outputs)
        except Exception:
            # either the graph refuses these values, and the plain run says so, or an output's
            # shape does not follow from the feeds' shapes, and nothing of this graph can be bound
            answer = self._run_plain(feeds, outputs)
            self._bindable = False
            return answer
        answer = {}
        for name, buffer in bound.outputs:
            answer[name] = buffer.copy()
        idle.append(bound)
        return answer

    def _run_first(self, feeds: Feeds, outputs: tuple[str, ...], key: _Key) -> dict[str, Array]:
        """A run with new shapes. If they are small and it is short, they are bound when they come again."""
        start = time.perf_counter()
        answer = self._run_plain(feeds, outputs)
        if time.perf_counter() - start < _MAX_BOUND_S and _small(feeds) and _small(answer):
            if len(self._bindings) >= _MAX_BOUND_SHAPES:
                self._bindings.clear()
            found = [(name, array.dtype, array.shape) for name, array in answer.items()]
            self._bindings.setdefault(key, _Bindings(found, []))
        return answer

    def _run_plain(self, feeds: Feeds, outputs: tuple[str, ...]) -> dict[str, Array]:
        try:
            results = self._session.run(outputs, feeds, self._shrinking.run_options(feeds))
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"ONNX Runtime failed while running the graph: {_words(error)}") from error
        return dict(zip(outputs, results, strict=True))

    def _bind(self, feeds: Feeds, bindings: _Bindings) -> _Binding:
        binding = self._session.io_binding()
        inputs = [(name, array.copy()) for name, array in feeds.items()]
        # ONNX Runtime itself refuses a run whose output has another shape than its buffer
        outputs = [(name, np.empty(shape, dtype)) for name, dtype, shape in bindings.outputs]
        for bind, buffers in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, buffer in buffers:
                bind(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        return _Binding(binding, inputs, outputs)

    def watched(self, switch: Switch) -> OrtExecutable:
        session = _Watched(self._session, switch)
        return OrtExecutable(session, self._signature, self._shrinking, bind=self._bindable)

    def close(self) -> None:
        self._bindings.clear()
        self._session = None


class _Shrinking:
    """After which runs the arenas give back what they grew by.

    Growing again takes longer than some runs do, so large runs in a row keep it: one gives back at once if
    no other came lately, and after several it is a later, smaller run that does.
    """

    def __init__(self, plan: Plan) -> None:
        self.above_bytes = plan.shrink_above_bytes if plan.arena or plan.device != "cpu" else math.inf
        kind, _, index = plan.device.partition(":")
        arenas = ["cpu:0"] * plan.arena + [f"gpu:{index}"] * (kind == "cuda")
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", ";".join(arenas))
        self._smaller = _RUNS_OF_A_ROW  # runs since the last large one
        self.grown = False
        """Whether large runs in a row left memory."""

    def run_options(self, feeds: Feeds) -> Any:
        """Those of a run on `feeds`; None for the usual ones. Threads that count at once may miss a run."""
        alone = self._smaller >= _RUNS_OF_A_ROW
        if _bytes(feeds) > self.above_bytes:
            self._smaller = 0
            self.grown = bool(self.above_bytes) and not alone
            return None if self.grown else self._shrink
        self._smaller += 1
        if self.grown and self._smaller >= _RUNS_OF_A_ROW:
            self.grown = False
            return self._shrink
        return None


class _Watched:
    """The calls of a session that `OrtExecutable` makes, told to `switch`."""

    def __init__(self, session: Any, switch: Switch) -> None:
        self.io_binding = session.io_binding
        self.run = told(session.run, switch)
        self.run_with_iobinding = told(session.run_with_iobinding, switch)


def _can_bind(signature: Signature) -> bool:
    """Whether buffers bound once can serve every run.

    Not if strings are among them, which have no fixed size; not if the shape of an output follows from
    the data, not from the feeds' shapes; and not if an input is an output: ONNX Runtime then leaves its
    buffer as the first run filled it.
    """
    tensors = (*signature.inputs, *signature.outputs)
    known = {dim for spec in signature.inputs for dim in spec.dims}
    return (
        all(spec.dtype != "string" for spec in tensors)
        and all(isinstance(dim, int) or dim in known for spec in signature.outputs for dim in spec.dims)
        and len({spec.name for spec in tensors}) == len(tensors)
    )


def _small(arrays: dict[str, Array]) -> bool:
    return _bytes(arrays) <= _MAX_BOUND_BYTES


def _bytes(arrays: dict[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _words(error: Exception) -> str:
    """The message without the status prefix, on one line, bounded."""
    text = " ".join(str(error).split())
    with contextlib.suppress(ValueError):
        text = text[text.index(" : ", text.index(" : ") + 1) + 3 :]
    return text[:600]

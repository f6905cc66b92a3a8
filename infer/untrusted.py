"""A graph that is not trusted is tried in a process of its own before this one loads it.

That process loads a private copy of the graph and its weights, and asks it its golden points; this one
watches how far its memory grows and how long it takes, and loads the same copy only after that went well.
Beyond a limit it is ended. Allocations are not made to fail, as RLIMIT_DATA and RLIMIT_AS do: ONNX Runtime
catches that while it folds constants, goes on, and a graph that takes a gigabyte here would look harmless
there.

It bounds memory and time, and outlives a crash. It is no sandbox: a graph that makes a backend's fault run
code runs it as this user.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NoReturn

from infer.artifact import Artifact, reading
from infer.errors import (
    DeviceError,
    InputError,
    IntegrityError,
    MissingPackageError,
    RehearsalError,
)
from infer.integrity import check_graph, files_read
from infer.machine import this_machine
from infer.options import LoadLimits
from infer.plan import Plan
from infer.rehearsal import Request
from infer.schema import SchemaError, encode, parse

_MIB = 2**20

_BASE_BYTES = 512 * _MIB
"""What any graph may take, and what a library sets up at its first one: 150 MiB were seen of OpenVINO."""

_TIMES_FILES = 8
"""Weights are read, laid out anew and packed, and integers may be unpacked to floats: 2 to 5 times their
files were seen."""

_TIMES_FEEDS = 64
"""What a run holds between its inputs and outputs: 40 times the largest golden feeds were seen."""

_THREAD_BYTES = 16 * _MIB
"""Each thread has a stack, 8 MiB on most systems."""

_BASE_S, _BYTES_PER_S = 60.0, 8 * _MIB

_LOOK_MS = 5
"""How often the memory is looked at: some 10 MiB can be filled meanwhile."""

_START_S, _END_S = 60.0, 10.0

_MOST_ANSWER_BYTES = 64 * 1024

_CHUNK_BYTES = _MIB

_KEPT = ("HOME", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "TMPDIR")
"""What the process gets of the environment, beside where packages are."""

_MORE = (
    "if you know who made it, load it without untrusted, or with other limits:"
    " untrusted=infer.LoadLimits(memory_bytes=…, timeout_s=…)"
)
_ANOTHER = "the file is damaged or hostile, get it again from who made it"


@contextmanager
def tried(artifact: Artifact, plan: Plan, untrusted: bool | LoadLimits) -> Iterator[Artifact]:
    """What to load `plan` from: a copy of its files and of the golden points, which was tried, and which
    ends with the block.

    Raises `RehearsalError` if the graph took too much, crashed or failed; what `check_graph` raises;
    `IntegrityError` for a file that is not as recorded; `DeviceError` where limits cannot be had;
    `InputError` for limits that are none.
    """
    limits = _checked(untrusted)
    parts = plan.parts
    for part in parts:
        _check_place(part)
    points = [name for point in artifact.manifest.golden for name in point.files]
    files = [name for part in parts for name in files_read(artifact, part)]
    _check_sizes(artifact, [*files, *points])
    memory_bytes = limits.memory_bytes or _memory_limit(artifact, files, parts)
    timeout_s = limits.timeout_s or _BASE_S + _size(artifact, files) / _BYTES_PER_S
    with _empty_folder() as folder:
        copy = _copied(artifact, [*files, *points], folder / "files")
        requests = [_request(copy, part, timeout_s) for part in parts]
        try:
            with RehearsalProcess(folder, [part.backend for part in parts]) as process:
                for request in requests:
                    process.ask(request, memory_bytes, timeout_s)
        except RehearsalError as error:
            told = str(error).replace(str(copy.path), str(artifact.path))
            raise RehearsalError(
                f"'{artifact.location}' is not trusted and was not loaded: tried in a process of its own,"
                f" it {told}"
            ) from error
        yield copy


class RehearsalProcess:
    """A process in which graphs are tried, one after the other. A context manager; of one thread."""

    def __init__(self, folder: str | os.PathLike[str], backends: Iterable[str]) -> None:
        """Start it in `folder`, which should be empty: Python looks there for modules. Raises
        `RehearsalError`."""
        places = [str(Path(place).absolute()) for place in sys.path if place]
        ours = str(Path(__file__).absolute().parents[1])
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
            "PYTHONPATH": os.pathsep.join([*places, *([] if ours in places else [ours])]),
            "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "ORT_DISABLE_TELEMETRY": "1",
            "MALLOC_ARENA_MAX": "1",  # an arena of each thread reserves 64 MiB of addresses
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "infer.rehearsal", *dict.fromkeys(backends)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which then ends that one
            )
        except OSError as error:
            raise RehearsalError(f"could not be given one: {error}") from error
        try:
            self._answer(math.inf, _START_S)
            self._before = self._bytes("VmSize")
        except BaseException as error:
            self.close()
            if isinstance(error, RehearsalError):
                raise RehearsalError(f"could not be given one, because that {error}") from error
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Request, memory_bytes: int, timeout_s: float) -> None:
        """Load and run there what `request` says. Raises `RehearsalError`, which says what happened, and
        ends the process if a limit was passed; `MissingPackageError` and `DeviceError`."""
        with suppress(BrokenPipeError):  # its end is noticed below
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(encode(request)).encode() + b"\n")
            self._process.stdin.flush()
        self._answer(self._before + memory_bytes, timeout_s)

    def close(self) -> None:
        """End it. Safe to call again."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what is still to be written has no reader
                pipe.close()

    def __enter__(self) -> RehearsalProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, most_bytes: float, timeout_s: float) -> None:
        """Wait for a line, and look at the memory meanwhile, and once more at the end."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        end, answer = time.monotonic() + timeout_s, b""
        while not answer.endswith(b"\n"):
            if waiting.poll(_LOOK_MS):
                chunk = os.read(descriptor, _MOST_ANSWER_BYTES)
                if not chunk:
                    self._died()
                answer += chunk
            self._check_memory(most_bytes)
            if time.monotonic() > end:
                self.close()
                raise RehearsalError(f"took longer than the {timeout_s:.0f} s that it may; {_MORE}")
            if len(answer) > _MOST_ANSWER_BYTES:
                self.close()
                raise RehearsalError(f"gave an answer without an end; {_ANOTHER}")
        _raise_told(answer)

    def _check_memory(self, most_bytes: float) -> None:
        # the most that it ever had: what was allocated and let go of since the last look counts, too
        if self._bytes("VmPeak") > most_bytes:
            self.close()
            limit = (most_bytes - self._before) / _MIB
            raise RehearsalError(f"took more memory than the {limit:.0f} MiB that it may; {_MORE}")

    def _bytes(self, row: str) -> int:
        """A row of what the system tells of the process; 0 once that has ended."""
        try:
            text = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise DeviceError(f"the memory of a process cannot be watched here: {error}") from error
        found = text.partition(f"\n{row}:")[2].split(maxsplit=1)
        return int(found[0]) * 1024 if found else 0

    def _died(self) -> NoReturn:
        with suppress(subprocess.TimeoutExpired):  # it may only have stopped to answer
            self._process.wait(_END_S)
        code = self._process.poll()
        self.close()
        if code is None or code >= 0:
            raise RehearsalError(f"gave no answer (exit code {code}); {_ANOTHER}")
        if code == -signal.SIGXCPU:
            raise RehearsalError(f"took more of the processor's time than it may; {_MORE}")
        if code == -signal.SIGKILL:
            raise RehearsalError(f"was ended by the system, as where memory is short; {_MORE}")
        names = {number.value: number.name for number in signal.Signals}
        raise RehearsalError(f"crashed ({names.get(-code, f'signal {-code}')}); {_ANOTHER}")


def _raise_told(answer: bytes) -> None:
    """What the process tells, as an error. It is text of a stranger."""
    try:
        told = parse(answer)
        if not isinstance(told, dict) or not all(isinstance(word, str) for word in told.values()):
            raise SchemaError("it is no mapping of texts")
    except SchemaError as error:
        raise RehearsalError(f"gave an answer that is none ({error}); {_ANOTHER}") from error
    kind, message = told.get("error"), told.get("message", "")
    if kind == MissingPackageError.__name__:
        raise MissingPackageError(message)
    if kind == DeviceError.__name__:
        raise DeviceError(message)
    if told:
        raise RehearsalError(f"failed: {message or kind}")


def _checked(untrusted: bool | LoadLimits) -> LoadLimits:
    """What types alone say, for callers who have none."""
    limits = LoadLimits() if untrusted is True else untrusted
    if not isinstance(limits, LoadLimits):
        raise InputError(f"untrusted must be True, False or infer.LoadLimits, but is {untrusted!r:.60}")
    memory_bytes, timeout_s = limits.memory_bytes, limits.timeout_s
    if memory_bytes is not None and (type(memory_bytes) is not int or memory_bytes < 1):
        raise InputError(f"memory_bytes must be an int of 1 or more, but is {memory_bytes!r:.60}")
    if timeout_s is not None and (not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= 86400):
        raise InputError(f"timeout_s must be above 0 and at most a day, but is {timeout_s!r:.60}")
    return limits


def _check_place(plan: Plan) -> None:
    if sys.platform != "linux":
        raise DeviceError(
            f"untrusted graphs are tried within limits that only Linux has, not {sys.platform}; load this"
            f" one in a container with a memory limit"
        )
    if plan.device != "cpu":
        raise DeviceError(
            f"untrusted graphs are tried on the CPU only, because the memory of {plan.device} has no limit;"
            f" ask for device='cpu'"
        )


def _size(artifact: Artifact, names: Iterable[str]) -> int:
    return sum(artifact.manifest.files[name].size_bytes for name in set(names))


def _check_sizes(artifact: Artifact, names: Iterable[str]) -> None:
    """Files with holes may be larger than any disk."""
    here = this_machine().memory_bytes
    if here and (wanted := _size(artifact, names)) > here:
        raise RehearsalError(
            f"'{artifact.location}' is not trusted and was not loaded: its files have {wanted} bytes, more"
            f" than the memory of this machine"
        )


def _memory_limit(artifact: Artifact, files: Iterable[str], parts: Sequence[Plan]) -> int:
    """Bytes for all of a plan."""
    feeds = max((_size(artifact, [point.feeds]) for point in artifact.manifest.golden), default=0)
    threads = sum(part.num_threads for part in parts)
    return (
        len(parts) * (_BASE_BYTES + _TIMES_FEEDS * feeds)
        + _TIMES_FILES * _size(artifact, files)
        + threads * _THREAD_BYTES
    )


@contextmanager
def _empty_folder() -> Iterator[Path]:
    """One that this user alone may enter, and which ends with the block. Raises `RehearsalError`."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="infer-untrusted-"))
    except OSError as error:
        raise RehearsalError(f"there is no folder for copies of untrusted files: {error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _chunks(path: Path) -> Iterator[bytes]:
    with reading(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _copied(artifact: Artifact, names: Iterable[str], folder: Path) -> Artifact:
    """`artifact` with these of its files alone, in `folder`, each as its manifest recorded it. Raises
    `IntegrityError` and `ArtifactError`, and `RehearsalError` where there is no place for them."""
    for name in dict.fromkeys(names):
        source, record = artifact.file(name), artifact.manifest.files[name]
        target = folder.joinpath(*PurePosixPath(name).parts)
        found, size_bytes = hashlib.sha256(), 0
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as copy:
                for chunk in _chunks(source):
                    copy.write(chunk)
                    found.update(chunk)
                    size_bytes += len(chunk)
                    if size_bytes > record.size_bytes:
                        break
        except OSError as error:
            raise RehearsalError(
                f"'{source}' is not trusted, and cannot be copied to '{folder}' to be tried:"
                f" {error.strerror or error}; let TMPDIR be a folder with more room"
            ) from error
        if size_bytes != record.size_bytes or record.sha256 not in (None, found.hexdigest()):
            raise IntegrityError(
                f"'{source}' differs from what the manifest recorded; the artifact was damaged or changed,"
                f" copy it again or convert the model again"
            )
    return replace(artifact, path=folder)


def _request(copy: Artifact, plan: Plan, timeout_s: float) -> Request:
    """Raises as `check_graph`: what is tried is what was looked at."""
    graph = copy.file(plan.loaded)
    check_graph(copy, graph)
    return Request(
        graph=str(graph),
        plan=replace(plan, larger=None, reasons=()),
        inputs=copy.manifest.inputs,
        outputs=copy.manifest.outputs,
        golden=tuple(str(copy.file(point.feeds)) for point in copy.manifest.golden),
        cpu_s=math.ceil(timeout_s * plan.num_threads),
    )

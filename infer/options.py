"""What a caller may ask for, one frozen class per stage. Each field says its unit, default and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_THREADS = 1024
"""More than any machine has cores: a backend starts as many threads as it is told, at once."""

GRAPH_OPTIMIZATIONS = ("all", "none")

SHRINK_ABOVE_BYTES = 16 * 2**20
"""Feeds of a run after which memory is given back, unless something else is asked for."""


@dataclass(frozen=True)
class PlanOptions:
    """Wishes the planner must meet or refuse; None leaves the choice to it."""

    device: str = "auto"
    """"cpu", "cuda", "cuda:1", or "auto": the best device an installed backend can use. A named
    device, in capitals or not, is a demand: if it cannot be had, planning fails."""

    variant: str | None = None
    """Name of a variant in the manifest; default: the one that was measured to be the fastest on this kind
    of machine, or else the first, the reference."""

    num_threads: int | None = None
    """Threads one run may use, 1 to `MAX_THREADS`; default: the cores this process may use, or fewer where
    that was measured to be faster. More than these do not spin, whatever `spinning` says."""

    backend: str | None = None
    """Name of a backend; default: the one the variant was made for, or else onnxruntime. A named one is a
    demand."""

    graph_optimization: str = "all"
    """"all", or "none": run the graph exactly as it is written, slowly, to prove the other."""

    spinning: bool | None = None
    """Whether idle threads wait for work by spinning, 50 µs with ONNX Runtime, before they sleep; default:
    on, unless off was measured to be faster here. On answers a lone caller sooner; off lets several runs go
    on at once (`streams`)."""

    streams: int | None = None
    """How many runs of a session's batcher go on at once, 1 to `MAX_THREADS`, and share the threads.
    Default: as many as were measured to answer most here (`infer optimize --objective throughput`); else
    one, where threads spin, since they would take them from each other; elsewhere, with ONNX Runtime on a
    CPU, as many as there are threads, at most 8. Each needs memory of its own for what the
    graph computes. OpenVINO divides the threads among them, which makes a lone run slower."""

    prepacking: bool | None = None
    """Whether the backend lays weights out anew for its products while loading; default: it does, unless
    weights as they are were measured to be faster here."""

    huge_pages: bool | None = None
    """Whether the memory that loading and warming up take is put into huge pages, by another thread, within
    a second or two; default: if that was measured to be faster here. Linux gives them from 6.1 on. Where
    memory is used here and there only, all of it is taken then. What
    larger runs take later is not: warm up with their sizes (`SessionOptions.warm_up`)."""

    arena: bool | None = None
    """Whether the backend keeps the memory of a run for the next one; default: it does. Without, each run
    asks the system for its memory and gives it back, which takes time."""

    shrink_above_bytes: int | None = None
    """A run whose feeds have more bytes gives back, when it ends, what the arena grew by; large runs in a
    row keep it for each other, and it is given back after some smaller ones. Default: 16 MiB
    (`SHRINK_ABOVE_BYTES`); 0: after every run, which takes time. Without, one large request would keep its
    memory for good."""


@dataclass(frozen=True)
class BatchOptions:
    """How requests of many callers are answered together."""

    max_delay_s: float = 0.0
    """How long a request waits for others while a stream is free. Off by default: under load, requests
    gather while a batch runs, and without load waiting only makes answers late."""

    max_rows: int = 64
    """The most rows of several requests that run together. A request with more is run in portions, so that
    others get their turn in between: they begin with as many rows, and have twice as many for as long as a
    run takes less than 20 ms."""

    max_waiting: int = 128
    """The most requests that may wait or run; more are refused, because they would only wait longer. Each
    has a thread while it is waited for, unless its caller waits in one of its own."""


@dataclass(frozen=True)
class ShadowOptions:
    """How live answers of a variant are checked against the reference's."""

    share: float = 0.01
    """Of runs that are checked, above 0, at most 1. A check takes what a run of the reference takes on one
    thread of low priority, and while four wait no more are taken."""

    limit: float = 0.05
    """The part of the latest checks that may be off. Beyond, the reference answers from then on."""

    window: int = 100
    """How many of the latest checks count; before there are so many, nothing is decided."""


@dataclass(frozen=True)
class LoadLimits:
    """What a graph that is not trusted may take in the process in which it is tried first."""

    memory_bytes: int | None = None
    """The most that it may let that process grow by; default: 512 MiB, 8 times its files, 64 times its
    largest golden feeds, and 16 MiB for each thread."""

    timeout_s: float | None = None
    """The time to load it and ask it its golden points; default: a minute, and a second for each 8 MiB of
    its files."""


@dataclass(frozen=True)
class SessionOptions:
    """How a session treats its artifact and its feeds."""

    verify: bool = True
    """Compare every file that is loaded with its sha256 while opening; `infer verify` does so with all.
    Runs beside the backend's own loading."""

    warm_up: bool | Sequence[Mapping[str, int]] = True
    """Run a row of the example before the session is handed over, so that the first answer does not pay
    for first-time allocation, or for what is compiled for its size; and many, where the plan for these is
    another. Or the sizes that
    will be asked for, as in
    `[{"batch": 1, "sequence": 128}, {"batch": 8, "sequence": 128}]`: golden feeds, made-up ones where there
    are none, are cut or repeated to each of them and run; dims that are not named stay as they are."""

    refuse_nan: bool = False
    """Refuse feeds that hold NaN or infinity. Off by default: some models use them as markers."""

    max_feed_bytes: int | None = None
    """Refuse feeds of one run that have more bytes together, and batch no more than that; default: no
    limit. What a run needs grows with them."""

    encode: Callable[..., Any] | None = None
    """Takes the place of the task's own way from inputs to feeds: `encode(inputs)` gets a list of at
    most 32 inputs and returns arrays by input name, in which row i is input i."""

    decode: Callable[..., Any] | None = None
    """Takes the place of the task's own way from outputs to results: `decode(outputs, inputs)` gets
    arrays by output name and the list of inputs, and returns a list with a result for each."""

    batching: BatchOptions = BatchOptions()
    """How `Session.submit` and `arun` answer many callers together."""

    shadow: ShadowOptions | None = None
    """Check a share of the answers against the reference, off the hot path. Off by default: it holds the
    reference's weights, too. Without effect where the reference itself answers."""

    untrusted: bool | LoadLimits = False
    """Load the graph in a process of its own first, within limits of memory and time, and here only if that
    goes well: a small hostile graph can take gigabytes while it is loaded, or crash the process. Off by
    default: it takes the start of a process, and loading twice. On Linux and the CPU only."""

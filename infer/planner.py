"""Decides how to run an artifact here. Touches no device: it reads the manifest and the machine."""

from __future__ import annotations

import re
from dataclasses import replace

from infer.backends import BACKENDS, Backend, load_backend
from infer.errors import ArtifactError, DeviceError, MissingPackageError
from infer.huge_pages import huge_pages_work
from infer.machine import Machine
from infer.manifest import Manifest, Tuned, Variant
from infer.options import GRAPH_OPTIMIZATIONS, MAX_THREADS, SHRINK_ABOVE_BYTES, PlanOptions
from infer.plan import Plan

MOST_STREAMS = 8
"""Runs that go on at once unless more are asked for: each has memory of its own."""

_WEIGHTS_MOST = 0.25
"""Two plans for one artifact may take so much of the memory for their weights."""


def make_plan(manifest: Manifest, machine: Machine, options: PlanOptions) -> Plan:
    """The plan for running `manifest`'s graphs on `machine`.

    Raises `DeviceError` if the demanded device cannot be had or an option is none, `ArtifactError` for an
    unknown variant, `MissingPackageError` if no backend is installed.
    """
    _check(options)
    reasons: list[str] = []
    backend, device = _backend_and_device(machine, options, reasons)
    found = _tuned(manifest, machine, device, options, reasons)
    plan = _planned(manifest, machine, options, found[0] if found else None, backend, device, reasons)
    for other in found[1:]:
        larger = _planned(manifest, machine, options, other, backend, device, [])
        if _alike(plan, larger):  # with as many threads as asked for
            continue
        if _memory_for_both(manifest, machine, plan, larger):
            plan = replace(plan, larger=replace(larger, rows_from=other.rows_from))
            reasons.append(f"from {other.rows_from} rows on {larger.summary}: measured to be faster here")
        else:
            reasons.append(
                f"{plan.variant} for all rows: from {other.rows_from} on {larger.variant} is faster, but"
                f" the weights of both take too much of this machine's memory"
            )
    return replace(plan, reasons=tuple(reasons))


def _planned(
    manifest: Manifest,
    machine: Machine,
    options: PlanOptions,
    tuned: Tuned | None,
    backend: Backend,
    device: str,
    reasons: list[str],
) -> Plan:
    """The plan by what was measured, if anything was, for as many rows as that holds for."""
    variant = _variant(manifest, tuned.variant if tuned else options.variant)
    if options.backend is None and variant.backend is not None:
        backend = load_backend(variant.backend)
        if device.partition(":")[0] not in backend.device_kinds():
            device = _instead(variant, backend, device, options, reasons)
    compute_dtype = variant.compute_dtype
    if compute_dtype is not None and compute_dtype not in backend.compute_dtypes(
        machine, manifest.signature
    ):
        reasons.append(f"in float32: {backend.name} has no faster {compute_dtype} on this machine")
        compute_dtype = None
    spinning, prepacking = _settings(tuned, backend, options, reasons)
    shared = _shared_threads(backend, options)
    if shared is not None:
        threads, spinning = shared, True
        reasons.append(f"{threads} threads that all sessions of this process share, and that spin")
    elif options.num_threads is not None:
        threads = options.num_threads
        reasons.append(f"{threads} threads, as asked")
        if threads > machine.cores:
            spinning = False
            reasons.append(
                f"more threads than cores ({machine.cores}) wait for each other: no spinning, and fewer"
                f" would be faster"
            )
    elif tuned and tuned.num_threads < machine.cores and not _for_others(tuned, spinning, options):
        threads = tuned.num_threads
        reasons.append(f"{threads} of {machine.cores} cores: measured to be faster here than all")
    else:
        threads = machine.cores
        quota = f", cgroup quota {machine.cores_quota:g}" if machine.cores_quota else ""
        reasons.append(f"{threads} threads: affinity {machine.cores_affinity}{quota}")
    huge_pages = _huge_pages(tuned, options, reasons)
    streams = _streams(tuned, backend, device, machine, options, threads, spinning, reasons)
    prepared = compiled = None
    here = f"{backend.name} {backend.version}"
    if tuned and tuned.runtime not in ("", here):
        reasons.append(
            f"measured with {tuned.runtime}, and not with {here}: measure again with infer optimize"
        )
        if tuned.prepared or tuned.compiled:
            reasons.append(f"not prepared for {here}, but for {tuned.runtime}: loads sooner after that")
    elif tuned and options.graph_optimization == "all":
        if tuned.prepared:
            prepared = tuned.prepared.graph
            reasons.append(f"{prepared}: loads in ×{tuned.prepared.load_ratio:.2f} of the time")
        elif tuned.compiled and streams == (tuned.streams or 1):  # as what is kept was compiled
            compiled = tuned.compiled.sha256
            reasons.append(
                f"compiled before: loads in ×{tuned.compiled.load_ratio:.2f} of the time while this user's"
                f" cache has it"
            )
    return Plan(
        variant=variant.name,
        graph=variant.graph,
        precision=variant.precision,
        backend=backend.name,
        device=device,
        num_threads=threads,
        spinning=spinning,
        streams=streams,
        compute_dtype=compute_dtype,
        graph_optimization=options.graph_optimization,
        prepacking=prepacking,
        huge_pages=huge_pages,
        prepared=prepared,
        compiled=compiled,
        shared_threads=shared is not None,
        arena=options.arena is not False and backend.has_arena,
        shrink_above_bytes=SHRINK_ABOVE_BYTES
        if options.shrink_above_bytes is None
        else options.shrink_above_bytes,
    )


def _check(options: PlanOptions) -> None:
    """What types alone say, for callers who have none."""
    for name, count in (("num_threads", options.num_threads), ("streams", options.streams)):
        if count is not None and (type(count) is not int or not 1 <= count <= MAX_THREADS):
            raise DeviceError(f"{name} must be an int from 1 to {MAX_THREADS}, but is {count!r:.60}")
    if options.graph_optimization not in GRAPH_OPTIMIZATIONS:
        raise DeviceError(
            f"graph_optimization must be one of {', '.join(GRAPH_OPTIMIZATIONS)},"
            f" but is {options.graph_optimization!r:.60}"
        )
    if options.backend is not None and options.backend not in BACKENDS:
        raise DeviceError(f"there is no backend {options.backend!r:.60}; choose from {', '.join(BACKENDS)}")
    for name in ("spinning", "prepacking", "huge_pages", "arena"):
        wish = getattr(options, name)
        if wish is not None and not isinstance(wish, bool):
            raise DeviceError(f"{name} must be True, False or None, but is {wish!r:.60}")
    above = options.shrink_above_bytes
    if above is not None and (type(above) is not int or above < 0):
        raise DeviceError(f"shrink_above_bytes must be an int of 0 or more, but is {above!r:.60}")


def _shared_threads(backend: Backend, options: PlanOptions) -> int | None:
    """How many there are, if sessions share them. Raises `DeviceError` if that is not what is asked for."""
    shared = backend.shared_threads
    for name, wish, has in (
        ("num_threads", options.num_threads, shared),
        ("spinning", options.spinning, True),
    ):
        if shared is not None and wish not in (None, has):
            raise DeviceError(
                f"{name}={wish} was asked for, but sessions of this process share {shared} threads, which"
                f" spin (infer.share_threads); leave {name} out"
            )
    return shared


def _settings(
    tuned: Tuned | None, backend: Backend, options: PlanOptions, reasons: list[str]
) -> tuple[bool, bool]:
    """Whether threads spin, and whether weights are packed: as asked, or as measured to be faster here."""
    spinning, prepacking = options.spinning, options.prepacking
    if spinning is None and (options.streams or 1) > 1 and backend.spins and backend.shared_threads is None:
        spinning = False
        reasons.append("no spinning: runs at once, as asked, would wait for each other")
    if spinning is None and tuned and not tuned.spinning:
        spinning = False
        reasons.append("no spinning: measured to be faster here")
    if prepacking is None and tuned and not tuned.prepacking:
        prepacking = False
        reasons.append("weights as they are, not packed: measured to be faster here")
    return spinning is not False and backend.spins, prepacking is not False


def _huge_pages(tuned: Tuned | None, options: PlanOptions, reasons: list[str]) -> bool:
    """Whether memory is put into them: as asked, or as measured to be faster here, where there are any."""
    wanted = options.huge_pages
    if wanted is None and tuned and tuned.huge_pages:
        wanted = True
        reasons.append("memory in huge pages: measured to be faster here")
    if wanted and not huge_pages_work():
        reasons.append("no huge pages: this system gives none to memory in use (Linux does from 6.1 on)")
        return False
    return bool(wanted)


def _for_others(tuned: Tuned, spinning: bool, options: PlanOptions) -> bool:
    """Whether its threads are those of each of several runs at once, which there will not be."""
    several = tuned.streams is not None and tuned.streams > 1
    return several and (spinning or options.streams not in (None, tuned.streams))


def _streams(
    tuned: Tuned | None,
    backend: Backend,
    device: str,
    machine: Machine,
    options: PlanOptions,
    threads: int,
    spinning: bool,
    reasons: list[str],
) -> int:
    """How many runs go on at once: as asked, as measured to answer more here, or as many as help where they
    share threads that are free."""
    if options.streams is not None:
        return options.streams
    free = min(threads, machine.cores)
    if tuned and tuned.streams and not spinning:
        streams = min(tuned.streams, machine.cores if options.num_threads is None else free)
        reasons.append(f"{streams} run{'s' * (streams > 1)} at once: measured to answer most here")
        return streams
    return min(free, MOST_STREAMS) if backend.overlaps and device == "cpu" and not spinning else 1


def _tuned(
    manifest: Manifest, machine: Machine, device: str, options: PlanOptions, reasons: list[str]
) -> list[Tuned]:
    """What was measured to be fastest on machines like this one, for few rows first; nothing if a variant
    or a backend is asked for, or a backend is not installed."""
    if options.variant is not None or not manifest.tuned:
        return []
    reference = manifest.variants[0].name
    if options.backend is not None:
        reasons.append(
            f"{reference}, the reference: what is fastest was not measured for a backend as asked"
        )
        return []
    here = [t for t in manifest.tuned if (t.machine, t.device) == (machine.fingerprint, device)]
    here.sort(key=lambda tuned: tuned.rows_from)
    for tuned in here:
        try:
            load_backend(_variant(manifest, tuned.variant).backend or next(iter(BACKENDS)))
        except MissingPackageError as error:
            reasons.append(f"{reference}, the reference: {tuned.variant} is the fastest here, but {error}")
            return []
    if here:
        reasons.append(
            f"{here[0].variant}: measured to be the fastest on this kind of machine,"
            f" {here[0].created[:10]}, with {here[0].runtime}"
        )
    else:
        reasons.append(
            f"{reference}, the reference: the artifact was tuned for other machines or devices;"
            f" tune it for this one with: infer optimize ARTIFACT -o OUT"
        )
    return here


def _alike(plan: Plan, larger: Plan) -> bool:
    """Whether both run the same graph in the same way."""
    return replace(larger, prepared=plan.prepared, compiled=plan.compiled) == plan


def _memory_for_both(manifest: Manifest, machine: Machine, plan: Plan, larger: Plan) -> bool:
    """Whether the weights of two plans leave most of the memory free."""
    sizes = {variant.name: variant.size_bytes for variant in manifest.variants}
    return sizes[plan.variant] + sizes[larger.variant] <= machine.memory_bytes * _WEIGHTS_MOST


def _instead(
    variant: Variant, backend: Backend, device: str, options: PlanOptions, reasons: list[str]
) -> str:
    """The device for a variant whose backend cannot use the one there is. Raises `DeviceError` if that was
    asked for."""
    if str(options.device).lower() != "auto":
        raise DeviceError(
            f"the variant '{variant.name}' was made for {backend.name}, which cannot use {device}; choose"
            f" another variant, or a device of: {', '.join(backend.device_kinds())}"
        )
    reasons.append(
        f"cpu: the variant '{variant.name}' was made for {backend.name}, which cannot use {device}"
    )
    return "cpu"


def _variant(manifest: Manifest, name: str | None) -> Variant:
    if name is None:
        return manifest.variants[0]
    for variant in manifest.variants:
        if variant.name == name:
            return variant
    known = ", ".join(v.name for v in manifest.variants)
    raise ArtifactError(f"the artifact has no variant '{name}'; it has: {known}")


def _backend_and_device(machine: Machine, options: PlanOptions, reasons: list[str]) -> tuple[Backend, str]:
    wanted = str(options.device).lower()
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", wanted):
        raise DeviceError(f"unknown device '{options.device}'; use auto, cpu, cuda or cuda:N")
    if wanted == "cpu":
        return _able("cpu", options), "cpu"
    present = [device for device in machine.devices if device.startswith("cuda")]
    if wanted == "auto":
        if not present:
            return _able("cpu", options), "cpu"
        try:
            found = _able("cuda", options)
        except DeviceError:
            reasons.append(
                f"cpu, although {present[0]} is present: {options.backend} cannot use it"
                if options.backend
                else f"cpu, although {present[0]} is present: no installed backend can use it;"
                f' pip install "infer-onnx[gpu]" in place of [cpu]'
            )
            return _able("cpu", options), "cpu"
        reasons.append(f"{present[0]}: the first GPU, and {found.name} can use it")
        return found, present[0]
    device = "cuda:0" if wanted == "cuda" else wanted
    if device not in present:
        has = ", ".join(machine.devices)
        raise DeviceError(
            f"device '{wanted}' was asked for, but this machine has only: {has};"
            f" choose one of these, or see what is in the way with: infer doctor"
        )
    return _able("cuda", options), device


def _able(kind: str, options: PlanOptions) -> Backend:
    """The backend asked for, or the default, if it can use a kind of device. No other is loaded, since that
    takes time. Raises `DeviceError` and `MissingPackageError`."""
    backend = load_backend(options.backend or next(iter(BACKENDS)))
    if kind in backend.device_kinds():
        return backend
    if options.backend is not None:
        raise DeviceError(f"the backend {options.backend} was asked for, and cannot use {kind}")
    raise DeviceError(
        f"device '{options.device}' is present, but no installed backend can use it; in place of"
        f' onnxruntime install its GPU build: pip install "infer-onnx[gpu]"'
    )

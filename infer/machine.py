"""What this machine is and what this process may use of it: cores, memory, instruction sets, devices.

A container usually owns less than its host. ONNX Runtime's own default, the host's physical
cores, ignores both the affinity mask and the cgroup quota; `Machine.cores` does not.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path

_ISA_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve", "bf16",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """`cores` is what this process may use: min(affinity, ceil(cgroup quota))."""

    cpu: str
    isa: tuple[str, ...]
    cores: int
    cores_affinity: int
    cores_quota: float | None
    memory_bytes: int
    devices: tuple[str, ...]
    system: str

    @property
    def fingerprint(self) -> str:
        """Names the kind of machine: plans measured on one hold for those with the same text."""
        return f"{self.system}|{self.cpu}|{','.join(self.isa)}|{self.cores}|{','.join(self.devices)}"


@functools.cache
def this_machine() -> Machine:
    """This machine, as it was when first asked."""
    affinity = usable_cpus()
    quota = cgroup_cpu_quota()
    cpu, isa = _cpu()
    return Machine(
        cpu=cpu,
        isa=isa,
        cores=count_cores(affinity, quota),
        cores_affinity=affinity,
        cores_quota=quota,
        memory_bytes=_memory_bytes(),
        devices=("cpu", *_cuda_devices()),
        system=f"{os.uname().sysname}-{os.uname().machine}",
    )


def count_cores(affinity: int, quota: float | None) -> int:
    """Cores worth a thread each: a quota of 1.5 CPUs keeps two threads busy part of the time."""
    return max(1, min(affinity, math.ceil(quota)) if quota else affinity)


def usable_cpus() -> int:
    """CPUs the affinity mask of this process allows."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_cpu_quota(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float | None:
    """The smallest CPU quota of this process's cgroup and its ancestors, in CPUs; None if unlimited.

    Source: kernel docs, admin-guide/cgroup-v2 (cpu.max) and cgroup-v1 (cpu.cfs_quota_us).
    """
    limits = []
    for folder in _cgroup_folders(root, membership, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _memory_bytes() -> int:
    """Physical memory, or the cgroup's limit where that is less."""
    root, membership = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
    limits = [
        int(text)
        for folder in _cgroup_folders(root, membership, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name)).isdigit()
    ]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not known on every system
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=0)


def _cgroup_folders(root: Path, membership: Path, controller: str) -> list[Path]:
    """The folders whose limits apply to this process, from the root of the hierarchy down."""
    folders = [root, root / controller]
    for line in _read(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or controller in controllers.split(","):
            base = root if number == "0" else root / controller
            parts = [part for part in path.split("/") if part not in ("", "..")]
            folders += [base.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    return folders


def _cpu() -> tuple[str, tuple[str, ...]]:
    name, flags = os.uname().machine, set[str]()
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return name, tuple(flag for flag in _ISA_FLAGS if flag in flags)


def _cuda_devices() -> tuple[str, ...]:
    """NVIDIA GPUs the driver shows, whether or not an installed backend can use them."""
    gpus = Path("/proc/driver/nvidia/gpus")
    count = len(list(gpus.iterdir())) if gpus.is_dir() else 0
    return tuple(f"cuda:{i}" for i in range(count))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

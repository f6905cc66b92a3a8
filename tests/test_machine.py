"""What the process may use, read from fake cgroup trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infer.machine import cgroup_cpu_quota, count_cores, this_machine


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "fs"


def quota(tmp_path: Path, membership: str, files: dict[str, str]) -> float | None:
    (tmp_path / "membership").write_text(membership)
    return cgroup_cpu_quota(tree(tmp_path, files), tmp_path / "membership")


V1 = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "max 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "800000 100000"}, 2.0),
        ("0::/a\n", {"b/cpu.max": "100000 100000"}, None),
        ("0::/../../a\n", {"a/cpu.max": "100000 50000"}, 2.0),
        ("0::/\n", {"cpu.max": "garbage"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("0::/\n", {}, None),
        ("", {"cpu.max": "300000 100000"}, 3.0),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        (V1, {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        (
            V1,
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "cpu/docker/abc/cpu.cfs_quota_us": "100000",
                "cpu/docker/abc/cpu.cfs_period_us": "50000",
            },
            2.0,
        ),
        ("4:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "1000", "cpu/a/cpu.cfs_period_us": "1000"}, None),
    ],
    ids=[
        "v2 unlimited", "v2", "v2 own", "v2 parent", "v2 the smaller", "v2 another's", "v2 outside",
        "damaged", "period 0", "no files", "no membership", "v1 unlimited", "v1 namespaced", "v1 own",
        "v1 another controller",
    ],
)  # fmt: skip
def test_the_quota_is_the_smallest_of_the_group_and_its_ancestors(
    tmp_path: Path, membership: str, files: dict[str, str], expected: float | None
) -> None:
    """Both versions of cgroups, by the kernel's documentation of cpu.max and cpu.cfs_quota_us."""
    assert quota(tmp_path, membership, files) == expected


def test_an_absent_tree_means_no_quota(tmp_path: Path) -> None:
    """Systems without cgroups have no quota."""
    assert cgroup_cpu_quota(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(
    ("affinity", "limit", "cores"),
    [(8, None, 8), (8, 1.5, 2), (8, 0.1, 1), (2, 16.0, 2), (1, None, 1), (4, 4.0, 4), (64, 2.01, 3)],
)
def test_cores_are_affinity_or_quota_rounded_up(affinity: int, limit: float | None, cores: int) -> None:
    """min(affinity, ceil(quota)), never less than one."""
    assert count_cores(affinity, limit) == cores


def test_this_machine_agrees_with_the_kernel() -> None:
    """Affinity is the scheduler's, memory at most the physical one, the first device the CPU."""
    machine = this_machine()
    assert machine.cores_affinity == len(os.sched_getaffinity(0))
    assert 1 <= machine.cores <= machine.cores_affinity
    assert 0 < machine.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.devices[0] == "cpu"
    assert str(machine.cores) in machine.fingerprint

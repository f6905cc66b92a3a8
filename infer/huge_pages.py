"""Memory in huge pages: Linux then maps 2 MiB at once where it maps 4 KiB otherwise.

A model's weights and values are read from one end to the other in each run, and the processor remembers
where only some thousand pages are; in a virtual machine, each other one takes it two tables to find. Most
distributions give huge pages to programs that ask for them (`madvise`), and neither ONNX Runtime nor
OpenVINO does.

Source: madvise(2) of the Linux man-pages, MADV_COLLAPSE (Linux 6.1).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

_MADV_COLLAPSE = 25
_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MAPS = Path("/proc/self/maps")

_MOST_PAGE_BYTES = 2 * 2**20
"""Larger ones, as where small pages have 16 or 64 KiB, would take up to 512 MiB for a few bytes."""

Range = tuple[int, int]


class HugePages:
    """Puts memory that was mapped since this was made into huge pages."""

    def __init__(self) -> None:
        self._before = list(_private()) if huge_pages_work() else []

    def gather(self) -> int:
        """How many bytes are in them now. Contents stay as they are, and threads may use them meanwhile; it
        takes up to 5 ms for each 2 MiB. What the system has no huge page for stays as it is."""
        if not huge_pages_work():
            return 0
        page = _page_bytes()
        gathered = 0
        for start, end in _without(list(_private()), self._before):
            first, last = -(-start // page) * page, end // page * page
            gathered += sum(page for address in range(first, last, page) if _collapse(address, page))
        return gathered


@functools.cache
def huge_pages_work() -> bool:
    """Whether this system gives them to memory that is in use."""
    if sys.platform != "linux" or not 0 < (page := _page_bytes()) <= _MOST_PAGE_BYTES:
        return False
    with mmap.mmap(-1, 2 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as tried:
        begin = ctypes.c_char.from_buffer(tried)
        address = -(-ctypes.addressof(begin) // page) * page
        try:
            ctypes.memset(address, 1, 1)
            return _collapse(address, page)
        finally:
            del begin


def _page_bytes() -> int:
    """The size of a huge page, 0 where there are none."""
    try:
        return int(_SIZE_FILE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _collapse(address: int, size_bytes: int) -> bool:
    # without the interpreter's lock
    return bool(_madvise()(address, size_bytes, _MADV_COLLAPSE) == 0)


@functools.cache
def _madvise() -> ctypes._NamedFuncPointer:
    found = ctypes.CDLL(None).madvise
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found


def _private() -> Iterator[Range]:
    """This process's memory that it may write and that is no file's, in order."""
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and inode == "0" and (not name or name[0].startswith(("[heap]", "[anon"))):
            start, _, end = addresses.partition("-")
            yield int(start, 16), int(end, 16)


def _without(ranges: list[Range], others: list[Range]) -> Iterator[Range]:
    """The parts of `ranges` that are in none of `others`; both are in order."""
    for start, end in ranges:
        for other_start, other_end in others:
            if other_end <= start or end <= other_start:
                continue
            if start < other_start:
                yield start, other_start
            start = other_end
        if start < end:
            yield start, end

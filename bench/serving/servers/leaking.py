"""`infer serve` with a planted leak, which `bench.soak` must find: python -m … BYTES serve ARTIFACT"""

from __future__ import annotations

import sys
from typing import Any

from infer.cli import main
from infer.server.service import Service

_kept: list[bytes] = []


def leak(size_bytes: int) -> None:
    """From now on each request leaves so many bytes behind."""
    body = Service.body

    async def leaking(self: Service, *given: Any) -> bytes:
        _kept.append(b"\1" * size_bytes)
        return await body(self, *given)

    Service.body = leaking  # type: ignore[method-assign]


if __name__ == "__main__":
    leak(int(sys.argv.pop(1)))
    main()

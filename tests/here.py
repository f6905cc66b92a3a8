"""What this machine does."""

from __future__ import annotations

from infer.machine import this_machine


def openvino_rounds() -> bool:
    """Whether OpenVINO computes in bfloat16 if it is told to: with AVX-512 it does, without kernels for it
    many times more slowly, so that no search offers it; with less it stays in float32."""
    return bool({"avx512f", "avx512_bf16", "amx_bf16"} & set(this_machine().isa))

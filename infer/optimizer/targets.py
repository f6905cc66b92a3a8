"""What can help where: for each kind of backend and device, the passes and recipes that its kernels serve.

A target is a row of this table, so that another kernel library is one more row.
"""

from __future__ import annotations

from dataclasses import dataclass

from infer.machine import Machine
from infer.optimizer.passes import Pass
from infer.optimizer.passes.attention import attention, guarded_attention
from infer.optimizer.passes.group_norm import group_norm
from infer.optimizer.passes.skip_norm import skip_norm
from infer.optimizer.passes.turned_keys import turned_keys
from infer.optimizer.recipes import ON_CPU, ON_CUDA, Recipe, static_products_recipe, static_recipe


@dataclass(frozen=True)
class Target:
    """Passes that keep the numbers, in the order in which they are tried, and recipes that do not."""

    backend: str
    device: str
    passes: dict[str, Pass]
    recipes: tuple[Recipe, ...] = ()


_PASSES: dict[str, Pass] = {
    "attention": attention,
    "guarded-attention": guarded_attention,
    "skip-norm": skip_norm,
    "group-norm": group_norm,
}

INSTEAD = {"guarded-attention": "attention"}
"""Pass → the one before it that it is tried in the place of, where that one's answers differ."""


TARGETS: tuple[Target, ...] = (
    Target("onnxruntime", "cpu", _PASSES, ON_CPU),
    Target(
        "openvino",
        "cpu",
        {"turned-keys": turned_keys},
        (
            static_recipe("openvino-int8-static", transposed=True, step_by_step=False),
            # transposed convolutions take signed values wrong
            static_recipe("openvino-int8-static-signed", step_by_step=False, signed=True),
            static_products_recipe("openvino-int8-products"),
            static_products_recipe("openvino-int8-products-signed", signed=True),
        ),
    ),
    Target(
        "onnxruntime",
        "cuda",
        {name: each for name, each in _PASSES.items() if name != "group-norm"},
        ON_CUDA,
    ),
)


def targets_of(device: str) -> tuple[Target, ...]:
    """The rows for a device."""
    return tuple(target for target in TARGETS if target.device == device.partition(":")[0])


def saturates(machine: Machine) -> bool:
    """Whether products of u8 and s8 add up in 16 bits here: x86 without VNNI."""
    isa = set(machine.isa)
    return "avx2" in isa and not isa & {"avx512_vnni", "avx_vnni", "amx_int8"}

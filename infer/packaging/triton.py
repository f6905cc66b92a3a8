"""A model repository for Triton's onnxruntime backend: a graph, and how Triton is to run it.

    OUT/NAME/config.pbtxt     inference.ModelConfig in protobuf's text format
    OUT/NAME/1/model.onnx     the graph, with its external data beside it

Source: Triton's model_config.proto, and its onnxruntime backend, which fills in what a configuration
leaves out: a batch of its own where inputs and outputs are not all listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from infer.artifact import Artifact
from infer.errors import ArtifactError
from infer.graphfile import read_graph_file
from infer.manifest import Variant
from infer.options import BatchOptions, PlanOptions, SessionOptions
from infer.packaging.written import Written, copy, model_name
from infer.signature import Range, TensorSpec

DATA_TYPES: dict[str, str] = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32", "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}  # fmt: skip
"""Our names of dtypes → Triton's."""

_BACKEND = "onnxruntime"
_GRAPH = "model.onnx"
_MOST_ROWS = BatchOptions().max_rows


@dataclass(frozen=True)
class Triton:
    """`name`: the model's in Triton, by default the artifact's. `variant` and `num_threads`: as in
    `PlanOptions`, on the CPU of this machine."""

    name: str | None = None
    variant: str | None = None
    num_threads: int | None = None

    def write(self, artifact: Artifact, folder: Path, output: Path) -> Written:
        """Prove whether rows may run together, then write. Raises `ArtifactError`, `InputError`, and what
        `infer.load` raises."""
        from infer.batching.joining import Layout
        from infer.batching.proof import proved_layout
        from infer.machine import this_machine
        from infer.planner import make_plan
        from infer.session import open_session

        manifest, name = artifact.manifest, model_name(artifact, self.name)
        asked = PlanOptions(
            device="cpu", variant=self.variant, num_threads=self.num_threads, spinning=False
        )
        # Triton loads one graph, and what was prepared here is for this release of the library alone
        plan = make_plan(manifest, this_machine(), asked)
        plan = replace(plan, prepared=None, compiled=None, larger=None)
        variant = next(each for each in manifest.variants if each.name == plan.variant)
        if plan.backend != _BACKEND:
            raise ArtifactError(_other_backend(variant, plan.backend, manifest.variants))
        with open_session(artifact, options=SessionOptions(warm_up=False), plan=plan) as session:
            layout = proved_layout(artifact, plan, None, session.admit, session.run)
        most, why = 0, f"no: {layout}"
        if isinstance(layout, Layout):
            limit = manifest.limits.get(layout.batch, Range()).most
            most = min(limit or _MOST_ROWS, _MOST_ROWS)
            why = f"at most {most} rows: {layout}, as golden rows were seen to"
        model = folder / name
        _copy_graph(artifact, plan.graph, model / "1")
        text = config(name, manifest.inputs, manifest.outputs, most, plan.num_threads)
        (model / "config.pbtxt").write_text(text, encoding="utf-8")
        return Written(
            name=name,
            decided={
                "variant": f"{variant.name} ({variant.precision}, opset {variant.opset})",
                "batching": why,
                "threads": f"{plan.num_threads} for each run of the model, on the CPU",
            },
            checked=(
                "the artifact's files are what its manifest recorded",
                f"the graph loads in {_BACKEND} here",
                *(() if not most else ("golden rows answer together as they do alone",)),
            ),
            unchecked=(
                "Triton itself was not run",
                f"whether the onnxruntime in your Triton is new enough for opset {variant.opset}",
            ),
            lost=(
                *(
                    (f"the task {manifest.task.name}: Triton maps arrays to arrays",)
                    if manifest.task
                    else ()
                ),
                "the guard for feeds, rows of several lengths in one batch, and the choice by machine",
                "threads that do not spin: Triton's wait for work on the processor",
                "authentication: whoever reaches Triton may ask it",
            ),
            next=(f"tritonserver --model-repository {output}",),
        )


def config(
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    most_rows: int,
    num_threads: int,
) -> str:
    """A `ModelConfig` in protobuf's text format; `most_rows` is 0 where rows do not run together.

    Raises `ArtifactError` for tensors that Triton has not.
    """
    lines = [
        f"name: {quoted(name)}",
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {most_rows}",
        *(_tensor("input", spec, batched=most_rows > 0) for spec in inputs),
        *(_tensor("output", spec, batched=most_rows > 0) for spec in outputs),
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{num_threads}" }} }}',
    ]
    if most_rows > 1:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """`text` as a string of protobuf's text format, in ASCII."""
    escaped = (
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\{byte:03o}"
        for byte in text.encode("utf-8")
    )
    return f'"{"".join(escaped)}"'


def _tensor(kind: str, spec: TensorSpec, *, batched: bool) -> str:
    if not spec.dims or 0 in spec.dims:
        raise ArtifactError(
            f"'{spec}' is {'a scalar' if not spec.dims else 'always empty'}, and Triton has no such {kind};"
            f" convert the model again with one that has a size, or serve it with: infer serve"
        )
    dims = spec.dims[1:] if batched else spec.dims
    sizes = ", ".join("-1" if isinstance(dim, str) else str(dim) for dim in dims)
    # a row of a tensor with no other dim than the batch: Triton wants one, which the graph does not see
    shape = f"dims: [ {sizes} ]" if dims else "dims: [ 1 ] reshape { shape: [ ] }"
    return f"{kind} [ {{ name: {quoted(spec.name)} data_type: {DATA_TYPES[spec.dtype]} {shape} }} ]"


def _copy_graph(artifact: Artifact, graph: str, folder: Path) -> None:
    """The graph as `model.onnx`, and its external data where it looks for them."""
    source = artifact.file(graph)
    beside = PurePosixPath(graph).parent
    external = read_graph_file(source).external_files
    if _GRAPH in external:
        raise ArtifactError(f"the graph '{source}' keeps weights in a file '{_GRAPH}'; rename that")
    copy(source, folder / _GRAPH)
    for location in external:
        copy(artifact.file((beside / location).as_posix()), folder / location)


def _other_backend(variant: Variant, backend: str, variants: Sequence[Variant]) -> str:
    ours = [each.name for each in variants if each.backend in (None, _BACKEND)]
    cure = f"choose another one with --variant: {', '.join(ours)}" if ours else "there is no other"
    return (
        f"the variant '{variant.name}' was made for {backend}, and Triton's onnxruntime backend would run"
        f" its graph with what it was not measured to be right or fast with; {cure}"
    )

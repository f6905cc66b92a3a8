"""Peers: what a user would pick instead of infer, each as its own users would run it.

A peer's file has

    load(given)   the model as this peer runs it: `Given` to `Loaded`, both in `bench/peers/model.py`

and is imported only by a worker, a process of its own with the Python of the peer's own environment. What
a peer takes and gives are arrays by name, and it may do whatever it likes in between: one pass through a
graph, or a loop of a hundred that carries a state, as generating families will need; their prompts are
feeds, and what they generate are outputs. Their peers (faster-whisper, llama-cpp-python,
onnxruntime-genai) come with them, as further entries of the table.

    python -m bench.peers list | prepare [NAME…] | compare [FAMILY…] [--peer NAME…] -o FOLDER
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OPENVINO = ("openvino==2026.4.1", "nncf==3.4.0")
OPTIMUM = (
    # the newest optimum-onnx, 0.1.0, wants transformers < 4.58, and these are the newest beside it; so
    # sentence-transformers, whose ONNX backend is Optimum, is older here than where torch runs it
    "optimum-onnx[onnxruntime]==0.1.0",
    "optimum==2.1.0",
    "onnxruntime==1.32.0",
    "sentence-transformers==5.7.0",
    "transformers==4.57.6",
    "torch==2.13.0",
)


@dataclass(frozen=True)
class Peer:
    """One way to run a model.

    Attributes:
        module: what its worker imports.
        takes: "source" (what `converters.convert` takes), "graph" (the plain export of that), "artifact",
            "transformers" or "sentence-transformers" (a folder of that kind).
        settings: for its `load`; strings.
        requirements: pinned, of its environment; none means the project's own.
        exact: whether its answers must be infer's within the usual tolerance. Others approximate on
            purpose, and how far their answers are from infer's is told instead.
        isa: what the machine must have for these settings to make sense.
        texts: whether it can begin with sentences instead of tokens.
        environment: variables that its documentation advises, for its process.
        documentation: where its settings come from.
    """

    name: str
    about: str
    module: str
    takes: str
    documentation: str
    settings: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    exact: bool = True
    isa: str | None = None
    texts: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


OURS = Peer("infer", "the artifact", "bench.peers.ours", "artifact", "README.md", texts=True)

OPTIMIZED = (
    Peer(
        "infer-optimized",
        "the artifact after infer optimize, answers equal",
        "bench.peers.ours_optimized",
        "artifact",
        "README.md",
        {"answers": "equal"},
    ),
    Peer(
        "infer-budget",
        "the artifact after infer optimize, within a budget: cosine 0.999, or half a point of the metric",
        "bench.peers.ours_optimized",
        "artifact",
        "README.md",
        {"answers": "within the budget"},
        exact=False,
    ),
)

_SBERT = "https://sbert.net/docs/sentence_transformer/usage/efficiency.html"
_OPTIMIZATION = "https://huggingface.co/docs/optimum-onnx/onnxruntime/usage_guides/optimization"
_QUANTIZATION = "https://huggingface.co/docs/optimum-onnx/onnxruntime/usage_guides/quantization"
_PTQ = "https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/basic-quantization-flow.html"
_PRECISION = "https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/precision-control.html"

# from PyTorch's tuning guide; only where torch is alone, as it would hold other threads to one core, too
_BOUND = {"OMP_PROC_BIND": "close"}

PEERS: tuple[Peer, ...] = (
    Peer(
        "torch-eager",
        "PyTorch in inference mode",
        "bench.peers.torch_eager",
        "source",
        "https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html",
        environment=_BOUND,
    ),
    Peer(
        "torch-compile",
        "PyTorch compiled by Inductor: frozen weights, max-autotune",
        "bench.peers.torch_compile",
        "source",
        "https://docs.pytorch.org/tutorials/unstable/max_autotune_on_CPU_tutorial.html",
        environment=_BOUND,
    ),
    Peer(
        "onnxruntime",
        "ONNX Runtime on the plain export",
        "bench.peers.onnxruntime_plain",
        "graph",
        "https://onnxruntime.ai/docs/performance/tune-performance/threading.html",
    ),
    Peer(
        "openvino",
        "OpenVINO on the plain export, latency hint",
        "bench.peers.openvino",
        "graph",
        "https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/high-level-performance-hints.html",
        {"precision": "float32"},
        OPENVINO,
    ),
    Peer(
        "openvino-bf16",
        "the same in bfloat16, which is its default where there are kernels",
        "bench.peers.openvino",
        "graph",
        _PRECISION,
        {"precision": "float32", "hint": "bf16"},
        OPENVINO,
        exact=False,
        isa="avx512_bf16",
    ),
    Peer(
        "openvino-int8",
        "OpenVINO on the plain export, quantized after training by NNCF",
        "bench.peers.openvino",
        "graph",
        _PTQ,
        {"precision": "int8"},
        OPENVINO,
        exact=False,
    ),
    Peer(
        "openvino-int8-bf16",
        "the same, and in bfloat16 what is not quantized, which is its default where there are kernels",
        "bench.peers.openvino",
        "graph",
        _PRECISION,
        {"precision": "int8", "hint": "bf16"},
        OPENVINO,
        exact=False,
        isa="avx512_bf16",
    ),
    Peer(
        "optimum-O3",
        "Optimum's export and its optimization O3, which approximates GELU",
        "bench.peers.optimum",
        "transformers",
        _OPTIMIZATION,
        {"optimization": "O3"},
        OPTIMUM,
        exact=False,
    ),
    *(
        Peer(
            f"optimum-int8-{preset}",
            f"Optimum's export and its dynamic quantization for {preset}",
            "bench.peers.optimum",
            "transformers",
            _QUANTIZATION,
            {"quantization": preset},
            OPTIMUM,
            exact=False,
            isa=preset,
        )
        for preset in ("avx2", "avx512_vnni")
    ),
    Peer(
        "sentence-transformers",
        "sentence-transformers, its torch backend",
        "bench.peers.sentence_transformers",
        "sentence-transformers",
        _SBERT,
        {"backend": "torch"},
        texts=True,
        environment=_BOUND,
    ),
    Peer(
        "sentence-transformers-onnx",
        "sentence-transformers, its ONNX backend",
        "bench.peers.sentence_transformers",
        "sentence-transformers",
        _SBERT,
        {"backend": "onnx"},
        OPTIMUM,
        texts=True,
    ),
    Peer(
        "sentence-transformers-O3",
        "sentence-transformers, its ONNX backend, optimized as O3",
        "bench.peers.sentence_transformers",
        "sentence-transformers",
        _SBERT,
        {"backend": "onnx", "optimization": "O3"},
        OPTIMUM,
        exact=False,
        texts=True,
    ),
    *(
        Peer(
            f"sentence-transformers-int8-{preset}",
            f"sentence-transformers, its ONNX backend, dynamically quantized for {preset}",
            "bench.peers.sentence_transformers",
            "sentence-transformers",
            _SBERT,
            {"backend": "onnx", "quantization": preset},
            OPTIMUM,
            exact=False,
            isa=preset,
            texts=True,
        )
        for preset in ("avx2", "avx512_vnni")
    ),
)
"""In the order of the tables."""


def peer(name: str) -> Peer:
    """The entry called `name`. Raises `KeyError`."""
    return next(each for each in PEERS if each.name == name)

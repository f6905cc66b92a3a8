"""Servers beside each other: how many requests a second each answers within a bound on latency.

    python -m bench.serving [NAME…] --artifact MINILM [--optimized MINILM] [--bound-ms MS] -o FILE.md

All serve the same graph of MiniLM, on the cores of this machine, to a client on it; `infer-optimized`
serves what `infer optimize` made of that within a budget, whose vectors are a little others. A request is
one sentence as JSON, an answer its vector as JSON. Requests come at random (Poisson), whether or not
earlier ones were answered, and a latency begins when its request was due. Peers are written as their own
documentation has it, with batching where they have some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_RUNTIME = ("onnxruntime==1.32.0", "tokenizers>=0.21", "numpy>=2")


@dataclass(frozen=True)
class Server:
    """One way to serve.

    Attributes:
        command: after the Python of its environment; {artifact}, {graph}, {tokenizer}, {port}, {threads}
            and {workers} are filled in. The same are environment variables, in capitals.
        path: where requests go.
        body: of a request for a sentence.
        vector: in an answer.
        requirements: pinned, of its environment; none means the project's own.
        documentation: where its settings come from.
        ours: whether it is this project's.
    """

    name: str
    about: str
    command: tuple[str, ...]
    path: str
    body: Callable[[str], Any]
    vector: Callable[[Any], Any]
    documentation: str
    requirements: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False


_FASTAPI = Server(
    "fastapi",
    "FastAPI, and ONNX Runtime in its threads",
    ("-m", "uvicorn", "bench.serving.servers.fastapi_app:app", "--port", "{port}", "--workers",
     "{workers}", "--log-level", "warning"),
    "/embed",
    lambda text: {"text": text},
    lambda answer: answer["vector"],
    "https://fastapi.tiangolo.com/async/",
)  # fmt: skip

_INFER = Server(
    "infer",
    "infer serve",
    ("-c", "from infer.cli import main; main()", "serve", "{artifact}", "--port", "{port}", "--workers",
     "{workers}"),
    "/v1/models/minilm:predict",
    lambda text: {"inputs": [text]},
    lambda answer: answer["results"][0]["vector"],
    "README.md",
    ours=True,
)  # fmt: skip

SERVERS: tuple[Server, ...] = (
    _INFER,
    replace(
        _INFER,
        name="infer-spinning",
        about="infer serve --spinning",
        command=(*_INFER.command, "--spinning"),
    ),
    _FASTAPI,
    replace(
        _FASTAPI,
        name="fastapi-calm",
        about=f"{_FASTAPI.about}, without spinning",
        documentation="https://onnxruntime.ai/docs/performance/tune-performance/threading.html",
        environment={"SPINNING": "0"},
    ),
    Server(
        "litserve",
        "LitServe, batches of at most 16 within 5 ms",
        ("-m", "bench.serving.servers.litserve_app"),
        "/predict",
        lambda text: {"text": text},
        lambda answer: answer["vector"],
        "https://lightning.ai/docs/litserve/features/batching",
        ("litserve==0.2.19", *_RUNTIME),
    ),
    Server(
        "bentoml",
        "BentoML, adaptive batches of at most 16",
        ("-m", "bentoml", "serve", "bench.serving.servers.bentoml_app:Embed", "--port", "{port}",
         "--host", "127.0.0.1"),
        "/embed",
        lambda text: {"texts": [text]},
        lambda answer: answer[0],
        "https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html",
        ("bentoml==1.4.40", *_RUNTIME),
        {"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Server(
        "ray-serve",
        "Ray Serve, batches of at most 16 within 5 ms",
        ("-m", "bench.serving.servers.ray_app"),
        "/embed",
        lambda text: {"text": text},
        lambda answer: answer["vector"],
        "https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html",
        (),
        {"RAY_USAGE_STATS_ENABLED": "0"},
    ),
)  # fmt: skip
"""In the order of the table."""

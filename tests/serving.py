"""Servers in processes of their own, tiny models for them, and sockets that speak HTTP by hand."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil

from tests.tiny import identity, parse, write

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "string"),
)

SLOW_SIZE = 384

READY_S = 60

INFER = ("-c", "from infer.cli import main; main()")


@dataclass
class Served:
    """A server that runs: its process, where it is, the file of its log, and where it answers over gRPC."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    client: httpx.Client
    grpc: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.client.post(path, **options)

    def raw(self, data: bytes, wait_s: float = 20.0) -> bytes:
        """All that comes back for `data` until the server hangs up, or nothing more comes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as sock:
            with contextlib.suppress(OSError):  # it may hang up while it is still told
                sock.sendall(data)
            return drained(sock)

    def lines(self) -> list[dict[str, Any]]:
        """The log's lines of JSON so far."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code after the signal."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def drained(sock: socket.socket) -> bytes:
    """What comes until the other side hangs up."""
    found = b""
    with contextlib.suppress(OSError):
        while part := sock.recv(65536):
            found += part
    return found


@contextlib.contextmanager
def serving(
    folder: Path, *arguments: object, ready: bool = True, infer: tuple[str, ...] = INFER
) -> Iterator[Served]:
    """`infer serve ARGUMENTS` on a free port, ready; killed in the end. `infer` is what Python is asked to
    run as that command."""
    log = folder / f"log-{time.monotonic_ns()}.txt"
    command = [sys.executable, *infer, "serve", *map(str, arguments)]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"infer serves (.+) at (http://\S+)\n", line)
        assert found, (line, log.read_text(encoding="utf-8"))
        url = found[2].replace("0.0.0.0", "127.0.0.1")
        grpc = process.stdout.readline().split()[-1] if "--grpc-port" in arguments else ""
        # a connection for each request: none is kept that the server hangs up on
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=url, timeout=60, limits=limits) as client:
            served = Served(process, url, log, client, grpc)
            if ready:
                wait_until_ready(served)
            yield served
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_until_ready(served: Served) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        assert served.process.poll() is None, served.log.read_text(encoding="utf-8")
        with contextlib.suppress(httpx.HTTPError):
            if served.get("/v2/health/ready").status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"not ready after {READY_S} s: {served.log.read_text(encoding='utf-8')}")


def wait_until_waiting(served: Served, count: int) -> None:
    """Until so many requests wait or run."""
    for _ in range(400):
        text = served.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("infer_requests_waiting{")]
        if sum(float(line.split()[-1]) for line in lines) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{count} requests never waited at once")


def workers(parent: psutil.Process) -> list[int]:
    """The processes that answer; multiprocessing has another one of its own."""
    found = []
    for child in parent.children():
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def ready_lines(served: Served) -> list[dict[str, Any]]:
    """What workers logged when their model was ready."""
    return [line for line in served.lines() if "is ready" in line["message"]]


def wait_for_workers(served: Served, count: int) -> None:
    """Until so many have said that the model is ready."""
    for _ in range(400):
        if len(ready_lines(served)) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(served.lines())


def identities(folder: Path) -> list[Path]:
    """A graph for each dtype, `y` = `x` of shape (N, M); `float32` is that of `id-float32`, and so on."""
    return [write(folder, identity(dtype), f"id-{dtype}.onnx") for dtype in DTYPES]


def slow(folder: Path) -> Path:
    """A graph that multiplies a matrix `n` times (int64, shape (1)): some milliseconds each."""
    model = parse(
        f"g (int64[1] n) => (float[1] y) <float[{SLOW_SIZE}, {SLOW_SIZE}] w> {{"
        " axis = Constant<value = int64[1] {0}>() count = Squeeze(n, axis)"
        " go = Constant<value = bool {1}>()"
        " s = Loop(count, go, w) <body = b (int64 i, bool c, float[A, B] s1) => (bool c2, float[A, B] s2) {"
        " c2 = Identity(c) s2 = MatMul(s1, w) }>"
        " top = ReduceMax<keepdims = 0>(s) y = Unsqueeze(top, axis) }"
    )
    values = np.eye(SLOW_SIZE, dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    path = folder / "slow.onnx"
    onnx.save(model, path)
    return path


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str) -> dict[str, Any]:
    """An input as JSON has it."""
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}


def slow_request(count: int) -> dict[str, Any]:
    return {"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [count]}]}


VOCABULARY = ("[PAD]", "[UNK]", "one", "two", "three", "four")


def embedder(path: Path) -> Path:
    """A text-embedding artifact: the sum of its words' vectors, where word i has (i, i², 1)."""
    import tokenizers

    import converters

    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = path.with_suffix(".json")
    words.save(str(tokenizer))
    model = parse(
        "g (int64[batch, length] ids, int64[batch, length] mask) => (float[batch, 3] vector) {"
        " found = Gather(table, ids) counts = Cast<to = 1>(mask) axis = Constant<value = int64[1] {2}>()"
        " weights = Unsqueeze(counts, axis) kept = Mul(found, weights)"
        " sum_axis = Constant<value = int64[1] {1}>() vector = ReduceSum<keepdims = 0>(kept, sum_axis) }"
    )
    table = np.array([[i, i * i, 1] for i in range(len(VOCABULARY))], np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    graph = path.with_suffix(".onnx")
    onnx.save(model, graph)
    spec = {
        "tokenizer": {
            "file": "files/tokenizer.json",
            "inputs": {"ids": "ids", "mask": "attention_mask"},
            "max_length": 16,
        },
        "output": "vector",
    }
    task = converters.TaskSpec("text-embedding", spec)
    converters.convert(graph, path, task=task, files={"files/tokenizer.json": tokenizer})
    return path


def brightness(path: Path) -> Path:
    """An image-classification artifact that calls a picture of 4×4 dark or bright by its mean."""
    model = parse(
        "g (float[batch, 3, 4, 4] x) => (float[batch, 2] scores) {"
        " mean = ReduceMean<axes = [1, 2, 3], keepdims = 0>(x)"
        " half = Constant<value = float {0.5}>() one = Constant<value = int64[1] {1}>()"
        " bright = Sub(mean, half) dark = Neg(bright) a = Unsqueeze(dark, one) b = Unsqueeze(bright, one)"
        " scores = Concat<axis = 1>(a, b) }"
    )
    steps = [{"op": "resize", "height": 4, "width": 4}, {"op": "rescale", "factor": 1 / 255}]
    spec = {"input": "x", "output": "scores", "steps": steps, "labels": ["dark", "bright"]}
    return _adopted(path, model, "image-classification", spec)


def left_half(path: Path) -> Path:
    """An object-detection artifact that finds one thing in every picture, in its left half."""
    model = parse(
        "g (float[batch, 3, 4, 4] x) => (float[batch, 1, 4] boxes, float[batch, 1, 2] scores) {"
        " any = ReduceMean<axes = [1, 2, 3], keepdims = 0>(x) nothing = Sub(any, any)"
        " places = Constant<value = int64[2] {1, 2}>() zero = Unsqueeze(nothing, places)"
        " box = Constant<value = float[1, 1, 4] {0.25, 0.5, 0.5, 1.0}>() boxes = Add(zero, box)"
        " sure = Constant<value = float[1, 1, 2] {0.75, 0.25}>() scores = Add(zero, sure) }"
    )
    spec = {"input": "x", "boxes": "boxes", "scores": "scores", "activation": "none"}
    steps = [{"op": "resize", "height": 4, "width": 4}, {"op": "rescale", "factor": 1 / 255}]
    return _adopted(path, model, "object-detection", {**spec, "steps": steps, "labels": ["left", "right"]})


def bright_parts(path: Path) -> Path:
    """An image-segmentation artifact: each pixel is background or bright."""
    model = parse(
        "g (float[batch, 3, height, width] x) => (float[batch, 2, height, width] y) {"
        " half = Constant<value = float {0.5}>() mean = ReduceMean<axes = [1], keepdims = 1>(x)"
        " bright = Sub(mean, half) dark = Neg(bright) y = Concat<axis = 1>(dark, bright) }"
    )
    steps = [{"op": "rescale", "factor": 1 / 255}]
    spec = {"input": "x", "output": "y", "steps": steps, "labels": ["background", "bright"]}
    return _adopted(path, model, "image-segmentation", spec)


def _adopted(path: Path, model: onnx.ModelProto, task: str, spec: dict[str, Any]) -> Path:
    import converters

    graph = path.with_suffix(".onnx")
    onnx.save(model, graph)
    converters.convert(graph, path, task=converters.TaskSpec(task, spec))
    return path


def loudness(path: Path) -> Path:
    """An audio-classification artifact for 8 kHz that calls a recording loud or quiet by the mean of its
    samples' magnitudes, with 0.1 between them."""
    model = parse(
        "g (float[batch, samples] x) => (float[batch, 2] scores) { size = Abs(x)"
        " mean = ReduceMean<axes = [1], keepdims = 1>(size) tenth = Constant<value = float {0.1}>()"
        " loud = Sub(mean, tenth) quiet = Neg(loud) scores = Concat<axis = 1>(quiet, loud) }"
    )
    features = {"sample_rate": 8000}
    spec = {"input": "x", "output": "scores", "features": features, "labels": ["quiet", "loud"]}
    return _adopted(path, model, "audio-classification", spec)


def recording(amplitude: float, sample_rate: int = 8000) -> bytes:
    """A WAV file of half a second: a tone of 440 Hz."""
    import io

    import soundfile

    tone = amplitude * np.sin(2 * np.pi * 440 * np.arange(sample_rate // 2) / sample_rate)
    file = io.BytesIO()
    soundfile.write(file, tone.astype(np.float32), sample_rate, format="WAV")
    return file.getvalue()

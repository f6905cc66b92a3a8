"""What `infer serve` costs beside the session that it runs.

    python -m bench.serving.costs MINILM NET [--rounds N] -o FILE.md

MINILM is the artifact of the family minilm, called minilm.infer; NET is a small one without a task, such as
feed-forward's. Three questions:

- What does a request over HTTP take that the same question to a session in a Python process does not? Both
  are asked one after another, in turns.
- How much of a processor does it take when it is asked little: nothing at all, and 50 times a second?
- What do 1, 2 and 4 workers hold (the proportional set size of all processes), with and without
  `--share-weights`?
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import psutil

import infer
from bench.report import report
from bench.serving import SERVERS, Server
from bench.serving.client import HttpQuery, request
from bench.serving.started import started
from bench.zoo import minilm
from infer.artifact import Artifact
from infer.cli.progress import Progress
from infer.feeds import Feeds, example_feeds
from infer.measure.labels import digits
from infer.server.tensors import DATATYPES
from infer.session import open_artifact

_TURN = 100
_RATE = 50.0
_WATCHED_S = 20.0
_WORKERS = (1, 2, 4)


@click.command()
@click.argument("sentences", type=click.Path(path_type=Path, exists=True), metavar="MINILM")
@click.argument("net", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=15, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path))
def command(sentences: Path, net: Path, rounds: int, output: Path | None) -> None:
    """What a request, little traffic and more workers cost."""
    texts = list(minilm.calibration())[:_TURN]
    with Progress() as progress:
        lines = [
            *_requests(sentences, net, texts, rounds, progress),
            "",
            *_little(net, progress),
            "",
            *_memory(sentences, texts, progress),
        ]
    report("What infer serve costs", lines, "bench.serving.costs", output)


def _requests(
    sentences: Path, net: Path, texts: Sequence[str], rounds: int, progress: Callable[[str], None]
) -> Iterator[str]:
    yield f"One question after another, {_TURN} in a turn, {rounds} turns; medians of the turns' medians."
    yield ""
    yield "| | session, ms | over HTTP, ms | more, ms | of turns, least to most |"
    yield "|---|---|---|---|---|"
    embed = SERVERS[0]
    small, feeds = _tensors(net)
    with infer.load(sentences) as session:
        asked = [request(embed.path, json.dumps(embed.body(text)).encode()) for text in texts]
        questions = [lambda text=text: session(text) for text in texts]
        yield _beside(
            "MiniLM, a sentence to its vector", embed, sentences, asked, questions, rounds, progress
        )
    with infer.load(net) as session:
        raw = [request(small.path, json.dumps(small.body("")).encode())] * _TURN
        yield _beside(
            f"{net.stem}, tensors as JSON",
            small,
            net,
            raw,
            [lambda: session.run(feeds)] * _TURN,
            rounds,
            progress,
        )


def _beside(
    name: str,
    server: Server,
    artifact: Path,
    asked: Sequence[bytes],
    questions: Sequence[Callable[[], object]],
    rounds: int,
    progress: Callable[[str], None],
) -> str:
    inside, over = np.zeros(rounds + 1), np.zeros(rounds + 1)
    with started(server, artifact) as running:
        query = HttpQuery(running.port, asked)
        for number in range(rounds + 1):  # the first turn warms up
            progress(f"{name}: turn {number} of {rounds}")
            over[number] = np.median(query.turn(_TURN))
            inside[number] = np.median([_ms(question) for question in questions])
    inside, over = inside[1:], over[1:]
    more = over - inside
    found = [digits(float(each)) for each in (np.median(inside), np.median(over), np.median(more))]
    return f"| {name} | {' | '.join(found)} | {digits(float(more.min()))} to {digits(float(more.max()))} |"


def _ms(question: Callable[[], object]) -> float:
    start = time.perf_counter()
    question()
    return 1e3 * (time.perf_counter() - start)


def _little(net: Path, progress: Callable[[str], None]) -> Iterator[str]:
    yield f"Processor time a second, over {_WATCHED_S:g} s, of {net.stem}'s server:"
    yield ""
    server, _ = _tensors(net)
    with started(server, net) as running:
        query = HttpQuery(running.port, [request(server.path, json.dumps(server.body("")).encode())])
        query.turn(_TURN)
        progress("asking nothing")
        before = _processor_s(running.pid)
        time.sleep(_WATCHED_S)
        yield f"- asked nothing: {(_processor_s(running.pid) - before) / _WATCHED_S:.4f} s"
        progress(f"asking {_RATE:g} times a second")
        due = np.cumsum(np.random.default_rng(0).exponential(1 / _RATE, round(_RATE * _WATCHED_S)))
        before = _processor_s(running.pid)
        start = time.perf_counter()
        latencies = query.serve(due)
        took = time.perf_counter() - start
        busy = (_processor_s(running.pid) - before) / took
        yield (
            f"- asked {_RATE:g} times a second at random: {busy:.3f} s,"
            f" p50 {np.median(latencies):.2f} ms, p99 {np.percentile(latencies, 99):.2f} ms"
        )


def _memory(sentences: Path, texts: Sequence[str], progress: Callable[[str], None]) -> Iterator[str]:
    yield "Memory of MiniLM's server after it was asked, MB (its weights in float32 are 90 MB):"
    yield ""
    yield f"| workers | {' | '.join(map(str, _WORKERS))} |"
    yield f"|---|{'---|' * len(_WORKERS)}"
    for said, more in (("packed weights, the default", ()), ("--share-weights", ("--share-weights",))):
        server = replace(SERVERS[0], command=(*SERVERS[0].command, *more))
        held = []
        for workers in _WORKERS:
            progress(f"{said}: {workers} workers")
            with started(server, sentences, workers) as running:
                raw = [request(server.path, json.dumps(server.body(text)).encode()) for text in texts]
                query = HttpQuery(running.port, raw)
                for _ in range(4):
                    query.serve(np.zeros(32))  # on connections of their own, so that all workers get some
                held.append(sum(each.memory_full_info().pss for each in _processes(running.pid)) / 1e6)
        yield f"| {said} | {' | '.join(f'{each:.0f}' for each in held)} |"


def _tensors(net: Path) -> tuple[Server, Feeds]:
    """The server of a net that takes tensors, asked with its example feeds."""
    artifact: Artifact = open_artifact(net)
    feeds = example_feeds(artifact)
    inputs = [
        {
            "name": name,
            "shape": list(x.shape),
            "datatype": DATATYPES[str(x.dtype)],
            "data": x.ravel().tolist(),
        }
        for name, x in feeds.items()
    ]
    server = replace(
        SERVERS[0],
        path=f"/v2/models/{net.stem}/infer",
        body=lambda text: {"inputs": inputs},
        vector=lambda answer: answer,
    )
    return server, feeds


def _processes(pid: int) -> list[psutil.Process]:
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def _processor_s(pid: int) -> float:
    times = [each.cpu_times() for each in _processes(pid)]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    command()

"""A long run: does memory stay, and does a server that gets too much still answer what it can?

    python -m bench.soak server ARTIFACT [--load 0.7] [--minutes 30] [--apart] [--leak BYTES] -o FILE.md
    python -m bench.soak sessions ARTIFACT [--cycles 2000] -o FILE.md

`server` finds how many sentences a second `infer serve` answers when many callers ask at once, then sends
`--load` times as many, at random, whether or not earlier ones were answered; above 1 it is overload.
Sentences are of mixed lengths. Each second the memory of all its processes (the proportional set size),
its open files and its threads are read. The rule: leaving out the time to warm up, the 99th percentile of
memory that is no file's is at most 20 MB above the mean; what is, libraries and mapped weights, counts for
less while any other process maps it, too. `--leak` plants a leak of so many bytes a request, which the rule
must find. With `--apart` the client has a core of its own: it takes processor time for each refusal, which
else is missing in the server.

`sessions` loads the artifact, answers once and closes it, again and again, in one process: after a tenth of
the cycles memory may grow by 10 MiB.

Exit code 1 if memory grows, or if less than 90 % of what can be answered is.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import numpy as np
import psutil

import infer
from bench.report import report
from bench.serving import SERVERS, Server
from bench.serving.client import HttpQuery, request
from bench.serving.started import on_cores, started
from bench.zoo import minilm
from infer.cli.progress import Progress
from infer.feeds import example_feeds
from infer.session import open_artifact
from infer.signature import Array

MOST_ABOVE_MEAN = 20e6
MOST_GROWTH = 10 * 2**20
LEAST_GOODPUT = 0.9
_WARM_UP = 0.1
_TEXTS = 256
_STRETCH_S = 10.0


@dataclass
class Watched:
    """What a server's processes held, read once a second; `own`: bytes of `memory` that are no file's."""

    memory: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)


def above_mean(memory: Sequence[float]) -> float:
    """Bytes by which the 99th percentile of `memory` lies above its mean; the first tenth is left out."""
    settled = np.asarray(memory[round(len(memory) * _WARM_UP) :], np.float64)
    return float(np.percentile(settled, 99) - settled.mean())


@click.group()
def main() -> None:
    """Long runs that watch memory."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and end what was started


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--load", default=0.7, show_default=True, help="Of what it can answer.")
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--leak", default=0, help="Bytes that each request leaves behind.")
@click.option("--workers", default=1, show_default=True)
@click.option("--apart", is_flag=True, help="The client has one core, the server the others.")
@click.option("-o", "--output", type=click.Path(path_type=Path))
def server(
    artifact: Path, load: float, minutes: float, leak: int, workers: int, apart: bool, output: Path | None
) -> None:
    """A server under load. ARTIFACT is MiniLM's, called minilm.infer."""
    texts = list(minilm.calibration())
    random.Random(0).shuffle(texts)
    ours = _leaking(SERVERS[0], leak) if leak else SERVERS[0]
    raw = [request(ours.path, json.dumps(ours.body(text)).encode()) for text in texts[:_TEXTS]]
    latencies: list[Array] = []
    clients, servers = _cores(apart)
    with Progress() as progress, ExitStack() as stack:
        with on_cores(servers):
            running = stack.enter_context(started(ours, artifact, workers))
        stack.enter_context(on_cores(clients))
        query = HttpQuery(running.port, raw)
        progress("how much can it answer?")
        most = [_at_once(query) for _ in range(4)][1:]
        rate = load * float(np.median(most))
        stretches = max(1, round(60 * minutes / _STRETCH_S))
        rng = np.random.default_rng(0)
        with _watched(running.pid) as held:
            for done in range(stretches):
                progress(f"{done * _STRETCH_S / 60:.1f} of {minutes:g} min, {held.own[-1] / 1e6:.0f} MB")
                due = np.cumsum(rng.exponential(1 / rate, max(1, round(rate * _STRETCH_S))))
                latencies.append(query.serve(due))
    answered = np.concatenate([found[np.isfinite(found)] for found in latencies])
    asked = sum(len(found) for found in latencies)
    tenth = max(1, stretches // 10)
    above = above_mean(held.own)
    answered_each_s = len(answered) / (60 * minutes)
    # below what it can answer, all that was asked is what can be answered
    goodput = answered_each_s / min(rate, float(np.median(most)))
    problems = [
        *(["MEMORY GROWS"] if above > MOST_ABOVE_MEAN else []),
        *(["TOO LITTLE IS ANSWERED"] if goodput < LEAST_GOODPUT else []),
    ]
    rows = [
        ("load", f"{rate:.1f} requests/s, {load:g} of the {np.median(most):.1f}/s that it can answer"),
        (
            "cores",
            f"{len(servers)} for the server, {len(clients)} for its client"
            + ("" if apart else ", the same"),
        ),
        ("length", f"{minutes:g} min, {asked} requests"),
        ("not answered with 200", f"{asked - len(answered)} ({(asked - len(answered)) / asked:.2%})"),
        (
            "answered",
            f"{answered_each_s:.1f}/s, {goodput:.0%} of what can be (at least {LEAST_GOODPUT:.0%})",
        ),
        ("p50, p99 ms, first tenth", _percentiles(latencies[:tenth])),
        ("p50, p99 ms, last tenth", _percentiles(latencies[-tenth:])),
        (
            "memory, mean",
            f"{np.mean(held.memory) / 1e6:.1f} MB, {np.mean(held.own) / 1e6:.1f} MB of it no file's",
        ),
        ("99th percentile above the mean", f"{above / 1e6:.2f} MB (at most {MOST_ABOVE_MEAN / 1e6:g})"),
        ("open files, first and most", f"{held.files[0]}, {max(held.files)}"),
        ("threads, first and most", f"{held.threads[0]}, {max(held.threads)}"),
        ("planted leak", f"{leak} bytes a request"),
        ("verdict", " and ".join(problems) or "memory stays, and what can be answered is"),
    ]
    _print("A server under load", rows, output)
    if problems:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--cycles", default=2000, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path))
def sessions(artifact: Path, cycles: int, output: Path | None) -> None:
    """Load, answer and close, again and again."""
    me = psutil.Process()
    memory: list[int] = []
    feeds = example_feeds(open_artifact(artifact))
    with Progress() as progress:
        for number in range(cycles):
            with infer.load(artifact) as session:
                session.run(feeds)
            memory.append(me.memory_info().rss)
            if number % 20 == 0:
                progress(f"{number} of {cycles}, {memory[-1] / 1e6:.0f} MB")
    settled = memory[max(1, cycles // 10) :]
    growth = float(np.median(settled[-50:]) - np.median(settled[:50]))
    rows = [
        ("cycles", str(cycles)),
        ("memory after the first, at the end", f"{memory[0] / 1e6:.1f} MB, {memory[-1] / 1e6:.1f} MB"),
        ("growth after a tenth", f"{growth / 2**20:.2f} MiB (at most {MOST_GROWTH / 2**20:g})"),
        ("verdict", "memory stays" if growth <= MOST_GROWTH else "MEMORY GROWS"),
    ]
    _print("Sessions loaded and closed", rows, output)
    if growth > MOST_GROWTH:
        raise click.exceptions.Exit(1)


def _leaking(server: Server, leak: int) -> Server:
    """The same, but each request leaves `leak` bytes behind."""
    command = ("-m", "bench.serving.servers.leaking", str(leak), *server.command[2:])
    return replace(server, command=command)


def _cores(apart: bool) -> tuple[Collection[int], Collection[int]]:
    """The client's, and the server's. Raises `click.UsageError` if there are too few to be apart."""
    cores = sorted(os.sched_getaffinity(0))
    if not apart:
        return cores, cores
    if len(cores) < 2:
        raise click.UsageError("--apart needs two cores, and this process may use one")
    return cores[-1:], cores[:-1]


def _at_once(query: HttpQuery, count: int = 256) -> float:
    """Answers a second when so many are asked at the same time in portions that its queue holds."""
    portion = 64
    took_ms = sum(float(query.serve(np.zeros(portion)).max()) for _ in range(count // portion))
    return 1e3 * count / took_ms


@contextmanager
def _watched(pid: int) -> Iterator[Watched]:
    found, ended = Watched(), threading.Event()
    first = psutil.Process(pid)

    def look() -> None:
        processes = [first, *first.children(recursive=True)]
        memory, own = np.sum([_shares(process.pid) for process in processes], axis=0)
        found.memory.append(memory)
        found.own.append(own)
        found.files.append(sum(process.num_fds() for process in processes))
        found.threads.append(sum(process.num_threads() for process in processes))

    def watch() -> None:
        while not ended.wait(1.0):
            look()

    look()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _shares(pid: int) -> tuple[int, int]:
    """The bytes that are a process's, shared pages by their part; all of them, and those of no file."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(size.split()[0]) for name, size in (line.split(":") for line in lines)}
    return 1024 * kilobytes["Pss"], 1024 * (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"])


def _percentiles(latencies: Sequence[Array]) -> str:
    answered = np.concatenate([found[np.isfinite(found)] for found in latencies])
    return (
        ", ".join(f"{value:.1f}" for value in np.percentile(answered, [50, 99]))
        if len(answered)
        else "none"
    )


def _print(title: str, rows: Sequence[tuple[str, str]], output: Path | None) -> None:
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    report(title, lines, "bench.soak", output)


if __name__ == "__main__":
    main()

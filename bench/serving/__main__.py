"""python -m bench.serving: see the package."""

from __future__ import annotations

import json
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

import infer
from bench.report import report
from bench.serving import SERVERS, Server
from bench.serving.client import HttpQuery, request
from bench.serving.started import started
from bench.zoo import minilm
from infer.cli.progress import Progress
from infer.errors import InferError
from infer.measure.rounds import Progress as Told
from infer.measure.scenarios import ImpossibleBoundError, built_in_probe, highest_rate
from infer.signature import Array

_TEXTS, _CHECKED = 256, 8
_OPTIMIZED = "infer-optimized"
_NEAR = 2e-4
"""Vectors of batches are those of single texts but for rounding; all have length 1."""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([server.name for server in SERVERS]))
@click.option(
    "--artifact",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="Of MiniLM, called minilm.infer.",
)
@click.option(
    "--optimized",
    type=click.Path(path_type=Path, exists=True),
    help="What infer optimize made of it, called the same in another folder; served beside it.",
)
@click.option("--bound-ms", default=100.0, show_default=True, help="Of the 99th percentile.")
@click.option("--seconds", default=8.0, show_default=True, help="Of each rate that is tried.")
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--workers", default=1, show_default=True, help="Processes of each server, which share the cores."
)
@click.option("-o", "--output", type=click.Path(path_type=Path))
def command(
    names: tuple[str, ...],
    artifact: Path,
    optimized: Path | None,
    bound_ms: float,
    seconds: float,
    rounds: int,
    workers: int,
    output: Path | None,
) -> None:
    """The highest rate of each server at which 99 of 100 requests are answered within the bound."""
    chosen = [server for server in SERVERS if not names or server.name in names]
    artifacts = {server.name: artifact for server in chosen}
    if optimized is not None:
        chosen.insert(0, replace(SERVERS[0], name=_OPTIMIZED, about="infer serve, optimized"))
        artifacts[_OPTIMIZED] = optimized
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and end what was started
    texts = list(minilm.calibration())
    random.Random(0).shuffle(texts)
    texts = texts[:_TEXTS]
    vectors = {path: _vectors(path, texts) for path in set(artifacts.values())}
    found: dict[str, list[tuple[float, float, float]]] = {server.name: [] for server in chosen}
    with Progress() as progress:
        for number in range(rounds):
            for server in random.sample(chosen, len(chosen)):

                def told(said: str, server: Server = server, number: int = number) -> None:
                    progress(f"{server.name}: round {number + 1} of {rounds}, {said}")

                told("starting")
                with started(server, artifacts[server.name], workers) as running:
                    raw = [request(server.path, json.dumps(server.body(text)).encode()) for text in texts]
                    query = HttpQuery(running.port, raw)
                    _check(server, query, vectors[artifacts[server.name]][:_CHECKED])
                    found[server.name].append(_measured(server, query, bound_ms, seconds, number, told))
    lines = list(_table(chosen, found, bound_ms, seconds, rounds, workers))
    if optimized is not None:
        cosines = (vectors[artifact] * vectors[optimized]).sum(1)  # all have length 1
        lines += [
            "",
            f"Its vectors are at cosine {cosines.mean():.5f} of the others', {cosines.min():.5f} at least.",
        ]
    report("Servers beside each other", lines, "bench.serving", output)


def _measured(
    server: Server, query: HttpQuery, bound_ms: float, seconds: float, seed: int, told: Told
) -> tuple[float, float, float]:
    """The rate, its 99th percentile, and the median of one request after another."""
    query.turn(_TEXTS)  # warms it up
    alone = query.turn(_TEXTS)
    try:
        served = highest_rate(built_in_probe(query, bound_ms, seconds, seed=seed), alone, bound_ms, told)
    except ImpossibleBoundError as error:
        click.echo(f"{server.name}: {error}", err=True)
        return 0.0, float("nan"), float(np.median(alone))
    return served.best.rate, served.best.p99_ms, float(np.median(alone))


def _table(
    servers: list[Server],
    found: dict[str, list[tuple[float, float, float]]],
    bound_ms: float,
    seconds: float,
    rounds: int,
    workers: int,
) -> Iterator[str]:
    ours = [server for server in servers if server.ours] or servers[:1]
    yield (
        f"The highest Poisson rate whose 99th percentile is within {bound_ms:g} ms, by an open-loop client"
        f" on the same cores; MiniLM, {_TEXTS} sentences of reviews, JSON; workers of each: {workers};"
        f" {rounds} rounds, in which each is started and ended in turn, {seconds:g} s a rate."
    )
    yield ""
    over = "".join(f" {server.name}'s over it |" for server in ours)
    yield f"| server | requests/s |{over} p99 there, ms | alone, median ms |"
    yield f"|---|---|{'---|' * len(ours)}---|---|"
    for server in servers:
        rates, p99s, alone = np.array(found[server.name]).T
        ratios = "".join(f" {_over(found[each.name], rates)} |" for each in ours)
        yield (
            f"| {server.about} | {np.median(rates):.1f} |{ratios} {np.nanmedian(p99s):.1f} |"
            f" {np.median(alone):.2f} |"
        )


def _over(found: list[tuple[float, float, float]], rates: Array) -> str:
    """How many times the rates those of one of ours are, round by round."""
    if not rates.all():
        return "none"
    ratios = np.array([rate for rate, *_ in found]) / rates
    return f"×{np.median(ratios):.2f} ({ratios.min():.2f}–{ratios.max():.2f})"


def _vectors(artifact: Path, texts: list[str]) -> Array:
    """Of each text alone, by the session itself."""
    with infer.load(artifact) as session:
        return np.stack([session(text) for text in texts])


def _check(server: Server, query: HttpQuery, expected: Array) -> None:
    for number, vector in enumerate(expected):
        answer = np.array(server.vector(json.loads(query.answer(number))), np.float32)
        if answer.shape != vector.shape or np.abs(answer - vector).max() > _NEAR:
            raise InferError(f"{server.name} answers otherwise than infer")


if __name__ == "__main__":
    command()

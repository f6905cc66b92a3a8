"""infer serve"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from infer.errors import InputError
from infer.options import MAX_THREADS

_DURATIONS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _quantity(text: str, units: Mapping[str, float], example: str) -> float:
    """A number above 0 with a unit, as a multiple of the unit that is 1. Raises `click.BadParameter`."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([A-Za-z]+)", text, re.ASCII)
    value = float(found[1]) * units.get(found[2], 0) if found else 0.0
    if not value:
        raise click.BadParameter(f"'{text}' must be a number and {' or '.join(units)}: {example}")
    return value


def _seconds(ctx: click.Context, param: click.Parameter, text: str) -> float:
    return _quantity(text, _DURATIONS, "500ms, 30s")


def _optional_seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> float:
    return 0.0 if text is None else _seconds(ctx, param, text)


def _bytes(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    return None if text is None else max(1, round(_quantity(text, _SIZES, "512KiB, 64MiB")))


def _sizes(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> tuple[Mapping[str, int], ...]:
    return tuple(map(_sizes_of_dims, texts))


def _sizes_of_dims(text: str) -> Mapping[str, int]:
    found = [re.fullmatch(r"([^=\s]+)=([1-9]\d{0,8})", part, re.ASCII) for part in text.split(",")]
    if not all(found):
        raise click.BadParameter(f"'{text}' must be dims and their sizes, as in batch=8,sequence=128")
    return {each[1]: int(each[2]) for each in found if each}


@click.command("serve")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    help="Answer over gRPC, too, at this port; 0 takes a free one.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Processes; each has all models, and its share of the cores.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, readable=False),
    help="A token a line; all requests but for health and the page then need one of them.",
)
@click.option("--no-auth", is_flag=True, help="Let other machines in without a token.")
@click.option(
    "--max-body",
    default="64MiB",
    show_default=True,
    metavar="SIZE",
    callback=_bytes,
    help="The most of one request.",
)
@click.option(
    "--queue",
    default=128,
    show_default=True,
    type=click.IntRange(1, 4096),
    help="Requests of one model that may wait or run, in each worker; more are refused.",
)
@click.option(
    "--timeout", default="30s", show_default=True, metavar="TIME", callback=_seconds, help="For an answer."
)
@click.option(
    "--header-timeout",
    default="5s",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="For a request's head.",
)
@click.option(
    "--body-timeout",
    default="30s",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="For a request's body.",
)
@click.option(
    "--keep-alive",
    default="75s",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="For a connection between two requests: longer than a proxy in front keeps its own.",
)
@click.option(
    "--lame-duck",
    metavar="TIME",
    callback=_optional_seconds,
    help="Take requests so much longer when told to stop, but say that it is not ready.",
)
@click.option(
    "--drain",
    default="10s",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="For what is under way when it is to stop.",
)
@click.option(
    "--hung",
    default="30s",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="Of several workers, end and replace one that stands still for so long.",
)
@click.option(
    "--memory-budget",
    metavar="SIZE",
    callback=_bytes,
    help="Load models when asked for, and close others so that they take no more than this.",
)
@click.option(
    "--max-feed",
    metavar="SIZE",
    callback=_bytes,
    help="The most that the arrays of one run may have, such as pictures once they are decoded; default: no"
    " limit.",
)
@click.option(
    "--warm-up",
    multiple=True,
    metavar="SIZES",
    callback=_sizes,
    help="Run each model that has these dims at these sizes before it is ready, as in batch=8,sequence=128;"
    " may be given several times. Default: one row of its example.",
)
@click.option("--lazy", is_flag=True, help="Load each model at its first request.")
@click.option(
    "--spinning",
    is_flag=True,
    help="Let idle threads spin, 50 µs: a lone request takes less time, and one run goes on at a time.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, MAX_THREADS),
    help="Runs of a model that go on at once, each with memory of its own; default: as many as were"
    " measured to answer most here, else as threads, at most 8, with ONNX Runtime on a CPU, else 1.",
)
@click.option(
    "--share-weights",
    is_flag=True,
    help="Let workers share weights in memory, unpacked, which may take longer to compute with.",
)
@click.option(
    "--shadow",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    help="Run this share of answers again on the reference, which takes over if too many are off.",
)
@click.option(
    "--untrusted",
    is_flag=True,
    help="Try each graph in a process of its own first, within limits of memory and time.",
)
@click.option("--json-logs", is_flag=True, help="Log in lines of JSON, one for each request.")
def command(
    artifacts: tuple[Path, ...],
    host: str,
    port: int,
    grpc_port: int | None,
    workers: int,
    token_file: Path | None,
    no_auth: bool,
    max_body: int,
    queue: int,
    timeout: float,
    header_timeout: float,
    body_timeout: float,
    keep_alive: float,
    lame_duck: float,
    drain: float,
    hung: float,
    memory_budget: int | None,
    max_feed: int | None,
    warm_up: tuple[Mapping[str, int], ...],
    lazy: bool,
    spinning: bool,
    streams: int | None,
    share_weights: bool,
    shadow: float | None,
    untrusted: bool,
    json_logs: bool,
) -> None:
    """Answer over HTTP: the Open Inference Protocol v2, tasks, OpenAI's embeddings, and a page to try it.

    ARTIFACTS are artifacts or plain .onnx files. A model is called what its artifact is called, without
    .infer, or NAME where NAME=PATH is given; several of one name are its versions 1, 2, …, of which the
    last answers by default. SIGTERM and Ctrl-C let the requests under way end first. At SIGHUP artifacts
    and tokens that changed are taken up, artifacts if they answer here as they were recorded to, and no
    request is lost.

    \b
    Examples:
      infer serve minilm.infer classifier.infer
      infer serve net.infer --host 0.0.0.0 --token-file tokens.txt --json-logs
      infer serve v1/net.infer v2/net.infer --workers 2
      infer serve net=releases/current --grpc-port 8001 --shadow 0.01
      curl localhost:8000/v1/models/minilm:predict --json '{"inputs": ["a sentence"]}'
    """
    # uvicorn and starlette take longer to import than the rest of infer
    from infer.server.admission import is_loopback, read_tokens
    from infer.server.http import bind
    from infer.server.models import Models
    from infer.server.options import ServerOptions
    from infer.server.workers import serve

    tokens = read_tokens(token_file) if token_file else ()
    if not (tokens or no_auth or is_loopback(host)):
        raise click.UsageError(
            f"'{host}' can be reached from other machines: give --token-file, or --no-auth to let"
            f" them all in"
        )
    options = ServerOptions(
        host=host,
        port=port,
        grpc_port=grpc_port,
        workers=workers,
        tokens=tokens,
        token_file=token_file,
        max_body_bytes=max_body,
        max_bodies_bytes=4 * max_body,
        header_timeout_s=header_timeout,
        body_timeout_s=body_timeout,
        timeout_s=timeout,
        keep_alive_s=keep_alive,
        lame_duck_s=lame_duck,
        drain_s=drain,
        hung_s=hung,
        max_waiting=queue,
        memory_budget_bytes=memory_budget,
        max_feed_bytes=max_feed,
        warm_up=warm_up,
        lazy=lazy,
        spinning=spinning,
        streams=streams,
        share_weights=share_weights,
        shadow=shadow,
        untrusted=untrusted,
        json_logs=json_logs,
    )
    # what is wrong with them is said before anything listens
    names = dict.fromkeys(model.name for model in Models(artifacts, options))
    with ExitStack() as stack:
        listener = stack.enter_context(_listening(host, port, "--port", lambda: bind(options)))
        address = f"[{host}]" if ":" in host else host
        click.echo(f"infer serves {', '.join(names)} at http://{address}:{listener.getsockname()[1]}")
        if grpc_port is not None:
            from infer.server.grpc_api import reserve

            kept = stack.enter_context(_listening(host, grpc_port, "--grpc-port", lambda: reserve(options)))
            options = replace(options, grpc_port=kept.getsockname()[1])
            click.echo(f"and over gRPC at {address}:{options.grpc_port}")
        serve(artifacts, options, listener)


def _listening(host: str, port: int, option: str, make: Callable[[], socket.socket]) -> socket.socket:
    try:
        return make()
    except OSError as error:
        raise InputError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; give another --host or"
            f" {option}"
        ) from error

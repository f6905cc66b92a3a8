"""What a server may be told, in one frozen class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class ServerOptions:
    """How a server listens, and what it refuses."""

    host: str = "127.0.0.1"
    """Where to listen; this machine alone by default."""

    port: int = 8000
    """0 takes a free one."""

    grpc_port: int | None = None
    """Where to listen for gRPC, too; default: nowhere."""

    workers: int = 1
    """Processes that answer. Each has all models, and its share of the cores."""

    tokens: tuple[str, ...] = ()
    """With any, every request but for health and the page needs one of them."""

    token_file: Path | None = None
    """Where the tokens are read again when artifacts are; those of before hold if it cannot be read."""

    max_body_bytes: int = 64 * MIB
    """The most that a body may have, as sent and inflated."""

    max_bodies_bytes: int = 256 * MIB
    """The most that all bodies under way may have together; requests beyond are refused."""

    max_header_bytes: int = 16 * 1024
    """The most that a request's first line and headers may have."""

    header_timeout_s: float = 5.0
    """The time a connection has for the head of a request."""

    keep_alive_s: float = 75.0
    """The time a connection may be idle between two requests: longer than proxies keep theirs, most of them
    for 60 s, or they would send a request when it is closed. Who comes when there are `max_connections`
    takes the place of the one that is idle for the longest."""

    body_timeout_s: float = 30.0
    """The time a request has for its body."""

    write_timeout_s: float = 30.0
    """How long a client may leave an answer unread before it is hung up on."""

    timeout_s: float = 30.0
    """The time for an answer, once the request is there."""

    lame_duck_s: float = 0.0
    """How long it still takes requests once it is told to stop, and says that it is not ready, until those
    that send them here have noticed. Off by default: where something waits before it tells (a preStop
    hook), that has passed."""

    drain_s: float = 10.0
    """How long requests under way may go on once the server is told to stop."""

    max_waiting: int = 128
    """The most requests of one model that may wait or run; more are refused."""

    max_connections: int = 512
    """The most connections of one process, idle ones among them."""

    memory_budget_bytes: int | None = None
    """Models are loaded when asked for, and the one that was not asked for the longest is closed, so that
    those that are loaded have no more than this, in each worker; default: no limit. A model counts for its
    weights, and once it was loaded for what loading and warming up took, if that is more. What is in use is
    not closed, and what takes more than its weights is not refused for that: the log says when models take
    more than the budget."""

    max_feed_bytes: int | None = None
    """The most that the arrays of one run may have, such as pictures once they are decoded; default: no
    limit. What a run needs grows with them."""

    warm_up: tuple[Mapping[str, int], ...] = ()
    """Sizes of dims at which each model that has these dims is run before it is ready, as
    `SessionOptions.warm_up` says; default: one row of its example."""

    lazy: bool = False
    """Load each model at its first request, not at the start."""

    spinning: bool = False
    """Whether threads wait for work by spinning: a lone request is answered sooner, and one run goes on at
    a time."""

    streams: int | None = None
    """How many runs of a model go on at once; default: as `PlanOptions.streams` says."""

    share_weights: bool = False
    """Leave weights in external files as they are: they are mapped, so that workers have them in memory
    once, but products may take longer than with weights that each of them packs anew."""

    shadow: float | None = None
    """The share of answers that are run again on the reference, with the limit that `ShadowOptions` has;
    default: none."""

    untrusted: bool = False
    """Whether each graph is tried in a process of its own before a worker loads it, as
    `SessionOptions.untrusted` says. Each worker then loads a copy of its own, also of shared weights."""

    hung_s: float = 30.0
    """With several workers: one whose event loop stands still for so long is ended and replaced. A run that
    takes long does not stop it."""

    json_logs: bool = False
    """A line of JSON for each request, instead of a line for people."""

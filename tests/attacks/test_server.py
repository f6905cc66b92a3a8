"""Requests made to harm a server: each gets its status soon, takes little memory, and leaves it alive."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infer.server.http import Server, bind
from infer.server.options import ServerOptions
from tests.serving import Served, drained, embedder, serving, slow, slow_request
from tests.tiny import identity, write

MIB = 2**20
HEAD = "POST /v2/models/net/infer HTTP/1.1\r\nhost: localhost\r\n"
# on an idle machine these take milliseconds; tests share cores
SOON_S = 5.0
CPU_S = 2.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a limit of 4 MiB and deadlines of a second for what clients send."""
    folder = tmp_path_factory.mktemp("attacked")
    models = [
        write(folder, identity("float32"), "net.onnx"),
        embedder(folder / "words.infer"),
        slow(folder),
    ]
    limits = ("--max-body", "4MiB", "--header-timeout", "1s", "--body-timeout", "1s")
    with serving(folder, *models, *limits, "--json-logs") as running:
        alive(running)
        yield running


def alive(served: Served) -> None:
    """It still answers rightly."""
    inputs = [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]
    response = served.post("/v2/models/net/infer", json={"inputs": inputs})
    assert response.json()["outputs"][0]["data"] == [1, 2]


def rss(served: Served) -> int:
    return int(psutil.Process(served.process.pid).memory_info().rss)


def cpu_s(served: Served) -> float:
    times = psutil.Process(served.process.pid).cpu_times()
    return float(times.user + times.system)


def refused(served: Served, body: bytes, status: int, more_bytes: int, **headers: str) -> dict[str, Any]:
    """The error for `body`, which costs the server little time and no more memory than that."""
    before, start = rss(served), cpu_s(served)
    response = served.post("/v2/models/net/infer", content=body, headers=headers)
    assert cpu_s(served) - start < CPU_S
    assert response.status_code == status, response.text
    assert rss(served) - before <= more_bytes
    alive(served)
    found: dict[str, Any] = response.json()
    return found


def bomb(**changes: Any) -> bytes:
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2], **changes}
    return json.dumps({"inputs": [item]}).encode()


@pytest.mark.parametrize(
    "shape", [[2**60], [2**60, 2**60], [0, 2**60], [-1, 2], [1] * 65, [2**63], [10**400], [2**31, 1]]
)
def test_a_shape_takes_no_memory(served: Served, shape: list[int]) -> None:
    """Sizes that no body holds are refused by their numbers alone, in both forms."""
    refused(served, bomb(shape=shape), 400, MIB)
    item = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    text = json.dumps({"inputs": [item]}).encode()
    headers = {"inference-header-content-length": str(len(text))}
    refused(served, text + bytes(8), 400, MIB, **headers)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json_is_refused(served: Served, opening: str) -> None:
    """250,000 levels, of lists or objects."""
    refused(served, (opening * 250_000).encode(), 400, 32 * MIB)


def test_many_small_values_are_refused(served: Served) -> None:
    """4 MiB of JSON that would become a hundred MiB of empty lists are read, and refused as no input."""
    refused(served, b'{"inputs": [' + b"[]," * (4 * MIB // 3 - 8) + b"[]]}", 400, 160 * MIB)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_inflates_without_end_is_not_inflated(served: Served, encoding: str) -> None:
    """1 MiB that stands for 1 GiB, and says in its end, as gzip does, that it is nothing."""
    packer = zlib.compressobj(9, wbits=-15)
    # each flush ends a block that stands for itself
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" if encoding == "gzip" else b"\x78\x9c"
    assert len(zlib.decompressobj(-15).decompress(block * 2)) == 2 * MIB
    refused(served, head + block * 1024 + bytes(8), 413, 32 * MIB, **{"content-encoding": encoding})


@pytest.mark.parametrize("length", ["1_2", "٣", "+5", " 5 x", "-1", "0x5", "99999999", "5.0", ""])
def test_the_length_of_the_json_is_digits(served: Served, length: str) -> None:
    """What `int()` would take for a number is none here."""
    request = HEAD.encode() + f"content-length: {len(bomb())}\r\n".encode()
    request += (
        b"inference-header-content-length: " + length.encode() + b"\r\nconnection: close\r\n\r\n" + bomb()
    )
    assert served.raw(request).startswith(b"HTTP/1.1 400 ")
    alive(served)


def test_bytes_behind_the_tensors_are_refused(served: Served) -> None:
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    text = json.dumps({"inputs": [item]}).encode()
    headers = {"inference-header-content-length": str(len(text))}
    assert served.post("/v2/models/net/infer", content=text + bytes(8), headers=headers).status_code == 200
    assert "1 bytes follow" in refused(served, text + bytes(9), 400, MIB, **headers)["error"]


def test_a_body_is_refused_before_its_first_byte(served: Served) -> None:
    """Its stated length is enough, and a client that waits to be told to go on is not."""
    head = HEAD + f"content-length: {2**40}\r\nexpect: 100-continue\r\n\r\n"
    start = time.perf_counter()
    assert served.raw(head.encode()).startswith(b"HTTP/1.1 413 ")
    assert time.perf_counter() - start < SOON_S + 1
    alive(served)


def test_a_body_without_a_length_is_cut_off_at_the_limit(served: Served) -> None:
    """Chunks that never end."""
    before = rss(served)
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    answer = served.raw(HEAD.encode() + b"transfer-encoding: chunked\r\n\r\n" + chunk * 80)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert rss(served) - before <= 32 * MIB
    alive(served)


@pytest.mark.parametrize(
    "lines",
    [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "content-length: +5\r\n",
        "content-length: 5_0\r\n",
        "content-length : 5\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "a: b\0c\r\n",
    ],
)
def test_heads_that_parsers_read_differently_are_refused(served: Served, lines: str) -> None:
    """A proxy in front would see other requests than the server (request smuggling)."""
    hidden = "GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n"
    answer = served.raw((HEAD + lines + "\r\n" + hidden).encode())
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert answer.count(b"HTTP/1.1 ") == 1
    alive(served)


def test_a_head_of_megabytes_is_cut_off(served: Served) -> None:
    """5 MB in one header are not read to their end."""
    before, start = rss(served), time.perf_counter()
    answer = served.raw(HEAD.encode() + b"a: " + b"b" * 5_000_000)
    assert time.perf_counter() - start < SOON_S
    # the client may be hung up on while it is sending
    assert not answer or answer.startswith(b"HTTP/1.1 431 ")
    assert rss(served) - before <= 32 * MIB
    alive(served)


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (HEAD.encode(), b"HTTP/1.1 408 "),
        (HEAD.encode() + b"content-length: 100\r\n\r\n{", b"HTTP/1.1 408 "),
        (HEAD.encode() + b"transfer-encoding: chunked\r\n\r\n5\r\nab", b"HTTP/1.1 408 "),
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk"],
)
def test_silent_clients_are_hung_up_on(served: Served, sent: bytes, answered: bytes) -> None:
    """After the second that each part has, and the moment in which an answer may be read."""
    start = time.perf_counter()
    assert served.raw(sent).startswith(answered)
    assert 0.5 < time.perf_counter() - start < 4
    alive(served)


def test_bytes_that_trickle_in_do_not_prolong_a_head(served: Served) -> None:
    """A byte every 0.2 s, for as long as the server lets it."""
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        try:
            for letter in HEAD * 2:
                sock.sendall(letter.encode())
                time.sleep(0.2)
        except OSError:
            pass
        assert time.perf_counter() - start < 4
    alive(served)


def test_a_second_head_has_a_deadline_too(served: Served) -> None:
    """Half a head on a connection that was used before."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\nGET /v2")
        start = time.perf_counter()
        assert drained(sock).startswith(b"HTTP/1.1 200 ")
        assert time.perf_counter() - start < 4
    alive(served)


def test_a_connection_may_be_idle_between_two_requests(served: Served) -> None:
    """For longer than a head may take, so that a proxy finds it open; one that was never used may not."""
    ask = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=20) as used,
        socket.create_connection(("127.0.0.1", served.port), timeout=20) as unused,
    ):
        for _ in range(2):
            used.sendall(ask)
            answer = b""
            while not answer.endswith(b'{"live":true}') and (part := used.recv(4096)):
                answer += part  # its head and body may come one after the other
            assert answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(1.5)
        assert unused.recv(1) == b""


def test_many_silent_connections_do_not_keep_others_out(served: Served) -> None:
    """200 of them are open while one more is answered."""
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(200)]
    try:
        alive(served)
    finally:
        for sock in silent:
            sock.close()


def test_all_bodies_together_are_bounded(served: Served) -> None:
    """Four times the largest body may be there; the next is refused, by what its head announces, until
    there is room."""
    head = HEAD.encode() + f"content-length: {4 * MIB}\r\n\r\n".encode()
    with ExitStack() as under_way:
        for _ in range(4):
            sock = under_way.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=20))
            sock.sendall(head + b" " * (4 * MIB - 1))
        time.sleep(0.2)
        answered = served.raw(HEAD.encode() + b"content-length: 100\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in answered
    time.sleep(0.2)
    alive(served)


def test_bodies_that_are_announced_and_do_not_come_keep_nobody_out(served: Served) -> None:
    """Nothing of them is in memory."""
    head = HEAD.encode() + f"content-length: {4 * MIB}\r\n\r\n".encode()
    with ExitStack() as stalled:
        for _ in range(8):
            sock = stalled.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=20))
            sock.sendall(head)
        time.sleep(0.2)
        alive(served)


def test_a_text_without_end_is_cut(served: Served) -> None:
    """4 MiB without a space, for a tokenizer."""
    before = rss(served)
    response = served.post("/v1/models/words:predict", json={"inputs": ["a" * (4 * MIB - 100)]})
    assert response.status_code in (200, 400)
    assert rss(served) - before <= 512 * MIB
    alive(served)


def test_paths_do_not_leave_the_page(served: Served) -> None:
    """The page's three files are all that is read from the disk."""
    for path in (
        "/../options.py",
        "/page.css/../../oip.py",
        "/%2e%2e/app.py",
        "/page/index.html",
        "//etc/passwd",
    ):
        answer = served.raw(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404 "), path
    for name in ("..", "%2e%2e", "..%2fnet", "net%00", "net.infer"):
        answer = served.raw(
            f"GET /v2/models/{name} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
        )
        assert answer.startswith(b"HTTP/1.1 404 "), name
    alive(served)


def test_a_name_cannot_forge_a_line_of_the_log(served: Served) -> None:
    """Control characters of a path, a header or an id stay inside of one JSON string."""
    served.get("/v2/models/a%0a%7b%22level%22:%22error%22%7d", headers={"x-request-id": "a\x1b[31m"})
    assert all(isinstance(line, dict) and "\x1b" not in json.dumps(line) for line in served.lines())
    assert all(line["level"] != "error" for line in served.lines())


def test_names_of_pages_cannot_be_pointed_here(served: Served) -> None:
    """DNS rebinding: a page's own name that leads to this machine is refused."""
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "[::1",
        "127.0.0.1@evil",
    ):
        answer = served.raw(f"GET /v2 HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 ")), host
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        answer = served.raw(f"GET /v2 HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200 "), host


def test_the_page_of_another_site_cannot_send_requests(served: Served) -> None:
    """Its browser names it in Origin, which a simple POST cannot hide."""
    others = ("http://evil.example", "null", f"http://localhost:{served.port + 1}", "file://", "http://[")
    for origin in others:
        response = served.post(
            "/v1/models/words:predict",
            content=b"a",
            headers={"content-type": "text/plain", "origin": origin},
        )
        assert response.status_code == 403, origin
    own = {"content-type": "text/plain", "origin": served.url}
    assert served.post("/v1/models/words:predict", content=b"a", headers=own).status_code == 200


async def _endless(scope: Any, receive: Any, send: Any) -> None:
    """An application with much to say."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(64):
        await send({"type": "http.response.body", "body": bytes(MIB), "more_body": True})


async def _short(scope: Any, receive: Any, send: Any) -> None:
    """An application with nothing to say."""
    if scope["type"] == "lifespan":
        await _endless(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def _listening(application: Any, options: ServerOptions) -> AsyncIterator[tuple[Server, int]]:
    """The server, in this event loop, and its port."""
    listener = bind(options)
    server = Server(application, options, lambda: None, lambda: None)
    serving_task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield server, listener.getsockname()[1]
    server.should_exit = True
    await serving_task


ASK = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The head of the answer to `ASK`."""
    writer.write(ASK)
    return await reader.readuntil(b"\r\n\r\n")


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    """A client that asks and does not read is hung up on, and so are connections beyond the limit."""
    options = ServerOptions(port=0, write_timeout_s=0.3, max_connections=2, drain_s=1)

    async def attack() -> tuple[float, bytes]:
        writers = []
        async with _listening(_endless, options) as (server, port):
            start = time.perf_counter()
            for _ in range(2):
                _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
                writer.write(ASK)
                writers.append(writer)
            await asyncio.sleep(0.1)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            refusal = await reader.read()
            writers.append(writer)
            while server.server_state.connections:
                assert time.perf_counter() - start < 5
                await asyncio.sleep(0.02)
            lasted = time.perf_counter() - start
        for writer in writers:
            writer.close()
        return lasted, refusal

    lasted, refusal = asyncio.run(attack())
    assert 0.25 < lasted < 5
    assert refusal.startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("crowded", [False, True])
def test_idle_connections_end(crowded: bool) -> None:
    """After their time, or when another needs the place: then the one that is idle for the longest."""
    options = ServerOptions(port=0, max_connections=2, drain_s=1, keep_alive_s=60.0 if crowded else 0.3)

    async def attack() -> list[bool]:
        opened = []
        async with _listening(_short, options) as (_, port):
            for _ in range(2 + crowded):
                opened.append(await asyncio.open_connection("127.0.0.1", port))
                assert (await _answer(*opened[-1])).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(1.0)
            ended = [reader.at_eof() for reader, _ in opened]
            for _, writer in opened:
                writer.close()
        return ended

    assert asyncio.run(attack()) == ([True, False, False] if crowded else [True, True])


def test_a_burst_stays_within_the_connections() -> None:
    """Those that nothing came on go first, and one that is used stays."""
    options = ServerOptions(port=0, max_connections=4, drain_s=1)

    async def attack() -> tuple[int, bytes]:
        async with _listening(_short, options) as (server, port):
            used = await asyncio.open_connection("127.0.0.1", port)
            await _answer(*used)
            burst = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(30)))
            await asyncio.sleep(0.2)
            held = len(server.server_state.connections)
            answer = await _answer(*used)
            for _, writer in (*burst, used):
                writer.close()
        return held, answer

    held, answer = asyncio.run(attack())
    assert held <= 4
    assert answer.startswith(b"HTTP/1.1 200 ")


TOKEN = "correct-horse-battery"


def test_without_its_token_nothing_is_told(tmp_path: Path) -> None:
    """All but health and the page need it, whatever a header says of the path."""
    (tmp_path / "tokens").write_text(f"# two\n{TOKEN}\nanother-token-of-mine\n", encoding="utf-8")
    model = write(tmp_path, identity("float32"), "net.onnx")
    with serving(tmp_path, model, "--token-file", tmp_path / "tokens", "--host", "0.0.0.0") as served:
        for path in (
            "/v2",
            "/v2/models/net",
            "/metrics",
            "/v1/models",
            "/openapi.json",
            "/nothing",
            "/v2/health/live/",
        ):
            for given in (None, "Bearer", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer ü"):
                headers = [] if given is None else [(b"authorization", given.encode("latin-1"))]
                response = served.get(path, headers=headers)
                assert response.status_code == 401, (path, given)
                assert response.headers["www-authenticate"] == "Bearer"
        for number in (TOKEN, "another-token-of-mine"):
            assert served.get("/v2", headers={"authorization": f"Bearer {number}"}).status_code == 200
        for path in ("/", "/page.js", "/v2/health/live", "/v2/health/ready"):
            assert served.get(path).status_code == 200
        assert served.post("/v2/health/ready").status_code == 401
        sly = b"GET http://x/v2/health/live/../../models/net HTTP/1.1\r\nhost: /v2/health/live\r\n"
        assert b" 200 " not in served.raw(
            sly + b"x-original-url: /v2/health/live\r\nconnection: close\r\n\r\n"
        )
        assert TOKEN not in served.log.read_text(encoding="utf-8")


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    """64 at once with a queue of 16: the rest is refused at once, before the first of them is answered."""
    with serving(tmp_path, slow(tmp_path), "--queue", "16") as served:
        refusals: list[tuple[float, httpx.Response]] = []
        answers: list[float] = []
        lock = threading.Lock()
        gate = threading.Barrier(64)

        def ask() -> None:
            gate.wait()
            response = served.post("/v2/models/slow/infer", json=slow_request(60))
            with lock:
                now = time.perf_counter()
                if response.status_code == 200:
                    answers.append(now)
                else:
                    refusals.append((now, response))

        threads = [threading.Thread(target=ask) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) >= 16
        assert len(refusals) >= 32
        assert {response.status_code for _, response in refusals} == {503}
        assert {response.headers["retry-after"] for _, response in refusals} == {"1"}
        assert sorted(now for now, _ in refusals)[24] < min(answers) + 0.5
        assert served.post("/v2/models/slow/infer", json=slow_request(1)).status_code == 200

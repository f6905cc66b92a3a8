"""The client of the benchmarks: it tells answers from refusals, late ones and none at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from bench.serving.client import HttpQuery, request
from infer.errors import BackendError


class Answering(BaseHTTPRequestHandler):
    """What it is asked for, by path."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/late":
            time.sleep(1.0)
        if self.path == "/gone":
            self.close_connection = True
            return
        self.send_response(503 if self.path == "/busy" else 200)
        if self.path == "/last":
            self.send_header("Connection", "close")
        if self.path == "/chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (body[:3], body[3:]):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                time.sleep(0.02)
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(*paths: str, size: int = 10) -> list[bytes]:
    return [request(path, b"x" * size) for path in paths]


@pytest.mark.parametrize("path", ["/plain", "/chunks", "/last"])
def test_an_answer_is_whole(path: str, port: int) -> None:
    """However it is sent, and however long."""
    for size in (10, 3_000_000):
        assert HttpQuery(port, asked(path, size=size)).answer(0) == b"x" * size


def test_what_is_no_answer_is_infinitely_late(port: int) -> None:
    """Refused, later than the client waits, or never; the others are not held up by these."""
    paths = ["/plain", "/busy", "/late", "/gone", "/last", "/chunks"]
    query = HttpQuery(port, asked(*paths), timeout_s=0.5)
    due = np.arange(24) * 0.02
    found = query.serve(due)
    answered = np.array([paths[i % 6] in ("/plain", "/last", "/chunks") for i in range(24)])
    np.testing.assert_array_equal(np.isfinite(found), answered)
    assert (found[answered] < 400).all()
    chunks = np.array([paths[i % 6] == "/chunks" for i in range(24)])
    assert (found[chunks] >= 40).all()
    np.testing.assert_array_equal(
        np.isfinite(HttpQuery(port, asked("/plain", "/busy")).turn(4)), [True, False, True, False]
    )
    with pytest.raises(BackendError, match="status 503: xxx"):
        HttpQuery(port, asked("/busy")).answer(0)


def test_large_requests_are_sent_whole(port: int) -> None:
    """More than a socket takes at once, several at the same time."""
    found = HttpQuery(port, asked("/plain", size=8_000_000)).serve(np.zeros(4))
    assert np.isfinite(found).all()


def test_where_nobody_listens(port: int) -> None:
    """A server that is gone answers nothing, and that takes no time."""
    import socket

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        query = HttpQuery(unused.getsockname()[1], asked("/plain"))
        assert np.isinf(query.serve(np.zeros(3))).all()
        with pytest.raises(ConnectionRefusedError):
            query.answer(0)

"""Several sessions of one process on the same threads. Each case has its own process: it is for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import infer
from tests.tiny import make_artifact

START = """
import os, sys, time, infer, numpy as np
path = sys.argv[1]
x = np.ones((64, 10), np.float32)
def threads():  # that stay: one that was joined may be there for a moment
    return min(len(os.listdir("/proc/self/task")) for _ in range(20) if time.sleep(0.01) is None)
def said(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except infer.InferError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("shared") / "net.infer")


def ran(program: str, net: Path) -> list[str]:
    """The lines that `program` prints after `START`, in a process whose numpy has one thread."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + program, net],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_four_sessions_do_not_have_four_pools(net: Path) -> None:
    """Of 4 threads, the caller's own is one: with pools of their own 13 threads, on shared ones 4."""
    own = "sessions = [infer.load(path, num_threads=4) for _ in range(4)]\nprint(threads())"
    assert ran(own, net) == ["13"]
    shared = (
        "infer.share_threads(4)\n"
        "sessions = [infer.load(path) for _ in range(4)]\n"
        "answers = [session.run({'x': x})['logits'] for session in sessions]\n"
        "alike = all((answer == answers[0]).all() for answer in answers)\n"
        "print(threads(), alike, answers[0][0].tolist())\n"
        "print(sessions[0].plan)\n"
    )
    first, *plan = ran(shared, net)
    count, alike, answer = first.split(" ", 2)
    assert (count, alike) == ("4", "True")
    with infer.load(net) as session:
        expected = session.run({"x": np.ones((64, 10), np.float32)})["logits"][0]
    np.testing.assert_allclose(eval(answer), expected, rtol=1e-5)
    assert "threads     4, shared" in plan
    assert "  - 4 threads that all sessions of this process share, and that spin" in plan


def test_what_cannot_be_shared_is_refused(net: Path) -> None:
    """Wishes that shared threads cannot meet, and a second number; the same number again is fine."""
    lines = ran(
        "infer.share_threads(2)\n"
        "infer.share_threads(2)\n"
        "print(said(infer.share_threads, 3))\n"
        "print(said(infer.load, path, num_threads=1))\n"
        "print(said(infer.load, path, spinning=False))\n"
        "print(said(infer.load, path, num_threads=2, spinning=True))\n",
        net,
    )
    late, threads, spinning, fine = lines
    assert "share_threads(3) comes too late: sessions of this process" in late
    assert "share 2 threads; call it once, before the first infer.load" in late
    assert threads.startswith(
        "DeviceError: num_threads=1 was asked for, but sessions of this process share 2"
    )
    assert spinning.startswith("DeviceError: spinning=False was asked for")
    assert fine == "no error"


def test_too_late_is_said(net: Path) -> None:
    """A session that was opened before keeps its threads, and goes on."""
    lines = ran(
        "with infer.load(path) as session:\n"
        "    print(said(infer.share_threads, 2))\n"
        "    print(session.run({'x': x})['logits'].shape)\n"
        "print(said(infer.share_threads, 0))\n",
        net,
    )
    assert "comes too late: sessions of this process" in lines[0]
    assert "have threads of their own" in lines[0]
    assert lines[1] == "(64, 2)"
    assert "num_threads must be an int from 1 to" in lines[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a POSIX thing")
def test_a_forked_child_is_told(net: Path) -> None:
    """The threads stay with the parent; opening a session in the child would hang at its first run. And the
    child ends."""
    lines = ran(
        "import time\n"
        "infer.share_threads(2)\n"
        "session = infer.load(path)\n"
        "time.sleep(0.3)\n"
        "if not os.fork():\n"
        "    print(said(infer.load, path), said(infer.share_threads, 2), sep='\\n')\n"
        "    sys.exit(0)\n"
        "assert os.wait()[1] == 0\n",
        net,
    )
    assert "called share_threads, and its threads did not come along into the forked process" in lines[0]
    assert "comes too late" in lines[1]

"""How a command ends when the disk is full, the user interrupts, or nobody reads."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import infer
from infer.npz import save_npz
from tests.command import Outcome, infer_command
from tests.test_bad_input import check, tree
from tests.tiny import classifier, make_artifact

PYTHON = [sys.executable, "-c", "from infer.cli import main; main()"]
# the same infer as here, from any working folder
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(infer.__file__).parents[1])}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with net.infer, net.onnx, and feeds."""
    make_artifact(tmp_path / "net.infer")
    (tmp_path / "net.onnx").write_bytes(classifier().SerializeToString())
    save_npz(tmp_path / "x.npz", {"x": np.ones((500, 10), np.float32)})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _small_files() -> None:
    """A disk on which no file can grow beyond 300 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))


@pytest.mark.parametrize("line", ["convert net.onnx -o out.infer", "run net.infer --feeds x.npz -o y.npz"])
def test_a_full_disk_leaves_nothing(here: Path, line: str) -> None:
    """Writing fails: exit 1, the reason and the name in words, and no draft."""
    before = tree(here)
    done = subprocess.run(
        [*PYTHON, *line.split()],
        cwd=here,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        preexec_fn=_small_files,
    )
    check(Outcome(done.returncode, done.stdout, done.stderr), 1, "File too large", line.split()[-1])
    assert tree(here) == before


@pytest.mark.parametrize(
    "line", ["convert net.onnx -o /sys/out.infer", "run net.infer --feeds x.npz -o /sys/y.npz"]
)
def test_a_folder_that_cannot_be_written_is_named(here: Path, line: str) -> None:
    """/sys takes no new files, not even from root: exit 1 and the path that was asked for."""
    check(infer_command(*line.split()), 1, f"cannot write '{line.split()[-1]}'")


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_interrupting_a_conversion_leaves_nothing(here: Path, sent: signal.Signals, code: int) -> None:
    """Ctrl-C, SIGTERM or the end of the terminal while the model is being asked: the shell's code, no
    artifact, no draft."""
    (here / "slow.py").write_text(
        "import time, pathlib, torch\n"
        "class Slow(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        pathlib.Path('started').touch()\n"
        "        time.sleep(60)\n"
        "        return x\n"
    )
    before = tree(here)
    started = here / "started"
    process = subprocess.Popen(
        [*PYTHON, "convert", "slow.py:Slow", "--input", "x=2x2", "-o", "out.infer"],
        cwd=here, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not started.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert any(".draft" in name for name in tree(here))
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    if sent == signal.SIGINT:  # who terminates a process does not read what it says
        assert err.splitlines()[-1] == "Interrupted. Nothing was left half done."
    assert "Traceback" not in err
    started.unlink()
    assert tree(here) == before


def test_a_search_whose_terminal_is_closed_keeps_the_best(here: Path) -> None:
    """It is told so by SIGHUP, and what it says then goes nowhere; what it was at is blamed for nothing."""
    (here / "wide.py").write_text(
        "import torch\n"
        "def build():\n"
        "    return torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8))).eval()\n"
    )
    assert infer_command("convert", "wide.py:build", "--input", "input=2x256", "-o", "wide.infer").code == 0
    command = [*PYTHON, "optimize", "wide.infer", "-o", "out.infer", "--budget", "cosine>=0.9"]
    child, terminal = pty.fork()
    if not child:
        os.chdir(here)
        os.execve(command[0], command, ENVIRONMENT)
    said = b""
    while b"timing" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 129)
    assert (here / "out.infer" / "manifest.json").is_file()
    state = json.loads((here / ".out.infer.optimizing" / "state.json").read_text())
    assert (state["begun"], [v for v in state["verdicts"] if "fails" in v["why"]]) == ("", [])


def test_ctrl_c_while_the_command_is_imported_gives_no_traceback(here: Path) -> None:
    """From the first line of ours on, the shell's code and one sentence; as a library it stays Python's."""
    program = (
        "import builtins, os, signal\n"
        "real = builtins.__import__\n"
        "def interrupting(name, *rest, **named):\n"
        "    if name == 'click':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *rest, **named)\n"
        "builtins.__import__ = interrupting\n"
        "from infer.cli import main\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "Interrupted. Nothing was left half done.\n"
    program = (
        "import signal, infer.cli\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=True)


def test_a_reader_that_goes_away_is_no_error(here: Path) -> None:
    """`infer … | head -c 0`: the pipe breaks, nothing is said about it."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*PYTHON, "inspect", "net.infer"],
            cwd=here,
            env=ENVIRONMENT,
            stdout=write,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_stdout_holds_the_document_and_nothing_else(tmp_path: Path) -> None:
    """What the user's module and native code print while converting goes to stderr."""
    (tmp_path / "loud.py").write_text(
        "import os, torch\n"
        "print('at import')\n"
        "class Loud(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        os.write(1, b'native\\n')\n"
        "        return x * 2\n"
    )
    done = subprocess.run(
        [*PYTHON, "convert", "loud.py:Loud", "--input", "x=2x3", "-o", "loud.infer", "--json"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["artifact"] == "loud.infer"
    assert b"at import" in done.stderr
    assert b"native" in done.stderr

"""Optional packages that are absent, broken, or interrupted while they are imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infer.errors import missing_package
from tests.test_command_ends import ENVIRONMENT
from tests.tiny import make_artifact

MAIN = "from infer.cli import main; main()"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifact") / "net.infer")


def run(program: str, *arguments: object, first: Path) -> subprocess.CompletedProcess[str]:
    """`program` in a fresh interpreter that looks for packages in `first` before all other places."""
    path = os.pathsep.join([str(first), ENVIRONMENT["PYTHONPATH"]])
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**ENVIRONMENT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


BROKEN = {
    # what importing it does: (the code, what is said)
    "a library is missing": (
        "raise ImportError('libcudart.so.12: cannot open shared object file')",
        "does not import here (ImportError: libcudart.so.12",
    ),
    "a library is damaged": ("raise OSError('invalid ELF header')", "(OSError: invalid ELF header)"),
    "another package is missing": ("import a_package_nobody_has", "No module named 'a_package_nobody_has'"),
    "an empty folder was left": ("", "has no attribute 'InferenceSession'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_not_called_absent(artifact: Path, tmp_path: Path, case: str) -> None:
    """The cause is shown with the cure, by a command that needs the package and by the doctor."""
    code, words = BROKEN[case]
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(code)
    done = run(MAIN, "run", artifact, "--explain", first=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert "is not installed" not in done.stderr
    assert done.stderr.endswith('pip install --force-reinstall "infer-onnx[cpu]".\n')
    done = run(MAIN, "doctor", "--json", first=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any(words in problem for problem in json.loads(done.stdout)["problems"])


def test_an_absent_package_is_called_absent(artifact: Path, tmp_path: Path) -> None:
    """The message ends with the command that installs it."""
    hidden = "import sys; sys.modules['onnxruntime'] = None\n"
    done = run(hidden + MAIN, "run", artifact, "--explain", first=tmp_path)
    assert done.returncode == 1
    assert "'onnxruntime', which is not installed; install it with: pip install" in done.stderr


def test_packages_that_are_imported_under_another_name_are_told_apart() -> None:
    """pillow is PIL: only a missing PIL is a missing pillow."""
    absent = missing_package("pillow", "image", ModuleNotFoundError("No module named 'PIL'", name="PIL"))
    assert "is not installed" in str(absent)
    broken = missing_package("pillow", "image", ModuleNotFoundError("No module named 'x'", name="x"))
    assert "does not import here (ModuleNotFoundError: No module named 'x')" in str(broken)


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_a_library_swallows_ends_the_command(
    artifact: Path, tmp_path: Path, sent: str, code: int
) -> None:
    """numpy's C interface turns Ctrl-C during an import into an ImportError; it is no missing package."""
    (tmp_path / "onnxruntime.py").write_text(
        f"import os, signal\n"
        f"try:\n"
        f"    os.kill(os.getpid(), signal.{sent})\n"
        f"    signal.sigtimedwait([], 5)\n"
        f"except BaseException:\n"
        f"    raise ImportError('numpy._core.multiarray failed to import') from None\n"
    )
    done = run(MAIN, "run", artifact, "--explain", first=tmp_path)
    said = "Interrupted. Nothing was left half done.\n" if sent == "SIGINT" else ""
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def test_a_signal_lost_in_a_callback_comes_again(artifact: Path, tmp_path: Path) -> None:
    """Python ignores what is raised while an object is deleted; the command ends all the same, silently."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os, signal, time\n"
        "class Deleted:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0)\n"
        "Deleted()\n"
        "time.sleep(60)\n"
    )
    done = run(MAIN, "run", artifact, "--explain", first=tmp_path)
    said = "Interrupted. Nothing was left half done.\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", said)


def test_the_doctor_reads_over_what_an_uninstall_left(tmp_path: Path) -> None:
    """A folder of metadata without a name is no package, and no reason to fail."""
    (tmp_path / "foo-1.0.dist-info").mkdir()
    (tmp_path / "foo-1.0.dist-info" / "METADATA").touch()
    done = run(MAIN, "doctor", first=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")

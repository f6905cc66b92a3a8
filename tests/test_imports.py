"""Imports are a feature: what `import infer` loads, what the package offers, what the wheel holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import converters
import infer

HEAVY = (
    "onnx",
    "onnxruntime",
    "torch",
    "transformers",
    "PIL",
    "tokenizers",
    "converters",
    "asyncio",
    "ray",
)

PUBLIC = {
    *("evaluate", "load", "open_artifact", "open_session", "share_threads", "this_machine", "__version__"),
    *("Artifact", "Machine", "Manifest", "Plan", "Session", "LiveSession", "Signature", "TensorSpec"),
    *("BatchOptions", "LoadLimits", "PlanOptions", "SessionOptions", "ShadowOptions"),
    *("InferError", "ArtifactError", "IntegrityError", "ConversionError", "ParityError", "FeedError"),
    *("InputError", "DeviceError", "BackendError", "SessionClosedError", "MissingPackageError"),
    *("OverloadedError", "DeadlineError", "RehearsalError"),
}


def loaded_by(code: str) -> set[str]:
    """Top-level names in sys.modules after `code` ran in a fresh interpreter."""
    program = f"{code}\nimport sys\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    return set(
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_importing_infer_loads_nothing_heavy() -> None:
    """`import infer` brings numpy and the standard library only."""
    assert not loaded_by("import infer") & set(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    """The list of commands is printed without loading what the commands need."""
    program = "import sys; sys.argv = ['infer', '--help']\nfrom infer.cli import cli\n"
    program += "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    program += "    cli.main(standalone_mode=False)"
    assert not loaded_by(program) & set(HEAVY)


def test_running_an_artifact_never_loads_torch_or_onnx(net: Path) -> None:
    """A service that runs an artifact needs neither torch nor onnx."""
    code = (
        "import infer, numpy as np\n"
        f"with infer.load({str(net)!r}) as s: s.run({{'x': np.zeros((1, 10), np.float32)}})"
    )
    loaded = loaded_by(code)
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "onnx", "transformers", "converters"}


def test_public_names() -> None:
    """What `infer` and `converters` offer is what they say, and changing it is a decision."""
    assert [name for name in infer.__all__ if not hasattr(infer, name)] == []
    assert set(infer.__all__) == PUBLIC
    assert converters.__all__ == ["ConvertOptions", "Source", "TaskSpec", "convert"]


@pytest.mark.slow
def test_wheel_holds_exactly_the_two_packages(tmp_path: Path) -> None:
    """The built wheel contains `infer` and `converters`, typed, and neither tests nor benchmarks."""
    root = Path(__file__).parents[1]
    if not (root / "infer").is_dir():
        # the wheel's own test run: the sources are elsewhere, and the wheel lies beside us
        (wheel,) = (root.parent).glob("*.whl")
    else:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "build",
                "--wheel",
                "--no-isolation",
                "--outdir",
                str(tmp_path),
                str(root),
            ],
            check=True,
            capture_output=True,
        )
        (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"infer", "converters"}
    assert {"infer/py.typed", "converters/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)

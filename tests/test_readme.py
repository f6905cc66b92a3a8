"""What the README tells a newcomer to do works as written."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel

import converters
import infer
from bench.zoo import minilm
from infer.cli import COMMANDS, cli
from infer.manifest import TaskSpec
from tests.command import infer_command
from tests.models import TwoLayers
from tests.serving import serving

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Each line that a reader would type, without its comment."""
    lines = [
        line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")
    ]
    return [line.partition("  #")[0].strip() for line in lines]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the files that the README's commands name."""
    shutil.copy(Path(__file__).parent / "models.py", tmp_path / "net.py")
    text = (tmp_path / "net.py").read_text(encoding="utf-8") + "\n\nNet = TwoLayers\n"
    (tmp_path / "net.py").write_text(text, encoding="utf-8")
    save_file(TwoLayers().state_dict(), tmp_path / "net.safetensors")
    # the first of its layers: that the commands work, not how long they take
    shutil.copytree(minilm.folder(), tmp_path / "all-MiniLM-L6-v2")
    first = AutoModel.from_pretrained(minilm.folder(), num_hidden_layers=1)
    first.save_pretrained(tmp_path / "all-MiniLM-L6-v2")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 10), np.float32))
    for name in ("cat", "dog"):
        Image.new("RGB", (40, 30), "gray").save(tmp_path / f"{name}.jpg")
    for kind in ("0", "3"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / kind / "a.jpg")
    (tmp_path / "photos.csv").write_text("file,kind\ncat.jpg,1\ndog.jpg,2\n", encoding="utf-8")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    steps = [{"op": "resize", "height": 16, "width": 16}, {"op": "rescale", "factor": 1 / 255}]
    artifact = converters.convert(
        net.eval(),
        tmp_path / "classifier.infer",
        example_inputs=(torch.randn(2, 3, 16, 16),),
        task=TaskSpec("image-classification", {"input": "input", "output": "output", "steps": steps}),
    )
    for name in ("model", "a", "b"):
        shutil.copy(artifact.path / "graphs/fp32.onnx", tmp_path / f"{name}.onnx")
    slow_net = torch.nn.Sequential(*(torch.nn.Linear(10, 10) for _ in range(300))).eval()
    converters.convert(slow_net, tmp_path / "slow/net.infer", example_inputs=(torch.randn(2, 10),))
    options = ["--seconds", "2", "--no-limits", "--output", str(tmp_path / "old.json")]
    measured = CliRunner().invoke(cli, ["bench", str(tmp_path / "slow/net.infer"), *options])
    assert measured.exit_code == 0, measured.output
    return tmp_path


@pytest.mark.slow
@pytest.mark.long
def test_the_commands_run(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `infer` command of the README succeeds, in the README's order; those that measure, for a second
    only. They share a process: starting twenty takes longer than what they do."""
    monkeypatch.chdir(desk)
    typed = [line for line in commands() if line.startswith("infer ")]
    assert len(typed) >= 9
    for line in typed:
        line += " --seconds 1" if line.startswith("infer bench") else ""
        line += " --time 1s" if line.startswith("infer optimize") else ""
        if line.startswith("infer serve"):  # it goes on until it is told to stop
            with serving(desk, *shlex.split(line)[2:]) as served:
                assert served.stop() == 0
            continue
        done = infer_command(*shlex.split(line)[1:])
        assert done.code == 0, f"{line}\n{done.out}\n{done.err}"
    assert np.load(desk / "y.npz")["logits"].shape == (3, 2)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's Python, run from top to bottom in an empty folder, does what its comments say."""
    monkeypatch.chdir(tmp_path)
    program = "\n".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *fixed, own, row, layout, live = done.stdout.splitlines()
    assert fixed == ["True", "input: float32[batch, 10]", "(3, 2)"]
    assert (row, layout, live) == ("(1, 2)", "rows run together along batch", "(3, 2)")
    assert re.fullmatch(r"\[\('one', [01]\), \('twelve', [01]\)\]", own)


def test_the_two_commands_are_what_make_does() -> None:
    """`make demo` and `make test` are targets, and run the demo and the tests."""
    assert {"make demo", "make test"} <= set(commands())
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo: .*\n\t\$\(BIN\)/python -m bench\.demo$", makefile, re.MULTILINE)
    assert re.search(r"^test: .*\n\t\$\(BIN\)/python -m pytest", makefile, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.long
def test_the_demo_runs(tmp_path: Path) -> None:
    """The demo converts, proves and answers on real inputs, and says the espresso is one."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "bench.demo", str(tmp_path / "demo")],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parity    equal at") == 3
    assert "espresso" in done.stdout
    for name in ("feed-forward", "efficientnet-lite0", "minilm"):
        infer.load(tmp_path / f"demo/{name}.infer").close()


def test_every_command_is_in_the_readme_and_has_an_example() -> None:
    """The README's table lists all commands; each one's help shows an example that names it."""
    table = set(re.findall(r"^\| `infer (\w+)` \|", README, re.MULTILINE))
    assert table == set(COMMANDS)
    for name in COMMANDS:
        help_text = CliRunner().invoke(cli, [name, "--help"]).output
        assert f"  infer {name}" in help_text

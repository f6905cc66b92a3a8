"""infer doctor"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from importlib.metadata import distributions

import click

from infer import __version__
from infer.backends import BACKENDS, load_backend
from infer.cli.output import heading, print_json, rows
from infer.errors import MissingPackageError
from infer.machine import Machine, this_machine
from infer.wording import size

# the last release for Python 3.10 is older than the one with the fixes to reading models from outside
_ORT_FLOOR = (1, 28) if sys.version_info >= (3, 11) else (1, 23)

_PACKAGES: tuple[tuple[str, tuple[int, ...], str, str], ...] = (
    # (distribution, floor, extra that brings it, what it is for)
    ("numpy", (1, 26), "cpu", "everything"),
    ("onnxruntime", _ORT_FLOOR, "cpu", "running on the CPU"),
    ("onnxruntime-gpu", _ORT_FLOOR, "gpu", "running on NVIDIA GPUs"),
    ("openvino", (2025, 3), "openvino", "running what is faster with it"),
    ("torch", (2, 10), "convert", "converting"),
    ("onnx", (1, 21), "convert", "converting"),
    ("onnxscript", (0, 7), "convert", "converting"),
    ("onnx-ir", (1, 0), "convert", "converting"),
    ("transformers", (5, 0), "convert", "converting transformers folders"),
    ("safetensors", (0, 5), "convert", "reading weights"),
    ("tokenizers", (0, 21), "text", "text tasks"),
    ("pillow", (11,), "image", "image tasks"),
)


@dataclass(frozen=True)
class Package:
    """An optional package: its version here, None if absent; `problem` in words."""

    name: str
    version: str | None
    purpose: str
    problem: str | None


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Say what this machine can run, which packages conflict, and how to mend it.

    \b
    Example:
      infer doctor
    """
    machine = this_machine()
    packages = check_packages()
    backends, problems = check_backends(machine, packages)
    problems = [p.problem for p in packages if p.problem and p.version] + problems
    if as_json:
        print_json(
            {
                "infer": __version__,
                "python": sys.version.split()[0],
                "machine": asdict(machine),
                "packages": [asdict(p) for p in packages],
                "backends": backends,
                "problems": problems,
            }
        )
        return
    heading("machine")
    quota = f", cgroup quota {machine.cores_quota:g}" if machine.cores_quota else ""
    rows(
        [
            ("cpu", machine.cpu),
            ("isa", " ".join(machine.isa)),
            ("cores", f"{machine.cores}  (affinity {machine.cores_affinity}{quota})"),
            ("memory", size(machine.memory_bytes)),
            ("devices", ", ".join(machine.devices)),
        ]
    )
    heading("packages")
    versions = {"infer-onnx": __version__, "python": sys.version.split()[0]}
    rows(
        list(versions.items())
        + [
            (p.name, f"{p.version or '–':<12} {p.purpose}{'' if p.version else f'; {p.problem}'}")
            for p in packages
        ]
    )
    heading("can run on")
    rows([(name, ", ".join(devices)) for name, devices in backends.items()] or [("nothing", "")])
    heading("problems")
    for problem in problems:
        click.secho(f"  {problem}", fg="yellow")
    if not problems:
        click.echo("  none found")


def check_packages() -> list[Package]:
    """Versions of all packages infer can use, and what is wrong with them."""
    installed = {
        name.lower().replace("_", "-"): found.version
        for found in distributions()
        if (name := found.metadata["Name"])  # what an uninstall left behind has none
    }
    both = {"onnxruntime", "onnxruntime-gpu"} <= installed.keys()
    found = []
    for name, floor, extra, purpose in _PACKAGES:
        version = installed.get(name)
        problem = None
        if version is None:
            problem = f'pip install "infer-onnx[{extra}]"'
        elif _numbers(version) < floor:
            floor_text = ".".join(map(str, floor))
            problem = (
                f"{name} {version} is older than {floor_text}, which infer needs for {purpose};"
                f' pip install -U "{name}>={floor_text}"'
            )
        elif name == "onnxruntime" and both:
            problem = (
                "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files, so"
                " the GPU may silently be lost; pip uninstall -y onnxruntime onnxruntime-gpu, then"
                ' pip install "infer-onnx[gpu]"'
            )
        found.append(Package(name, version, purpose, problem))
    return found


def check_backends(machine: Machine, packages: list[Package]) -> tuple[dict[str, list[str]], list[str]]:
    """Devices each installed backend can use here, and problems."""
    usable: dict[str, list[str]] = {}
    problems = []
    default = next(iter(BACKENDS))
    for name in BACKENDS:
        try:
            backend = load_backend(name)
        except MissingPackageError as error:
            # any other may be absent
            if name == default or any(package.name == name and package.version for package in packages):
                problems.append(str(error))
            continue
        kinds = backend.device_kinds()
        usable[name] = [device for device in machine.devices if device.partition(":")[0] in kinds]
    gpus = [device for device in machine.devices if device != "cpu"]
    if gpus and not any(gpus[0] in devices for devices in usable.values()):
        problems.append(
            f"{gpus[0]} is present, but no installed backend can use it;"
            f' pip uninstall -y onnxruntime, then pip install "infer-onnx[gpu]"'
        )
    return usable, problems


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())

"""infer package"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click

from infer.cli.output import print_json, rows
from infer.cli.progress import Progress
from infer.packaging import TARGETS, package
from infer.session import open_artifact

_OPTIONS = {
    "variant": "--variant", "num_threads": "--threads", "image": "--image", "storage_uri": "--storage-uri",
    "memory": "--memory", "auth": "--no-auth", "wheel": "--wheel",
}  # fmt: skip
"""A target's field → the option that sets it."""


@click.command("package")
@click.argument("artifact", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--for", "target", required=True, type=click.Choice(list(TARGETS)), help="What will serve it."
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, readable=False),
    help="Where the package goes: a new folder.",
)
@click.option(
    "--name", metavar="TEXT", help="What the model is called there; default: the artifact's name."
)
@click.option(
    "--variant", metavar="TEXT", help="triton: the variant; default: what is fastest here, or the first."
)
@click.option(
    "--threads",
    "num_threads",
    type=click.IntRange(1, 1024),
    help="triton, kserve: threads of a run, CPUs of the container; default: as infer plans here.",
)
@click.option("--image", metavar="TEXT", help="kserve: the image, with its tag or digest.")
@click.option(
    "--storage-uri", metavar="URI", help="kserve: where the artifact is, if the image does not hold it."
)
@click.option("--memory", metavar="SIZE", help="kserve: as in 2Gi; default: a guess from the graph's size.")
@click.option(
    "--wheel",
    type=click.Path(path_type=Path, readable=False),
    help="docker: install infer-onnx from this file, not from the index.",
)
@click.option("--no-auth", is_flag=True, help="kserve, docker: answer callers without a token.")
@click.option("--force", is_flag=True, help="Replace the package at the output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    artifact: Path,
    target: str,
    output: Path,
    name: str | None,
    no_auth: bool,
    force: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Write what serves an artifact: a Triton model repository, a KServe InferenceService, or a folder for
    docker build.

    Triton runs the graph alone; the others run infer serve, with the task. Rows run together in Triton only
    if golden rows answer together as they do alone. What could not be checked here is said.

    \b
    Examples:
      infer package net.infer --for docker -o image
      infer package net.infer --for triton -o models
      infer package net.infer --for kserve --image registry.example.com/net:1 -o service
    """
    made = TARGETS[target]
    chosen = {field: value for field, value in given.items() if value is not None}
    chosen |= {"auth": False} if no_auth else {}
    takes = {field.name for field in fields(made)}  # type: ignore[arg-type]  # they are dataclasses
    if stray := [_OPTIONS[field] for field in chosen if field not in takes]:
        raise click.UsageError(f"{', '.join(stray)} says nothing to --for {target}.")
    if target == "kserve" and "image" not in chosen:
        raise click.UsageError(
            "--for kserve needs --image: what is to run, as in registry.example.com/net:1."
        )
    with Progress(quiet=as_json) as progress:
        progress(f"packaging for {target}")
        opened = open_artifact(artifact)
        written = package(opened, made(name=name, **chosen), output, overwrite=force)
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    if as_json:
        print_json({"output": str(output), "target": target, "files": files, **asdict(written)})
        return
    rows(
        [
            ("written", f"{output}: {len(files)} files"),
            ("name", written.name),
            *written.decided.items(),
            *(
                (what, lines)
                for what, lines in _said(written.checked, written.unchecked, written.lost)
                if lines
            ),
            ("next", written.next),
        ],
        indent="",
    )


def _said(
    checked: tuple[str, ...], unchecked: tuple[str, ...], lost: tuple[str, ...]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return (("checked", checked), ("not checked", unchecked), ("left behind", lost))

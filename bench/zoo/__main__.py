"""python -m bench.zoo: the one way into the zoo."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from bench.zoo import FAMILIES, convert, family
from bench.zoo.debian import NoDataError
from infer.cli.convert import report
from infer.cli.progress import Progress


@click.group()
def zoo() -> None:
    """Model families, each with real weights or trained on real data."""


@zoo.command("list")
def list_families() -> None:
    """Name the families."""
    for name, about in FAMILIES.items():
        click.echo(f"{name:<24} {family(name).WEIGHTS:<13} {about}")


@zoo.command()
@click.argument("name", type=click.Choice(list(FAMILIES)))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Where NAME.infer goes."
)
def build(name: str, output: Path) -> None:
    """Train or load a model, and convert it."""
    output.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        artifact = convert(name, output / f"{name}.infer", overwrite=True, progress=progress)
    report(artifact)


@zoo.command()
@click.argument("names", nargs=-1, type=click.Choice(list(FAMILIES)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def table(names: tuple[str, ...], as_json: bool) -> None:
    """Metrics and latency of artifacts beside their PyTorch originals'."""
    from bench.zoo.table import HEADER, lines, measure

    rows = []
    if not as_json:
        click.echo(HEADER)
    for name in names or FAMILIES:
        try:
            row = measure(name)
        except NoDataError as error:
            click.echo(f"{name}: {error}", err=True)
            continue
        rows.append(asdict(row))
        if not as_json:
            click.echo("\n".join(lines(row)))
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "rows": rows}, indent=1))


if __name__ == "__main__":
    zoo()

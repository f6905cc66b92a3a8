"""python -m bench.peers: the one way to compare."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bench.peers import OPTIMIZED, PEERS, Peer
from bench.peers.environment import EnvironmentFailedError, place, prepare, python
from bench.peers.places import ROOT
from bench.zoo import FAMILIES, FULL_SIZE
from infer.cli.progress import Progress
from infer.errors import InferError
from infer.machine import this_machine
from infer.measure.comparison import Asked
from infer.measure.scenarios import MULTI_STREAM_SAMPLES, SCENARIOS

_CANDIDATES = (*OPTIMIZED, *PEERS)
_NAMES = [peer.name for peer in _CANDIDATES]


@click.group()
def peers() -> None:
    """What a user would pick instead of infer, side by side with it."""


@peers.command("list")
def list_peers() -> None:
    """Name the peers, what they take, and where their environments are."""
    for peer in PEERS:
        ready = python(peer.requirements) is not None
        where = "the project's own" if not peer.requirements else place(peer.requirements).name
        click.echo(f"{peer.name:<38} {peer.takes:<21} {peer.about}")
        click.echo(f"{'':<38} settings: {peer.documentation}")
        click.echo(f"{'':<38} environment: {where}{'' if ready else ', not prepared'}")


@peers.command("prepare")
@click.argument("names", nargs=-1, type=click.Choice(_NAMES))
def prepare_peers(names: tuple[str, ...]) -> None:
    """Install the environments of peers, of all of them by default."""
    failed = False
    for requirements in dict.fromkeys(peer.requirements for peer in _chosen(names) if peer.requirements):
        try:
            with Progress() as progress:
                click.echo(f"{prepare(requirements, progress)}: {', '.join(requirements)}")
        except EnvironmentFailedError as error:
            click.echo(f"Error: {error}", err=True)
            failed = True
    if failed:
        raise click.exceptions.Exit(1)


@peers.command()
@click.argument("families", nargs=-1, type=click.Choice([*FAMILIES, *FULL_SIZE]))
@click.option("--peer", "names", multiple=True, type=click.Choice(_NAMES), help="Default: all. Repeatable.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=20.0,
    show_default=True,
    help="For each scenario of a family, all candidates together.",
)
@click.option(
    "--starts",
    type=click.IntRange(1, 50),
    default=1,
    show_default=True,
    help="How often each candidate's process is started in that time; several make ratios repeatable.",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(list(SCENARIOS)),
    default=("single-stream",),
    show_default=True,
    help="How to ask. Repeatable.",
)
@click.option(
    "--latency-bound",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Of the server scenario's p99.",
)
@click.option(
    "--samples",
    type=click.IntRange(1, 4096),
    default=MULTI_STREAM_SAMPLES,
    show_default=True,
    help="In a query of the multi-stream scenario.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Default: the cores this process may use.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / "bench/results/peers",
    help="Where FAMILY.json goes; default: bench/results/peers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def compare(
    context: click.Context,
    families: tuple[str, ...],
    names: tuple[str, ...],
    seconds: float,
    starts: int,
    scenarios: tuple[str, ...],
    latency_bound: float | None,
    samples: int,
    threads: int | None,
    output: Path,
    as_json: bool,
) -> None:
    """Measure the artifact of each family beside its peers, and write a record each."""
    # these import torch, which `list` can do without
    from bench.peers.material import from_sentences, material
    from bench.peers.side_by_side import Compared, side_by_side
    from bench.peers.table import lines, summary
    from bench.zoo.debian import NoDataError

    asked = Asked(tuple(dict.fromkeys(scenarios)), seconds, latency_bound, samples, starts=starts)
    budget = threads or this_machine().cores
    output.mkdir(parents=True, exist_ok=True)
    done: list[Compared] = []
    failed = interrupted = False
    for family in families or FAMILIES:
        try:
            with Progress(quiet=as_json) as progress:

                def told(sentence: str, family: str = family, progress: Progress = progress) -> None:
                    progress(f"{family}: {sentence}")

                whole = material(family, told)
                texts = from_sentences(whole)
                for each in [whole] if texts is None else [whole, texts]:
                    chosen = [peer for peer in _chosen(names) if peer.texts or each is whole]
                    compared = side_by_side(each, chosen, asked, budget, told)
                    compared.record.write(output / f"{each.name.replace(', ', '-').replace(' ', '-')}.json")
                    done.append(compared)
                    if not as_json:
                        click.echo("\n".join([*lines(compared), ""]))
                    interrupted = interrupted or compared.record.conditions.interrupted
                    if interrupted:
                        break
        except KeyboardInterrupt:
            interrupted = True
        except NoDataError as error:
            click.echo(f"{family}: {error}", err=True)
        except InferError as error:
            failed = True
            click.echo(f"Error: {family}: {error}", err=True)
        if interrupted:
            break
    if as_json:
        records = {compared.name: compared.record.to_data() for compared in done}
        click.echo(json.dumps({"schema_version": 1, "records": records}, indent=1))
    else:
        click.echo("\n".join(summary(done)))
    if interrupted:
        context.exit(130)
    if failed:
        context.exit(1)


@peers.command("lengths")
@click.argument("family", type=click.Choice([*FAMILIES, *FULL_SIZE]))
@click.option("--peer", "names", multiple=True, type=click.Choice(_NAMES), help="Default: all. Repeatable.")
@click.option("--inputs", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option("--rounds", type=click.IntRange(3, 1000), default=12, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path))
def lengths_of(family: str, names: tuple[str, ...], inputs: int, rounds: int, output: Path | None) -> None:
    """Ask inputs of many lengths, one after another: what a service gets."""
    from bench.peers.lengths import in_turns, lines
    from bench.peers.material import material
    from bench.report import report

    machine = this_machine()
    with Progress() as progress:
        found = material(family, progress)
        timed = in_turns(found, _chosen(names), machine.cores, inputs, rounds, progress)
    best = next(
        (each.name for each in timed if each.name == "infer-budget" and not each.excluded), timed[0].name
    )
    about = (
        f"{family}: {inputs} of its inputs, one after another, {rounds} rounds of all candidates in turns,"
        f" each in a process of its own; {machine.cpu}, {machine.cores} cores."
    )
    report("Inputs of many lengths", [about, "", *lines(timed, best)], "bench.peers lengths", output)


@peers.command("standing")
@click.argument(
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=ROOT / "bench/results/optimized",
)
def standing_of(folder: Path) -> None:
    """What infer optimize gave, over the best of the peers: from records in FOLDER, or in one of its
    folders for each machine."""
    from bench.peers.standing import standing
    from infer.measure.record import Record, read_record

    machines: dict[Path, dict[str, Record]] = {}
    for path in sorted(folder.rglob("*.json")):
        machines.setdefault(path.parent, {})[path.stem] = read_record(path)
    if not machines:
        raise click.ClickException(
            f"{folder} has no records; make some with: python -m bench.peers compare"
        )
    for machine, records in machines.items():
        if machine != folder:
            click.echo(f"## {machine.relative_to(folder)}\n")
        click.echo("\n".join([*standing(records), ""]))


def _chosen(names: tuple[str, ...]) -> list[Peer]:
    return [peer for peer in _CANDIDATES if not names or peer.name in names]


if __name__ == "__main__":
    peers()

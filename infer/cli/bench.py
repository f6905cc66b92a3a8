"""infer bench"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from infer.cli.output import print_json, stdout_kept_clean
from infer.cli.progress import Progress
from infer.cli.records import page_writer, show_change, show_gate, show_record, show_records
from infer.errors import missing_package
from infer.machine import this_machine
from infer.measure.candidates import Candidate, Local, disagreement, names_of, opened
from infer.measure.comparison import Asked, Found, compare
from infer.measure.feeds import Feeds, example_feeds
from infer.measure.gate import changes, parse_condition
from infer.measure.record import ColdStart, Conditions, Entry, Record, Series, read_record
from infer.measure.scenarios import MULTI_STREAM_SAMPLES, SCENARIOS
from infer.npz import load_npz
from infer.options import PlanOptions
from infer.parity import TOLERANCES, Tolerance
from infer.schema import encode
from infer.session import open_artifact
from infer.signature import Array, Signature, TensorSpec


@click.command("bench")
@click.argument("candidates", nargs=-1, required=True)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    default=("single-stream",),
    show_default=True,
    metavar="NAME",
    help=f"How to ask: {', '.join(SCENARIOS)}. Repeatable.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    help="For each scenario at each point, all candidates together.",
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
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="DIM=N",
    help="The size of a dim, such as sequence=128. Repeatable.",
)
@click.option(
    "--sweep",
    multiple=True,
    metavar="DIM=N,N,…",
    help="Measure at several sizes of a dim, of batch, or numbers of threads. Repeatable.",
)
@click.option(
    "--feeds",
    type=click.Path(path_type=Path, readable=False),
    help="Inputs from an .npz file; default: the artifact's golden feeds.",
)
@click.option(
    "--weights", type=click.Path(path_type=Path, readable=False), help="Of candidates that are sources."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of every candidate; default: the cores this process may use.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option("--variant", help="Which variant of artifacts; default: the first.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    metavar="SCALED",
    help="How far answers may be apart, relative to an output's largest value; default: 2e-5 for float32.",
)
@click.option(
    "--cold-start",
    is_flag=True,
    help="Measure new processes, too: import, load, first answer, peak memory.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, readable=False),
    help="Write the record to this .json file.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, readable=False),
    help="Write a page with plots to this file: of what is measured, or of records.",
)
@click.option(
    "--baseline", type=click.Path(path_type=Path, readable=False), help="A record to compare with."
)
@click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help='Exit 1 if it surely holds against the baseline: "p99 > +10%". Repeatable.',
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(
    context: click.Context,
    candidates: tuple[str, ...],
    scenarios: tuple[str, ...],
    seconds: float,
    latency_bound: float | None,
    samples: int,
    sizes: tuple[str, ...],
    sweep: tuple[str, ...],
    feeds: Path | None,
    weights: Path | None,
    threads: int | None,
    device: str,
    variant: str | None,
    tolerance: float | None,
    cold_start: bool,
    output: Path | None,
    html: Path | None,
    baseline: Path | None,
    conditions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say how fast candidates answer, beside each other.

    CANDIDATES are artifacts, .onnx files, PyTorch sources as `infer convert` takes them, or records (.json)
    that an earlier run wrote with -o: these are shown, not measured again. All get the same inputs and
    threads, and must give the same answers; ratios are to the first. They take turns, so that a machine
    that drifts hits all of them alike. Intervals hold with 95 % confidence.

    \b
    Examples:
      infer bench minilm.infer ./all-MiniLM-L6-v2 --size sequence=128
      infer bench a.onnx b.onnx --scenario offline --sweep batch=1,8,32
      infer bench net.infer --scenario server --latency-bound 50
      infer bench old.json new.json --html page.html
      infer bench net.infer -o new.json --baseline old.json --fail-if "p99 > +10%"
    """
    wanted = [parse_condition(text) for text in conditions]
    if wanted and baseline is None:
        raise click.UsageError("--fail-if compares with a baseline; name one with --baseline RECORD.json")
    before = read_record(baseline) if baseline else None
    write_page = None if html is None else page_writer(html)
    records = [text for text in candidates if text.endswith(".json")]
    if records:
        if len(records) < len(candidates):
            raise click.UsageError("records are shown, other candidates are measured; give either")
        found = [read_record(Path(text)) for text in records]
        if write_page is not None:
            write_page(found, records)
        if as_json:
            print_json({"records": [record.to_data() for record in found]})
        else:
            show_records(found, records)
        return
    swept = dict(map(_sweep, sweep))
    asked = Asked(
        scenarios=tuple(dict.fromkeys(scenarios)),
        seconds=seconds,
        bound_ms=latency_bound,
        samples=samples,
        sizes=dict(map(_size, sizes)),
        sweep={name: values for name, values in swept.items() if name != "threads"},
    )
    budget = threads or this_machine().cores
    tolerances = TOLERANCES if tolerance is None else _tolerances(tolerance)
    given = load_npz(feeds) if feeds else None
    parts: list[_Part] = []
    with Progress(quiet=as_json) as progress:
        for count in swept.get("threads", (budget,)):
            options = PlanOptions(device=device, variant=variant, num_threads=count)
            with stdout_kept_clean(), _opened(candidates, options, given, weights) as (all_, arrays):
                progress("comparing answers")
                said = {c.name: disagreement(all_[0], c, arrays, tolerances) for c in all_[1:]}
                good = [c for c in all_ if not said.get(c.name)]
                part = compare(good, arrays, asked, progress)
                if "threads" in swept:
                    part = replace(part, series=tuple(_with_threads(s, count) for s in part.series))
                parts.append(_Part(part, all_, said, arrays))
            if part.interrupted:
                break
        starts: list[ColdStart] = []
        if cold_start and not part.interrupted:
            starts = _cold_starts(candidates, parts[-1], device, budget, progress)
    record = _record(parts, starts, asked, budget)
    if output is not None:
        record.write(output)
    if write_page is not None:
        told = [(before, str(baseline))] if before else []
        told.append((record, str(output) if output else "this measurement"))
        write_page([each for each, _ in told], [name for _, name in told])
    compared = changes(record, before, wanted) if before and wanted else []
    if as_json:
        print_json({**record.to_data(), "changes": [encode(change) for change in compared]})
    else:
        show_record(record)
        if before is not None:
            show_change(record, before)
        show_gate(compared)
    if record.conditions.interrupted:
        context.exit(130)
    if any(entry.excluded for entry in record.candidates) or any(change.failed for change in compared):
        context.exit(1)


class _Part:
    """What was found with one number of threads."""

    def __init__(
        self, found: Found, candidates: Sequence[Candidate], said: Mapping[str, str | None], feeds: Feeds
    ) -> None:
        self.found, self.candidates, self.said, self.feeds = found, candidates, said, feeds


@contextmanager
def _opened(
    texts: Sequence[str], options: PlanOptions, given: Feeds | None, weights: Path | None
) -> Iterator[tuple[list[Candidate], Feeds]]:
    """All candidates, and feeds for them. Graphs come first, because sources may need their feeds."""
    names = names_of(texts)
    found: dict[str, Candidate] = {}
    feeds = given
    with ExitStack() as stack:
        for text, name in zip(texts, names, strict=True):
            if _is_graph(text):
                found[name] = stack.enter_context(opened(Path(text), options, name))
                feeds = feeds or example_feeds(open_artifact(Path(text)))
        known = next(iter(found.values())).signature if found else None
        for text, name in zip(texts, names, strict=True):
            if name not in found:
                candidate, example = stack.enter_context(
                    _source(text, name, options.num_threads or 1, feeds, weights, known)
                )
                found[name], feeds = candidate, feeds or example
        assert feeds is not None
        yield [found[name] for name in names], feeds


def _is_graph(text: str) -> bool:
    path = Path(text)
    return path.suffix in (".onnx", ".infer") or (path / "manifest.json").is_file()


@contextmanager
def _source(
    text: str,
    name: str,
    threads: int,
    feeds: Feeds | None,
    weights: Path | None,
    known: Signature | None,
) -> Iterator[tuple[Candidate, Feeds]]:
    """A model in PyTorch, eagerly run, with as many threads as the others."""
    try:
        import torch

        from converters.original import original
    except (ImportError, OSError) as error:
        raise missing_package("torch", "convert", error) from error
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with original(text, name, feeds, weights) as asked:
            signature = known or _signature(asked.feeds)
            described = f"PyTorch {torch.__version__}, eager, cpu, threads {threads}"
            yield Local(name, described, signature, asked.run), asked.feeds
    finally:
        torch.set_num_threads(before)


def _signature(feeds: Mapping[str, Array]) -> Signature:
    """Of a model of which only an example is known: its first axis is taken for the batch."""
    specs = [
        TensorSpec(name, array.dtype.name, ("batch", *array.shape[1:]) if array.ndim else ())
        for name, array in feeds.items()
    ]
    return Signature(tuple(specs), ())


def _cold_starts(
    texts: Sequence[str], part: _Part, device: str, threads: int, progress: Progress
) -> list[ColdStart]:
    from infer.measure.cold_start import cold_starts

    paths = {name: Path(text) for text, name in zip(texts, names_of(texts), strict=True) if _is_graph(text)}
    paths = {name: path for name, path in paths.items() if not part.said.get(name)}
    return cold_starts(paths, part.feeds, device, threads, progress)


def _record(parts: Sequence[_Part], starts: Sequence[ColdStart], asked: Asked, threads: int) -> Record:
    machine = this_machine()
    last = parts[-1]
    return Record(
        conditions=Conditions(
            harness="built-in",
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seconds=asked.seconds,
            threads=threads,
            noise=max(part.found.noise for part in parts),
            interrupted=last.found.interrupted,
            cpu=machine.cpu,
            isa=machine.isa,
            cores=machine.cores,
            memory_bytes=machine.memory_bytes,
            system=machine.system,
            versions=_versions(),
        ),
        candidates=tuple(Entry(c.name, c.described, last.said.get(c.name)) for c in last.candidates),
        series=tuple(series for part in parts for series in part.found.series),
        cold_starts=tuple(starts),
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in ("infer-onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _with_threads(series: Series, threads: int) -> Series:
    return replace(series, sizes={**series.sizes, "threads": threads})


def _sweep(text: str) -> tuple[str, tuple[int, ...]]:
    match = re.fullmatch(r"([^=]+)=(\d+(?:,\d+)*)", text)
    if not match or "0" in match[2].split(","):
        raise click.UsageError(f"--sweep '{text}' is not DIM=N,N,…, such as batch=1,2,4,8")
    return match[1], tuple(dict.fromkeys(map(int, match[2].split(","))))


def _size(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"([^=]+)=(\d+)", text)
    if not match:
        raise click.UsageError(f"--size '{text}' is not DIM=N, such as sequence=128")
    return match[1], int(match[2])


def _tolerances(scaled: float) -> dict[str, Tolerance]:
    return {name: replace(tolerance, scaled=scaled) for name, tolerance in TOLERANCES.items()}

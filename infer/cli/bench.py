"""infer bench"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from infer.cli import interrupts
from infer.cli.candidates import Opened, opened_all
from infer.cli.output import print_json, stdout_kept_clean
from infer.cli.progress import Progress
from infer.cli.records import PageWriter, page_writer, show_change, show_gate, show_record, show_records
from infer.feeds import Feeds
from infer.machine import this_machine
from infer.measure import loadgen
from infer.measure.candidates import Candidate, Local
from infer.measure.cold_start import cold_starts
from infer.measure.comparison import Asked, Found, compare, conditions, no_limit, one_sample
from infer.measure.gate import changes, changes_within, parse_condition
from infer.measure.peaks import machine_peaks
from infer.measure.profile import profile
from infer.measure.record import ColdStart, Entry, Limit, Peaks, Profile, Record, Waterfall, read_record
from infer.measure.scenarios import MULTI_STREAM_SAMPLES, SCENARIOS
from infer.measure.waterfall import waterfall
from infer.measure.work import Work, count_work, limit_of
from infer.npz import load_npz
from infer.options import PlanOptions
from infer.parity import TOLERANCES, Tolerance
from infer.schema import encode
from infer.session import Session

THREADS = "threads"
"""What `--sweep` calls the number of threads, beside the names of dims."""


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
    "--harness",
    type=click.Choice(["built-in", "loadgen"]),
    default="built-in",
    show_default=True,
    help="Who asks: infer itself, or MLPerf's LoadGen (results are unofficial).",
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
@click.option("--backend", help="onnxruntime or openvino; default: the one the variant was made for.")
@click.option("--variant", help="Which variant of artifacts; default: the fastest here, or the first.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    metavar="SCALED",
    help="How far answers may be apart, relative to an output's largest value; default: 2e-5 for float32.",
)
@click.option(
    "--limits/--no-limits",
    default=True,
    show_default=True,
    help="Say how close each comes to what this machine can do: counts the graph's work, and measures the"
    " machine's peaks if that was not done before.",
)
@click.option(
    "--profile",
    "profiled",
    is_flag=True,
    help="Say where a query's time goes: by operator, and by the module of the original.",
)
@click.option(
    "--input",
    "example",
    metavar="FILE|TEXT",
    help="One input of the artifacts' task: say where the time of its answer goes, stage by stage.",
)
@click.option(
    "--untrusted",
    is_flag=True,
    help="Try each graph in a process of its own first, within limits of memory and time.",
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
    "fail_if",
    multiple=True,
    metavar="CONDITION",
    help='Exit 1 if it surely holds, against the baseline or else the first candidate: "p99 > +10%".'
    " Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(
    context: click.Context,
    candidates: tuple[str, ...],
    scenarios: tuple[str, ...],
    seconds: float,
    latency_bound: float | None,
    harness: str,
    samples: int,
    sizes: tuple[str, ...],
    sweep: tuple[str, ...],
    feeds: Path | None,
    weights: Path | None,
    threads: int | None,
    device: str,
    backend: str | None,
    variant: str | None,
    tolerance: float | None,
    limits: bool,
    profiled: bool,
    example: str | None,
    untrusted: bool,
    cold_start: bool,
    output: Path | None,
    html: Path | None,
    baseline: Path | None,
    fail_if: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say how fast candidates answer, beside each other.

    CANDIDATES are artifacts, .onnx files, PyTorch sources as `infer convert` takes them, or records (.json)
    that an earlier run wrote with -o: these are shown, not measured again. All get the same inputs and
    threads, and must give the same answers; ratios are to the first. They take turns, so that a machine
    that drifts hits all of them alike. Intervals hold with 95 % confidence.

    \b
    Scenarios, as in MLPerf LoadGen:
      single-stream   one sample after another; judged by p90
      multi-stream    --samples at once, one such query after another; judged by p99
      server          samples arrive at random; the highest rate whose p99 meets --latency-bound
      offline         all samples at hand; judged by samples a second

    \b
    Examples:
      infer bench minilm.infer ./all-MiniLM-L6-v2 --size sequence=128
      infer bench a.onnx b.onnx --scenario offline --sweep batch=1,8
      infer bench net.infer --scenario server --latency-bound 50
      infer bench minilm.infer --profile --input "a sentence"
      infer bench old.json new.json --html page.html
      infer bench net.infer -o new.json --baseline old.json --fail-if "p99 > +10%"
      infer bench today.infer yesterday.infer --fail-if "p50 > +5%"
    """
    if harness == "loadgen":
        loadgen.check_installed()
    swept = dict(map(_sweep, sweep))
    asked = Asked(
        scenarios=tuple(dict.fromkeys(scenarios)),
        seconds=seconds,
        bound_ms=latency_bound,
        samples=samples,
        sizes=dict(map(_size, sizes)),
        sweep={name: values for name, values in swept.items() if name != THREADS},
        loadgen=harness == "loadgen",
    )
    wanted = [parse_condition(text) for text in fail_if]
    write_page = None if html is None else page_writer(html)
    if any(text.endswith(".json") for text in candidates):
        _show(candidates, as_json, write_page)
        return
    if wanted and baseline is None and len(candidates) < 2:
        raise click.UsageError(
            "--fail-if compares with a baseline or between candidates; add --baseline RECORD.json"
        )
    before = read_record(baseline) if baseline else None
    given = load_npz(feeds) if feeds else None
    tolerances = TOLERANCES if tolerance is None else _tolerances(tolerance)
    cores = threads or this_machine().cores
    counts = swept.get(THREADS, (cores,))
    wishes = PlanOptions(device=device, backend=backend, variant=variant)
    parts: list[_Part] = []
    starts: list[ColdStart] = []
    profiles: list[Profile] = []
    waterfalls: list[Waterfall] = []
    with Progress(quiet=as_json) as progress:
        for count in counts:
            options = replace(wishes, num_threads=count)
            with stdout_kept_clean(), opened_all(candidates, options, given, weights, untrusted) as opened:
                limit = _Limits(count, progress) if limits else None
                found = compare(
                    opened.candidates, opened.feeds, asked, tolerances, progress, limit or no_limit
                )
                parts.append(_Part(opened, found, count, limit.peaks if limit else None))
                if found.interrupted:
                    break
                for candidate, session in _timed(opened, found):
                    if profiled:
                        progress(f"profiling {candidate.name}")
                        at = one_sample(candidate, opened.feeds, asked.points()[0])
                        plan = session.plan_for(at)
                        profiles.append(profile(session.artifact, plan, at, candidate.name))
                    if example is not None:
                        progress(f"following one input through {candidate.name}")
                        waterfalls.append(waterfall(session, _example(session, example), candidate.name))
        else:
            if cold_start:
                wishes = replace(wishes, num_threads=cores)
                starts = cold_starts(opened.paths(), opened.feeds, wishes, progress)
    record = replace(
        _record(parts, starts, asked, cores), profiles=tuple(profiles), waterfalls=tuple(waterfalls)
    )
    if output is not None:
        record.write(output)
    if write_page is not None:
        told = [(before, str(baseline))] if before else []
        told.append((record, str(output) if output else "this measurement"))
        write_page([each for each, _ in told], [name for _, name in told])
    changed = changes(record, before, wanted) if before else changes_within(record, wanted)
    if as_json:
        print_json({**record.to_data(), "changes": [encode(change) for change in changed]})
    else:
        show_record(record)
        if before is not None:
            show_change(record, before)
        show_gate(changed)
    if record.conditions.interrupted:
        context.exit(interrupts.status())
    failed = any(change.failed for change in changed)
    if failed or record.exclusions or any(entry.excluded for entry in record.candidates):
        context.exit(1)


def _show(texts: Sequence[str], as_json: bool, write_page: PageWriter | None) -> None:
    if not all(text.endswith(".json") for text in texts):
        raise click.UsageError("records are shown, other candidates are measured; give either")
    found = [read_record(Path(text)) for text in texts]
    if write_page is not None:
        write_page(found, texts)
    if as_json:
        print_json({"records": [record.to_data() for record in found]})
    else:
        show_records(found, texts)


class _Limits:
    """The limit of queries of candidates that run a graph on the CPU; each is counted once."""

    def __init__(self, threads: int, progress: Progress) -> None:
        progress("measuring what the machine can do, once")
        self.peaks = machine_peaks(threads)
        self._counted: dict[object, Work] = {}

    def __call__(self, candidate: Candidate, feeds: Feeds, median_ms: float) -> Limit | None:
        session = candidate.session if isinstance(candidate, Local) else None
        if session is None or session.plan.device != "cpu":
            return None
        key = (candidate.name, *(array.shape for array in feeds.values()))
        if key not in self._counted:
            self._counted[key] = count_work(session.artifact, session.plan_for(feeds), feeds)
        return limit_of(self._counted[key], self.peaks, median_ms)


@dataclass(frozen=True)
class _Part:
    """What was found with one number of threads."""

    opened: Opened
    found: Found
    threads: int
    peaks: Peaks | None


def _record(parts: Sequence[_Part], starts: Sequence[ColdStart], asked: Asked, threads: int) -> Record:
    last = parts[-1]
    swept = len({part.threads for part in parts}) > 1 or last.threads != threads
    series = [
        replace(each, sizes={**each.sizes, THREADS: part.threads}) if swept else each
        for part in parts
        for each in part.found.series
    ]
    exclusions = [each for part in parts for each in part.found.exclusions]
    entries = []
    for name, described in last.opened.described.items():
        timed = any(each.candidate == name for each in series)
        why = [each.reason for each in exclusions if each.candidate == name]
        reason = last.opened.failed.get(name) or (why[0] if why and not timed else None)
        entries.append(Entry(name, described, reason))
    left_out = {entry.name for entry in entries if entry.excluded}
    return Record(
        conditions=conditions(
            replace(last.found, noise=max(part.found.noise for part in parts)),
            asked,
            threads,
            tuple(part.peaks for part in parts if part.peaks),
        ),
        candidates=tuple(entries),
        series=tuple(series),
        exclusions=tuple(each for each in exclusions if each.candidate not in left_out),
        cold_starts=tuple(starts),
    )


def _timed(opened: Opened, found: Found) -> Iterator[tuple[Local, Session]]:
    """The artifacts and graphs that were not left out, with their sessions."""
    names = {series.candidate for series in found.series}
    for candidate in opened.candidates:
        if isinstance(candidate, Local) and candidate.session and candidate.name in names:
            yield candidate, candidate.session


def _example(session: Session, text: str) -> Any:
    """One input of the session's task: of the file of that name, or else what the text says."""
    path = Path(text)
    return session.task.read(path)[0] if path.is_file() else session.task.parse(text)


def _sweep(text: str) -> tuple[str, tuple[int, ...]]:
    match = re.fullmatch(r"([^=]+)=(\d+(?:,\d+)*)", text)
    if not match or 0 in map(int, match[2].split(",")):
        raise click.UsageError(f"--sweep '{text}' is not DIM=N,N,…, such as batch=1,2,4,8")
    return match[1], tuple(dict.fromkeys(map(int, match[2].split(","))))


def _size(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"([^=]+)=(\d+)", text)
    if not match or not int(match[2]):
        raise click.UsageError(f"--size '{text}' is not DIM=N, such as sequence=128")
    return match[1], int(match[2])


def _tolerances(scaled: float) -> dict[str, Tolerance]:
    return {name: replace(tolerance, scaled=scaled) for name, tolerance in TOLERANCES.items()}

"""infer optimize"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infer.batching.proof import NEIGHBOURLY
from infer.cli import interrupts
from infer.cli.output import heading, print_json, rows
from infer.cli.progress import Progress
from infer.errors import InferError, missing_package
from infer.session import open_artifact
from infer.wording import shown, size

if TYPE_CHECKING:
    from infer.optimizer import Optimized, OtherRows, Verdict


@click.command("optimize")
@click.argument("artifact", type=click.Path(path_type=Path, readable=False))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, readable=False),
    help="Where the optimized artifact goes.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="TEXT",
    help="What answers may lose: equal (the default), cosine>=0.999, min-cosine>=0.99, accuracy-0.5%,"
    " rmse+1%. Repeatable; all must hold.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, readable=False),
    help="Inputs to calibrate with and to be judged on, as infer run and infer eval take them.",
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput", "size"]),
    default="latency",
    show_default=True,
    help="What is to become better: the time of single rows; that of batches of 8, also several at once; or"
    " the file's size, for which rows may take about 2 % longer.",
)
@click.option(
    "--time",
    "limit",
    default="10m",
    show_default=True,
    metavar="TIME",
    help="Nothing new is begun after that: 90s, 10m, 1h.",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Threads to use; default: what is fastest of a few."
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="Try only this one beside the reference's: onnxruntime, openvino. Repeatable; default: all"
    " that are installed.",
)
@click.option(
    "--strict-fusion",
    is_flag=True,
    help="Exit with 1 if the original does something more often than it is fused in the output, unless the"
    " fused form was measured here and was not faster; or if that cannot be told.",
)
@click.option(
    "--prepare/--no-prepare",
    default=True,
    show_default=True,
    help="Keep the best graph as it is optimized here while loading, too: larger, but loads sooner. Never"
    " for the objective size.",
)
@click.option("--force", is_flag=True, help="Replace the artifact at the output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(
    context: click.Context,
    artifact: Path,
    output: Path,
    budgets: tuple[str, ...],
    data: Path | None,
    objective: str,
    limit: str,
    threads: int | None,
    device: str,
    backends: tuple[str, ...],
    strict_fusion: bool,
    prepare: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make an artifact faster on this machine, and prove that it is.

    Graphs are rewritten pass by pass, and quantized if the budget allows it. What answers within the budget
    and was measured to be faster here is kept, with its evidence; the rest is dropped, and the table says
    why. The output holds the original graph, too, which other machines use until they are tuned.

    Ctrl-C ends the search: the best so far is written, and the same command goes on from there.

    \b
    Examples:
      infer optimize minilm.infer -o fast.infer
      infer optimize minilm.infer -o fast.infer --budget "cosine>=0.99" --data sentences.txt
      infer optimize classifier.infer -o small.infer --budget accuracy-0.5% --data photos/
    """
    try:
        from infer.optimizer import INTERRUPTED, OptimizeOptions, optimize, parse_budget
    except ImportError as error:
        raise missing_package("onnx-ir", "optimize", error) from error
    options = OptimizeOptions(
        budgets=tuple(parse_budget(text) for text in budgets),
        data=data,
        objective=objective,
        time_s=_seconds(limit),
        device=device,
        num_threads=threads,
        backends=backends,
        prepare=prepare,
        overwrite=force,
    )
    with Progress(quiet=as_json) as progress:
        found = optimize(open_artifact(artifact), output, options, progress)
    if as_json:
        print_json(_document(found))
    else:
        _report(found, output)
    if found.unfinished:
        click.echo(f"Not all was tried ({found.unfinished}); the same command goes on from here.", err=True)
    if strict_fusion and (broken := [str(each) for each in found.shortfalls if not each.excused]):
        raise InferError(f"not all was fused: {'; '.join(broken)}")
    if found.unfinished == INTERRUPTED:
        context.exit(interrupts.status())


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", text.strip())
    if not match:
        raise click.UsageError(f"--time '{text}' is no time, such as 90s, 10m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _document(found: Optimized) -> dict[str, Any]:
    other = found.outcome.other
    return {
        "artifact": str(found.artifact.path),
        "best": found.best,
        "num_threads": found.outcome.settings.num_threads,
        "spinning": found.outcome.settings.spinning,
        "prepacking": found.outcome.settings.prepacking,
        "huge_pages": found.outcome.settings.huge_pages,
        "streams": found.outcome.settings.streams,
        "ratio": None if found.outcome.ratio is None else asdict(found.outcome.ratio),
        "other_rows": None if other is None else _other_rows(other),
        "budget": found.budget,
        "reference_metrics": found.metrics,
        "data": found.data,
        "unfinished": found.unfinished,
        "elsewhere": found.elsewhere,
        "shortfalls": [asdict(shortfall) for shortfall in found.shortfalls],
        "verdicts": [
            {**asdict(verdict), "changed": verdict.changed, "replaced": verdict.name in found.replaced}
            for verdict in found.verdicts
        ],
    }


def _other_rows(other: OtherRows) -> dict[str, Any]:
    return {
        "variant": other.variant,
        "runtime": other.runtime,
        **asdict(other.settings),
        "rows": other.rows,
        "ratio": asdict(other.ratio),
        "rows_from": other.rows_from,
        "larger": other.larger,
    }


def _report(found: Optimized, output: Path) -> None:
    heading("what was tried")
    cells = [("", "rewrote", "answers", "time", ""), *(_cells(found, each) for each in found.verdicts)]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    for row in cells:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo(f"  {shown(line.rstrip())}")
    manifest, ratio = found.artifact.manifest, found.outcome.ratio
    variant = next(v for v in manifest.variants if v.name == found.best)
    heading("result")
    facts = [
        ("variant", f"{variant.name}, {variant.precision}, {size(variant.size_bytes)}"),
        (
            "runs on",
            f"{_on(found.outcome.runtime, variant.compute_dtype)}, {found.outcome.settings.said}",
        ),
        ("budget", _budget(found)),
        ("judged on", found.data),
        ("artifact", str(output)),
    ]
    nearest = found.nearest
    if nearest is not None:
        facts.append(("nearest", f"{nearest.name}: {_answers(found, nearest)}"))
    if ratio is not None:
        time = f"×{ratio.value:.3f} of the original's ({ratio.low:.3f} to {ratio.high:.3f})"
    elif found.in_steps:
        time = "faster step by step; interrupted before all of it was timed beside the original"
    elif found.outcome.other:
        time = "as the original's, but for what follows"
    elif nearest is not None:
        time = "nothing that approximates was within the budget; the output runs as the original does"
    else:
        time = "nothing was faster here; the output runs as the original does"
    facts.insert(0, ("time", time))
    if other := found.outcome.other:
        at = f"from {other.rows_from} rows" if other.larger else f"below {other.rows_from} rows"
        runtime = _on(other.runtime, other.found.compute_dtype)
        said = f"{other.variant} on {runtime}, {other.settings.said}"
        facts.insert(
            3, (at, f"{said}: ×{other.ratio.value:.3f} of the time of {found.best} with {other.rows}")
        )
    if found.elsewhere:
        facts.append(("elsewhere", found.elsewhere))
    facts += [("not fused", str(shortfall)) for shortfall in found.shortfalls]
    rows(facts)


def _on(runtime: str, compute_dtype: str | None) -> str:
    return f"{runtime} in {compute_dtype}" if compute_dtype else runtime


def _budget(found: Optimized) -> str:
    """What answers were held to, and what the reference has of it."""
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
    return f"{found.budget}; the original has {metrics}" if metrics else found.budget


def _answers(found: Optimized, verdict: Verdict) -> str:
    if not verdict.figures:
        return ""
    figures = verdict.figures
    metrics = [f"{name} {figures[name]:.4f}" for name in found.metrics if name in figures]
    if figures["equal"]:
        return ", ".join(("equal", *metrics))
    return ", ".join((f"cosine {figures['cosine']:.5f}, least {figures['min-cosine']:.5f}", *metrics))


def _cells(found: Optimized, verdict: Verdict) -> tuple[str, str, str, str, str]:
    time = ""
    if verdict.ratio is not None:
        ratio = verdict.ratio
        time = f"×{ratio.value:.3f} ({ratio.low:.3f}–{ratio.high:.3f}) of {verdict.against}'s"
    why = f"{'kept' if verdict.kept else 'dropped'}: {verdict.why}"
    if verdict.name in found.replaced:
        why += ", then replaced"
    if verdict.neighbours is not None and verdict.neighbours > NEIGHBOURLY:
        moved = f"{verdict.neighbours:.1%}"
        why += f"; an answer moves by up to {moved} with its neighbours, so a batcher runs requests apart"
    if verdict.found and verdict.declined:
        why += f"; elsewhere not rewritten: {verdict.reasons}"
    rewrote = f"{verdict.rewritten} of {verdict.found}" if verdict.found else ""
    return verdict.name, rewrote, _answers(found, verdict), time, why

"""Sizes a fleet by simulation.

    python -m bench.sizing                        the page bench/results/sizing.md and its plot
    python -m bench.sizing measure [ARTIFACT]     bench/results/sizing.json, on an idle machine
    python -m bench.sizing simulate --rate 50000 --nodes 700 --peak 3    one fleet

--ways 1x1,1x2,2x1 says which workers and threads are measured. Without an artifact, MiniLM is converted.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from bench.sizing.arrivals import Bursts, bursty
from bench.sizing.page import MAX_WAITING, Sizing
from bench.sizing.service import Measured, measure
from bench.sizing.simulation import ROUTING

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.sizing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--service", type=Path, default=RESULTS / "sizing.json", help="measured times")
    commands = parser.add_subparsers(dest="command")
    page = commands.add_parser("page")
    page.add_argument("--scale", type=float, default=1.0, help="below 1: shorter, less exact simulations")
    measuring = commands.add_parser("measure")
    measuring.add_argument("artifact", nargs="?", type=Path)
    measuring.add_argument("--ways", default="1x1,1x2,2x1", help="workers x threads, with commas between")
    measuring.add_argument("--rounds", type=int, default=5)
    measuring.add_argument("--runs", type=int, default=20)
    measuring.add_argument(
        "--processor-time", action="store_true", help="of workers of one thread, on a busy machine"
    )
    one = commands.add_parser("simulate")
    one.add_argument("--nodes", type=int, required=True)
    one.add_argument("--rate", type=float, required=True, help="requests a second, in the mean")
    one.add_argument("--peak", type=float, default=1.0, help="load in bursts, over the mean")
    one.add_argument("--share", type=float, default=0.2, help="part of the time that bursts take")
    one.add_argument("--period", type=float, default=2.0, help="seconds from burst to burst")
    one.add_argument("--seconds", type=float, default=20.0)
    one.add_argument("--routing", choices=list(ROUTING), default="two choices")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        _measure(arguments)
    elif arguments.command == "simulate":
        _simulate(arguments)
    else:
        _page(Sizing(Measured.load(arguments.service), getattr(arguments, "scale", 1.0)))


def _measure(arguments: argparse.Namespace) -> None:
    ways = [tuple(map(int, way.split("x"))) for way in arguments.ways.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.artifact
        if path is None:
            import converters
            from bench.zoo import minilm

            path = Path(folder) / "minilm.infer"
            converters.convert(minilm.folder(), path)
        pairs = [(workers, threads) for workers, threads in ways]
        measured = measure(
            path, pairs, arguments.rounds, arguments.runs, processor_time=arguments.processor_time
        )
    measured.save(arguments.service)
    for way in measured.ways:
        times = ", ".join(f"{rows}: {1e3 * way.median_s(rows):.1f}" for rows in way.rows)
        print(f"{way}: {way.peak:.0f} rows/s; ms by rows: {times}")


def _simulate(arguments: argparse.Namespace) -> None:
    sizing = Sizing(Measured.load(arguments.service))
    bursts = Bursts(arguments.peak, arguments.share, arguments.period)
    arrivals = bursty(arguments.rate, bursts, arguments.seconds, np.random.default_rng())
    found = sizing.run(sizing.best, arguments.nodes, arguments.routing, arrivals)
    print(
        f"{arguments.nodes} nodes of {sizing.best}, {arguments.routing}, at most {MAX_WAITING} at a worker"
    )
    print(f"answered   {found.throughput:.0f} a second, {found.refused_share:.2%} refused")
    print(
        f"latency    p50 {1e3 * found.percentile_s(50):.1f} ms, p99 {1e3 * found.percentile_s(99):.1f} ms"
    )
    print(f"busy       {found.utilisation:.0%}, {found.rows_a_run:.1f} rows a run")


def _page(sizing: Sizing) -> None:
    (RESULTS / "sizing.md").write_text(sizing.page(), encoding="utf-8")
    import matplotlib

    matplotlib.use("svg")
    # the same page from the same figures, and text as text
    matplotlib.rcParams.update({"svg.hashsalt": "sizing", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for routing, points in sizing.curves().items():
        axes.plot(*zip(*points, strict=True), marker=".", label=routing)
    axes.axhline(1e3 * sizing.bound_s, color="grey", linewidth=0.8, linestyle=":")
    axes.set(yscale="log", xlabel="load of 1,000 nodes, over rows a second of full runs", ylabel="p99, ms")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "sizing.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

"""Lines and points: latency, sweeps, throughput against latency, the roofline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from infer.measure.labels import among, at, digits, groups, title
from infer.measure.plots.drawing import BEHIND, GROUND, INK, Axes, log_axis, style, zero_axis
from infer.measure.plots.plot import Order, Plot, ends, keys, scenarios, swept
from infer.measure.record import Peaks, Record, Series
from infer.measure.scenarios import SCENARIOS
from infer.measure.statistics import Estimate


def distributions(record: Record, order: Order) -> Iterator[Plot]:
    """How long queries took, from the fastest to the slowest."""
    for group in scenarios(record.series).values():
        chosen, left_out = ends(groups(group))
        for name, each in chosen:
            yield _distribution(name, each, order, left_out)


def _distribution(name: str, group: Sequence[Series], order: Order, left_out: str) -> Plot:
    # the tail is what matters: half as many queries beyond, one step further
    ticks = {0: "0", 50: "50", 75: "75", 90: "90", 95: "95", 99: "99 %", 100: "max"}
    last = -math.log2(1 - 0.99) + 0.8

    def place(percent: int) -> float:
        return last if percent == 100 else -math.log2(1 - percent / 100)

    def draw(axes: Axes) -> None:
        for series in group:
            look = style(order[series.candidate])
            axes.plot(
                [place(i) for i in range(101)],
                series.quantiles_ms,
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                markevery=[50, 90, 99],
            )
        every = [ms for series in group for ms in series.quantiles_ms]
        bound = group[0].bound_ms
        if bound is not None:
            _bound_line(axes, bound)
            every.append(bound)
        log_axis(axes, "y", min(every), max(every))
        axes.set_xticks([place(q) for q in ticks], list(ticks.values()))
        axes.set_xlim(0, last)
        axes.set_xlabel("share of queries that took no longer")
        axes.set_ylabel("ms, log")

    middles = "; ".join(f"{s.candidate} from {_span(s.quantiles_ms)} ms" for s in group)
    return Plot(
        f"Latency, {name}",
        f"Latency distribution, {name}: {middles}",
        draw,
        keys(group, order),
        f"Marks are at 50, 90 and 99 %.{left_out}",
    )


def sweeps(record: Record, order: Order) -> Iterator[Plot]:
    """What a scenario is judged by, over each dim that has several sizes."""
    for name, group in scenarios(record.series).items():
        for dim in swept(group):
            for where, each in _panels(group, dim):
                yield _sweep(name, dim, where, each, order)


def _sweep(name: str, dim: str, where: str, group: Sequence[Series], order: Order) -> Plot:
    metric = "throughput" if group[0].scenario == "server" else _metric(group)
    unit = "samples/s" if metric == "throughput" else f"{metric}, ms, log"
    steps = sorted({series.sizes[dim] for series in group})

    def draw(axes: Axes) -> None:
        for candidate, line in _lines(group, dim):
            look = style(order[candidate])
            found = [_estimate(series, metric) for series in line]
            values = [e.value for e in found]
            axes.errorbar(
                [series.sizes[dim] for series in line],
                values,
                [
                    [e.value - e.low for e in found],
                    [e.high - e.value for e in found],
                ],
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                capsize=2,
                elinewidth=1,
            )
        ends = [end for s in group for end in (_estimate(s, metric).low, _estimate(s, metric).high)]
        log_axis(axes, "x", steps[0], steps[-1])
        axes.set_xticks(*_spaced(steps))
        if metric == "throughput":
            zero_axis(axes, "y", max(ends))
        else:
            log_axis(axes, "y", min(ends), max(ends))
        axes.set_xlabel(f"{dim}, log")
        axes.set_ylabel(unit)

    kind = "Throughput" if metric == "throughput" else metric
    full = ", ".join(filter(None, (f"{kind} over {dim}", name, where)))
    return Plot(
        full,
        f"{full}, {dim} {steps[0]} to {steps[-1]}: "
        + "; ".join(
            f"{candidate} {_span([_estimate(s, metric).value for s in line])} {unit.removesuffix(', log')}"
            for candidate, line in _lines(group, dim)
        ),
        draw,
        keys(group, order),
    )


def _spaced(steps: Sequence[int]) -> tuple[list[int], list[str]]:
    """Steps whose labels have room beside each other on a logarithmic axis."""
    room = (math.log(steps[-1] / steps[0]) or 1.0) / 9
    kept = [steps[0]]
    for step in steps[1:]:
        if math.log(step / kept[-1]) >= room:
            kept.append(step)
    return kept, [str(step) for step in kept]


def batches(record: Record, order: Order) -> Iterator[Plot]:
    """Throughput against latency, where the batch was swept."""
    for name, group in scenarios(record.series).items():
        # other scenarios have queries of a size of their own
        if "batch" not in swept(group) or any(s.samples != s.sizes.get("batch") for s in group):
            continue
        for _, each in _panels(group, "batch"):
            yield _throughput(f"{name}, {among(each)}", each, order)


def _throughput(name: str, group: Sequence[Series], order: Order) -> Plot:
    latency = "p50" if all("p50" in series.latency_ms for series in group) else "mean"

    def draw(axes: Axes) -> None:
        points = []
        for candidate, line in _lines(group, "batch"):
            look = style(order[candidate])
            xs = [series.throughput.value for series in line]
            ys = [_estimate(series, latency).value for series in line]
            axes.plot(xs, ys, color=look.colour, linestyle=look.dash, marker=look.marker)
            points += [(x, y) for x, y in zip(xs, ys, strict=True)]
            for series, x, y in ((line[0], xs[0], ys[0]), (line[-1], xs[-1], ys[-1])):
                axes.annotate(
                    str(series.sizes["batch"]), (x, y), (5, -11), textcoords="offset points", fontsize=11
                )
        log_axis(axes, "y", min(y for _, y in points), max(y for _, y in points))
        zero_axis(axes, "x", max(x for x, _ in points))
        axes.set_xlabel("samples/s")
        axes.set_ylabel(f"{latency}, ms, log")

    said = "; ".join(
        f"{candidate} from {digits(line[0].throughput.value)} to {digits(line[-1].throughput.value)}"
        for candidate, line in _lines(group, "batch")
    )
    return Plot(
        f"Throughput against latency, {name}",
        f"Throughput against latency over batch, {name}, samples a second: {said}",
        draw,
        keys(group, order),
        "A point for each batch; its size stands at the ends. Lower and further right is better.",
    )


def rates(record: Record, order: Order) -> Iterator[Plot]:
    """Throughput against latency, as the server scenario tried them."""
    for group in scenarios([s for s in record.series if s.rates]).values():
        chosen, left_out = ends(groups(group))
        for name, each in chosen:
            yield _served(name, each, order, left_out)


def _served(name: str, group: Sequence[Series], order: Order, left_out: str) -> Plot:
    def draw(axes: Axes) -> None:
        every = [ms for s in group for rate in s.rates for ms in (rate.p99_ms, rate.p50_ms)]
        for series in group:
            look = style(order[series.candidate])
            tried = sorted(series.rates, key=lambda rate: rate.rate)
            for percentile, width in (("p99_ms", 1.8), ("p50_ms", 0.9)):
                axes.plot(
                    [rate.rate for rate in tried],
                    [getattr(rate, percentile) for rate in tried],
                    color=look.colour,
                    linestyle=look.dash,
                    linewidth=width,
                )
            for rate in tried:
                axes.plot(
                    rate.rate,
                    rate.p99_ms,
                    linestyle="none",
                    color=look.colour,
                    marker=look.marker,
                    markerfacecolor=look.colour if rate.met else GROUND,
                )
        if (bound := group[0].bound_ms) is not None:
            _bound_line(axes, bound)
            every.append(bound)
        log_axis(axes, "y", min(every), max(every))
        rates = [rate.rate for s in group for rate in s.rates]
        log_axis(axes, "x", min(rates), max(rates))
        axes.set_xlabel("samples/s that arrived, log")
        axes.set_ylabel("ms, log")

    said = "; ".join(f"{s.candidate} {digits(s.throughput.value)} samples/s" for s in group)
    return Plot(
        f"Throughput against latency, {name}",
        f"Rates that were tried, {name}: the highest within the bound, {said}",
        draw,
        keys(group, order),
        f"Thick: p99, thin: p50. Filled marks met the bound, hollow ones broke it.{left_out}",
    )


def _bound_line(axes: Axes, bound_ms: float) -> None:
    axes.axhline(bound_ms, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"bound {bound_ms:g} ms",
        (0, bound_ms),
        (3, 3),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        fontsize=11,
        bbox=BEHIND,
    )


def rooflines(record: Record, order: Order) -> Iterator[Plot]:
    """What was reached beside what the machine can, a plot for each number of threads."""
    for peaks in record.conditions.peaks:
        found = [
            s
            for s in record.series
            if s.sizes.get("threads", record.conditions.threads) == peaks.threads and _reached(s)
        ]
        if found:
            yield _roofline(peaks, found, order)


def _reached(series: Series) -> list[tuple[float, float]]:
    """FLOP per byte and GFLOP/s, if both are known."""
    limit = series.limit
    if limit is None or limit.intensity is None or limit.gflops is None:
        return []
    return [(limit.intensity, limit.gflops)]


def _roofline(peaks: Peaks, group: Sequence[Series], order: Order) -> Plot:
    threads, gflops, bandwidth = peaks.threads, peaks.gflops, peaks.gigabytes_per_s
    points = [(series, *place) for series in group for place in _reached(series)]
    ridge = gflops / bandwidth

    def draw(axes: Axes) -> None:
        xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
        low, high = min(*xs, ridge) / 2, max(*xs, ridge) * 2
        axes.plot([low, ridge, high], [low * bandwidth, gflops, gflops], color=INK, linewidth=1.4)
        for series, x, y in points:
            look = style(order[series.candidate])
            axes.plot(
                x,
                y,
                linestyle="none",
                color=look.colour,
                marker=look.marker,
                markersize=7,
                markeredgecolor=GROUND,
                markeredgewidth=0.6,
            )
        log_axis(axes, "x", low, high)
        log_axis(axes, "y", min(*ys, ridge * bandwidth / 4), max(*ys, gflops) * 1.2)
        axes.set_xlim(low, high)
        axes.annotate(
            f"{digits(gflops)} GFLOP/s", (high, gflops), (-2, 4), textcoords="offset points", ha="right"
        )
        axes.annotate(
            f"{digits(bandwidth)} GB/s",
            (ridge / 2, gflops / 2),
            (8, -2),
            textcoords="offset points",
            ha="left",
            va="top",
        )
        axes.set_xlabel("FLOP per byte, log")
        axes.set_ylabel("GFLOP/s, log")

    said = "; ".join(
        f"{s.candidate}, {title(s)} {digits(y)} GFLOP/s at {digits(x)} FLOP per byte" for s, x, y in points
    )
    return Plot(
        f"Roofline, threads {threads}",
        f"Roofline, threads {threads}: {said}",
        draw,
        keys(group, order),
        "No model is above the line as long as its weights come from memory; the nearer, the better.",
    )


def _panels(group: Sequence[Series], dim: str) -> list[tuple[str, list[Series]]]:
    """Series that differ in `dim` and nothing else that is swept; the first and last of
    many such groups."""
    others = [name for name in swept(group) if name != dim]
    found: dict[str, list[Series]] = {}
    for series in group:
        if dim in series.sizes:
            where = at({name: series.sizes[name] for name in others if name in series.sizes})
            found.setdefault(where, []).append(series)
    return list(ends([(where, each) for where, each in found.items() if dim in swept(each)])[0])


def _lines(group: Sequence[Series], dim: str) -> list[tuple[str, list[Series]]]:
    """The series of each candidate, in the order of their sizes."""
    return [
        (name, sorted((s for s in group if s.candidate == name), key=lambda s: s.sizes[dim]))
        for name in dict.fromkeys(s.candidate for s in group)
    ]


def _metric(group: Sequence[Series]) -> str:
    """What the scenario is judged by, or the last percentile that all series have."""
    judged = SCENARIOS.get(group[0].scenario, "p50")
    if judged == "throughput" or all(judged in series.latency_ms for series in group):
        return judged
    shared = [name for name in group[0].latency_ms if all(name in s.latency_ms for s in group)]
    return shared[-1] if shared else "mean"


def _estimate(series: Series, metric: str) -> Estimate:
    if metric == "throughput":
        return series.throughput
    return series.mean_ms if metric == "mean" else series.latency_ms[metric]


def _span(values: Sequence[float]) -> str:
    return f"{digits(min(values))} to {digits(max(values))}"

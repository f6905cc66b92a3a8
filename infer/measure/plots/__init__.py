"""What of a record is drawn: a plot only where its data exists. Importing this imports matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from infer.measure.plots.bars import changes, memory, profiles, ratios, starts, waterfalls
from infer.measure.plots.curves import batches, distributions, rates, rooflines, sweeps
from infer.measure.plots.plot import Key, Order, Plot
from infer.measure.record import Record

__all__ = ["Key", "Order", "Plot", "changes", "plots"]

# in the order of a page
_MAKERS: dict[str, tuple[Callable[[Record, Order], Iterator[Plot]], ...]] = {
    "Beside the first": (ratios,),
    "Latency and sweeps": (distributions, sweeps),
    "Throughput and limits": (batches, rates, rooflines),
    "Start and memory": (starts, memory),
    "Where the time goes": (waterfalls, profiles),
}


def plots(record: Record, order: Order) -> dict[str, list[Plot]]:
    """All that the record has data for, under headings."""
    found = {
        heading: [plot for make in makers for plot in make(record, order)]
        for heading, makers in _MAKERS.items()
    }
    return {heading: some for heading, some in found.items() if some}

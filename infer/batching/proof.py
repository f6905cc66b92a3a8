"""Whether rows of several callers may run together: what the graph says of itself, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from infer.artifact import Artifact
from infer.batching.joining import Layout, layout_of
from infer.errors import InferError
from infer.guard import Feeds
from infer.parity import Tolerance, compare
from infer.plan import Plan
from infer.signature import Array
from infer.tasks import Padding, Run

NEIGHBOURLY = 1e-4
"""An answer that moves with its neighbours by more of its largest value than this is not its own."""

_MOST_ROWS = 1024
"""Not more golden rows are run together to prove it."""

Admit = Callable[[Mapping[str, object]], Feeds]
"""`Session.admit`."""


def proved_layout(
    artifact: Artifact, plan: Plan, padding: Padding | None, admit: Admit, run: Run
) -> Layout | str:
    """The layout with which golden rows answer together as they do alone, or why there is none. It pads
    only if padded rows do, too.

    Where another variant answers many rows than few, an answer may be as far off as either may be.
    """
    for variant in artifact.manifest.variants:
        evidence = variant.evidence if variant.name in plan.variants else None
        # where it was not measured, the golden rows below must do
        if evidence is not None and (evidence.neighbours or 0.0) > NEIGHBOURLY:
            return (
                f"an answer of {variant.name} moves by up to {evidence.neighbours:.1%} with its neighbours"
            )
    signature = artifact.manifest.signature
    layout = layout_of(signature, padding)
    if isinstance(layout, str):
        return layout
    points = [admit(feeds) for feeds in artifact.golden_feeds()]
    if not points:
        return "there are no golden feeds to prove it with"
    golden = max(points, key=lambda feeds: sum(array.size for array in feeds.values()))
    rows = [layout.cut(golden, row, row + 1) for row in range(layout.rows(golden))]
    close = artifact.manifest.tolerances(())
    far = artifact.manifest.tolerances(plan.variants) if len(plan.variants) > 1 else close
    counts = {max(2, len(rows))} | ({2, plan.larger.rows_from} if plan.larger else set())
    if max(counts) > _MOST_ROWS:
        return f"from {max(counts)} rows on another plan answers, and so many are not run to prove it"
    try:
        for count in sorted(counts):
            tolerances = close if plan.at(count) == plan else far
            half = [rows[0], layout.half(rows[-1])] * -(-count // 2) if layout.length else []
            if half and not _alike(layout, run, half, tolerances):
                layout = layout_of(signature, None)
                assert isinstance(layout, Layout)
            if not _alike(layout, run, [rows[i % len(rows)] for i in range(count)], tolerances):
                return "golden rows answer otherwise beside others than alone"
    except InferError as error:
        return f"golden rows fail beside others: {error}"
    return layout


def _alike(layout: Layout, run: Run, rows: Sequence[Feeds], tolerances: Mapping[str, Tolerance]) -> bool:
    """Whether each row answers among the others as it does alone."""
    among: list[dict[str, Array]] = layout.split(run(layout.join(rows)), rows)
    alone = {id(row): run(row) for row in {id(row): row for row in rows}.values()}
    return all(
        difference.within
        for row, answer in zip(rows, among, strict=True)
        for difference in compare(alone[id(row)], answer, tolerances)
    )

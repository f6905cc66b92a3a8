"""Which nodes to keep in float, so that a variant that loses too much loses little enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Damage = Callable[[Sequence[str]], float]
"""How far answers are off if these nodes stay in float and all others are quantized."""

MOST = 96
"""With more candidates than that, neighbours share their fate."""

_MOST_KEPT = 0.75
"""With a larger part in float, a variant is hardly faster."""


def kept_in_float(
    names: Sequence[str],
    damage: Damage,
    holds: Callable[[Sequence[str]], bool],
    out_of_time: Callable[[], bool],
    progress: Callable[[str], None],
) -> Iterator[list[str]]:
    """The fewest nodes, by their own damage, that must stay in float for `holds`, and if these do not
    suffice elsewhere, twice as many, and so on; nothing if most of them do not suffice.

    Each group's damage is measured with all other groups in float; then the number of groups that stay is
    doubled until `holds`, and halved in between.
    """
    groups = _groups(list(names))
    if len(groups) < 2:
        return
    found = []
    for number, group in enumerate(groups):
        progress(f"sensitivity of {number + 1} of {len(groups)}")
        others = [name for other in groups if other is not group for name in other]
        found.append((damage(others), number))
        if out_of_time():
            return
    ranked = [groups[number] for _, number in sorted(found, reverse=True)]
    most = int(_MOST_KEPT * len(groups))

    def kept(count: int) -> list[str]:
        return [name for group in ranked[:count] for name in group]

    low, high = 0, 1
    while not holds(kept(high)):
        low, high = high, 2 * high
        if high > most or out_of_time():
            return
    while high - low > 1 and not out_of_time():
        middle = (low + high) // 2
        low, high = (low, middle) if holds(kept(middle)) else (middle, high)
    while high <= max(most, 1):
        yield kept(high)
        high *= 2


def _groups(names: list[str]) -> list[list[str]]:
    size = -(-len(names) // MOST)
    return [names[i : i + size] for i in range(0, len(names), size)]

"""Which nodes to keep in float, so that a variant that loses too much loses little enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Damage = Callable[[Sequence[str]], float]
"""How far answers are off if these nodes stay in float and all others are quantized."""

MOST = 96
"""With more candidates than that, neighbours share their fate."""


def kept_in_float(
    names: Sequence[str],
    damage: Damage,
    holds: Callable[[Sequence[str]], bool],
    out_of_time: Callable[[], bool],
    progress: Callable[[str], None],
) -> list[str] | None:
    """The fewest nodes, by their own damage, that must stay in float for `holds`; None if even most of
    them do not suffice.

    Each group's damage is measured with all other groups in float; then the number of groups that stay is
    doubled until `holds`, and halved in between.
    """
    groups = _groups(list(names))
    if len(groups) < 2:
        return None
    found = []
    for number, group in enumerate(groups):
        progress(f"sensitivity of {number + 1} of {len(groups)}")
        others = [name for other in groups if other is not group for name in other]
        found.append((damage(others), number))
        if out_of_time():
            return None
    ranked = [groups[number] for _, number in sorted(found, reverse=True)]

    def kept(count: int) -> list[str]:
        return [name for group in ranked[:count] for name in group]

    low, high = 0, 1
    while not holds(kept(high)):
        low, high = high, 2 * high
        if high > 0.75 * len(groups) or out_of_time():
            return None
    while high - low > 1 and not out_of_time():
        middle = (low + high) // 2
        low, high = (low, middle) if holds(kept(middle)) else (middle, high)
    return kept(high)


def _groups(names: list[str]) -> list[list[str]]:
    size = -(-len(names) // MOST)
    return [names[i : i + size] for i in range(0, len(names), size)]

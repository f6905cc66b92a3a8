"""Which nodes to keep in float, so that a variant that loses too much loses little enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

Damage = Callable[[Sequence[str]], float]
"""How far answers are off if these nodes stay in float and all others are quantized."""

MOST, FEWEST = 96, 8
"""With more candidates than that, neighbours share their fate; also with fewer, if each takes long."""

_MOST_KEPT = 0.75
"""With a larger part in float, a variant is hardly faster."""


def kept_in_float(
    costs: Mapping[str, float],
    damage: Damage,
    holds: Callable[[Sequence[str]], bool],
    out_of_time: Callable[[], bool],
    progress: Callable[[str], None],
    most_groups: int = MOST,
) -> Iterator[list[str]]:
    """The nodes that must stay in float for `holds`, those first that do the most damage for what they
    save; if these do not suffice elsewhere, twice as many, and so on; nothing if most do not suffice.

    `costs` has what each node would take if it stayed, in any unit: operations, say, or bytes. Conversions
    around it are taken to cost as much as a node does in the mean. Neighbours make groups, `most_groups` at
    most. Each group's damage is measured with all others in float; then the number of groups that stay is
    doubled until `holds`, and halved in between.
    """
    groups = _groups(list(costs), max(FEWEST, min(MOST, most_groups)))
    if len(groups) < 2:
        return
    mean = sum(costs.values()) / len(costs) or 1.0
    found = []
    for number, group in enumerate(groups):
        progress(f"sensitivity of {number + 1} of {len(groups)}")
        others = [name for other in groups if other is not group for name in other]
        cost = sum(costs[name] + mean for name in group)
        found.append((damage(others) / cost, number))
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


def _groups(names: list[str], most: int) -> list[list[str]]:
    size = -(-len(names) // most)
    return [names[i : i + size] for i in range(0, len(names), size)]

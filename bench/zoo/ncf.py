"""Neural collaborative filtering on MovieLens-100k: the graph scores all films for a user.

NeuMF (He and others 2017): a product of embeddings beside a small net on other embeddings of the same
users and films. The loss is the likelihood of what a user watched among all films, instead of
sampled negatives (Liang and others 2018). Trained here in about half a minute, seeded.
"""

from __future__ import annotations

import torch
from torch import nn

from bench.zoo.movielens import data, dataset, files, ndcg, samples
from bench.zoo.training import fit, trained
from infer.manifest import TaskSpec

WEIGHTS = "trained here"

SIZE, HIDDEN = 32, 16

__all__ = ["WEIGHTS", "build", "dataset", "files", "samples", "task"]


class NeuMF(nn.Module):
    """`user`: int64, shape = (batch,). Scores of all films: float32, shape = (batch, films)."""

    def __init__(self, users: int, films: int) -> None:
        super().__init__()
        self.user, self.film = nn.Embedding(users, SIZE), nn.Embedding(films, SIZE)
        self.net_user, self.net_film = nn.Embedding(users, SIZE), nn.Embedding(films, SIZE)
        self.liked = nn.Parameter(torch.zeros(films))
        self.from_user, self.from_film = nn.Linear(SIZE, HIDDEN), nn.Linear(SIZE, HIDDEN, bias=False)
        self.score = nn.Linear(HIDDEN, 1)
        self.dropout = nn.Dropout(0.5)
        for embedding in (self.user, self.film, self.net_user, self.net_film):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, user: torch.Tensor) -> dict[str, torch.Tensor]:
        product = self.dropout(self.user(user)) @ self.film.weight.T
        # the first layer on user and film side by side is a sum of a layer on each
        of_user = self.from_user(self.dropout(self.net_user(user)))
        hidden = torch.relu(of_user[:, None] + self.from_film(self.net_film.weight)[None])
        return {"scores": product + self.score(hidden)[..., 0] + self.liked}


def train(model: NeuMF) -> None:
    """The likelihood of each user's films, until the NDCG@10 of validation gets no better."""
    found = data()
    watched = torch.from_numpy(found.watched(with_validation=False))
    wanted = watched.float()
    everyone, held_out = torch.arange(len(found.users)), torch.from_numpy(found.validation)

    def step(rows: torch.Tensor) -> torch.Tensor:
        likelihood = model(rows)["scores"].log_softmax(dim=1)
        return -(likelihood * wanted[rows]).sum() / wanted[rows].sum()

    fit(
        model,
        step,
        len(found.users),
        lambda: ndcg(model(everyone)["scores"], held_out, watched),
        epochs=80,
        batch_size=64,
        learning_rate=3e-3,
        weight_decay=0.5,
        patience=12,
    )


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model and four users."""
    found = data()
    model = trained(lambda: NeuMF(len(found.users), len(found.films)), train)
    return model, {"user": torch.tensor([0, 7, 42, 941])}


def task() -> TaskSpec:
    """Users of the data only; whoever else asks gets what is popular."""
    return TaskSpec(
        "recommendation",
        {
            "output": "scores",
            "items": "files/items.csv",
            "users": "files/users.csv",
            "seen": "files/seen.npz",
            "user_input": "user",
            "unknown_user": "popularity",
        },
    )

"""all-MiniLM-L6-v2 fine-tuned to tell positive from negative sentences of film and product reviews.

Hutto and Gilbert's rated sentences (ICWSM 2014): 10,605 from film reviews, 3,708 from Amazon's, with the
mean of human scores from -4 to 4; above 0 is positive, and those at 0 are left out. They come with the
source distribution of vaderSentiment. Trained here, seeded, in a minute on 2 cores: first a new head
on the frozen encoder, then its last two layers, too, at a small learning rate. A seeded part of the
sentences is used, so that it stays so short; sentences of one Amazon review are never divided between
training and testing.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.zoo import minilm
from bench.zoo.debian import NoDataError
from bench.zoo.training import cache, fit, trained_folder
from infer.evaluation import Dataset

WEIGHTS = "trained here"

LABELS = ("negative", "positive")
TRAIN, VALIDATE, TEST = 2000, 400, 1000
UNFROZEN_LAYERS = 2
MAX_TOKENS = 64
BATCH_SIZE = 32

_PACKAGE = "vaderSentiment==3.3.2"
_INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"


@dataclass(frozen=True)
class Sentences:
    """Texts and whether each is positive."""

    texts: Sequence[str]
    positive: Sequence[int]


def folder() -> Path:
    """The fine-tuned model as a transformers folder, trained on first use. Raises `NoDataError`."""
    return trained_folder(train)


def samples() -> list[str]:
    """Sentences the model has not seen."""
    return list(data()[2].texts)


def dataset() -> Dataset:
    """The held-out sentences."""
    test = data()[2]
    return Dataset("film and product reviews, held out", list(test.texts), list(test.positive))


def pipeline() -> Callable[[str], Any]:
    """transformers' own."""
    import transformers

    return transformers.pipeline("text-classification", str(folder()), device="cpu", top_k=None)


def train(path: Path) -> None:
    """Fine-tune, and save model and tokenizer to `path`."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    training, validation, _ = data()
    tokenizer: Any = AutoTokenizer.from_pretrained(minilm.folder(), model_max_length=MAX_TOKENS)
    model: Any = BertForSequenceClassification.from_pretrained(
        minilm.folder(),
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        dtype=torch.float32,
    )
    _train_head(model, tokenizer, training, validation)
    _train_layers(model, tokenizer, training, validation)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _train_head(model: Any, tokenizer: Any, training: Sentences, validation: Sentences) -> None:
    """Pooler and classifier on what the encoder says, which is computed once."""
    model.eval()

    @torch.no_grad()
    def first_tokens(texts: Sequence[str]) -> torch.Tensor:
        return torch.as_tensor(model.bert(**_encode(tokenizer, texts)).last_hidden_state[:, 0])

    seen, unseen = (_rows(first_tokens, some.texts) for some in (training, validation))
    head = nn.Sequential(model.bert.pooler.dense, nn.Tanh(), nn.Dropout(0.1), model.classifier)
    expected = torch.tensor(training.positive)

    def step(places: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(head(seen[places]), expected[places])

    def validate() -> float:
        return _accuracy(head(unseen), validation)

    fit(
        head,
        step,
        len(training.texts),
        validate,
        epochs=30,
        batch_size=BATCH_SIZE,
        learning_rate=1e-3,
        patience=4,
    )


def _train_layers(model: Any, tokenizer: Any, training: Sentences, validation: Sentences) -> None:
    """Head and last layers together. More layers gain little here and cost minutes."""
    model.requires_grad_(False)
    for part in (*model.bert.encoder.layer[-UNFROZEN_LAYERS:], model.bert.pooler, model.classifier):
        part.requires_grad_(True)
    expected = torch.tensor(training.positive)

    def step(places: torch.Tensor) -> torch.Tensor:
        texts = [training.texts[i] for i in places.tolist()]
        return nn.functional.cross_entropy(model(**_encode(tokenizer, texts)).logits, expected[places])

    def validate() -> float:
        logits = _rows(lambda texts: model(**_encode(tokenizer, texts)).logits, validation.texts)
        return _accuracy(logits, validation)

    fit(
        model,
        step,
        len(training.texts),
        validate,
        epochs=1,
        batch_size=BATCH_SIZE,
        learning_rate=1e-4,
        patience=1,
    )


def _encode(tokenizer: Any, texts: Sequence[str]) -> Any:
    return tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")


def _rows(compute: Callable[[Sequence[str]], torch.Tensor], texts: Sequence[str]) -> torch.Tensor:
    """A row for each text. Texts of like length are computed together, since padding takes time."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
    rows = torch.cat([compute([texts[i] for i in batch]) for batch in batches])
    return rows[torch.tensor(order).argsort()]


def _accuracy(logits: torch.Tensor, sentences: Sentences) -> float:
    return float((logits.argmax(1) == torch.tensor(sentences.positive)).float().mean())


@once
def data() -> tuple[Sentences, Sentences, Sentences]:
    """For training, validation and testing, divided once and for all. Raises `NoDataError`."""
    reviews: dict[str, list[tuple[str, int]]] = {}
    archive = _archive()
    for name in ("movie", "amazon"):
        for line in _file(archive, f"{name}ReviewSnippets_GroundTruth.txt").splitlines():
            number, score, text = line.split("\t")
            if float(score):
                # Amazon's sentences are numbered REVIEW_SENTENCE
                review = f"{name} {number.partition('_')[0]}"
                reviews.setdefault(review, []).append((text, int(float(score) > 0)))
    names = sorted(reviews)
    np.random.default_rng(0).shuffle(names)
    parts = []
    for count in (TRAIN, VALIDATE, TEST):
        rows: list[tuple[str, int]] = []
        while len(rows) < count:
            rows += reviews[names.pop()]
        parts.append(Sentences([text for text, _ in rows], [positive for _, positive in rows]))
    return parts[0], parts[1], parts[2]


def _archive() -> Path:
    """The source distribution, fetched by pip on first use: wheels lack the sentences."""
    where = cache() / "pypi"
    found = [*where.glob("vader*entiment-3.3.2.tar.gz")]
    if not found:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            "vaderSentiment",
        ]
        done = subprocess.run(
            [*command, "-d", str(where), _PACKAGE], capture_output=True, text=True, check=False, timeout=300
        )
        found = [*where.glob("vader*entiment-3.3.2.tar.gz")]
        if not found:
            raise NoDataError(f"pip cannot fetch {_PACKAGE}: {done.stderr.strip()[-300:]}")
    return found[0]


def _file(archive: Path, name: str) -> str:
    with tarfile.open(archive) as outer:
        (inner_name,) = (member for member in outer.getnames() if member.endswith(_INNER))
        inner = outer.extractfile(inner_name)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as files:
            file = files.extractfile(f"hutto_ICWSM_2014/{name}")
            assert file is not None
            return file.read().decode("utf-8")

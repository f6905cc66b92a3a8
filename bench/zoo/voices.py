"""A small audio spectrogram transformer, trained to tell a LibriVox reader from somebody who names cards.

Ten recordings of two voices (24.7 s and 9.7 s), cut into overlapping pieces of one second. Recordings, not
pieces, are split: three of each voice for training, one for validation, one for testing. That is enough to
try the way from sound to label, and says nothing about how well voices are told apart.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from bench.zoo.recordings import SAMPLE_RATE, cards, librivox
from bench.zoo.training import cache, fit, kept_at, trained
from infer.evaluation import Dataset
from infer.signature import Array

WEIGHTS = "trained here"

LABELS = ("reader", "cards")
FRAMES = 98  # of 25 ms, every 10 ms: what one second holds


def folder() -> Path:
    """A transformers folder: config, weights and feature extractor, kept as long as the weights are."""
    path = kept_at(train, "")
    if not path.exists():
        model = trained(_model, train)
        transformers.utils.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            draft = Path(scratch) / "model"
            extractor().save_pretrained(draft)
            model.save_pretrained(draft)
            with suppress(OSError):  # another process was here first
                draft.rename(path)
    return path


def extractor() -> Any:
    """transformers' own feature extractor, normalized by the recordings' mean and spread."""
    return transformers.ASTFeatureExtractor(max_length=FRAMES, num_mel_bins=64, mean=-7.5, std=2.0)


def train(model: Any) -> None:
    """At most forty passes over the training pieces, stopped early by the validation recordings."""
    x, y = _features(range(3))
    held_x, held_y = _features(range(3, 4))

    def step(places: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = torch.nn.functional.cross_entropy(model(x[places]).logits, y[places])
        return loss

    def validate() -> float:
        return -float(torch.nn.functional.cross_entropy(model(held_x).logits, held_y))

    fit(model, step, len(x), validate, epochs=40, batch_size=16, learning_rate=3e-4, patience=10)


def samples() -> list[Any]:
    """Pieces of the recordings the model has not seen."""
    return list(dataset().inputs)


def pipeline() -> Callable[[Any], Any]:
    """transformers' own."""
    classify = transformers.pipeline("audio-classification", str(folder()), device="cpu", top_k=None)
    return lambda sample: classify({"raw": sample[0], "sampling_rate": sample[1]})


def dataset() -> Dataset:
    """The pieces of the last recording of each voice."""
    pieces, labels = _pieces(range(4, 5))
    return Dataset(
        f"{len(pieces)} pieces of two recordings, held out",
        [(piece, SAMPLE_RATE) for piece in pieces],
        [LABELS[label] for label in labels],
    )


def _model() -> Any:
    return transformers.ASTForAudioClassification(
        transformers.ASTConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            hidden_dropout_prob=0.1,
            max_length=FRAMES,
            num_mel_bins=64,
            id2label=dict(enumerate(LABELS)),
        )
    )


def _features(recordings: range) -> tuple[torch.Tensor, torch.Tensor]:
    pieces, labels = _pieces(recordings)
    values = extractor()(pieces, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_values"]
    return values, torch.tensor(labels)


def _pieces(recordings: range) -> tuple[list[Array], list[int]]:
    """One second every quarter of one, of the recordings at these places of each voice."""
    pieces: list[Array] = []
    labels: list[int] = []
    for label, sounds in enumerate((librivox(), cards())):
        for place in recordings:
            for start in np.arange(0, len(sounds[place]) - SAMPLE_RATE + 1, SAMPLE_RATE // 4):
                pieces.append(sounds[place][start : start + SAMPLE_RATE])
                labels.append(label)
    return pieces, labels

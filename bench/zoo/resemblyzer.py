"""Resemblyzer's voice encoder with its trained weights (1.4 M parameters, Apache-2.0).

Three LSTM layers and a linear one, trained to tell thousands of speakers apart. The package Resemblyzer
ships the weights.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.zoo.recordings import SAMPLE_RATE, cards, librivox
from infer.evaluation import Dataset
from infer.evaluation.verification import pairs
from infer.manifest import TaskSpec

WEIGHTS = "real"

BANDS, FRAMES, SIZE = 40, 160, 256
THRESHOLD = 0.71
"""Where as many pairs are wrongly taken for one voice as for two, on the first two recordings of each.
`dataset` has the others, of the same voices: accuracy at it is not that on voices never heard."""


class VoiceEncoder(nn.Module):
    """Partial utterances, shape = (batch, frames, bands), to vectors of length 1, shape = (batch, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, SIZE, 3, batch_first=True)
        self.linear = nn.Linear(SIZE, SIZE)

    def forward(self, mels: torch.Tensor) -> dict[str, torch.Tensor]:
        _, (hidden, _) = self.lstm(mels)
        found = torch.relu(self.linear(hidden[-1]))
        return {"vectors": found / torch.norm(found, dim=1, keepdim=True)}


def weights() -> Path:
    """Where the package keeps its weights; importing it would need packages that are not used here."""
    spec = importlib.util.find_spec("resemblyzer")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the package Resemblyzer is not installed; see requirements/models.txt")
    return Path(spec.origin).parent / "pretrained.pt"


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model, which takes `mels`: float32, shape = (batch, 160, 40)."""
    model = VoiceEncoder()
    state = torch.load(weights(), map_location="cpu", weights_only=True)["model_state"]
    # the scale and offset of its training loss stay behind
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model.eval(), {"mels": torch.rand(2, FRAMES, BANDS, generator=torch.Generator().manual_seed(0))}


def task() -> TaskSpec:
    """Mel power as librosa takes it, 1.3 partial utterances of 1.6 s a second, at least -30 dB."""
    return TaskSpec(
        "speaker-embedding",
        {
            "input": "mels",
            "output": "vectors",
            "features": {
                "sample_rate": SAMPLE_RATE,
                "mel": {
                    "window": 400,
                    "hop": 160,
                    "fft": 400,
                    "bands": BANDS,
                    "max_hertz": 8000.0,
                    "edges": "zeros",
                },
            },
            "frames": FRAMES,
            "per_second": 1.3,
            "min_coverage": 0.75,
            "volume_db": -30.0,
            "threshold": THRESHOLD,
        },
    )


def samples() -> list[Any]:
    """Sentences of two speakers."""
    return [(sound, SAMPLE_RATE) for sound in (*librivox(), *cards())]


def dataset() -> Dataset:
    """All pairs of pieces of the recordings that the threshold was not chosen on: small, of two voices
    only, and the pieces of one voice share its microphone and room."""
    found, voices = pieces(range(2, 5))
    return pairs(f"{len(found)} pieces of two voices", found, voices)


def pieces(recordings: range) -> tuple[list[Any], list[str]]:
    """Pieces of about 1.6 s of these recordings of each voice, and whose they are."""
    found: list[Any] = []
    voices: list[str] = []
    for voice, sounds in (("reader", librivox()), ("cards", cards())):
        for i in recordings:
            parts = np.array_split(sounds[i], max(1, int(len(sounds[i]) / (1.6 * SAMPLE_RATE))))
            found += [(part, SAMPLE_RATE) for part in parts]
            voices += [voice] * len(parts)
    return found, voices

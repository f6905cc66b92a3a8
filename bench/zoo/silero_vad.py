"""silero-vad, which hears speech: the network in its TorchScript file (0.3 M parameters, MIT).

The package silero-vad ships the file. Its outer program keeps state and context in itself, which a graph
cannot; the two networks inside take and give the state, and are converted: this one for 16 kHz, and one
for 8 kHz.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.zoo.recordings import SAMPLE_RATE, librivox
from infer.evaluation import Dataset
from infer.manifest import TaskSpec

WEIGHTS = "real"

WINDOWS = {16_000: (512, 64), 8_000: (256, 32)}
"""Sample rate → samples a window, and samples of the one before it."""


def program() -> Any:
    """The whole TorchScript program."""
    import silero_vad

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript on each call
        return torch.jit.load(Path(silero_vad.__file__).parent / "data/silero_vad.jit").eval()


def build(sample_rate: int = SAMPLE_RATE) -> tuple[Any, dict[str, torch.Tensor]]:
    """The network for a rate: `x`, shape = (1, context + window), and `state`, shape = (2, 1, 128), to a
    probability, shape = (1, 1), and the next state."""
    example = {
        "x": 0.1 * torch.randn(1, sum(WINDOWS[sample_rate]), generator=torch.Generator().manual_seed(0)),
        "state": torch.zeros(2, 1, 128),
    }
    whole = program()
    return (whole._model if sample_rate == 16_000 else whole._model_8k), example


def task(sample_rate: int = SAMPLE_RATE) -> TaskSpec:
    """Windows, the state's way, and the original's rules for segments."""
    window, context = WINDOWS[sample_rate]
    return TaskSpec(
        "voice-activity",
        {
            "input": "x",
            "output": "output_0",
            "sample_rate": sample_rate,
            "window": window,
            "context": context,
            "states": {"state": "output_1"},
        },
    )


def samples() -> list[Any]:
    """Five read sentences."""
    return [(sound, SAMPLE_RATE) for sound in librivox()]


def pipeline() -> Callable[[Any], Any]:
    """The package itself."""
    import silero_vad

    whole = program()
    return lambda sample: silero_vad.get_speech_timestamps(
        torch.from_numpy(sample[0]), whole, sampling_rate=sample[1]
    )


def dataset() -> Dataset:
    """The sentences, each in the middle of three seconds of soft noise, one in three noise levels.

    What is speech is known from where they were put: pauses inside a sentence count as speech.
    """
    rng = np.random.default_rng(0)
    inputs, expected = [], []
    for level in (0.0005, 0.002, 0.005):
        for sound in librivox():
            around = 3 * SAMPLE_RATE // 2
            noise = rng.standard_normal(len(sound) + 2 * around) * level
            noise[around : around + len(sound)] += sound
            inputs.append((noise.astype(np.float32), SAMPLE_RATE))
            expected.append([(around / SAMPLE_RATE, (around + len(sound)) / SAMPLE_RATE)])
    return Dataset("15 noisy LibriVox sentences", inputs, expected)

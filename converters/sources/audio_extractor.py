"""What a model folder says of its feature extractor for sound, as data the runtime follows.

The features are held to the original extractor on a test sound before they are believed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoFeatureExtractor
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

from infer.errors import InferError
from infer.manifest import TaskSpec
from infer.schema import encode
from infer.tasks.mel import MelSpec
from infer.tasks.sound_features import SoundFeatures, SoundFeaturesSpec

# Whisper's extractor works in float32 and takes logarithms; the others are within a hundredth of this
_TOLERANCE = 1e-4
_ACTIVATIONS = {"regression": "none", "multi_label_classification": "sigmoid"}


def classifies_sound(kind: str) -> bool:
    """Whether `kind` is a class of models that transformers' audio-classification pipeline takes."""
    return kind in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values()


def audio_classification(
    model: Any, folder: Path, inputs: tuple[str, ...]
) -> tuple[TaskSpec | None, tuple[str, ...]]:
    """The task of a classifier of sound, and notes; no task, where its features cannot be reproduced."""
    features, problem = sound_features(model.config, folder)
    if features is None:
        return None, (f"no task: {problem}; extract features yourself",)
    config = model.config
    return TaskSpec(
        "audio-classification",
        {
            "input": model.main_input_name,
            "output": "logits",
            "features": encode(features),
            "mask": "attention_mask" if "attention_mask" in inputs else None,
            "labels": [str(config.id2label[i]) for i in range(len(config.id2label))],
            "activation": _ACTIVATIONS.get(config.problem_type or "", "softmax"),
        },
    ), ()


def sound_features(config: Any, folder: Path) -> tuple[SoundFeaturesSpec | None, str]:
    """The features, or none and what is in their way."""
    try:
        extractor: Any = AutoFeatureExtractor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # unknown extractor types, absent packages
        return None, f"its feature extractor does not load ({' '.join(str(error).split())[:200]})"
    name = type(extractor).__name__
    if name not in _EXTRACTORS:
        return None, f"infer does not know {name}; it knows {', '.join(_EXTRACTORS)}"
    try:
        spec = _EXTRACTORS[name](extractor, config)
        same = _same(extractor, spec)
    except InferError as error:
        return None, f"infer's features cannot follow {name} ({error})"
    return (spec, "") if same else (None, f"infer's features do not reproduce {name}")


def _same(extractor: Any, spec: SoundFeaturesSpec) -> bool:
    rng = np.random.default_rng(0)
    for seconds in (0.5, 1.7):
        count = max(int(seconds * spec.sample_rate), spec.min_samples)
        sound = (0.1 * rng.standard_normal(count)).astype(np.float32)
        theirs = extractor(sound, sampling_rate=spec.sample_rate, return_tensors="np")
        expected = np.asarray(theirs[extractor.model_input_names[0]][0])
        actual = SoundFeatures(spec)(sound)
        if expected.shape != actual.shape or not np.allclose(expected, actual, atol=_TOLERANCE, rtol=0):
            return False
    return True


def _wav2vec2(extractor: Any, config: Any) -> SoundFeaturesSpec:
    samples = 1  # that one frame of the convolutions sees
    for kernel, stride in zip(
        reversed(getattr(config, "conv_kernel", ())),
        reversed(getattr(config, "conv_stride", ())),
        strict=True,
    ):
        samples = (samples - 1) * stride + kernel
    return SoundFeaturesSpec(
        extractor.sampling_rate, min_samples=samples, unit_variance=bool(extractor.do_normalize)
    )


def _spectrogram_transformer(extractor: Any, config: Any) -> SoundFeaturesSpec:
    mel = MelSpec(
        window=400,
        hop=160,
        fft=512,
        bands=extractor.num_mel_bins,
        min_hertz=20.0,
        max_hertz=float(extractor.sampling_rate // 2),
        scale="kaldi",
        equal_area=False,
        over_mel=True,
        symmetric=True,
        edges="none",
        remove_mean=True,
        preemphasis=0.97,
        floor=1.192092955078125e-07,  # float32's epsilon
        logarithm="natural",
    )
    mean, std = (extractor.mean, 2 * extractor.std) if extractor.do_normalize else (0.0, 1.0)
    return SoundFeaturesSpec(
        extractor.sampling_rate, mel=mel, frames=extractor.max_length, mean=float(mean), std=float(std)
    )


def _whisper(extractor: Any, config: Any) -> SoundFeaturesSpec:
    mel = MelSpec(
        window=extractor.n_fft,
        hop=extractor.hop_length,
        fft=extractor.n_fft,
        bands=extractor.feature_size,
        max_hertz=8000.0,
        floor=1e-10,
        logarithm="log10",
    )
    return SoundFeaturesSpec(
        extractor.sampling_rate,
        samples=extractor.n_samples,
        mel=mel,
        drop_last=True,
        range_below_peak=8.0,
        mean=-4.0,
        std=4.0,
        bands_first=True,
    )


_EXTRACTORS = {
    "Wav2Vec2FeatureExtractor": _wav2vec2,
    "ASTFeatureExtractor": _spectrogram_transformer,
    "WhisperFeatureExtractor": _whisper,
}
"""Name of the extractor's class → its features."""

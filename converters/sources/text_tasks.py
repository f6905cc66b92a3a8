"""The tasks of models that take texts, held to transformers' own results before they are believed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters.sources.tokenizer import tokenizer_spec
from infer.errors import missing_package
from infer.manifest import TaskSpec
from infer.schema import encode
from infer.signature import Array, Signature, TensorSpec
from infer.tasks import Setting, task_class
from infer.tasks.tokens import TextEncoder, TokenizerSpec

try:
    import transformers
except ImportError as _error:
    raise missing_package("transformers", "convert", _error) from _error

# the same model answers the same feeds; only the scores are computed in another precision
_TOLERANCE = 1e-5

PROBES = (
    "Anna Müller of Zürich wrote to the naïve Mr. O'Neill, who didn't answer.",
    "ok",
    "",
    "so happy 🙂🎉 日本語\u2028and\ttabs",
    "It goes on, and on: " + "unbelievably long-winded sentences, number 12,345 of them; " * 400,
)
_PAIR = ("A man is eating food.", "Someone is having a meal, " + "slowly, " * 900)


@dataclass(frozen=True)
class TextTask:
    """A task and the files it needs; or none, and why."""

    task: TaskSpec | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def text_classification(model: Any, folder: Path, inputs: tuple[str, ...]) -> TextTask:
    """Labels for a text, scored as transformers' pipeline does."""
    if problem := _no_tokenizer(folder):
        return TextTask(notes=(problem,))
    spec = tokenizer_spec(folder, inputs, None)
    settings = {
        "tokenizer": encode(spec),
        "output": "logits",
        "labels": labels(model.config),
        "activation": activation(model.config),
    }
    return _proved(TaskSpec("text-classification", settings), spec, model, folder, _same_labels)


def token_classification(model: Any, folder: Path, inputs: tuple[str, ...]) -> TextTask:
    """Entities of a text of any length: windows share a quarter of their tokens."""
    if problem := _no_tokenizer(folder):
        return TextTask(notes=(problem,))
    spec = tokenizer_spec(folder, inputs, None)
    spec = replace(spec, stride=spec.max_length // 4)
    try:
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # unknown tokenizer types, damaged files
        return TextTask(notes=(_does_not_load(error),))
    prefix = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
    settings = {
        "tokenizer": encode(spec),
        "output": "logits",
        "labels": labels(model.config),
        "aggregation": "simple",
        "word_pieces": bool(prefix),
        "unknown_id": tokenizer.unk_token_id,
    }
    return _proved(TaskSpec("token-classification", settings), spec, model, folder, _same_entities)


def labels(config: Any) -> list[str]:
    """The names of a model's classes in the order of its outputs."""
    names = {int(index): str(name) for index, name in config.id2label.items()}
    return [names.get(i, f"LABEL_{i}") for i in range(len(names))]


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as transformers loads it."""
    with _quiet():
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )


def token_problem(spec: TokenizerSpec, folder: Path) -> str | None:
    """What `spec` encodes differently from the folder's tokenizer, or None."""
    try:
        tokenizer = load_tokenizer(folder)
        encoder = TextEncoder(replace(spec, stride=None), _setting("tokens", {}, spec, folder, None))
        _same_feeds(encoder, tokenizer)
    except Exception as error:  # whatever the library raises, and what differs
        return _does_not_load(error)
    return None


def activation(config: Any) -> str:
    """What transformers' pipelines make of a classifier's numbers."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def _no_tokenizer(folder: Path) -> str | None:
    if (folder / "tokenizer.json").is_file():
        return None
    return (
        f"no task: '{folder.name}' has no tokenizer.json; save one into it with transformers:"
        f" AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def _does_not_load(error: Exception) -> str:
    return f"no task: its tokenizer does not answer as transformers' ({' '.join(str(error).split())[:300]})"


class _DifferentError(Exception):
    """The task does not answer as transformers does."""


def _proved(task: TaskSpec, spec: TokenizerSpec, model: Any, folder: Path, same: Any) -> TextTask:
    """`task`, if it answers every probe as transformers does."""

    def run(feeds: Mapping[str, Any]) -> dict[str, Array]:
        with torch.inference_mode():
            logits = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).logits
        return {"logits": logits.float().numpy()}

    try:
        tokenizer = load_tokenizer(folder)
        tokenizer.model_max_length = spec.max_length
        setting = _setting(task.name, task.spec, spec, folder, run)
        _same_feeds(TextEncoder(replace(spec, stride=None), setting), tokenizer)
        with _quiet():
            same(task_class(task.name)(setting), model, tokenizer)
    except Exception as error:  # whatever the library raises, and what differs
        return TextTask(notes=(_does_not_load(error),))
    return TextTask(task, {spec.file: folder / "tokenizer.json"})


def _setting(
    name: str, settings: Mapping[str, Any], spec: TokenizerSpec, folder: Path, run: Any
) -> Setting:
    rank = 3 if name == "token-classification" else 2
    signature = Signature(
        tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in spec.inputs),
        (TensorSpec("logits", "float32", ("batch", "sequence", "labels")[-rank:]),),
    )
    return Setting(name, settings, signature, None, lambda _: folder / "tokenizer.json", run)


def _same_feeds(encoder: TextEncoder, tokenizer: Any) -> None:
    texts = list(PROBES)
    for part in encoder.parts(texts):
        given = [texts[place] for place in part.places]
        expected = tokenizer(
            given,
            padding=len(given) > 1,
            truncation=True,
            max_length=encoder.spec.max_length,
            return_tensors="np",
        )
        for name, array in part.feeds.items():
            # what a tokenizer does not give, the pipeline does not feed, and models take as 0
            theirs = expected.get(name, np.zeros_like(array))
            if not np.array_equal(array, theirs):
                raise _DifferentError(f"'{name}' differs for texts such as {given[0]!r:.40}")


def _same_labels(task: Any, model: Any, tokenizer: Any) -> None:
    classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    cut = {"truncation": True, "max_length": tokenizer.model_max_length}
    for text in (*PROBES, _PAIR) if task.encoder.takes_pairs else PROBES:
        given = {"text": text[0], "text_pair": text[1]} if isinstance(text, tuple) else text
        theirs = classify(given, **cut)
        # asked about a dict, the pipeline gives a list, and about a str a list in a list
        theirs = theirs[0] if isinstance(theirs[0], list) else theirs
        _same(task(text), [(t["label"], t["score"]) for t in theirs], text)


def _same_entities(task: Any, model: Any, tokenizer: Any) -> None:
    find = transformers.pipeline(
        "token-classification",
        model=model,
        tokenizer=tokenizer,
        aggregation_strategy=task.spec.aggregation,
        stride=task.spec.tokenizer.stride,
    )
    for text in PROBES:
        ours, theirs = task(text), find(text)
        if [(o.start, o.end) for o in ours] != [(t["start"], t["end"]) for t in theirs]:
            raise _DifferentError(f"other entities in {text!r:.40}")
        _same(ours, [(t["entity_group"], t["score"]) for t in theirs], text)


def _same(ours: Any, theirs: list[tuple[str, float]], text: Any) -> None:
    # classes of all but equal scores may change places
    scores = np.array([item.score for item in ours])
    if len(ours) != len(theirs) or not np.allclose(scores, [s for _, s in theirs], atol=_TOLERANCE, rtol=0):
        raise _DifferentError(f"other scores for {text!r:.40}")
    tied = np.abs(np.diff(scores)) <= _TOLERANCE
    apart = len(scores) < 2 or not tied.any()
    if apart and [item.label for item in ours] != [label for label, _ in theirs]:
        raise _DifferentError(f"other labels for {text!r:.40}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # that a tokenizer knows no words; the answers are compared nevertheless
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)

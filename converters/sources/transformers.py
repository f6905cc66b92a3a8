"""A folder with a model of the `transformers` library: config.json, weights, tokenizer, preprocessor."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from converters.points import BATCH
from converters.source import Dims, Source
from converters.sources import SourceRequest
from converters.sources.audio_extractor import audio_classification, classifies_sound
from converters.sources.detection import detection_task
from converters.sources.folder import read_json
from converters.sources.image_processor import image_steps
from converters.sources.text_tasks import activation, labels, text_classification, token_classification
from converters.sources.weights import load_weights
from infer.errors import ConversionError, missing_package
from infer.manifest import TaskSpec
from infer.schema import encode

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a conversion downloads nothing
try:
    import transformers
except (ImportError, OSError) as _error:
    raise missing_package("transformers", "convert", _error) from _error

_EXAMPLE_TOKENS = 16


def open_transformers(request: SourceRequest) -> Source:
    """The model class that config.json names, with its weights; the task its class name tells."""
    folder = Path(request.source)
    model = load_model(folder)
    notes = load_weights(model, request.weights) if request.weights else []
    example = given_inputs(request) or example_inputs(model)
    task, files, said = find_task(model, folder, tuple(example))
    return Source(
        name=request.name,
        described=f"{type(model).__name__} in '{folder.name}'",
        module=model,
        kwargs=example,
        dims=_dims(model),
        task=task,
        files=files,
        notes=(*notes, *said),
    )


def given_inputs(request: SourceRequest) -> dict[str, Any] | None:
    """The caller's example inputs, which must be named."""
    if request.example_inputs is None:
        return None
    if not isinstance(request.example_inputs, Mapping):
        raise ConversionError("example inputs of a transformers model must be given by name")
    return dict(request.example_inputs)


def load_model(folder: Path, cls: str | None = None, unused: str | None = None) -> Any:
    """The model in `folder`, in float32 or as stored, as `cls` or as the class it names itself. Runs no
    code from the folder. The part called `unused` is taken off if the folder has no weights for it."""
    raw = read_json(folder / "config.json")
    if "auto_map" in raw:
        raise ConversionError(
            f"'{folder}' brings its own model code ({', '.join(sorted(raw['auto_map']))}), which infer"
            f" does not run unasked; write a file.py with a function that builds the model, and name it"
        )
    name = cls or (raw.get("architectures") or ["AutoModel"])[0]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise ConversionError(
            f"'{folder}' is a {name}, which transformers {transformers.__version__} does not have;"
            f" install the release that made it: {raw.get('transformers_version', 'unknown')}"
        )
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = model_class.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype="auto", output_loading_info=True
        )
    except Exception as error:  # the library raises OSError, ValueError, RuntimeError and its own
        raise ConversionError(
            f"transformers cannot load '{folder}' as {name}: {' '.join(str(error).split())[:400]}"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    missing = sorted(info.get("missing_keys", ()))
    if unused and missing and all(name.startswith(f"{unused}.") for name in missing):
        setattr(model, unused, None)
        missing = []
    if missing:
        raise ConversionError(
            f"the weights in '{folder}' lack {', '.join(missing[:4])}"
            f"{f' and {len(missing) - 4} more' if len(missing) > 4 else ''}: {name} would run with"
            f" random values there; name the class that was trained under 'architectures' in config.json"
        )
    return plain(model)


def plain(model: Any) -> Any:
    """`model` set to return plain tensors: no cache, outputs by name."""
    # parts may hold copies of the config: the decoder of T5 does, and alone decides about the cache
    for config in {id(c): c for part in model.modules() for c in _configs(part)}.values():
        config.return_dict = True
        if hasattr(config, "use_cache"):
            config.use_cache = False
    return model


def _configs(part: Any) -> list[Any]:
    config = getattr(part, "config", None)
    if not isinstance(config, transformers.PreTrainedConfig):
        return []
    parts = [getattr(config, name, None) for name in config.sub_configs]
    return [config, *(c for c in parts if isinstance(c, transformers.PreTrainedConfig))]


def example_inputs(model: Any) -> dict[str, Any]:
    """Inputs of the kinds and sizes the model's config tells, with two rows: seeded random values."""
    generator = torch.Generator().manual_seed(0)
    accepted = set(inspect.signature(model.forward).parameters)
    config = model.config
    main = getattr(model, "main_input_name", "input_ids")
    inputs: dict[str, Any] = {}
    takes_both = {"input_ids", "pixel_values"} <= accepted and hasattr(config, "text_config")
    if main == "input_ids" or takes_both:
        inputs.update(_text(config, accepted, generator))
    if "pixel_values" in accepted and (main == "pixel_values" or hasattr(config, "vision_config")):
        inputs["pixel_values"] = _pixels(config, generator)
    if main == "input_values":
        inputs["input_values"] = _audio(config, generator)
    if main == "input_features":
        inputs["input_features"] = _features(config, generator)
    if "decoder_input_ids" in accepted and getattr(config, "is_encoder_decoder", False):
        vocabulary = _text_config(config).vocab_size
        length = _EXAMPLE_TOKENS - 3
        inputs["decoder_input_ids"] = _ids(vocabulary, (2, length), generator)
    if not inputs:
        raise ConversionError(
            f"{type(model).__name__} takes '{main}', for which infer knows no example; give one with"
            f" --input {main}=SHAPE:DTYPE"
        )
    return inputs


def _text_config(config: Any) -> Any:
    return getattr(config, "text_config", None) or config


def _text(config: Any, accepted: set[str], generator: torch.Generator) -> dict[str, Any]:
    text = _text_config(config)
    limit = getattr(text, "max_position_embeddings", None)
    # XLNet says -1 for no limit
    length = min(_EXAMPLE_TOKENS, limit // 3) if limit and limit > 0 else _EXAMPLE_TOKENS
    length = max(4, length)
    inputs = {"input_ids": _ids(text.vocab_size, (2, length), generator)}
    if "attention_mask" in accepted:
        mask = torch.ones(2, length, dtype=torch.int64)
        mask[1, length * 2 // 3 :] = 0
        inputs["attention_mask"] = mask
    if "token_type_ids" in accepted and (getattr(text, "type_vocab_size", 0) or 0) > 1:
        types = torch.zeros(2, length, dtype=torch.int64)
        types[:, length // 2 :] = 1
        inputs["token_type_ids"] = types
    return inputs


def _ids(vocabulary: int, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    # away from the special ids at the start: a pad id in the text changes position ids in some models
    return torch.randint(min(5, vocabulary // 2), vocabulary, shape, generator=generator)


def _pixels(config: Any, generator: torch.Generator) -> torch.Tensor:
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", None) or 224
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = getattr(vision, "num_channels", 3)
    return torch.randn(2, channels, height, width, generator=generator)


def _audio(config: Any, generator: torch.Generator) -> torch.Tensor:
    if hasattr(config, "num_mel_bins"):  # a spectrogram transformer: frames and bins are fixed
        return torch.randn(2, config.max_length, config.num_mel_bins, generator=generator)
    return torch.randn(2, 16_000, generator=generator)


def _dims(model: Any) -> Dims:
    """Axes that do not vary as the input's name tells."""
    if getattr(model, "main_input_name", "") == "input_values" and hasattr(model.config, "num_mel_bins"):
        # a spectrogram, not samples; its frames vary only by what is left after the last whole patch
        return {"input_values": {0: BATCH}}
    return {}


def _features(config: Any, generator: torch.Generator) -> torch.Tensor:
    bins: Any = getattr(config, "num_mel_bins", None) or getattr(config, "input_feat_per_channel", 80)
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        return torch.randn(2, bins, 2 * config.max_source_positions, generator=generator)
    return torch.randn(2, 100, bins, generator=generator)


def find_task(
    model: Any, folder: Path, inputs: tuple[str, ...]
) -> tuple[TaskSpec | None, dict[str, Path], tuple[str, ...]]:
    """The task, the files it needs, and notes."""
    kind = type(model).__name__
    if kind.endswith("ForImageClassification") and (folder / "preprocessor_config.json").is_file():
        steps, problem = image_steps(folder)
        if problem:
            return None, {}, (problem,)
        return (
            TaskSpec(
                "image-classification",
                {
                    "input": "pixel_values",
                    "output": "logits",
                    "steps": encode(steps),
                    "labels": labels(model.config),
                    "activation": activation(model.config),
                },
            ),
            {},
            (),
        )
    if kind.endswith("ForSemanticSegmentation") and (folder / "preprocessor_config.json").is_file():
        steps, problem = image_steps(folder)
        if any(step.op == "center_crop" for step in steps):
            problem = "no task: its pictures are cropped, and a mask cannot be laid over what was cut off"
        if problem:
            return None, {}, (problem,)
        return (
            TaskSpec(
                "image-segmentation",
                {
                    "input": "pixel_values",
                    "output": "logits",
                    "steps": encode(steps),
                    "labels": labels(model.config),
                },
            ),
            {},
            (),
        )
    if classifies_sound(kind) and (folder / "preprocessor_config.json").is_file():
        task, told = audio_classification(model, folder, inputs)
        return task, {}, told
    if kind.endswith("ForObjectDetection") and (folder / "preprocessor_config.json").is_file():
        found, said = detection_task(model.config, folder, inputs, labels(model.config))
        return found, {}, said
    for ending, find in _TEXT_TASKS:
        if kind.endswith(ending):
            text = find(model, folder, inputs)
            return text.task, dict(text.files), text.notes
    if kind.endswith(_PICTURE_TASKS):
        return None, {}, ("no task: there is no preprocessor_config.json to say how pictures are prepared",)
    return None, {}, ()


_PICTURE_TASKS = ("ForImageClassification", "ForSemanticSegmentation", "ForObjectDetection")
_TEXT_TASKS = (
    ("ForSequenceClassification", text_classification),
    ("ForTokenClassification", token_classification),
)

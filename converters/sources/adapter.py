"""A PEFT folder: adapter_config.json and the few weights that fine-tuning changed. They are merged into
the base model, which must be a folder here."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import transformers

from converters.scaffolding import merge_adapter
from converters.source import Source
from converters.sources import SourceRequest
from converters.sources.folder import read_json
from converters.sources.transformers import example_inputs, find_task, given_inputs, plain
from converters.sources.weights import read_state
from infer.errors import ConversionError, missing_package

_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""What PEFT calls the task → the class that builds the base model for it."""

_HEADS = ("classifier", "score")
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def open_adapter(request: SourceRequest) -> Source:
    """The base model with the adapter merged into its weights."""
    folder = Path(request.source)
    try:
        import peft
    except ImportError as error:
        raise missing_package("peft", "peft", error) from error
    if request.weights is not None:
        raise ConversionError(
            f"'{folder}' is a PEFT adapter, which brings its weights; leave --weights out"
        )
    settings = read_json(folder / "adapter_config.json")
    base = _base(folder, settings)
    kind = settings.get("task_type") or "none"
    if kind not in _CLASSES:
        raise ConversionError(
            f"the PEFT adapter '{folder}' has the task type '{kind}'; infer knows {', '.join(_CLASSES)}."
            f" {_by_hand(folder)}"
        )
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ConversionError(f"'{folder}' lacks {' or '.join(_WEIGHTS)}; copy it again")
    state, _ = read_state(weights)
    model = _built(peft, _CLASSES[kind], base, folder, state)
    task, files, notes = find_task(model, base, tuple(example_inputs(model)))
    if task is not None and _other_tokenizer(folder, base):
        task, files = None, {}
        notes = ("no task: the adapter's tokenizer.json is not that of its base model",)
    return Source(
        name=request.name,
        described=f"{type(model).__name__} in '{base.name}' with the PEFT adapter '{folder.name}'",
        module=model,
        kwargs=given_inputs(request) or example_inputs(model),
        task=task,
        files=files,
        notes=("the PEFT adapter was merged into the weights", *notes),
    )


def _base(folder: Path, settings: dict[str, Any]) -> Path:
    name = str(settings.get("base_model_name_or_path") or "")
    for path in (Path(name), folder / name):
        if name and (path / "config.json").is_file():
            return path
    raise ConversionError(
        f"'{folder}' is a PEFT adapter of the model '{name}', which is no folder here, and infer downloads"
        f" nothing; put the base model's folder under base_model_name_or_path in adapter_config.json."
        f" {_by_hand(folder)}"
    )


def _by_hand(folder: Path) -> str:
    return (
        f"Or merge it in your own code: PeftModel.from_pretrained(base, '{folder}').merge_and_unload()"
        f".save_pretrained('merged'), and convert 'merged'"
    )


def _built(peft: Any, cls: str, base: Path, folder: Path, state: dict[str, Any]) -> Any:
    """The merged model. Weights that neither base nor adapter has are an error."""
    given: dict[str, Any] = {}
    for name, tensor in state.items():
        # a new head tells how many classes it was made for
        if name.endswith(tuple(f".{head}.weight" for head in _HEADS)):
            given["num_labels"] = int(tensor.shape[0])
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = getattr(transformers, cls).from_pretrained(
            base,
            local_files_only=True,
            trust_remote_code=False,
            dtype="auto",
            output_loading_info=True,
            **given,
        )
        saved = {name.removeprefix("base_model.model.") for name in state}
        if missing := sorted(set(info.get("missing_keys", ())) - saved):
            raise ConversionError(
                f"neither '{base}' nor the PEFT adapter '{folder}' has {', '.join(missing[:4])}; these"
                f" would be random. Name the trained head under modules_to_save when you train the adapter"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of one library about the other
            adapted = peft.PeftModel.from_pretrained(model, folder, local_files_only=True)
    except ConversionError:
        raise
    except Exception as error:  # both libraries raise OSError, ValueError, RuntimeError and their own
        raise ConversionError(
            f"the PEFT adapter '{folder}' does not load on '{base}': {' '.join(str(error).split())[:400]}"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    return plain(merge_adapter(adapted).eval())


def _other_tokenizer(folder: Path, base: Path) -> bool:
    own, its = folder / "tokenizer.json", base / "tokenizer.json"
    return own.is_file() and its.is_file() and own.read_bytes() != its.read_bytes()

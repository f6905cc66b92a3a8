"""A sentence-transformers folder: an encoder, pooling and normalization, all put into one graph.

The folder format is that of sentence-transformers' modules.json; the package itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from converters.source import Source
from converters.sources import SourceRequest
from converters.sources.folder import read_json, read_json_list
from converters.sources.text_tasks import token_problem
from converters.sources.tokenizer import tokenizer_spec
from converters.sources.transformers import example_inputs, given_inputs, load_model
from converters.sources.weights import load_weights, read_state
from infer.errors import ConversionError
from infer.manifest import TaskSpec
from infer.schema import encode

OUTPUT = "sentence_embedding"


class SentenceEncoder(torch.nn.Module):
    """Token ids to one vector a text: encoder, then each stage of the folder in order."""

    def __init__(self, encoder: torch.nn.Module, stages: list[torch.nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages = torch.nn.ModuleList(stages)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        value = self.encoder(**given)[0]
        for stage in self.stages:
            value = stage(value, attention_mask)
        return {OUTPUT: value}


class Pooling(torch.nn.Module):
    """Token vectors (batch, tokens, size) to one vector a text, in the modes the folder names.

    `pad_left` says on which side of the text padding comes.
    """

    def __init__(self, modes: Sequence[str], pad_left: bool) -> None:
        super().__init__()
        self.modes, self.pad_left = modes, pad_left

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._pool(mode, tokens, mask) for mode in self.modes], dim=-1)

    def _pool(self, mode: str, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        present = mask.unsqueeze(-1)
        if mode == "cls":
            if not self.pad_left:
                return tokens[:, 0]
            return _row(tokens, (mask == 0).sum(dim=1).clamp(max=mask.shape[1] - 1))
        if mode == "lasttoken":
            if self.pad_left:
                return tokens[:, -1] * present[:, -1].to(tokens.dtype)
            return _row(tokens * present.to(tokens.dtype), (mask.sum(dim=1) - 1).clamp(min=0))
        if mode == "max":
            return tokens.masked_fill(present == 0, float("-inf")).amax(dim=1)
        weights = present.to(tokens.dtype)
        if mode == "weightedmean":  # the n-th token of a text counts n times
            weights = weights * weights.cumsum(dim=1)
        count = weights.sum(dim=1).clamp(min=1e-9)
        return (tokens * weights).sum(dim=1) / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def _row(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The token vector at `places[i]` of each text i."""
    return tokens.gather(1, places[:, None, None].expand(-1, 1, tokens.shape[2])).squeeze(1)


class Normalize(torch.nn.Module):
    """Vectors of length 1."""

    def forward(self, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(value, p=2.0, dim=-1)


class Same(torch.nn.Module):
    """What dropout is outside of training."""

    def forward(self, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return value


class Dense(torch.nn.Module):
    """A projection after pooling; with `residual`, what went in is added, projected if sizes differ."""

    def __init__(self, linear: torch.nn.Linear, activation: torch.nn.Module, residual: bool) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation
        self.residual: torch.nn.Module | None = None
        if residual:
            sizes = linear.in_features, linear.out_features
            same = sizes[0] == sizes[1]
            self.residual = torch.nn.Identity() if same else torch.nn.Linear(*sizes, bias=False)

    def forward(self, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(self.linear(value))
        return result if self.residual is None else result + self.residual(value)


class Norm(torch.nn.Module):
    """Layer normalization after pooling."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(size)

    def forward(self, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(value)
        return result


_ACTIVATIONS: dict[str, type[torch.nn.Module]] = {
    "torch.nn.modules.activation.Tanh": torch.nn.Tanh,
    "torch.nn.modules.linear.Identity": torch.nn.Identity,
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU,
    "torch.nn.modules.activation.GELU": torch.nn.GELU,
}


def open_sentence_transformers(request: SourceRequest) -> Source:
    """The whole pipeline as one module, with text-embedding as its task."""
    folder = Path(request.source)
    modules = read_json_list(folder / "modules.json")
    if not all(isinstance(m.get("path"), str) for m in modules):
        raise ConversionError(f"'{folder / 'modules.json'}' lists a module without a path; copy it again")
    kinds = [str(m.get("type", "")).rpartition(".")[2] for m in modules]
    if not kinds or kinds[0] != "Transformer":
        raise ConversionError(f"'{folder}' does not begin with a Transformer, but with {kinds[:1]}")
    base = folder / modules[0]["path"]
    settings = _read_if_there(base / "sentence_bert_config.json")
    _check_encodes_texts(settings, base)
    # as the library does: the bare encoder, whatever head config.json names; what pools is below
    encoder = load_model(base, "AutoModel", unused="pooler")
    example = given_inputs(request) or example_inputs(encoder)
    spec = tokenizer_spec(base, tuple(example), settings.get("max_seq_length"))
    stages = [
        _stage(kind, folder / m["path"], spec.pad_left)
        for kind, m in zip(kinds[1:], modules[1:], strict=True)
    ]
    module = SentenceEncoder(encoder, stages).eval()
    notes = load_weights(module, request.weights) if request.weights else []
    prompts = _read_if_there(folder / "config_sentence_transformers.json")
    default, texts = prompts.get("default_prompt_name"), prompts.get("prompts") or {}
    problem = token_problem(spec, base) or _prompt_problem(folder, modules, texts)
    if problem:
        notes.append(problem)
        task, files = None, {}
    else:
        # put before the tokenizer by sentence-transformers, so transformers' own does not know of it
        spec = replace(spec, lower_case=bool(settings.get("do_lower_case")))
        told = {"tokenizer": encode(spec), "output": OUTPUT, "prompts": texts, "prompt": default}
        task, files = TaskSpec("text-embedding", told), {spec.file: base / "tokenizer.json"}
    return Source(
        name=request.name,
        described=f"sentence-transformers folder '{folder.name}'",
        module=module,
        kwargs=example,
        task=task,
        files=files,
        notes=tuple(notes),
    )


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _check_encodes_texts(settings: dict[str, Any], folder: Path) -> None:
    """Folders of sentence-transformers 5 and later say what their Transformer is asked for."""
    asked = settings.get("transformer_task", "feature-extraction")
    text = (settings.get("modality_config") or {}).get("text") or {}
    output = text.get("method_output_name", "last_hidden_state")
    if asked != "feature-extraction" or output != "last_hidden_state":
        raise ConversionError(
            f"'{folder}' asks its model for {asked} ({output}); infer embeds what a text encoder gives as"
            f" last_hidden_state"
        )


def _prompt_problem(folder: Path, modules: list[dict[str, Any]], prompts: dict[str, str]) -> str | None:
    if not any(prompts.values()):
        return None
    for module in modules[1:]:
        if _read_if_there(folder / module["path"] / "config.json").get("include_prompt") is False:
            return "it has no task, because its pooling leaves out the prompt, which infer does not do"
    return None


def _stage(kind: str, folder: Path, pad_left: bool) -> torch.nn.Module:
    config = _read_if_there(folder / "config.json")
    for side in ("module_input_name", "module_output_name"):
        if config.get(side) not in (None, OUTPUT):
            raise ConversionError(
                f"the stage '{kind}' in '{folder}' has {config[side]!r:.60} as {side}; infer has"
                f" stages that turn one {OUTPUT} into another"
            )
    try:
        return _STAGES[kind](config, folder, pad_left)
    except KeyError as error:
        if kind in _STAGES:
            raise ConversionError(f"'{folder / 'config.json'}' lacks {error}; copy it again") from error
        raise ConversionError(
            f"the stage '{kind}' in '{folder}' is not supported; infer has {', '.join(_STAGES)}"
        ) from None


def _pooling(config: dict[str, Any], folder: Path, pad_left: bool) -> torch.nn.Module:
    said = config.get("pooling_mode")
    if said is None:  # before version 5: a flag for each, joined in this order
        modes = [mode for mode, flag in _POOLING.items() if config.get(f"pooling_mode_{flag}") is True]
    else:
        modes = [said] if isinstance(said, str) else list(said)
    if not modes or any(mode not in _POOLING for mode in modes):
        raise ConversionError(
            f"pooling {said or modes} in '{folder}' is not supported; infer has {', '.join(_POOLING)}"
        )
    return Pooling(modes, pad_left)


def _dense(config: dict[str, Any], folder: Path, pad_left: bool) -> torch.nn.Module:
    name = str(config.get("activation_function"))
    if name not in _ACTIVATIONS:
        raise ConversionError(f"the activation '{name}' in '{folder}' is not supported")
    linear = torch.nn.Linear(config["in_features"], config["out_features"], bool(config.get("bias", True)))
    dense = Dense(linear, _ACTIVATIONS[name](), bool(config.get("use_residual")))
    return _with_weights(dense, folder)


def _layer_norm(config: dict[str, Any], folder: Path, pad_left: bool) -> torch.nn.Module:
    return _with_weights(Norm(config["dimension"]), folder)


def _with_weights(stage: torch.nn.Module, folder: Path) -> torch.nn.Module:
    file = folder / "model.safetensors"
    state, _ = read_state(file if file.is_file() else folder / "pytorch_model.bin")
    try:
        stage.load_state_dict(state)
    except RuntimeError as error:
        raise ConversionError(f"the weights in '{folder}' do not fit its config.json: {error}") from error
    return stage


_POOLING = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
"""Pooling modes, and the ends of the flags that named them before version 5."""

_STAGES: dict[str, Callable[[dict[str, Any], Path, bool], torch.nn.Module]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": lambda config, folder, pad_left: Normalize(),
    "Dropout": lambda config, folder, pad_left: Same(),
}

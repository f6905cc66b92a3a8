"""A sentence-transformers folder: an encoder, pooling and normalization, all put into one graph.

The folder format is that of sentence-transformers' modules.json; the package itself is not needed.
"""

from __future__ import annotations

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
    """Token vectors (batch, tokens, size) to one vector a text, in the modes the folder names."""

    def __init__(self, modes: list[str]) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        pooled = []
        for mode in self.modes:
            if mode == "cls_token":
                pooled.append(tokens[:, 0])
            elif mode == "max_tokens":
                pooled.append(tokens.masked_fill(mask.unsqueeze(-1) == 0, -1e9).amax(dim=1))
            else:
                total = (tokens * weights).sum(dim=1)
                count = weights.sum(dim=1).clamp(min=1e-9)
                pooled.append(total / (count if mode == "mean_tokens" else count.sqrt()))
        return torch.cat(pooled, dim=-1)


class Normalize(torch.nn.Module):
    """Vectors of length 1."""

    def forward(self, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(value, p=2.0, dim=-1)


class Dense(torch.nn.Module):
    """A projection after pooling."""

    def __init__(self, linear: torch.nn.Linear, activation: torch.nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(self.linear(value))
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
    # as the library does: the bare encoder, whatever head config.json names; what pools is below
    encoder = load_model(base, "AutoModel", unused="pooler")
    stages = [_stage(kind, folder / m["path"]) for kind, m in zip(kinds[1:], modules[1:], strict=True)]
    module = SentenceEncoder(encoder, stages).eval()
    notes = load_weights(module, request.weights) if request.weights else []
    example = given_inputs(request) or example_inputs(encoder)
    settings = _settings(base / "sentence_bert_config.json")
    spec = tokenizer_spec(base, tuple(example), settings.get("max_seq_length"))
    task: TaskSpec | None = TaskSpec("text-embedding", {"tokenizer": encode(spec), "output": OUTPUT})
    problem = token_problem(spec, base)
    if problem:
        task = None
        notes.append(problem)
    if ignored := _unknown_settings(folder, settings):
        task = None
        notes.append(
            f"it has no task, because infer does not apply what the folder asks of texts: {ignored}"
        )
    return Source(
        name=request.name,
        described=f"sentence-transformers folder '{folder.name}'",
        module=module,
        kwargs=example,
        task=task,
        files={spec.file: base / "tokenizer.json"} if task else {},
        notes=tuple(notes),
    )


def _settings(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _unknown_settings(folder: Path, settings: dict[str, Any]) -> str:
    prompts = _settings(folder / "config_sentence_transformers.json")
    asked = ["lower case"] if settings.get("do_lower_case") else []
    if name := prompts.get("default_prompt_name"):
        asked.append(f"the prompt '{name}' before each text")
    return ", ".join(asked)


def _stage(kind: str, folder: Path) -> torch.nn.Module:
    if kind == "Normalize":
        return Normalize()
    config: dict[str, Any] = read_json(folder / "config.json")
    if kind == "Pooling":
        prefix = "pooling_mode_"
        modes = [
            key.removeprefix(prefix) for key, on in config.items() if key.startswith(prefix) and on is True
        ]
        # in the order in which the library joins them
        known = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens")
        if not modes or any(mode not in known for mode in modes):
            raise ConversionError(
                f"pooling {modes} in '{folder}' is not supported; infer has {', '.join(known)}"
            )
        return Pooling([mode for mode in known if mode in modes])
    if kind == "Dense":
        name = str(config.get("activation_function"))
        if name not in _ACTIVATIONS:
            raise ConversionError(f"the activation '{name}' in '{folder}' is not supported")
        linear = torch.nn.Linear(
            config["in_features"], config["out_features"], bool(config.get("bias", True))
        )
        file = folder / "model.safetensors"
        state, _ = read_state(file if file.is_file() else folder / "pytorch_model.bin")
        linear.load_state_dict({key.removeprefix("linear."): value for key, value in state.items()})
        return Dense(linear, _ACTIVATIONS[name]())
    raise ConversionError(
        f"the stage '{kind}' in '{folder}' is not supported; infer has Pooling, Dense and Normalize"
    )

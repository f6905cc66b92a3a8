"""A source: a trained model as we got it, with everything needed to export and to check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infer.manifest import TaskSpec
from infer.signature import Range

Dims = Mapping[str, Mapping[int, str]]
"""Which axes of which inputs may vary: input name → axis → dim name."""


@dataclass(frozen=True)
class Source:
    """What a source folder, file or object turned into.

    Attributes:
        name: what the artifact is called if the caller does not say.
        described: where it came from, for the manifest.
        module: callable as `module(*args, **kwargs)`: an nn.Module, ScriptModule or program module.
        args, kwargs: example inputs, possibly nested; tensors among them become graph inputs.
        dims: axes that this family of models usually varies. Each is tried on the original,
            and kept only if that answers at other sizes.
        task: what the model is for, where the source says so.
        files: files the task needs, by name below `files/`.
        limits: for each tensor of the inputs, in order, the sizes of axes that the module was made for;
            beyond them it may answer all the same, but wrongly.
        exporters: names of the exporters that can take this source; empty means all.
        notes: what was found or changed while opening it.
    """

    name: str
    described: str
    module: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dims: Dims = field(default_factory=dict)
    task: TaskSpec | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    limits: tuple[Mapping[int, Range], ...] = ()
    exporters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


USUAL_DIMS: Mapping[str, Mapping[int, str]] = {
    **{
        name: {0: "batch", 1: "sequence"}
        for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    },
    **{
        name: {0: "batch", 1: "decoder_sequence"}
        for name in ("decoder_input_ids", "decoder_attention_mask")
    },
    "pixel_values": {0: "batch", 2: "height", 3: "width"},
    "pixel_mask": {0: "batch", 1: "height", 2: "width"},
    "input_values": {0: "batch", 1: "samples"},
    "input_features": {0: "batch", 2: "frames"},
}
"""Axes that vary by the meaning that an input's name has throughout `transformers`."""

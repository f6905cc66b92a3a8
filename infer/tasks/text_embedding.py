"""text-embedding: a text in, its vector out. Pooling and normalization are part of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array
from infer.tasks import Padding, Setting
from infer.tasks.lines import read_lines
from infer.tasks.rows import Part, answer, answer_parts
from infer.tasks.tokens import TextEncoder, TokenizerSpec


@dataclass(frozen=True)
class TextEmbeddingSpec:
    """`output` names the tensor that holds the vectors, shape = (batch, size). `prompts` are texts, by
    name, that the model was trained to see before others; `prompt` names that of a plain text."""

    tokenizer: TokenizerSpec
    output: str
    prompts: dict[str, str] = field(default_factory=dict)
    prompt: str | None = None


class TextEmbedding:
    """An input is a str, or {"text": …, "prompt": NAME}, where None as name means no prompt; a result is a
    float32 vector. A list of n gives an array (n, size); an empty one (0, size) if the graph's size is
    fixed, else (0, 0)."""

    row_by_row = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(TextEmbeddingSpec)
        self._output = setting.output(self.spec.output, rank=2)
        self.encoder = TextEncoder(self.spec.tokenizer, setting)
        if self.spec.tokenizer.stride is not None:
            raise ArtifactError("a text has one vector, so 'stride' has no meaning for text-embedding")
        if self.spec.prompt not in (None, *self.spec.prompts):
            raise ArtifactError(
                f"the spec's prompt '{self.spec.prompt}' is none of its prompts: {self._prompt_names()}"
            )

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, self._many)

    @property
    def padding(self) -> Padding:
        return self.encoder.padding

    def parts(self, texts: Sequence[Any]) -> Iterator[Part]:
        return self.encoder.parts([self._prompted(text, place) for place, text in enumerate(texts)])

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> Sequence[Array]:
        return list(outputs[self.spec.output])

    def synthetic(self, rng: np.random.Generator) -> str:
        return self.encoder.synthetic(rng)

    def read(self, path: Path) -> Sequence[Any]:
        return read_lines(path)

    def parse(self, text: str) -> Any:
        return text

    def to_json(self, result: Any) -> Any:
        return {"vector": [float(x) for x in result]}

    def describe(self, result: Any) -> str:
        values = ", ".join(f"{x:.4f}" for x in result[:6])
        return f"vector of {len(result)}: [{values}{', …' if len(result) > 6 else ''}]"

    def _prompted(self, text: Any, place: int) -> Any:
        name = self.spec.prompt
        if isinstance(text, Mapping):
            if set(text) != {"text", "prompt"}:
                raise InputError(
                    f"text {place} is a mapping with {', '.join(map(repr, text)) or 'nothing'}; it must"
                    f" have 'text' and 'prompt'"
                )
            text, name = text["text"], text["prompt"]
            if name is not None and name not in self.spec.prompts:
                raise InputError(
                    f"text {place} asks for the prompt {name!r:.60}; the model has {self._prompt_names()}"
                )
        # what is no text is the encoder's to refuse
        return self.spec.prompts[name] + text if name is not None and isinstance(text, str) else text

    def _prompt_names(self) -> str:
        return ", ".join(self.spec.prompts) or "none"

    def _many(self, texts: Sequence[Any]) -> Array:
        vectors = answer_parts(self.setting, self.parts(texts), self.decode)
        size = self._output.dims[1]
        if not vectors:
            return np.empty((0, size if isinstance(size, int) else 0), np.float32)
        return np.stack(vectors)

"""text-embedding: a text in, its vector out. Pooling and normalization are part of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError
from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.lines import read_lines
from infer.tasks.rows import Part, answer, answer_parts
from infer.tasks.tokens import TextEncoder, TokenizerSpec


@dataclass(frozen=True)
class TextEmbeddingSpec:
    """`output` names the tensor that holds the vectors, shape = (batch, size)."""

    tokenizer: TokenizerSpec
    output: str


class TextEmbedding:
    """An input is a str; a result is a float32 vector. A list of n gives an array (n, size);
    an empty one (0, size) if the graph's size is fixed, else (0, 0)."""

    row_by_row = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(TextEmbeddingSpec)
        self._output = setting.output(self.spec.output, rank=2)
        self.encoder = TextEncoder(self.spec.tokenizer, setting)
        if self.spec.tokenizer.stride is not None:
            raise ArtifactError("a text has one vector, so 'stride' has no meaning for text-embedding")

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, self._many)

    def parts(self, texts: Sequence[Any]) -> Iterator[Part]:
        return self.encoder.parts(texts)

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> Sequence[Array]:
        return list(outputs[self.spec.output])

    def read(self, path: Path) -> Sequence[Any]:
        return read_lines(path)

    def parse(self, text: str) -> Any:
        return text

    def to_json(self, result: Any) -> Any:
        return {"vector": [float(x) for x in result]}

    def describe(self, result: Any) -> str:
        values = ", ".join(f"{x:.4f}" for x in result[:6])
        return f"vector of {len(result)}: [{values}{', …' if len(result) > 6 else ''}]"

    def _many(self, texts: Sequence[Any]) -> Array:
        vectors = answer_parts(self.setting, self.parts(texts), self.decode)
        size = self._output.dims[1]
        if not vectors:
            return np.empty((0, size if isinstance(size, int) else 0), np.float32)
        return np.stack(vectors)

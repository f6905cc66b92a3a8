"""text-classification: a text in, its labels out, best first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.labels import Classes, ScoredLabel, describe_labels, labels_to_json
from infer.tasks.rows import Part, answer, answer_parts
from infer.tasks.tokens import TextEncoder, TokenizerSpec, read_lines


@dataclass(frozen=True)
class TextClassificationSpec:
    """`output` names the logits; "sigmoid" as activation means labels are independent."""

    tokenizer: TokenizerSpec
    output: str
    labels: tuple[str, ...] = ()
    activation: str = "softmax"


class TextClassification:
    """An input is a str; a result is a list of `ScoredLabel`, best first."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(TextClassificationSpec)
        self.classes = Classes(self.spec.labels, self.spec.activation)
        self.encoder = TextEncoder(self.spec.tokenizer, setting)

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, lambda many: answer_parts(self.setting, self.parts(many), self.decode))

    def parts(self, texts: Sequence[Any]) -> Iterator[Part]:
        return self.encoder.parts(texts)

    def scores(self, outputs: Mapping[str, Array]) -> Array:
        """The score of every class, shape = (batch, classes)."""
        return self.classes.scores(outputs[self.spec.output])

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[list[ScoredLabel]]:
        return [self.classes.rank(row) for row in self.scores(outputs)]

    def read(self, path: Path) -> Sequence[Any]:
        return read_lines(path)

    def parse(self, text: str) -> Any:
        return text

    def to_json(self, result: Any) -> Any:
        return labels_to_json(result)

    def describe(self, result: Any) -> str:
        return describe_labels(result)

"""text-classification: a text in, its labels out, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer.tasks import Setting
from infer.tasks.labels import ScoredLabel, describe_labels, labels_to_json, rank
from infer.tasks.rows import answer, run_rows
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
        self._setting = setting
        self.spec = setting.decode(TextClassificationSpec)
        self.encoder = TextEncoder(self.spec.tokenizer, setting)

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, self._many)

    def read(self, path: Path) -> Sequence[Any]:
        return read_lines(path)

    def parse(self, text: str) -> Any:
        return text

    def to_json(self, result: Any) -> Any:
        return labels_to_json(result)

    def describe(self, result: Any) -> str:
        return describe_labels(result)

    def _many(self, texts: Sequence[Any]) -> list[list[ScoredLabel]]:
        results: list[list[ScoredLabel]] = [[] for _ in texts]
        for rows, feeds in self.encoder.batches(texts):
            logits = run_rows(self._setting.run, self._setting.signature, feeds)[self.spec.output]
            ranked = rank(logits, self.spec.labels, self.spec.activation, None)
            for place, result in zip(rows, ranked, strict=True):
                results[place] = result
        return results

"""text-classification: a text, or two, in; labels out, best first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError
from infer.signature import Array
from infer.tasks import Padding, Setting
from infer.tasks.labels import Classes, ScoredLabel, describe_labels, labels_to_json
from infer.tasks.lines import read_lines
from infer.tasks.rows import Part, answer, answer_parts
from infer.tasks.tokens import TextEncoder, TokenizerSpec, Window


@dataclass(frozen=True)
class TextClassificationSpec:
    """`output` names the logits; "sigmoid" as activation means labels are independent.

    With a `threshold`, only labels that reach it are results. Longer texts are cut, or, if the tokenizer's
    spec has a `stride`, answered window by window; `windows` is "mean" or "max" of the scores.
    """

    tokenizer: TokenizerSpec
    output: str
    labels: tuple[str, ...] = ()
    activation: str = "softmax"
    threshold: float | None = None
    windows: str = "mean"


class TextClassification:
    """An input is a str, or a pair: (text, text) or {"text": …, "text_pair": …}; a result is a list of
    `ScoredLabel`, best first. Pairs are always cut, the longer text first."""

    row_by_row = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(TextClassificationSpec)
        self.classes = Classes(
            self.spec.labels, self.spec.activation, self.spec.threshold, self.spec.windows
        )
        self.classes.check(setting.output(self.spec.output, rank=2))
        self.encoder = TextEncoder(self.spec.tokenizer, setting, pairs=True)

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, self._many)

    @property
    def padding(self) -> Padding:
        return self.encoder.padding

    def parts(self, texts: Sequence[Any]) -> Iterator[Part]:
        return self.encoder.parts([_text(text, i) for i, text in enumerate(texts)])

    def scores(self, outputs: Mapping[str, Array]) -> Array:
        """The score of every class, shape = (batch, classes), a row for each window."""
        return self.classes.scores(outputs[self.spec.output])

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[list[ScoredLabel]]:
        """A result for each text whose windows, or place, `about` has, in the order of their first rows."""
        texts: dict[int, list[Array]] = {}
        for row, window in zip(self.scores(outputs), about, strict=True):
            texts.setdefault(window.place if isinstance(window, Window) else window, []).append(row)
        return [self.classes.rank(self.classes.join(rows)) for rows in texts.values()]

    def synthetic(self, rng: np.random.Generator) -> str:
        return self.encoder.synthetic(rng)

    def read(self, path: Path) -> Sequence[Any]:
        return [self.parse(line) for line in read_lines(path)]

    def parse(self, text: str) -> Any:
        """A text; a pair where the line has one tab between two texts."""
        first, tab, second = text.partition("\t")
        return (first, second) if tab and "\t" not in second else text

    def to_json(self, result: Any) -> Any:
        return labels_to_json(result)

    def describe(self, result: Any) -> str:
        return describe_labels(result) or f"no label reaches {self.spec.threshold:.2%}"

    def _many(self, texts: Sequence[Any]) -> list[list[ScoredLabel]]:
        scored = answer_parts(
            self.setting,
            self.parts(texts),
            lambda outputs, _: list(self.scores(outputs)),
            self.classes.join,
        )
        return [self.classes.rank(scores) for scores in scored]


def _text(text: Any, index: int) -> Any:
    """A pair as a tuple, whatever form it has. An empty second text is none, as it is to transformers."""
    if isinstance(text, tuple):
        return text[0] if len(text) == 2 and text[1] == "" else text
    if not isinstance(text, Mapping):
        return text
    if set(text) == {"text"}:
        return text["text"]
    if set(text) == {"text", "text_pair"}:
        return _text((text["text"], text["text_pair"]), index)
    raise InputError(
        f"text {index} is a mapping with {', '.join(map(repr, text)) or 'nothing'}; a pair has 'text' and"
        f" 'text_pair'"
    )

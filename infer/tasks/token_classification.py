"""token-classification: a text in, the entities in it out, with their places in the text.

How tokens become entities is that of transformers' TokenClassificationPipeline, strategy by strategy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError
from infer.signature import Array
from infer.tasks import Padding, Setting
from infer.tasks.labels import Classes
from infer.tasks.lines import read_lines
from infer.tasks.rows import Part, answer, answer_parts
from infer.tasks.tokens import TextEncoder, TokenizerSpec, Window

AGGREGATIONS = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class TokenClassificationSpec:
    """`output` names the logits, shape = (batch, sequence, labels).

    `aggregation`: "none" gives every token; "simple" joins neighbours of one kind; "first", "average" and
    "max" first give a whole word the label of its first token, of the tokens' mean, or of the surest
    token. Entities called one of `ignore` are left out. `word_pieces` says that the tokenizer marks tokens
    that continue a word; `unknown_id` is its token for what it does not know.
    """

    tokenizer: TokenizerSpec
    output: str
    labels: tuple[str, ...] = ()
    aggregation: str = "simple"
    ignore: tuple[str, ...] = ("O",)
    word_pieces: bool = False
    unknown_id: int | None = None


@dataclass(frozen=True)
class Entity:
    """Characters `start` to `end` of the text, which read `text`, and what they are."""

    label: str
    score: float
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Found:
    """The entities of one window of a text."""

    number: int
    entities: list[Entity]


@dataclass(frozen=True)
class _Span:
    """A token or a word with its scores; `continues` says that it belongs to the word before it."""

    start: int
    end: int
    scores: Array
    continues: bool


@dataclass(frozen=True)
class _Named:
    """A span whose label is decided."""

    label: str
    score: float
    start: int
    end: int


class TokenClassification:
    """An input is a str; a result is a list of `Entity` in the order of the text."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(TokenClassificationSpec)
        self.classes = Classes(self.spec.labels)
        count = setting.output(self.spec.output, rank=3).dims[2]
        if self.spec.labels and isinstance(count, int) and count != len(self.spec.labels):
            raise ArtifactError(
                f"the artifact has {len(self.spec.labels)} labels, but the model gives {count}; convert it"
                f" again with one label for each"
            )
        if self.spec.aggregation not in AGGREGATIONS:
            raise ArtifactError(
                f"unknown aggregation {self.spec.aggregation!r:.60}; use one of {', '.join(AGGREGATIONS)}"
            )
        if self.spec.aggregation == "none" and self.spec.tokenizer.stride is not None:
            raise ArtifactError(
                "tokens that two windows share would be found twice; with 'stride', use an aggregation"
                " other than 'none'"
            )
        self.encoder = TextEncoder(self.spec.tokenizer, setting, offsets=True)

    def __call__(self, inputs: Any) -> Any:
        return answer(
            inputs, lambda many: answer_parts(self.setting, self.parts(many), self.rows, self.join)
        )

    @property
    def padding(self) -> Padding:
        return self.encoder.padding

    def parts(self, texts: Sequence[Any]) -> Iterator[Part]:
        return self.encoder.parts(texts)

    def rows(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[Found]:
        """The entities of each window."""
        found = []
        for window, row in zip(about, outputs[self.spec.output], strict=True):
            logits = row[self.encoder.token_rows(window)].astype(np.float64)
            exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
            scores = exponentials / exponentials.sum(axis=-1, keepdims=True)
            found.append(Found(window.number, self._entities(window, self._spans(window, scores))))
        return found

    def join(self, windows: Sequence[Found]) -> list[Entity]:
        """The entities of a text. Where those of two windows overlap, the longer or surer one stays."""
        ordered = sorted(windows, key=lambda window: window.number)
        entities = [entity for window in ordered for entity in window.entities]
        if len(windows) == 1 or not entities:
            return entities
        entities.sort(key=lambda entity: entity.start)
        kept = [entities[0]]
        for entity in entities[1:]:
            last = kept[-1]
            if not last.start <= entity.start < last.end:
                kept.append(entity)
            elif (entity.end - entity.start, entity.score) > (last.end - last.start, last.score):
                kept[-1] = entity
        return kept

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[list[Entity]]:
        """A result for each text whose windows `about` has, in the order of their first ones."""
        texts: dict[int, list[Found]] = {}
        for window, found in zip(about, self.rows(outputs, about), strict=True):
            texts.setdefault(window.place, []).append(found)
        return [self.join(windows) for windows in texts.values()]

    def synthetic(self, rng: np.random.Generator) -> str:
        return self.encoder.synthetic(rng)

    def read(self, path: Path) -> Sequence[Any]:
        return read_lines(path)

    def parse(self, text: str) -> Any:
        return text

    def to_json(self, result: Any) -> Any:
        return {"entities": [asdict(entity) for entity in result]}

    def describe(self, result: Any) -> str:
        lines = [
            f"{entity.score:7.2%}  {' '.join(entity.label.splitlines())}  {entity.start}-{entity.end}"
            f"  {' '.join(entity.text.split())}"
            for entity in result
        ]
        return "\n".join(lines) or "no entities"

    def _spans(self, window: Window, scores: Array) -> list[_Span]:
        encoding, text = window.tokens, window.text
        spans = []
        for i, (start, end) in enumerate(encoding.offsets):
            if encoding.special_tokens_mask[i]:
                continue
            if encoding.ids[i] == self.spec.unknown_id:
                continues = False
            elif self.spec.word_pieces:
                continues = len(encoding.tokens[i]) != len(text[start:end])
            else:
                continues = start > 0 and " " not in text[start - 1 : start + 1]
            spans.append(_Span(start, end, scores[i], continues))
        return spans

    def _entities(self, window: Window, spans: Sequence[_Span]) -> list[Entity]:
        if self.spec.aggregation in ("none", "simple"):
            named = [self._name(span.scores, [span]) for span in spans]
        else:
            named = [self._word(word) for word in _words(spans)]
        if self.spec.aggregation != "none":
            named = [_joined(group) for group in _groups(named)]
        return [
            Entity(n.label, n.score, n.start, n.end, window.text[n.start : n.end])
            for n in named
            if n.label not in self.spec.ignore
        ]

    def _word(self, tokens: Sequence[_Span]) -> _Named:
        if self.spec.aggregation == "first":
            scores = tokens[0].scores
        elif self.spec.aggregation == "max":
            scores = max(tokens, key=lambda token: float(token.scores.max())).scores
        else:
            scores = np.mean([token.scores for token in tokens], axis=0)
        return self._name(scores, tokens)

    def _name(self, scores: Array, tokens: Sequence[_Span]) -> _Named:
        best = int(scores.argmax())
        return _Named(self.classes.label(best), float(scores[best]), tokens[0].start, tokens[-1].end)


def _words(spans: Sequence[_Span]) -> Iterator[list[_Span]]:
    word: list[_Span] = []
    for span in spans:
        if word and not span.continues:
            yield word
            word = []
        word.append(span)
    if word:
        yield word


def _groups(named: Sequence[_Named]) -> Iterator[list[_Named]]:
    """Neighbours of one kind, which "B-" begins anew."""
    group: list[_Named] = []
    for item in named:
        if group and (item.label.startswith("B-") or _kind(item.label) != _kind(group[-1].label)):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _joined(group: Sequence[_Named]) -> _Named:
    score = float(np.mean([item.score for item in group]))
    # transformers cuts a label at its first dash, whatever stands before it
    return _Named(group[0].label.split("-", 1)[-1], score, group[0].start, group[-1].end)

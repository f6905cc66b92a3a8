"""From text to token ids, with the tokenizer the model was trained with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError, missing_package
from infer.signature import Array, TensorSpec
from infer.tasks import Padding, Setting, synthetic
from infer.tasks.rows import Part

try:
    from tokenizers import Tokenizer, normalizers
except (ImportError, OSError) as _error:
    raise missing_package("tokenizers", "text", _error) from _error

# Texts of similar length run together until they hold this many tokens. More does not fill two
# to sixteen cores better, but costs padding and memory.
_TOKENS_PER_BATCH = 2048

# no model takes more, and the tokenizers library counts in machine words
_MOST_TOKENS = 2**31 - 1

KINDS = ("ids", "attention_mask", "type_ids")


@dataclass(frozen=True)
class TokenizerSpec:
    """How texts become feeds.

    `file` is the tokenizer.json. `inputs` maps each input to what it is fed: "ids",
    "attention_mask" or "type_ids". Longer texts are cut to `max_length` tokens, as in training; with a
    `stride` they become windows of `max_length` tokens instead, of which neighbours share `stride`.
    `lower_case` comes before all that the tokenizer itself does.
    """

    file: str
    inputs: dict[str, str]
    max_length: int
    pad_id: int = 0
    pad_type_id: int = 0
    pad_left: bool = False
    truncate_left: bool = False
    stride: int | None = None
    lower_case: bool = False


@dataclass(frozen=True)
class Window:
    """A row of a part: window `number` of the text at `place`. A text that fits is one window.

    `tokens` has `ids`, `attention_mask` and `type_ids`; of a single text it is the tokenizer's
    encoding, which has `offsets` into the text and `special_tokens_mask`, too.
    """

    place: int
    number: int
    text: str
    tokens: Any


@dataclass(frozen=True)
class _Pair:
    """The tokens of two texts."""

    ids: list[int]
    attention_mask: list[int]
    type_ids: list[int]


class TextEncoder:
    """Texts in, feeds out, in batches with little padding.

    With `pairs`, a text may be a tuple of two. With `offsets`, encodings say where in the text a token
    lies, which costs time. Raises `ArtifactError` if the spec does not fit the graph or the tokenizer.
    """

    def __init__(
        self, spec: TokenizerSpec, setting: Setting, *, pairs: bool = False, offsets: bool = False
    ) -> None:
        self.spec = spec
        self._setting = setting
        self._offsets = offsets
        specs = _specs(spec, setting)
        self._fill = {"ids": spec.pad_id, "attention_mask": 0, "type_ids": spec.pad_type_id}
        for name, kind in spec.inputs.items():
            limit = np.iinfo(specs[name].numpy_dtype).max
            if not 0 <= self._fill[kind] <= limit:
                raise ArtifactError(
                    f"the tokenizer spec pads '{name}' with {self._fill[kind]}, which must be 0 to {limit}"
                )
        self._dtypes = {name: specs[name].numpy_dtype for name in spec.inputs}
        lengths = {specs[name].dims[1] for name in spec.inputs}
        fixed = [length for length in lengths if isinstance(length, int)]
        self._length = fixed[0] if fixed else None
        self._longest = min(spec.max_length, self._length or spec.max_length)
        try:
            self.tokenizer = Tokenizer.from_file(os.fspath(setting.file(spec.file)))
        except Exception as error:  # the library raises plain Exception
            raise ArtifactError(f"the tokenizer '{spec.file}' cannot be read: {error}") from error
        if spec.lower_case:
            own = [self.tokenizer.normalizer] if self.tokenizer.normalizer else []
            self.tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        self._check_lengths()
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(
            self._longest,
            stride=spec.stride or 0,
            direction="left" if spec.truncate_left else "right",
        )
        self._pair_template = self._template() if pairs else ()

    @property
    def takes_pairs(self) -> bool:
        """Whether a text may be a tuple of two."""
        return bool(self._pair_template)

    @property
    def padding(self) -> Padding:
        """What fills rows that are shorter than others."""
        fill = {name: self._fill[kind] for name, kind in self.spec.inputs.items()}
        return Padding(fill, left=self.spec.pad_left)

    def parts(self, texts: Sequence[Any]) -> Iterator[Part]:
        """Feeds for all `texts`, those of similar length together; about each row, its `Window`."""
        windows = self._windows(texts)
        order = sorted(range(len(windows)), key=lambda i: len(windows[i].tokens.ids))
        limit = self._setting.signature.inputs[0].dims[0]
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order):
                if isinstance(limit, int):
                    full = stop - start >= limit
                else:
                    longest = len(windows[order[stop]].tokens.ids)
                    full = (stop + 1 - start) * longest > _TOKENS_PER_BATCH
                if full:
                    break
                stop += 1
            rows = [windows[i] for i in order[start:stop]]
            yield Part([row.place for row in rows], self._feeds([row.tokens for row in rows]), rows)
            start = stop

    def synthetic(self, rng: np.random.Generator) -> str:
        """A text of words that the tokenizer knows."""
        words = self.tokenizer.get_vocab_size()
        return synthetic.text(rng, lambda token: self.tokenizer.decode([token]), words)

    def token_rows(self, window: Window) -> slice:
        """Where a window's tokens lie in a padded row of the model's output."""
        count = len(window.tokens.ids)
        return slice(-count, None) if self.spec.pad_left else slice(count)

    def _check_lengths(self) -> None:
        special = self.tokenizer.num_special_tokens_to_add(False)
        if not special < self._longest <= _MOST_TOKENS:
            raise ArtifactError(
                f"the tokenizer spec cuts texts to {self._longest} tokens; it must be more than the"
                f" {special} special ones, and at most {_MOST_TOKENS}"
            )
        stride = self.spec.stride
        if stride is not None and not 0 <= stride < self._longest - special:
            raise ArtifactError(
                f"windows of {self._longest} tokens, {special} of them special, cannot share {stride};"
                f" 'stride' must be 0 to {self._longest - special - 1}"
            )

    def _windows(self, texts: Sequence[Any]) -> list[Window]:
        singles = [i for i, text in enumerate(texts) if not isinstance(text, tuple)]
        pairs = [i for i, text in enumerate(texts) if isinstance(text, tuple)]
        for index in pairs:
            if not self._pair_template:
                raise InputError(f"text {index} is a pair, but this model takes single texts")
            if len(texts[index]) != 2:
                raise InputError(f"text {index} is a tuple of {len(texts[index])}; a pair has 2 texts")
        windows = []
        encodings = self._encode([texts[i] for i in singles], singles)
        for place, encoding in zip(singles, encodings, strict=True):
            found = [encoding] if self.spec.stride is None else [encoding, *encoding.overflowing]
            windows += [Window(place, n, texts[place], tokens) for n, tokens in enumerate(found)]
        sides = self._encode(
            [side for i in pairs for side in texts[i]], [i for i in pairs for _ in range(2)], special=False
        )
        for n, place in enumerate(pairs):
            windows.append(
                Window(place, 0, texts[place][0], self._pair(place, sides[2 * n], sides[2 * n + 1]))
            )
        return windows

    def _encode(self, texts: Sequence[Any], places: Sequence[int], special: bool = True) -> list[Any]:
        for place, text in zip(places, texts, strict=True):
            if not isinstance(text, str):
                raise InputError(
                    f"text {place} must be a str, but is a {type(text).__name__}: {text!r:.60}"
                )
        try:
            if len(texts) == 1:  # a batch call starts threads
                return [self.tokenizer.encode(texts[0], add_special_tokens=special)]
            batch = self.tokenizer.encode_batch if self._offsets else self.tokenizer.encode_batch_fast
            return list(batch(texts, add_special_tokens=special))
        except Exception as error:  # lone surrogates: the library raises whatever its binding does
            raise InputError(
                f"a text is not valid Unicode ({error}); decode it with errors='replace'"
            ) from error

    def _template(self) -> tuple[tuple[int, int, int], ...]:
        """How the tokenizer joins a pair: (side, -1, type) for a whole side, (-1, id, type) for a special
        token. Empty if it joins none.

        Joined by the library itself, a pair of long texts yields every window of one with every window
        of the other: gigabytes for 100 kB.
        """
        probe = self.tokenizer.encode("a", "a")
        pieces: list[tuple[int, int, int]] = []
        for side, token, kind in zip(probe.sequence_ids, probe.ids, probe.type_ids, strict=True):
            piece = (-1, token, kind) if side is None else (side, -1, kind)
            if side is None or piece not in pieces:
                pieces.append(piece)
        sides = [side for side, _, _ in pieces if side >= 0]
        return tuple(pieces) if sorted(sides) == [0, 1] else ()

    def _pair(self, place: int, first: Any, second: Any) -> _Pair:
        room = self._longest - sum(side < 0 for side, _, _ in self._pair_template)
        if room < 2:
            raise InputError(f"text {place} is a pair, but {self._longest} tokens do not hold one")
        sides = []
        for encoding, count in zip(
            (first, second), _longest_first(self._count(first), self._count(second), room), strict=True
        ):
            sides.append(
                encoding.ids[len(encoding.ids) - count :]
                if self.spec.truncate_left
                else encoding.ids[:count]
            )
        ids: list[int] = []
        types: list[int] = []
        for side, token, kind in self._pair_template:
            piece = [token] if side < 0 else sides[side]
            ids += piece
            types += [kind] * len(piece)
        return _Pair(ids, [1] * len(ids), types)

    def _count(self, encoding: Any) -> int:
        """How many tokens there were before cutting."""
        shared = self.spec.stride or 0
        return len(encoding.ids) + sum(len(rest.ids) - shared for rest in encoding.overflowing)

    def _feeds(self, rows: Sequence[Any]) -> dict[str, Array]:
        length = self._length or max(1, *(len(tokens.ids) for tokens in rows))
        feeds = {}
        for name, kind in self.spec.inputs.items():
            array = np.full((len(rows), length), self._fill[kind], self._dtypes[name])
            for row, tokens in zip(array, rows, strict=True):
                values = getattr(tokens, kind)
                if self.spec.pad_left:
                    row[length - len(values) :] = values
                else:
                    row[: len(values)] = values
            feeds[name] = array
        return feeds


def _specs(spec: TokenizerSpec, setting: Setting) -> Mapping[str, TensorSpec]:
    """The graph's inputs by name. Raises `ArtifactError` if `spec` does not feed just these."""
    specs = {s.name: s for s in setting.signature.inputs}
    if spec.inputs.keys() != specs.keys():
        raise ArtifactError(
            f"the tokenizer spec feeds {', '.join(spec.inputs) or 'nothing'}, but the graph takes"
            f" {', '.join(specs) or 'nothing'}"
        )
    for name, kind in spec.inputs.items():
        if kind not in KINDS:
            raise ArtifactError(
                f"the tokenizer spec feeds '{name}' {kind!r:.60}; use one of {', '.join(KINDS)}"
            )
        if specs[name].dtype not in ("int32", "int64") or len(specs[name].dims) != 2:
            raise ArtifactError(
                f"tokens are int32 or int64 [batch, sequence], but the graph takes {specs[name]}"
            )
    return specs


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each side of a pair keeps, as transformers' "longest_first": the longer one is
    cut to the shorter's length, then both alike, the odd token going to the longer."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = room - short
    # of equals the second counts as the longer
    return (long, short) if first > second else (short, long)

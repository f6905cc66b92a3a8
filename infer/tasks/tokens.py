"""From text to token ids, with the tokenizer the model was trained with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError, missing_package
from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.rows import Part

try:
    from tokenizers import Tokenizer
except (ImportError, OSError) as _error:
    raise missing_package("tokenizers", "text", _error) from _error

# Texts of similar length run together until they hold this many tokens. More does not fill two
# to sixteen cores better, but costs padding and memory.
_TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class TokenizerSpec:
    """How texts become feeds.

    `file` is the tokenizer.json. `inputs` maps each input to what it is fed: "ids",
    "attention_mask" or "type_ids". Longer texts are cut to `max_length` tokens, as in training.
    """

    file: str
    inputs: dict[str, str]
    max_length: int
    pad_id: int = 0
    pad_type_id: int = 0
    pad_left: bool = False


class TextEncoder:
    """Texts in, feeds out, in batches with little padding."""

    def __init__(self, spec: TokenizerSpec, setting: Setting) -> None:
        self.spec = spec
        self._setting = setting
        specs = {s.name: s for s in setting.signature.inputs}
        self._fill = {"ids": spec.pad_id, "attention_mask": 0, "type_ids": spec.pad_type_id}
        if bad := [n for n, kind in spec.inputs.items() if n not in specs or kind not in self._fill]:
            raise ArtifactError(f"the tokenizer spec feeds {bad}, which the graph or infer lacks")
        self._dtypes = {name: specs[name].numpy_dtype for name in spec.inputs}
        fixed = [specs[name].dims[1] for name in spec.inputs if len(specs[name].dims) == 2]
        self._length = fixed[0] if fixed and isinstance(fixed[0], int) else None
        try:
            self._tokenizer = Tokenizer.from_file(os.fspath(setting.file(spec.file)))
        except Exception as error:  # the library raises plain Exception
            raise ArtifactError(f"the tokenizer '{spec.file}' cannot be read: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(min(spec.max_length, self._length or spec.max_length))

    def parts(self, texts: Sequence[Any]) -> Iterator[Part]:
        """Feeds for all `texts`, those of similar length together; about each, its encoding."""
        encodings = self._encode(texts)
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        limit = self._setting.signature.inputs[0].dims[0]
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order):
                if isinstance(limit, int):
                    full = stop - start >= limit
                else:
                    longest = len(encodings[order[stop]].ids)
                    full = (stop + 1 - start) * longest > _TOKENS_PER_BATCH
                if full:
                    break
                stop += 1
            rows = order[start:stop]
            chosen = [encodings[i] for i in rows]
            yield Part(rows, self._feeds(chosen), chosen)
            start = stop

    def _encode(self, texts: Sequence[Any]) -> list[Any]:
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(
                    f"text {index} must be a str, but is a {type(text).__name__}: {text!r:.60}"
                )
        try:
            if len(texts) == 1:  # a batch call starts threads
                return [self._tokenizer.encode(texts[0])]
            return list(self._tokenizer.encode_batch_fast(texts))
        except Exception as error:  # lone surrogates: the library raises whatever its binding does
            raise InputError(
                f"a text is not valid Unicode ({error}); decode it with errors='replace'"
            ) from error

    def _feeds(self, encodings: Sequence[Any]) -> dict[str, Array]:
        length = self._length or max(1, *(len(e.ids) for e in encodings))
        feeds = {}
        for name, kind in self.spec.inputs.items():
            array = np.full((len(encodings), length), self._fill[kind], self._dtypes[name])
            for row, encoding in zip(array, encodings, strict=True):
                values = getattr(encoding, kind)
                if self.spec.pad_left:
                    row[length - len(values) :] = values
                else:
                    row[: len(values)] = values
            feeds[name] = array
        return feeds


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a UTF-8 text file. Raises `InputError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"there is no file '{path}'; check the path, or pass text with --text") from error
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}' is not UTF-8 text ({error.reason} at byte {error.start}); convert it first"
        ) from error
    return [line for line in text.splitlines() if line.strip()]

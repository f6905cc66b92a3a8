"""What a model folder says of its tokenizer, as the spec the runtime reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.sources.folder import read_json
from infer.errors import ConversionError
from infer.tasks.tokens import TokenizerSpec

FILE = "files/tokenizer.json"
_KINDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
# where a tokenizer says "no limit" it writes 1e30
_NO_LIMIT = 10**6


def tokenizer_spec(folder: Path, inputs: Sequence[str], max_length: int | None) -> TokenizerSpec:
    """The spec for `inputs`; `max_length` overrides the folder's own. Raises `ConversionError`."""
    if unknown := [name for name in inputs if name not in _KINDS]:
        raise ConversionError(f"a tokenizer does not give {', '.join(map(repr, unknown))}")
    tokenizer = read_json(folder / "tokenizer.json")
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = read_json(path) if path.is_file() else {}
    positions = read_json(folder / "config.json").get("max_position_embeddings")
    limits = [n for n in (max_length, config.get("model_max_length"), positions) if n and n < _NO_LIMIT]
    pad = config.get("pad_token") or "[PAD]"
    pad = pad["content"] if isinstance(pad, dict) else pad
    ids = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    padding = tokenizer.get("padding") or {}
    return TokenizerSpec(
        file=FILE,
        inputs={name: _KINDS[name] for name in inputs},
        max_length=int(max_length or min(limits, default=512)),
        pad_id=int(ids.get(pad, padding.get("pad_id", 0))),
        pad_type_id=int(padding.get("pad_type_id", 0)),
        pad_left=config.get("padding_side") == "left",
    )

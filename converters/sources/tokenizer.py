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

# their first position is the one behind the padding id, so that many fewer are left for tokens
_POSITIONS_BEHIND_PADDING = frozenset(
    {
        "camembert", "data2vec-text", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm",
        "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip


def tokenizer_spec(folder: Path, inputs: Sequence[str], max_length: int | None) -> TokenizerSpec:
    """The spec for `inputs`; `max_length` overrides the folder's own. Raises `ConversionError`."""
    if unknown := [name for name in inputs if name not in _KINDS]:
        raise ConversionError(f"a tokenizer does not give {', '.join(map(repr, unknown))}")
    tokenizer = read_json(folder / "tokenizer.json")
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = read_json(path) if path.is_file() else {}
    positions = _positions(read_json(folder / "config.json"))
    limits = [n for n in (max_length, config.get("model_max_length"), positions) if n and 0 < n < _NO_LIMIT]
    pad = config.get("pad_token") or "[PAD]"
    pad = pad["content"] if isinstance(pad, dict) else pad
    ids = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    padding = tokenizer.get("padding") or {}
    truncation = tokenizer.get("truncation") or {}
    return TokenizerSpec(
        file=FILE,
        inputs={name: _KINDS[name] for name in inputs},
        max_length=int(max_length or min(limits, default=512)),
        pad_id=int(ids.get(pad, padding.get("pad_id", 0))),
        pad_type_id=int(padding.get("pad_type_id", 0)),
        pad_left=_side(config.get("padding_side"), padding) == "left",
        truncate_left=_side(config.get("truncation_side"), truncation) == "left",
    )


def _positions(config: dict[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings")
    if positions and config.get("model_type") in _POSITIONS_BEHIND_PADDING:
        return int(positions - (config.get("pad_token_id") or 0) - 1)
    return positions


def _side(configured: Any, settings: dict[str, Any]) -> str:
    """tokenizer_config.json before the settings saved in tokenizer.json."""
    return str(configured or settings.get("direction", "right")).lower()

"""What the kinds of model folder share: reading their JSON, and refusing what is none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from converters.source import Source
from converters.sources import SourceRequest
from infer.errors import ConversionError


def refuse_folder(request: SourceRequest) -> Source:
    """Say why this folder cannot be converted. Raises `ConversionError`, always."""
    folder = Path(request.source)
    if (folder / "manifest.json").is_file():
        raise ConversionError(f"'{folder}' is an artifact already; run it, or convert its source")
    raise ConversionError(
        f"'{folder}' is not a model folder: it has neither config.json (transformers) nor"
        f" modules.json (sentence-transformers)"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `ConversionError` naming the file."""
    found = _parse(path)
    if not isinstance(found, dict):
        raise ConversionError(f"'{path}' must hold a JSON object, but holds {found!r:.60}; copy it again")
    return found


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """The list of JSON objects in a file. Raises `ConversionError` naming the file."""
    found = _parse(path)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ConversionError(f"'{path}' must hold a list of JSON objects; copy it again")
    return found


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"'{path.parent}' lacks '{path.name}'") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"'{path}' cannot be read as JSON: {error}") from error

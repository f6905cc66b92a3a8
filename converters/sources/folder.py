"""Folders: a transformers model (config.json and weights), or a sentence-transformers one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from converters.source import Source
from converters.sources import SourceRequest
from infer.errors import ConversionError


def open_folder(request: SourceRequest) -> Source:
    """Tell which kind of model folder it is, and open it."""
    folder = Path(request.source)
    for name, kind in (("modules.json", list), ("config.json", dict)):
        if (folder / name).is_file() and not isinstance(found := read_json(folder / name), kind):
            raise ConversionError(
                f"'{folder / name}' must hold a JSON {'list' if kind is list else 'object'}, but holds"
                f" {found!r:.60}; download the folder again"
            )
    if (folder / "modules.json").is_file():
        from converters.sources.sentence_transformers import open_sentence_transformers

        return open_sentence_transformers(request, folder)
    if (folder / "config.json").is_file():
        from converters.sources.transformers import open_transformers

        return open_transformers(request, folder)
    if (folder / "manifest.json").is_file():
        raise ConversionError(f"'{folder}' is an artifact already; run it, or convert its source")
    raise ConversionError(
        f"'{folder}' is not a model folder: it has neither config.json (transformers) nor"
        f" modules.json (sentence-transformers)"
    )


def read_json(path: Path) -> Any:
    """Parsed JSON. Raises `ConversionError` naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"'{path.parent}' lacks '{path.name}'") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"'{path}' cannot be read as JSON: {error}") from error

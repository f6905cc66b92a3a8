"""The threat table in infer/README.md speaks of tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import infer

HERE = Path(__file__).parent


def _rows() -> list[list[str]]:
    text = (Path(infer.__file__).parent / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| threat |") :].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table if row.startswith("|")]


def test_every_row_names_a_test_or_admits_that_there_is_none() -> None:
    """Each named test is a function of the named file; a row without one is a known limit or impossible."""
    rows = _rows()
    assert len(rows) >= 25
    for row in rows:
        assert len(row) == 3, row
        threat, answer, test = row
        if test == "none":
            assert "known limit" in answer or "cannot be told" in answer, threat
            continue
        file, _, function = test.strip("`").partition("::")
        path = HERE.parents[1] / file if "/" in file else HERE / file
        assert re.search(rf"^def {function}\(", path.read_text(encoding="utf-8"), re.MULTILINE), test


def test_the_reading_order_names_every_file() -> None:
    """Every file and folder of the package is in the table of the README."""
    package = Path(infer.__file__).parent
    text = (package / "README.md").read_text(encoding="utf-8")
    order = text[text.index("## Reading order") : text.index("## What may import what")]
    named = set(re.findall(r"`([\w/.]+)`", order))
    present = {p.name if p.is_file() else f"{p.name}/" for p in package.iterdir()}
    ignored = {"README.md", "__init__.py", "__pycache__/", "py.typed"}
    assert present - named - ignored == set()

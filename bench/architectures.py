"""Which architectures convert, with which exporter and patches, beside what the stock exporters do.

    python -m bench.architectures [NAME…] [--stock] [-o TABLE.md]

Each architecture of tests/architectures.py is converted as a user would. With --stock, each of
torch's exporters is tried alone, without patches, and held to the same points. It is right, gives no
graph, freezes a dim, gives a graph that fails, or one that answers wrongly without saying so.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import converters
from converters import attempts
from converters.convert import usual_axes
from converters.exporters import EXPORTERS, Exporter
from converters.flat import FlatModule
from converters.options import ConvertOptions
from converters.patches import Active
from converters.points import Points, make_points
from converters.ready import ready
from converters.sources import SourceRequest, open_source
from infer.errors import InferError
from tests.architectures import ARCHITECTURES, Architecture


def main() -> None:
    """Print the tables, and the counts below them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    chosen = [a for a in ARCHITECTURES if not arguments.names or a.name in arguments.names]
    lines = list(stock(chosen) if arguments.stock else ours(chosen))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def ours(chosen: list[Architecture]) -> Iterator[str]:
    """A row for each conversion."""
    yield _said("| architecture | exporter | patches | dims | worst error | s | others lost because |")
    yield _said("|---|---|---|---|---|---|---|")
    passed = 0
    for architecture in chosen:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            start = time.perf_counter()
            try:
                artifact = converters.convert(architecture.save(folder / "model"), folder / "model.infer")
            except InferError as error:
                yield _said(f"| {architecture.name} | FAILS | | | | | {_short(str(error), 300)} |")
                continue
            seconds = time.perf_counter() - start
            manifest = artifact.manifest
            won = manifest.provenance.attempts[-1]
            lost = [f"{a.exporter} {a.opset}: {a.reason}" for a in manifest.provenance.attempts if a.reason]
            assert manifest.parity is not None
            worst = max(m.max_relative or 0.0 for m in manifest.parity.measured)
            whole = manifest.signature.dims == architecture.dims and not architecture.fixed
            passed += whole
            yield _said(
                f"| {architecture.name} | {won.exporter} {won.opset}"
                f" | {', '.join(manifest.provenance.patches)}"
                f" | {', '.join(manifest.signature.dims)}{'' if whole else ' (not all)'}"
                f" | {worst:.0e} | {seconds:.0f} | {_short('; '.join(lost), 160)} |"
            )
    yield _said(f"\n{passed} of {len(chosen)} pass at all points with all dims of the original.")


def stock(chosen: list[Architecture]) -> Iterator[str]:
    """A row for each architecture, a column for each exporter without patches."""
    yield _said(f"| architecture | {' | '.join(map(str, EXPORTERS))} |")
    yield _said("|---" * (len(EXPORTERS) + 1) + "|")
    counts: dict[str, Counter[str]] = {str(exporter): Counter() for exporter in EXPORTERS}
    for architecture in chosen:
        cells = []
        with tempfile.TemporaryDirectory() as name, no_patches():
            folder = architecture.save(Path(name) / "model")
            with ready(open_source(SourceRequest(folder, architecture.name))) as source:
                flat = FlatModule(source)
                flat.requires_grad_(True)  # as a model is that was just loaded
                points = make_points(flat, {}, usual_axes(source, flat, {}))
                for exporter in EXPORTERS:
                    verdict = _verdict(exporter, flat, points, Path(name) / "graphs/model.onnx")
                    counts[str(exporter)][verdict] += 1
                    cells.append(verdict)
        yield _said(f"| {architecture.name} | {' | '.join(cells)} |")
    for exporter, counted in counts.items():
        yield _said(f"\n{exporter}: " + ", ".join(f"{n} {verdict}" for verdict, n in counted.most_common()))


def _verdict(exporter: Exporter, flat: FlatModule, points: Points, graph: Path) -> str:
    outcome = attempts.try_exporter(exporter, flat, points, graph, ConvertOptions(), lambda _: None)
    reason = outcome.reason
    if reason is None:
        return "right"
    if reason.startswith("the export failed"):
        return "no graph"
    if reason.startswith("the exporter froze"):
        return "freezes a dim"
    if not all(measured.within for measured in outcome.measured):
        return "silently wrong"
    return "fails at the example" if not outcome.measured else "fails at other sizes"


@contextmanager
def no_patches() -> Iterator[None]:
    """Exporters as torch ships them."""
    before = attempts.torch_patches, attempts.apply_graph_patches

    @contextmanager
    def none() -> Iterator[Active]:
        yield Active()

    attempts.torch_patches, attempts.apply_graph_patches = none, lambda _: ()
    try:
        yield
    finally:
        attempts.torch_patches, attempts.apply_graph_patches = before


def _said(line: str) -> str:
    print(line, flush=True)
    return line


def _short(text: str, length: int) -> str:
    text = text.replace("|", "/")
    return text if len(text) <= length else text[: length - 1] + "…"


if __name__ == "__main__":
    main()

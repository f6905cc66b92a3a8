"""Candidates by what the command line calls them: artifacts, `.onnx` files, and sources in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infer.errors import InferError, missing_package
from infer.feeds import Feeds, example_feeds
from infer.measure.candidates import Candidate, Local, names_of, opened
from infer.options import PlanOptions, SessionOptions
from infer.session import open_artifact
from infer.signature import Array, Signature, TensorSpec


@dataclass(frozen=True)
class Opened:
    """Candidates that could be opened, in the order they were named, and feeds for them.

    Attributes:
        described: what each runs on, by name; of those that failed, what they were called.
        failed: why the others could not be opened, by name.
    """

    candidates: list[Candidate]
    feeds: Feeds
    described: Mapping[str, str]
    failed: Mapping[str, str]

    def paths(self) -> dict[str, Path]:
        """The artifacts and graphs among them, by name."""
        return {c.name: c.path for c in self.candidates if isinstance(c, Local) and c.path is not None}


@contextmanager
def opened_all(
    texts: Sequence[str],
    options: PlanOptions,
    given: Feeds | None,
    weights: Path | None,
    untrusted: bool,
) -> Iterator[Opened]:
    """Open every candidate; feeds are `given`, or those of the first graph, or a source's example.

    Graphs come first, because sources may need their feeds. Raises the first error if none can be opened.
    """
    names = names_of(texts)
    session_options = SessionOptions(untrusted=untrusted)
    found: dict[str, Candidate] = {}
    errors: dict[str, InferError] = {}
    feeds, known = given, None
    with ExitStack() as stack:
        for text, name in zip(texts, names, strict=True):
            if is_graph(text):
                try:
                    candidate = stack.enter_context(opened(Path(text), options, name, session_options))
                    feeds = feeds or example_feeds(open_artifact(Path(text)))
                except InferError as error:
                    errors[name] = error
                    continue
                found[name], known = candidate, known or candidate.signature
        for text, name in zip(texts, names, strict=True):
            if not is_graph(text):
                try:
                    found[name], example = stack.enter_context(
                        _source(text, name, options.num_threads or 1, feeds, weights, known)
                    )
                except InferError as error:
                    errors[name] = error
                    continue
                feeds = feeds or example
        if feeds is None or not found:
            raise next(iter(errors.values()))
        yield Opened(
            [found[name] for name in names if name in found],
            feeds,
            {
                name: found[name].described if name in found else text
                for name, text in zip(names, texts, strict=True)
            },
            {name: str(error) for name, error in errors.items()},
        )


def is_graph(text: str) -> bool:
    """Whether this names an artifact or an `.onnx` file, and not a source in PyTorch."""
    path = Path(text)
    return path.suffix in (".onnx", ".infer") or (path / "manifest.json").is_file()


@contextmanager
def _source(
    text: str,
    name: str,
    threads: int,
    feeds: Feeds | None,
    weights: Path | None,
    known: Signature | None,
) -> Iterator[tuple[Candidate, Feeds]]:
    """A model in PyTorch, eagerly run, with as many threads as the others."""
    try:
        from converters.original import original
    except (ImportError, OSError) as error:
        raise missing_package("torch", "convert", error) from error
    with original(text, name, feeds, weights, threads) as asked:
        yield Local(name, asked.on, known or _signature(asked.feeds), asked.run), asked.feeds


def _signature(feeds: Mapping[str, Array]) -> Signature:
    """Of a model of which only an example is known: its first axis is taken for the batch."""
    specs = [
        TensorSpec(name, array.dtype.name, ("batch", *array.shape[1:]) if array.ndim else ())
        for name, array in feeds.items()
    ]
    return Signature(tuple(specs), ())
